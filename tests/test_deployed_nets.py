"""The pages about published nets: their commands, scripts and pictures, on stand-ins of the nets with random weights."""

import re

import cv2
import numpy as np
import pytest

from tests import page_pictures
from tests.conftest import ROOT

PRINTED = {
    "openpose": "joint 17: (",
    "mobilenet_ssd": " rows\n",
    "face_detector": " rows\n",
    "age_gender": "male: 0.",
    "colorization": "",
}
"""{page: what its last script prints}."""
ALIKE = 5
"""Largest mean difference of the pixels, of 255, between a page's picture and the same drawn again: a box of another order."""


@pytest.fixture(scope="module", params=PRINTED)
def followed(request, tmp_path_factory):
    """A page, the folder in which its commands ran, and what they printed."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, list(page_pictures.follow(request.param, folder))


def test_the_commands_of_a_page_run(followed):
    page, folder, steps = followed
    assert {words[0] for words, _ in steps} == {"python", "roastery"}
    for words, output in steps:
        if words[:2] == ["roastery", "doctor"]:
            assert f"docs/{page}.md has an example" in " ".join(output.split())
            assert "missing" not in output
            assert len(output.splitlines()) <= 24
        elif words[0] == "roastery":
            assert re.search(r"onnxruntime \S+ differs from the net by \d\.\de-\d\d", output)
            assert re.search(r"OpenCV \S+ differs from onnxruntime by \d\.\de[-+]\d\d", output), output
    assert PRINTED[page] in steps[-1][1]
    if page == "colorization":
        height, width = cv2.imread(str(folder / "photo.jpg")).shape[:2]
        assert cv2.imread(str(folder / "coloured.png")).shape == (height, width, 3)


def test_the_picture_of_a_page_is_the_one_that_its_commands_draw(followed):
    page, folder, _ = followed
    (shown,) = page_pictures.pictures_of(page)
    drawn, kept = (cv2.imread(str(path)).astype(int) for path in (folder / shown.name, shown))
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < ALIKE, "python -m tests.page_pictures draws it anew"
    photograph = cv2.resize(cv2.imread(str(folder / "photo.jpg")).astype(float), drawn.shape[1::-1])
    assert np.abs(drawn - photograph).max() > 100, "nothing is drawn on the photograph"


def test_pictures_are_small_and_their_captions_say_that_the_weights_are_random():
    shown = [path for page in PRINTED for path in page_pictures.pictures_of(page)]
    assert sorted(shown) == sorted((ROOT / "docs/pictures").iterdir())
    assert max(path.stat().st_size for path in shown) < 100_000
    for page in PRINTED:
        caption = (ROOT / f"docs/{page}.md").read_text().partition("](pictures/")[2].split("\n\n")[1]
        assert "stand-in" in caption
        assert "random" in caption
        assert "public" in caption
