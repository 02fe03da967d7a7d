"""caffe convert_mnist_siamese_data: write random pairs of MNIST's images as a LevelDB, for siamese nets."""

import numpy as np

from caffe.commands import flags
from caffe.commands.convert_mnist_data import Digits, add_files, read_digits, write_records
from caffe.numerics.generator import Generator

SEED = 1
"""Of the pairs: two runs write the same records."""


def main(argv: list[str]) -> int:
    """`caffe convert_mnist_siamese_data IMAGE_FILE LABEL_FILE DB`."""
    parser = flags.parser(
        "convert_mnist_siamese_data",
        "Write as many random pairs as there are images to a LevelDB: 2 channels, label 1 for two of one class, else 0.",
        "The same files give the same pairs.",
    )
    add_files(parser)
    arguments = parser.parse_intermixed_args(argv)
    with flags.logging(arguments):
        pairs = draw_pairs(read_digits(arguments.images, arguments.labels))
        write_records(arguments.database, "leveldb", *pairs)
    return 0


def draw_pairs(digits: Digits) -> Digits:
    """N pairs of two independent images each: images N × 2 × height × width; labels 1 where their classes are equal, else 0."""
    first, second = Generator(SEED).integers(len(digits.labels), (len(digits.labels), 2)).T
    images = np.stack([digits.images[first], digits.images[second]], axis=1)
    return Digits(images, (digits.labels[first] == digits.labels[second]).astype(np.uint8))
