"""Write the embedded example: scikit-learn's 1,797 handwritten digits as PNG files, and two lists of their URLs.

base.csv    digits 0 to 4, a fifth of each for validation
target.csv  digits 5 to 9, 20 of each for training and the rest for validation
"""

import importlib.util
import math
from pathlib import Path

import numpy as np

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import file_url, write_table, written_whole
from pipeline.formats.images import write_png

TARGET = 5
"""The first digit of target.csv."""
TARGET_TRAINING_IMAGES = 20
MARGIN = 2
"""Padding in pixels, as MNIST has it: LeNet's convolutions hardly see the border of an image."""


def write_digits(folder: Path) -> None:
    """Write `images/DIGIT_NUMBER.png` (12×12, gray), `base.csv` and `target.csv` (url, label, split) to `folder`, whole."""
    images, labels = load_digits()
    with written_whole(folder) as part:
        (part / "images").mkdir(parents=True)
        urls = []
        for number, (image, digit) in enumerate(zip(images, labels, strict=True)):
            name = f"{digit}_{number:04d}.png"
            pixels = np.pad(np.round(image * (255 / 16)).astype(np.uint8), MARGIN)  # values are 0 to 16
            write_png(part / "images" / name, pixels)
            urls.append(file_url(folder.resolve() / "images" / name))
        # The digits are sorted by writer; in a random split, both parts have all writers.
        order = np.random.RandomState(0).permutation(len(labels))
        is_training = np.zeros(len(labels), bool)
        for digit in range(10):
            of_digit = order[labels[order] == digit]
            is_training[of_digit[: math.ceil(0.8 * len(of_digit)) if digit < TARGET else TARGET_TRAINING_IMAGES]] = True
        for name, is_listed in (("base", labels < TARGET), ("target", labels >= TARGET)):
            rows = ((urls[row], labels[row], "train" if is_training[row] else "val") for row in np.flatnonzero(is_listed))
            write_table(part / f"{name}.csv", ("url", "label", "split"), rows)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images × 8 × 8 (0 to 16), and the digit of each, int.

    They are read from its file, as its function of this name does: importing scikit-learn takes longer than all else here.
    """
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin or "").with_name("datasets") / "data/digits.csv.gz" if package else None
    if path is None or not path.is_file():
        raise InputError("scikit-learn", "its digits are missing", "they are in its package", "install scikit-learn")
    table = np.loadtxt(path, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where to write; replaced if it exists")
    write_digits(parser.parse_args(argv).folder)


if __name__ == "__main__":
    run(main)
