"""MNIST, pairs of MNIST, CIFAR-10 and CIFAR-100: download or copy the files, and build databases like Caffe's own tools.

`fetch` writes the published files, unpacked, each checked by its SHA-256. `build` writes lmdb/train and lmdb/val with the keys
and records of convert_mnist_data and convert_cifar_data (CIFAR-100 likewise, with its fine labels), their manifests, and
lists/, whose train.txt and val.txt have keys instead of paths. Pairs are those of convert_mnist_siamese_data, drawn by a fixed
seed.
"""

import gzip
import itertools
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.formats import records as database
from pipeline.options.dataset import FetchCollectionOptions
from pipeline.options.flags import add_flags, read_flags
from pipeline.sources import fetch, prebuilt


@dataclass(frozen=True)
class Collection:
    """A published set of images.

    addresses  URLs of the mirrors' folders, in the order in which they are tried
    archives   the archives' names; one file in a .gz, or several in a .tar.gz
    train, val files by part: {name: SHA-256 of the unpacked file}
    read       (files' contents) → images (N, channels × height × width, uint8), labels (N,)
    shape      channels, height, width
    key        format of a record's key, given its number
    classes    class names, by label
    channels   channel order: BGR or RGB
    """

    addresses: tuple[str, ...]
    archives: tuple[str, ...]
    train: dict[str, str]
    val: dict[str, str]
    read: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, int, int]
    key: str
    classes: tuple[str, ...]
    channels: str = "BGR"

    @property
    def files(self) -> dict[str, str]:
        """All files and the SHA-256 of each."""
        return {**self.train, **self.val}


def _idx(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of two idx files: two zeros, the type, the number of axes, each axis in four bytes, the values."""
    images, labels = (np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]) for content in contents)
    return images.reshape(len(labels), -1), labels


def _pairs(contents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """As many pairs as images, each of two random images; label 1 for two of one class, else 0."""
    images, labels = _idx(contents)
    first, second = np.random.default_rng(1).integers(len(labels), size=(2, len(labels)))
    return np.hstack([images[first], images[second]]), (labels[first] == labels[second]).astype(np.uint8)


def _rows(contents: list[bytes], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of CIFAR's rows: labels, of which the last is used, and 3 × 32 × 32 bytes."""
    rows = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, label_bytes + 3072)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
