"""The report's first page: what it advises, and that it holds every experiment's result and pictures."""

import re

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.report import overview

CLASSES = pd.DataFrame({"class": ["cat", "dog", "eel"], "images": [10, 10, 20], "accuracy": [0.9, 0.9, 0.9]})
CONFUSION = pd.DataFrame({"class": ["cat", "dog", "eel"], "cat": [9, 1, 0], "dog": [1, 9, 2], "eel": [0, 0, 18]})


def row(accuracy=0.9, best=0.9, note=""):
    return pd.Series({"experiment": "a", "dataset": "d", "images": 40, "accuracy": accuracy, "best_accuracy": best, "note": note})


def metrics(tests, losses=0.5, test_loss=0.5):
    steps = np.arange(len(tests)) * 10
    return pd.DataFrame({"iteration": steps, "loss": losses, "test_loss": test_loss, "test_accuracy": tests})


FLAT = [0.5, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]


@pytest.mark.parametrize(
    ("given", "classes", "measured", "said"),
    [
        (row(), CLASSES, metrics(FLAT), "Nothing stands out. Its most frequent mistake is eel taken for dog (2 images);"),
        (
            row(np.nan, np.nan, "diverged at iteration 7"),
            CLASSES,
            metrics(FLAT),
            "Its training diverged at iteration 7: lower base_lr",
        ),
        (row(0.4, 0.4), CLASSES.assign(accuracy=0.4), metrics([0.4] * 8), "hardly better than guessing among 3 classes"),
        (row(0.9, 0.95), CLASSES, metrics([0.5, 0.95, *FLAT[2:]]), "best at iteration 10, with 95.0 %: best.caffemodel"),
        (row(), CLASSES, metrics([0.2, 0.4, 0.6, 0.8, 0.82, 0.85, 0.88, 0.9]), "still rising at the end"),
        (row(), CLASSES, metrics(FLAT, losses=0.1, test_loss=0.5), "5.0 times that in training, so it overfits"),
        (
            row(),
            CLASSES.assign(accuracy=[0.9, 0.5, 0.9]),
            metrics(FLAT),
            "Of class dog, 50.0 % of 10 images are right; 1 of them taken for cat",
        ),
    ],
)
def test_each_experiment_gets_the_advice_that_fits_it(given, classes, measured, said):
    found = overview.advice(given, classes, CONFUSION, measured)
    assert len(found) == 1
    assert said in found[0]


def test_an_experiment_without_mistakes_is_not_told_to_look_at_them():
    right = pd.DataFrame({"class": ["cat", "dog", "eel"], "cat": [10, 0, 0], "dog": [0, 10, 0], "eel": [0, 0, 20]})
    (said,) = overview.advice(row(1.0, 1.0), CLASSES.assign(accuracy=1.0), right, metrics([0.5, 0.9, *[1.0] * 6]))
    assert said.startswith("No image is classified wrongly")


@pytest.fixture
def results(tmp_path):
    """Arguments of the command for three experiments, one of them diverged, with hostile names."""
    names = ["a", "<b>", "c & d"]
    table = pd.DataFrame(
        {"experiment": names, "dataset": ["d", "d", "e"], "images": [40, 40, 1234], "accuracy": [0.9, 0.5, np.nan]}
    )
    table.assign(best_accuracy=table.accuracy, iterations=70, note=["", "", "diverged at iteration 7"]).to_csv(
        tmp_path / "comparison.csv", index=False
    )
    arguments = [str(tmp_path / "overview.html"), "--table", str(tmp_path / "comparison.csv")]
    for name, height in (("comparison", 200), ("curves", 200), ("matrices", 300), ("mistakes", 3000)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((height, 600, 3), 99, np.uint8))
    CLASSES.to_csv(tmp_path / "classes.csv", index=False)
    CONFUSION.to_csv(tmp_path / "confusions.csv", index=False)
    metrics(FLAT).assign(learning_rate=0.1).to_csv(tmp_path / "metrics.csv", index=False)
    arguments += ["--plot", str(tmp_path / "comparison.png")]
    for name, kind in (
        ("metrics", "csv"),
        ("classes", "csv"),
        ("confusions", "csv"),
        ("curves", "png"),
        ("matrices", "png"),
        ("mistakes", "png"),
    ):
        arguments += [f"--{name}", *[str(tmp_path / f"{name}.{kind}")] * 3]
    return arguments


def test_the_page_has_a_line_and_a_section_for_each_experiment(results, tmp_path):
    overview.main(results)
    page = (tmp_path / "overview.html").read_text()
    assert page.count("<h2") == 3
    assert page.count('<tr><td><a href="#overview-') == 3
    for text in ("a: 90.0 %", "&lt;b&gt;: 50.0 %", "c &amp; d: diverged at iteration 7", "1,234", "surest mistakes (upper part)"):
        assert text in page
    assert "<b>" not in page
    pictures = re.findall(r'src="data:image/png;base64,', page)
    assert len(pictures) == 1 + 3 * 3
    assert "http" not in page.replace("data:image/png", "")


def test_of_many_experiments_the_best_have_pictures(results, tmp_path, monkeypatch):
    monkeypatch.setattr(overview, "SHOWN", 2)
    overview.main(results)
    sections = (tmp_path / "overview.html").read_text().split("<h2")[1:]
    assert ["<figure" in section for section in sections] == [True, False, True]


def test_a_damaged_picture_is_named(results, tmp_path):
    (tmp_path / "curves.png").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"curves.png: not a picture"):
        overview.main(results)
    assert not (tmp_path / "overview.html").exists()


def test_the_weakest_class_may_have_a_number_or_na_as_its_name(results, tmp_path):
    names = {"cat": "7", "dog": "007", "eel": "NA"}
    for weakest in (1, 2):
        accuracy = [0.9, 0.9, 0.9]
        accuracy[weakest] = 0.5
        CLASSES.assign(accuracy=accuracy).replace({"class": names}).to_csv(tmp_path / "classes.csv", index=False)
        CONFUSION.replace({"class": names}).rename(columns=names).to_csv(tmp_path / "confusions.csv", index=False)
        overview.main(results)
        assert f"Of class {['7', '007', 'NA'][weakest]}, 50.0 % of" in (tmp_path / "overview.html").read_text()
