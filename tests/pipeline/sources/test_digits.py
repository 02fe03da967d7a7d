from urllib.request import url2pathname

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits


def test_all_digits_are_written_with_the_lists_of_both_datasets(command, tmp_path):
    assert command("pipeline.sources.digits", "digits").returncode == 0
    base, target = (pd.read_csv(tmp_path / "digits" / f"{name}.csv") for name in ("base", "target"))
    assert len(base) + len(target) == len(list((tmp_path / "digits/images").iterdir())) == 1797
    assert sorted(base.label.unique()) == [0, 1, 2, 3, 4]
    assert sorted(target.label.unique()) == [5, 6, 7, 8, 9]
    assert (target[target.split == "train"].groupby("label").size() == 20).all()
    assert abs((base.split == "val").mean() - 0.2) < 0.01


def test_a_png_holds_the_pixels_of_its_digit_with_a_black_margin(command, tmp_path):
    assert command("pipeline.sources.digits", "digits").returncode == 0
    url = pd.read_csv(tmp_path / "digits/base.csv").url[0]
    image = cv2.imread(str(tmp_path / url2pathname(url.removeprefix("file:"))), cv2.IMREAD_UNCHANGED)
    digit = load_digits().images[int(url[-8:-4])] * (255 / 16)
    margin = (image.shape[0] - 8) // 2
    np.testing.assert_allclose(image, np.pad(digit, margin), atol=0.5)


def test_the_lists_are_reproducible(command, tmp_path):
    lists = []
    for _ in range(2):
        assert command("pipeline.sources.digits", "digits").returncode == 0
        lists.append([(tmp_path / f"digits/{name}.csv").read_bytes() for name in ("base", "target")])
    assert lists[0] == lists[1]