"""CIFAR-100's classes, by label."""
MNIST = Collection(
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    {
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    _idx,
    (1, 28, 28),
    "{:08d}",
    tuple("0123456789"),
)
TORONTO = ("https://www.cs.toronto.edu/~kriz/",)
COLLECTIONS = {
    "mnist": MNIST,
    "mnist_pairs": replace(MNIST, read=_pairs, shape=(2, 28, 28), classes=("different", "same")),
    "cifar10": Collection(
        TORONTO,
        ("cifar-10-binary.tar.gz",),
        {
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        },
        {"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"},
        partial(_rows, label_bytes=1),
        (3, 32, 32),
        "{:05d}",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "RGB",
    ),
    "cifar100": Collection(
        TORONTO,
        ("cifar-100-binary.tar.gz",),
        {"train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"},
        {"test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"},
        partial(_rows, label_bytes=2),
        (3, 32, 32),
        "{:05d}",
        tuple(FINE_LABELS.split()),
        "RGB",
    ),
}


def fetch_collection(name: str, folder: Path, copy: Path | None = None) -> None:
    """Write the files of a collection to `folder`, whole: from the folder `copy` of files or archives, or downloaded."""
    collection = COLLECTIONS[name]
    with written_whole(folder) as part:
        part.mkdir()
        if copy is not None:
            _copy_files(collection, copy, part)
        else:
            for archive in collection.archives:
                _download(collection, archive, part)
                _unpack(part / archive, part, collection)
                (part / archive).unlink()
        missing = [file for file in collection.files if not (part / file).exists()]
        if missing:
            do = f"put {' and '.join(collection.archives)} there, or remove copy"
            raise InputError(copy or name, f"no {', '.join(missing)}", f"all files of {name} are needed", do)
        for file, sha256 in collection.files.items():
            actual = digests.digest(part / file)
            if actual != sha256:
                where = f"{copy or 'download'}/{file}"
                raise InputError(where, f"SHA-256 {actual}", f"the published file has {sha256}", "fetch it again")


def _copy_files(collection: Collection, copy: Path, part: Path) -> None:
    if not copy.is_dir():
        do = "correct source.copy, or remove it to download the files"
        raise InputError(copy, "no such folder", "it must contain the published files", do)
    for path in sorted(copy.rglob("*")):
        if path.name in collection.archives:
            _unpack(path, part, collection)
        elif path.name in collection.files:
            (part / path.name).write_bytes(path.read_bytes())


def _unpack(archive: Path, part: Path, collection: Collection) -> None:
    """Write the files of an archive that belong to the collection, by their names without folders, and no others."""
    try:
        if not archive.name.endswith(".tar.gz"):
            (part / archive.stem).write_bytes(gzip.decompress(archive.read_bytes()))
            return
        with tarfile.open(archive) as files:
            for member in files:
                name = Path(member.name).name
                if name in collection.files and (content := files.extractfile(member)):
                    (part / name).write_bytes(content.read())
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(archive.name, f"damaged archive ({error})", do="fetch it again") from None


def _download(collection: Collection, archive: str, folder: Path) -> None:
    """Download an archive to `folder` from the first mirror that has it."""
    reasons = []
    for address in collection.addresses:
        try:
            fetch.fetch_url(address + archive, folder / archive)
            return
        except fetch.FetchError as failure:
            reasons.append(f"{address}{archive}: {failure.error}")
    raise InputError("; ".join(reasons), "no download", do="try again later, or set source.copy to a folder of the files")


def records(collection: Collection, files: list[Path]) -> database.Batches:
    """The records of all images in these files, as convert_mnist_data and convert_cifar_data write them."""
    images, labels = collection.read([file.read_bytes() for file in files])
    channels, height, width = collection.shape

    def convert(number: int) -> database.Entry:
        key = collection.key.format(number).encode()
        value = caffe_pb2.Datum(
            channels=channels, height=height, width=width, data=images[number].tobytes(), label=int(labels[number])
        ).SerializeToString()
        return key, value, database.digest(key, value)

    entries = map(convert, range(len(labels)))  # too small for threads
    while batch := list(itertools.islice(entries, database.BATCH)):
        yield batch


def build(name: str, folder: Path, target: Path, threads: int) -> dict[str, database.Manifest]:
    """Write databases, manifests and lists of the files in `folder` below `target`, each whole; return the manifests."""
    collection = COLLECTIONS[name]
    files = {"train": collection.train, "val": collection.val}
    parts = {part: records(collection, [folder / name for name in names]) for part, names in files.items()}
    return prebuilt.write_dataset(parts, list(collection.classes), target, threads, collection.channels)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("fetch", help="write the files, unpacked and checked")
    second = commands.add_parser("build", help="write databases and lists of them")
    for command in (first, second):
        command.add_argument("name", choices=list(COLLECTIONS))
        command.add_argument("folder", type=Path, help="where the files are")
    add_flags(first, FetchCollectionOptions)
    second.add_argument("target", type=Path, help="the folder that gets lmdb/ and lists/")
    second.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(argv)
    if a.command == "fetch":
        fetch_collection(a.name, a.folder, read_flags(a, FetchCollectionOptions).source.copied_from)
        print(f"{a.folder}: {', '.join(COLLECTIONS[a.name].files)}")
    else:
        for part, manifest in build(a.name, a.folder, a.target, a.threads).items():
            print(f"{a.target}/lmdb/{part}: {manifest['images']} records, {manifest['classes']} classes")


if __name__ == "__main__":
    run(main)
