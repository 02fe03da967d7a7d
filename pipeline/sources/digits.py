"""Write the embedded example: scikit-learn's 1,797 handwritten digits as PNG files, and two lists of their URLs.

base.csv    digits 0 to 4, a fifth of each for validation
target.csv  digits 5 to 9, 20 of each for training and the rest for validation
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from pipeline.command import run, step_parser
from pipeline.files import file_url, written_whole
from pipeline.formats.images import write_png

TARGET_TRAINING_IMAGES = 20
MARGIN = 2
"""Padding in pixels, as MNIST has it: LeNet's convolutions hardly see the border of an image."""


def write_digits(folder: Path) -> None:
    """Write `images/DIGIT_NUMBER.png` (12×12, gray), `base.csv` and `target.csv` (url, label, split) to `folder`, whole."""
    digits = load_digits()
    with written_whole(folder) as part:
        (part / "images").mkdir(parents=True)
        rows = []
        for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            name = f"{digit}_{number:04d}.png"
            pixels = np.pad(np.round(image * (255 / 16)).astype(np.uint8), MARGIN)  # values are 0 to 16
            write_png(part / "images" / name, pixels)
            rows.append((file_url(folder.resolve() / "images" / name), int(digit)))
        table = pd.DataFrame(rows, columns=["url", "label"])
        # The digits are sorted by writer; in a random split, both parts have all writers.
        rank = table.sample(frac=1, random_state=0).groupby("label").cumcount().sort_index()
        size = table.groupby("label").label.transform("size")
        for name, rows_of_list, training in (
            ("base", table.label < 5, rank < 0.8 * size),
            ("target", table.label >= 5, rank < TARGET_TRAINING_IMAGES),
        ):
            listed = table.assign(split=np.where(training, "train", "val"))[rows_of_list]
            listed.to_csv(part / f"{name}.csv", index=False)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("folder", type=Path, help="where to write; replaced if it exists")
    write_digits(parser.parse_args(argv).folder)


if __name__ == "__main__":
    run(main)
