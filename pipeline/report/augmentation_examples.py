"""Show examples of a dataset's augmentation: a row for each of some training images, original and augmented."""

from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import caffe
from caffe.augmentation import Augmentation
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.dataset.augmentation import as_param, for_channels
from pipeline.errors import InputError
from pipeline.figures import STYLE, save_png
from pipeline.files import written_whole
from pipeline.formats.records import channels_of
from pipeline.options.flags import read_flags
from pipeline.options.training import AugmentationExamplesOptions
from pipeline.report.dataset_pictures import GAP, thumbnail
from pipeline.report.gallery import records, reorder_channels
from pipeline.report.tiles import grid

ROWS, COLUMNS = 6, 8
"""Images, and copies of each with the original."""


def examples(database: Path, param: caffe_pb2.AugmentationParameter, seed: int) -> list[np.ndarray]:
    """Thumbnails of the first images of a database, each followed by COLUMNS - 1 augmented copies."""
    images: list[np.ndarray] = []
    channels = channels_of(database)
    augmentation = Augmentation(for_channels(param, channels), "augmentation", caffe.Generator(seed))
    for where, record in islice(records(database), ROWS):
        image = caffe.pixels_of(caffe.parse_datum(record), None, where)
        changes = augmentation.draw(COLUMNS - 1)
        images += [image, *(augmentation.apply(image, changes, index) for index in range(COLUMNS - 1))]
    return [thumbnail(reorder_channels(image, channels, "BGR")) for image in images]


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, AugmentationExamplesOptions)
    parser.add_argument("database", type=Path, help="the training LMDB")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    a = parser.parse_args(argv)
    options = read_flags(a, AugmentationExamplesOptions)
    if options.augmentation is None:
        raise InputError("--augmentation", "none", "the examples show it", """give it, as in '{"rotation": 10}'""")
    shown = examples(a.database, as_param(options.augmentation), options.seed)
    image = grid(shown, COLUMNS, GAP)
    with written_whole(a.picture) as part, plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 8 * image.shape[0] / image.shape[1] + 0.4), layout="constrained")
        axis.imshow(image[:, :, ::-1], aspect="equal")
        axis.axis("off")
        step = image.shape[1] / COLUMNS
        axis.text(step / 2, -8, "as it is", ha="center")
        axis.text(image.shape[1] / 2 + step / 2, -8, "as the net may see it", ha="center")
        save_png(figure, part, tight=True)
    print(f"{a.picture}: {len(shown) // COLUMNS} images, each changed {COLUMNS - 1} times")


if __name__ == "__main__":
    run(main)
