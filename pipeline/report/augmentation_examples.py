"""Show examples of a dataset's augmentation: a row for each of some training images, original and augmented."""

from __future__ import annotations

import argparse
from contextlib import closing
from itertools import islice
from pathlib import Path

import lmdb
import matplotlib.pyplot as plt
import numpy as np

from caffe.augmentation import Augmentation
from caffe.datum import parse, pixels_of
from caffe.proto import caffe_pb2
from pipeline.command import run
from pipeline.dataset.augmentation import for_channels, parse_augmentation
from pipeline.errors import InputError
from pipeline.figures import STYLE, save_png
from pipeline.files import written_whole
from pipeline.formats.records import channels_of
from pipeline.report.dataset_pictures import GAP, thumbnail
from pipeline.report.gallery import reorder_channels
from pipeline.report.tiles import grid

ROWS, COLUMNS = 6, 8
"""Images, and copies of each with the original."""


def examples(database: Path, param: caffe_pb2.AugmentationParameter, seed: int) -> list[np.ndarray]:
    """Thumbnails of the first images of a database, each followed by COLUMNS - 1 augmented copies."""
    images: list[np.ndarray] = []
    channels = channels_of(database)
    augmentation = Augmentation(for_channels(param, channels), "augmentation", np.random.default_rng(seed))
    with closing(lmdb.open(str(database), readonly=True, lock=False)) as environment, environment.begin() as transaction:
        for key, value in islice(transaction.cursor(), ROWS):
            image = pixels_of(parse(value), None, f"{database}: {key.decode(errors='replace')}")
            changes = augmentation.draw(COLUMNS - 1)
            images += [image, *(augmentation.changed(image, changes, index) for index in range(COLUMNS - 1))]
    if not images:
        raise InputError(database, "the database has no records", do="build it again")
    return [thumbnail(reorder_channels(image, channels, "BGR")) for image in images]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path, help="the training LMDB")
    parser.add_argument("picture", type=Path, help="the PNG to write")
    parser.add_argument("--augmentation", type=parse_augmentation, required=True, help="JSON")
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args(argv)
    shown = examples(a.database, a.augmentation, a.seed)
    image = grid(shown, COLUMNS, GAP)
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
