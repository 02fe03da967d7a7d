"""Extract features: the values of blobs for every record of a net's database, of another database, or of an image list.

Written to a folder: images.txt, `path label` lines in the order of the images, and each blob in one or more of the formats
  npy      BLOB.npy: images × values, float32
  parquet  BLOB.parquet: path, label, and the values as a list
  lmdb     BLOB.lmdb, as extract_features writes it (keys `%010d`; Datum with the blob's shape and float_data), with the label
  leveldb  BLOB.leveldb, the same records
  hdf5     features.h5 for all blobs: a dataset for each, images × the blob's shape, and the datasets `label` and `path`
A `/` in a blob's name becomes `_`. A list's images are resized like the dataset's if preprocessing.json is beside the net.
"""

import contextlib
from itertools import islice
from pathlib import Path

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.inference import extraction
from pipeline.inference.extraction import Run, batches
from pipeline.inference.feature_files import IMAGES, WRITERS, Writer, file_names
from pipeline.options.flags import read_flags
from pipeline.options.training import FeatureOptions


def write(job: Run, blobs: list[str], folder: Path, formats: tuple[str, ...]) -> int:
    """Write the features of every image to `folder`, whole; return the number of images."""
    names, images, entries = file_names(blobs, formats), extraction.count(job), extraction.entries(job)
    with written_whole(folder) as part:
        part.mkdir()
        with contextlib.ExitStack() as stack:
            listed = stack.enter_context((part / IMAGES).open("w", encoding="utf-8"))
            writers: dict[str, list[Writer]] = {}
            start = 0
            for batch in batches(job, list(names), images):
                rows = len(batch[blobs[0]])
                images_of_batch = list(islice(entries, rows))
                listed.writelines(f"{path} {label}\n" for path, label in images_of_batch)
                for blob, values in batch.items():
                    if blob not in writers:
                        paths = {kind: part / f"{names[blob]}.{kind}" for kind in formats}
                        writers[blob] = [WRITERS[kind](path, images, values.shape[1:], stack) for kind, path in paths.items()]
                    for writer in writers[blob]:
                        writer.add(start, values, images_of_batch)
                start += rows
        digests.seal(part)
    return images


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, FeatureOptions)
    parser.add_argument("net", type=Path, help="a prototxt with a Data layer")
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the features go")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--database", type=Path, help="an LMDB or LevelDB instead of the net's own")
    source.add_argument("--list", type=Path, help="an image list, `path label` lines, instead of a database")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that the list's paths are relative to")
    parser.add_argument("--preprocessing", type=Path, help="by default preprocessing.json beside the net")
    parser.add_argument("--color", choices=["color", "gray"], default="color", help="of images read without preprocessing.json")
    a = parser.parse_args(argv)
    options = read_flags(a, FeatureOptions)
    if not options.features:
        raise InputError("--features", "none", "at least one blob is needed", "give its name")
    if a.folder.exists() and not a.overwrite:
        raise InputError(a.folder, "it exists already", "it is not overwritten", "give another folder, or --overwrite")
    listed = None
    if a.list:
        how = a.preprocessing or a.net.with_name("preprocessing.json")
        listed = extraction.open_list(a.list, a.root, how, a.color == "color")
    formats = tuple(dict.fromkeys(options.feature_formats))
    images = write(Run(a.net, a.weights, options, a.database, listed), options.features, a.folder, formats)
    print(f"{a.folder}: {', '.join(options.features)} of {images} images")


if __name__ == "__main__":
    run(main)
