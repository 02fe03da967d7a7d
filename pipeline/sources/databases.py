"""Import existing databases, LMDB or LevelDB, as a dataset: check and copy every record, optionally re-encode it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

import caffe
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.formats import records as database
from pipeline.formats.lists import read_labels
from pipeline.formats.records import Batches, Entry
from pipeline.options.dataset import ReuseOptions
from pipeline.options.flags import read_flags
from pipeline.sources import prebuilt


def records(path: Path, encode: str | None, threads: int) -> Batches:
    """Every record in the order of keys: unchanged, or re-encoded as "raw", "png" or "jpg"."""

    def convert(entry: tuple[bytes, bytes | memoryview]) -> Entry:
        key, value = entry
        where = f"{path}: {key.decode(errors='replace')}"
        try:
            datum = caffe.parse_datum(value)
        except Exception as error:  # Protocol Buffers'
            raise InputError(where, f"not a Datum ({error})", do="build the database again") from None
        if encode and (encode != "raw" or datum.encoded):
            pixels = caffe.pixels_of(datum, None, where)
            if pixels.dtype != np.uint8 or len(pixels) not in (1, 3):
                found = f"{len(pixels)} channels of {pixels.dtype}"
                raise InputError(where, found, "re-encoding needs 1 or 3 of uint8", "remove encode")
            image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
            value = database.encode_datum(np.ascontiguousarray(image), datum.label, encode)
        return key, value, database.digest(key, value)

    entries: Iterable[tuple[bytes, bytes | memoryview]] = caffe.open_db(path).items()
    return database.map_batches(convert, entries, threads)


def number_classes(paths: list[Path]) -> list[str]:
    """Class names of databases without names: the numbers up to the largest label."""
    largest = max(caffe.parse_datum(value).label for path in paths for _, value in caffe.open_db(path).items())
    return [str(number) for number in range(largest + 1)]


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, ReuseOptions)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("target", type=Path, help="the folder that gets lmdb/ and lists/")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(argv)
    options = read_flags(a, ReuseOptions)
    names = read_labels(options.names) if options.names else number_classes([a.train, a.val])
    parts = {part: records(path, options.encode, a.threads) for part, path in (("train", a.train), ("val", a.val))}
    for part, manifest in prebuilt.write_dataset(parts, names, a.target, a.threads, options.channels).items():
        print(f"{a.target}/lmdb/{part}: {manifest['images']} records, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)
