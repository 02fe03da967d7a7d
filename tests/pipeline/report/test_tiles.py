"""Image tiles and pages of them: how values become pixels."""

import numpy as np
from PIL import Image

from pipeline.report.tiles import GAP, LEVELS, WIDTH, normalise, save_page, tile


def test_the_minimum_is_black_and_the_maximum_white():
    assert normalise(np.array([-2.0, 0.0, 2.0])).tolist() == [0, 128, 255]
    assert normalise(np.full(3, 7.0)).tolist() == [0, 0, 0]


def test_small_images_are_enlarged_by_an_integer_factor_and_arranged_in_rows():
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    whole = tile(images, columns=2, width=2 * (6 + GAP) + 1)
    assert whole.shape == (2 * 6 + GAP, 2 * 6 + GAP)
    assert np.array_equal(whole[:6, :6], images[0].repeat(3, 0).repeat(3, 1))
    assert np.array_equal(whole[:6, 6 + GAP :], images[1].repeat(3, 0).repeat(3, 1))
    assert np.array_equal(whole[6 + GAP :, :6], images[2].repeat(3, 0).repeat(3, 1))
    assert (whole[6 : 6 + GAP] == 255).all()
    assert (whole[6:, 6:] == 255).all()


def test_large_images_are_reduced_by_averaging():
    image = np.zeros((1, 40, 80), np.uint8)
    image[0, :, ::2] = 200
    whole = tile(image, columns=1, width=40 + GAP)
    assert whole.shape == (20, 40)
    assert (whole == 100).all()


def test_a_page_has_titles_and_the_tiles_colours(tmp_path):
    gray = np.full((30, 50), 255, np.uint8)
    gray[:10] = 0
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    save_page(tmp_path / "page.png", [("first", gray), ("a title so long that it takes lines " * 3, red)])
    page = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert page.shape[1] == WIDTH
    starts = np.flatnonzero((page[:, 0] == 0).all(1) & (page[:, 45] == 0).all(1))
    assert len(starts) == 10
    reddish = (page == (255, 0, 0)).all(2)
    assert reddish.sum() == 400
    assert (page[: starts[0]] < 128).any()
    between = page[starts[0] + 30 : np.flatnonzero(reddish.any(1))[0]]
    assert (between < 128).any(2).any(1).sum() > 30
    assert len(np.unique(page[: starts[0]].reshape(-1, 3), axis=0)) <= LEVELS
