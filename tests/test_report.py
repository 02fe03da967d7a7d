"""The report in a real browser: every picture is visible, on a phone and on a desktop, without the network."""

import shutil

import cv2
import numpy as np
import pytest

from tests import standins, workflows

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CONFIG = """\
datasets:
  few:
    source: {list: few.csv, allow_file: true}
    size: {height: 28, width: 28}
    split: {by: fraction, val: 0.34}
    augmentation: {brightness: 0.2}
experiments:
  base: {dataset: few, model: lenet, batch_size: 2, solver: {max_iter: 2}}
  again_from_scratch: {dataset: few, model: lenet, batch_size: 2, solver: {max_iter: 2}}
"""
CATEGORIES = ["All experiments", "Dataset few", "Experiment base", "Experiment again_from_scratch"]
"""In the config's order."""
RESULTS = {
    "Dataset few": [
        *("images of each class", "how many of each class", "contact sheet 0000: a", "contact sheet 0001: b"),
        *("sizes of the files", "near-duplicates", "mean image", "augmented images"),
    ],
    "Experiment base": [
        *("net", "layers", "preflight", "curves", "confusion matrix", "accuracy by class", "calibration", "surest mistakes"),
        *("predictions", "filters", "activations", "probabilities", "feature maps 1: a", "feature maps 2: b"),
    ],
    "All experiments": ["overview", "curves", "table"],
}
"""The results of each category, in the order of the work."""
TABLES = {"near-duplicates", "layers", "preflight", "accuracy by class", "predictions", "table"}
SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1280, "height": 900}}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """report.html of a training of two iterations on six pictures."""
    folder = tmp_path_factory.mktemp("report")
    standins.listed_pictures(folder)
    (folder / "config.yaml").write_text(CONFIG)
    for arguments in ((), ("--report", "report.html")):
        code, output = workflows.snakemake(folder, *arguments)
        assert code == 0, output
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.mark.parametrize("size", SIZES)
def test_every_picture_of_the_report_is_visible(report, browser, size):
    page = browser.new_page(viewport=SIZES[size])
    page.set_default_timeout(120_000)
    troubles, asked = [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto(report.as_uri())
    assert page.locator("li", has_text="base: lenet on few").is_visible()
    named = page.locator("nav a").all_inner_texts()
    assert [name.strip() for name in named if name.strip() in CATEGORIES] == CATEGORIES
    for category, results in RESULTS.items():
        page.locator("nav a").filter(has_text=category).first.click()
        rows = page.locator("nav tbody tr")
        assert rows.locator("td:first-child").all_inner_texts() == results
        for number in range(len(results)):
            name, look = rows.nth(number).locator("td").first.inner_text(), rows.nth(number).locator("a").first
            if name == "overview":
                continue  # a page, which the report begins with
            look.click()
            if name in TABLES:
                _assert_sorts_and_filters(page, f"{category}, {name}")
            else:
                _assert_visible(page, f"{category}, {name}")
        page.locator("nav ol a").first.click()
    assert troubles == []
    assert set(asked) <= {"file", "data"}
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_report_begins_with_results(report, browser, size):
    page = browser.new_page(viewport=SIZES[size])
    page.set_default_timeout(120_000)
    page.goto(report.as_uri())
    first = page.locator(".overview")
    assert first.locator("table").is_visible()
    box = first.locator("table").bounding_box()
    assert box["x"] + box["width"] <= SIZES[size]["width"]
    heights = first.locator("tr:not(:first-child)").evaluate_all("rows => rows.map(row => row.clientHeight)")
    assert max(heights) < 45, "a short name is broken into two lines"
    assert first.locator("td", has_text="%").count() == 2
    assert [title.partition(":")[0] for title in first.locator("h2").all_inner_texts()] == ["base", "again_from_scratch"]
    assert first.locator("li").count() >= 2
    pictures = first.locator("img")
    assert pictures.count() == 1 + 3 * 2
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        assert picture.evaluate("image => image.naturalWidth") > 0
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size]["width"]
    page.close()


def _assert_sorts_and_filters(page, what: str) -> None:
    """Assert that the current table fits the screen, and that its first column sorts both ways and filters."""
    table = page.frame_locator("iframe")
    head, filter_ = table.locator("th").first, table.locator("input")
    filter_.wait_for()
    box = page.locator("iframe").bounding_box()
    assert box["x"] + box["width"] <= page.viewport_size["width"], what
    assert table.locator("html").evaluate("page => page.scrollWidth <= page.clientWidth"), f"{what}: wider than the screen"
    orders = []
    for _ in range(2):
        head.locator("button").click()
        orders.append((head.get_attribute("aria-sort"), table.locator("tbody td:first-child").all_inner_texts()))
    assert {order for order, _ in orders} == {"ascending", "descending"}, what
    (_, once), (_, twice) = orders
    assert once == twice[::-1] or len(set(once)) < len(once), what
    if once:
        filter_.fill(f"{head.inner_text()}={once[0]}")
        assert set(table.locator("tbody tr:visible td:first-child").all_inner_texts()) == {once[0]}, what
    filter_.fill("no such text in the table")
    assert table.locator("tbody tr:visible").count() == 0, what
    assert table.locator("output").inner_text() == f"0 of {len(once)} rows", what


def _assert_visible(page, what: str) -> None:
    """Assert that the current picture is decoded, starts on the screen, fits its width, and has more than one colour."""
    picture = page.locator("#app > div > nav + div img")
    source = picture.get_attribute("src")
    assert source.startswith("data:image/"), what
    page.wait_for_function("document.querySelector('#app > div > nav + div img').complete")
    assert picture.evaluate("image => image.naturalWidth") > 0, what
    box, screen = picture.bounding_box(), page.viewport_size
    assert box["x"] >= 0, what
    assert box["x"] + box["width"] <= screen["width"], what
    assert 0 <= box["y"] < screen["height"] / 2 + 150, what
    assert box["width"] > 100, what
    shown = cv2.imdecode(np.frombuffer(picture.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert shown.std() > 8, what


def test_the_report_and_its_pictures_are_small(report):
    assert report.stat().st_size < 5_500_000
    pictures = [path for path in report.parent.glob("results/**/*.png") if "download" not in path.parts]
    assert len(pictures) > 12
    assert max(path.stat().st_size for path in pictures) < 200_000
