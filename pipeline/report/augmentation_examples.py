"""Show what a dataset's augmentation makes of its images: a row for each of some training images, itself and changed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import caffe
from caffe.augmentation import Augmentation
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.dataset.augmentation import as_param, of_records
from pipeline.errors import InputError
from pipeline.figures import STYLE, save_png
from pipeline.files import written_whole
from pipeline.formats.records import channels_of
from pipeline.options.flags import read_flags
from pipeline.options.training import AugmentationExamplesOptions
from pipeline.report.dataset_pictures import sheet, thumbnail
from pipeline.report.gallery import in_order

ROWS, COLUMNS = 6, 8
"""Images shown, and how often each."""


def examples(database: Path, changes: caffe_pb2.AugmentationParameter, seed: int) -> list[np.ndarray]:
    """Thumbnails of the first images of a database, each as it is and COLUMNS - 1 times changed."""
    shown: list[np.ndarray] = []
    channels = channels_of(database)
    augmentation = Augmentation(of_records(changes, channels), "augmentation", np.random.default_rng(seed))
    for key, value in islice(caffe.open_db(database).items(), ROWS):
        image = caffe.pixels_of(caffe.parse_datum(value), None, f"{database}: {key.decode(errors='replace')}")
        drawn = augmentation.draw(COLUMNS - 1)
        shown += [image, *(augmentation.changed(image, drawn, index) for index in range(COLUMNS - 1))]
    return [thumbnail(in_order(image, channels, "BGR")) for image in shown]


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, AugmentationExamplesOptions)
    parser.add_argument("database", type=Path, help="the training LMDB")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    a = parser.parse_args(argv)
    options = read_flags(a, AugmentationExamplesOptions)
    if options.augmentation is None:
        raise InputError("--augmentation", "none", "it is what the examples show", """give it, as in '{"rotation": 10}'""")
    shown = examples(a.database, as_param(options.augmentation), options.seed)
    image = sheet(shown, COLUMNS)
    with written_whole(a.picture) as part, plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 8 * image.shape[0] / image.shape[1] + 0.4), layout="constrained")
        axis.imshow(image[:, :, ::-1], aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        step = image.shape[1] / COLUMNS
        axis.text(step / 2, -8, "as it is", ha="center")
        axis.text(image.shape[1] / 2 + step / 2, -8, "as the net may see it", ha="center")
        save_png(figure, part, tight=True)
    print(f"{a.picture}: {len(shown) // COLUMNS} images, each changed {COLUMNS - 1} times")


if __name__ == "__main__":
    run(main)
