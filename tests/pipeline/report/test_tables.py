"""Tables as pages: what they show of a CSV file, without network, with scripts and without."""

import base64
import re
import shutil

import pytest

from pipeline.errors import InputError
from pipeline.files import write_table
from pipeline.report import table_texts, tables

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made(folder, name, columns, rows, of="base"):
    """The page of a table with these rows, as text."""
    path = folder / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, columns, rows)
    tables.main([str(folder / "pages"), str(path), "--of", of])
    return (folder / "pages" / f"{name}.html").read_text()


def cells(page):
    """The text of each cell, by row."""
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def test_a_page_has_every_row_as_plain_html_and_the_file_to_save(tmp_path):
    page = made(tmp_path, "per_class", ["class", "images", "accuracy"], [["cat", 12, 0.8580246913580247], ["dog", 7, ""]])
    assert cells(page) == [["class", "images", "accuracy"], ["cat", "12", "0.85802"], ["dog", "7", ""]]
    assert 'title="0.8580246913580247"' in page
    assert "<title>base: accuracy by class</title>" in page
    saved = re.search(r'href="data:text/csv;base64,([^"]+)" download="per_class.csv"', page)[1]
    assert base64.b64decode(saved) == (tmp_path / "per_class.csv").read_bytes()
    assert "http" not in page
    assert page.count('<th class="n">') == 2


def test_an_empty_table_is_a_page_with_its_head(tmp_path):
    page = made(tmp_path, "preflight", ["kind", "where", "found", "do"], [])
    assert cells(page) == [["kind", "where", "found", "do"]]
    assert "An empty table means that no check failed." in page


def test_hostile_names_are_text(tmp_path):
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&amp;b", "\u202egnp.exe"]
    page = made(tmp_path, "per_class", ["class", "<i>images"], [[name, 1] for name in hostile], of="</title><script>alert(1)")
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "<i>" not in page
    assert "a&amp;amp;b" in page
    assert "unicode-bidi: isolate" in page


def test_a_name_that_is_not_utf8_does_not_stop_the_report(tmp_path):
    (tmp_path / "per_class.csv").write_bytes(b"class,images\ncaf\xe9,3\n")
    tables.main([str(tmp_path / "pages"), str(tmp_path / "per_class.csv"), "--of", "base"])
    assert cells((tmp_path / "pages/per_class.html").read_text(encoding="utf-8"))[1] == ["caf\ufffd", "3"]


def test_of_many_predictions_the_largest_losses_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS", 3)
    monkeypatch.setattr(tables, "CSV_BYTES", 50)
    page = made(tmp_path, "predictions", ["path", "loss"], [[f"{number}.png", number % 7] for number in range(20)])
    assert cells(page)[1:] == [["6.png", "6"], ["13.png", "6"], ["5.png", "5"]]
    assert f"The first 3 of 20 rows; all are in {tmp_path}/predictions.csv" in page
    assert "base64" not in page


@pytest.mark.parametrize(
    ("content", "found"),
    [("", "empty"), ("path,lo", "cut off within a line"), ("path,label\na,1\n", "no column loss")],
)
def test_a_damaged_table_is_named_and_no_page_is_left(tmp_path, content, found):
    path = tmp_path / "predictions.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=f"predictions.csv: {found}"):
        tables.main([str(tmp_path / "pages"), str(path), "--of", "base"])
    assert not (tmp_path / "pages").exists()


@pytest.mark.parametrize(
    ("table", "page", "title"),
    [
        ("experiments/a/evaluate/predictions.csv", "predictions", "predictions"),
        ("experiments/a/evaluate_train/per_class.csv", "per_class_train", "accuracy by class, training images"),
        ("experiments/a/evaluate_test/per_class.csv", "per_class_test", "accuracy by class, images for testing"),
        ("report/comparison.csv", "comparison", "table"),
        ("report/rates.csv", "sweep_rates", "rates, table"),
        ("report/rates_test.csv", "sweep_rates_test", "rates_test, table"),
    ],
)
def test_each_table_has_a_page_of_its_own_and_a_title(tmp_path, table, page, title):
    assert table_texts.page_name(tmp_path / table) == page
    assert table_texts.text_of(page).title == title


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine")
def test_a_page_sorts_and_filters(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    rows = [["ant", "0.5"], ["Bee", "1e-05"], ["cat 10", ""], ["cat 9", "12.25"], ["dog", "0.123456789"], ["eel", "-3"]]
    made(tmp_path, "comparison", ["experiment", "accuracy"], rows)
    with playwright.sync_playwright() as running:
        page = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]).new_page()
        page.goto((tmp_path / "pages/comparison.html").as_uri())
        name, accuracy = page.locator("th button").all()

        def shown():
            return page.locator("tbody tr:visible td:first-child").all_inner_texts()

        accuracy.click()
        assert shown() == ["cat 9", "ant", "dog", "Bee", "eel", "cat 10"]
        accuracy.click()
        assert shown() == ["eel", "Bee", "dog", "ant", "cat 9", "cat 10"]
        name.click()
        assert shown() == ["ant", "Bee", "cat 9", "cat 10", "dog", "eel"]
        for words, found in {
            "CAT": ["cat 9", "cat 10"],
            "cat 9": ["cat 9"],
            "experiment=cat": [],
            "accuracy=0.5": ["ant"],
        }.items():
            page.locator("input").fill(words)
            assert shown() == found, words
            assert page.locator("output").inner_text() == f"{len(found)} of 6 rows"
