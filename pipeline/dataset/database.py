"""Build an LMDB of Caffe's Datum records from an image list, and its manifest.

Records are raw pixels, channels × height × width, uint8, BGR or gray, or PNG or JPEG files; keys are `%08d_path`. Both are as
convert_imageset writes them; channels may be RGB instead, as in CIFAR's own databases. Augmented copies of the images follow
epoch by epoch: the first copies of all images, then the second ones. Later steps depend on the manifest, as Snakemake sees no
change inside a database; it has, as JSON, images, classes, shape, the sha256 of the digests of all records, and channels if they
are RGB. A record's digest is that of its key and value; of a resized image as it is, that of its key, label and pixels' digest,
which the resize step has computed and this step compares.
"""

from pathlib import Path

import cv2
import numpy as np

from pipeline.command import run, step_parser
from pipeline.dataset.augmentation import as_param, augment
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.images import Files, Resized, open_images
from pipeline.formats.lists import iter_image_list, read_labels
from pipeline.formats.records import (
    BATCH,
    Batches,
    Entry,
    Manifest,
    digest,
    encode_datum,
    map_batches,
    write_database,
    write_manifest,
)
from pipeline.formats.roots import Root
from pipeline.options.dataset import DatabaseOptions
from pipeline.options.flags import read_flags

LONGEST_NAME = 511 - len("000000000000_")
"""Most bytes of a path: LMDB's keys have 511, and begin with the image's number, of at most 12 digits."""


def records(source: Path, images: Resized | Files, options: DatabaseOptions, classes: int, threads: int = 1) -> Batches:
    """A record for every line of a list, in its order, BATCH at a time. Raises InputError if image sizes differ.

    Records are valid until the next batch.
    """
    first_path, _ = next(iter_image_list(source, classes))
    _check(source, images, classes)
    first = images[first_path]
    encode, param = options.encode or "raw", None if options.augmentation is None else as_param(options.augmentation)
    # Two batches at once: one is written while the next is encoded.
    room = np.empty((2, BATCH, 64 + first.size if first is not None and encode == "raw" else 0), np.uint8)

    def convert(entry: tuple[int, tuple[int, int, str, int]]) -> Entry:
        number, (copy, line, name, label) = entry
        where, image = f"{source}:{line}", images[name]
        if image is None:
            raise InputError(where, f"{images.root / name} cannot be read as an image", do="remove the line, or restore the file")
        if first is not None and image.shape != first.shape:
            found = f"{name} is {'×'.join(map(str, image.shape))}"
            raise InputError(where, found, f"the first image is {'×'.join(map(str, first.shape))}", "resize them alike first")
        pixels = images.digest(name) if isinstance(images, Resized) and encode == "raw" else b""
        if copy and param is not None:
            image, pixels = augment(image, param, (options.seed, number)), b""
        if options.channels == "RGB" and image.ndim == 3:
            image, pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB), b""
        key = f"{number:08d}_{name}".encode(errors="surrogateescape")
        value = encode_datum(image, label, encode, room[number // BATCH % 2, number % BATCH])
        return key, value, digest(key, b"%d %b" % (label, pixels) if pixels else value)

    entries = enumerate(
        (copy, line, name, label)
        for copy in range(1 + options.copies)
        for line, (name, label) in enumerate(iter_image_list(source, classes), 1)
    )
    return map_batches(convert, entries, threads)


def _check(source: Path, images: Resized | Files, classes: int) -> None:
    """Check every line of a list, to raise InputError before hours of work."""
    root = Root(images.root) if isinstance(images, Files) else None
    for line, (name, _) in enumerate(iter_image_list(source, classes, root), 1):
        size = len(name.encode(errors="surrogateescape"))
        if size > LONGEST_NAME:
            expected = f"LMDB's keys, NUMBER_PATH, have room for {LONGEST_NAME}"
            raise InputError(f"{source}:{line}", f"a path of {size} bytes", expected, "give the file a shorter name")


def build(
    source: Path, images: Resized | Files, database: Path, options: DatabaseOptions, classes: int, threads: int = 1
) -> Manifest:
    """Write the images of the list `source` to `database`, whole; return the manifest."""
    before = cv2.useOptimized()
    # With AVX2, which not every processor has, OpenCV's affine warps round some pixels of copies differently.
    cv2.setUseOptimized(before and not options.copies)
    try:
        batches = records(source, images, options, classes, threads)
        return write_database(batches, database, classes, threads, options.channels)
    finally:
        cv2.setUseOptimized(before)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, DatabaseOptions)
    parser.add_argument("list", type=Path, help="train.txt or val.txt")
    parser.add_argument(
        "root", type=Path, help="folder that the list's paths begin from: what pipeline.dataset.resize wrote, or images"
    )
    parser.add_argument("database", type=Path, help="the LMDB; replaced if it exists")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="images worked on at once (default: %(default)s)")
    a = parser.parse_args(argv)
    options = read_flags(a, DatabaseOptions)
    if options.copies and options.augmentation is None:
        raise InputError("--copies", str(options.copies), "copies are changed", "say how with --augmentation")
    with written_whole(a.manifest) as part:
        images, classes = open_images(a.root, options.color == "color"), len(read_labels(a.labels))
        manifest = build(a.list, images, a.database, options, classes, a.threads)
        write_manifest(part, manifest)
    print(f"{a.database}: {manifest['images']} records of {'×'.join(map(str, manifest['shape']))}, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)
