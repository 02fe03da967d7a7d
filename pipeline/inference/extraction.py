"""Run a trained net over images and give the values of its blobs, batch by batch: over a database's records or a list's files."""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import caffe
from caffe.db import LevelDB, LMDBFile
from caffe.proto import caffe_pb2
from caffe.transform import Transformer, workers
from pipeline import devices
from pipeline.errors import InputError
from pipeline.formats.images import Files, Resized, below
from pipeline.formats.lists import entries_of
from pipeline.formats.roots import Root
from pipeline.inference import trained
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Fitted
from pipeline.nets.solver_defaults import FEW, MANY, most_tested

BATCH = 32
"""Images in a batch, where the net's own batches are small."""


@dataclass(frozen=True)
class Listed:
    """Images of a list, `path label` a line, in the place of records; `images` gives the pixels of a path."""

    list: Path
    images: Resized | Files | Fitted


@dataclass(frozen=True)
class Run:
    """What is run: a net with a Data layer, read in the TEST phase, its weights, and whether on a GPU.

    records  a database, LMDB or LevelDB, in the place of the one that the Data layer names
    listed   images of a list in its place
    views    how often all images go through the net: first as testing sees them, and then as training does, cropped and mirrored
             at random
    """

    net: Path
    weights: Path
    gpu: bool = False
    records: Path | None = None
    listed: Listed | None = None
    views: int = 1

    @property
    def is_fed(self) -> bool:
        """Whether images are put into the net, whose Data layer would give others."""
        return self.listed is not None or self.views > 1


def listed(source: Path, root: Path, how: Path, color: bool | None = None) -> Listed:
    """The images of a list below `root`: the resize step's, or files, which become as large as the dataset's images.

    how    preprocessing.json
    color  how files, of the net's size, are read where that is not there: BGR or gray; None wants it there
    """
    images = below(root, bool(color))
    fitted = isinstance(images, Files) and (color is None or how.exists())
    return Listed(source, Fitted(root, preprocessing.read(how)) if fitted else images)


def data_layer(path: Path, net: caffe_pb2.NetParameter) -> caffe_pb2.LayerParameter:
    """The Data layer that the TEST phase reads."""
    for layer in net.layer:
        reads = caffe.layer_type(layer.type).reads
        if reads == "database" and all(rule.phase == caffe.TEST for rule in layer.include if rule.HasField("phase")):
            return layer
    raise InputError(path, "no Data layer for the TEST phase", "the images come from one", "give the test prototxt")


def entries(job: Run) -> Iterator[tuple[str, int]]:
    """(path, label) of every image; a record's path is what convert_imageset puts behind the number in a key."""
    if job.listed:
        for path, label in entries_of(job.listed.list):
            yield path.encode(errors="surrogateescape").decode(errors="backslashreplace"), label
    else:
        for key, value in _database(job).items():
            yield re.sub(rb"^\d{8}_", b"", bytes(key)).decode(errors="backslashreplace"), caffe.parse_datum(value).label


def count(job: Run) -> int:
    """How many images there are; every line of a list is looked at."""
    if not job.listed:
        return len(_database(job))
    images = job.listed.images
    root = None if isinstance(images, Resized) else Root(images.root)
    return sum(1 for _ in entries_of(job.listed.list, root=root))


def _database(job: Run) -> LMDBFile | LevelDB:
    param = data_layer(job.net, _definition(job)).data_param
    return caffe.open_db(param.source, param.backend)


def _definition(job: Run) -> caffe_pb2.NetParameter:
    """The net, with the database that is asked for in the place of its own."""
    net = caffe.read_net(job.net)
    param = data_layer(job.net, net).data_param
    if job.records is not None:
        param.source = str(job.records)
        param.backend = param.LEVELDB if (job.records / "CURRENT").exists() else param.LMDB
    return net


def batches(job: Run, blobs: list[str], images: int) -> Iterator[dict[str, np.ndarray]]:
    """{blob: images of one batch × the blob's shape, float32}, batch after batch, until the first `images` are through.

    An image counts anew in each view.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.on_gpu(job.gpu))
        net = _loaded(job, stack)
        _check(job.net, net, blobs)
        sizes = _fed(job, net) if job.is_fed else itertools.repeat(net.blobs[blobs[0]].shape[0])
        done = 0
        while done < images:
            size = min(next(sizes), images - done)
            net.forward()
            yield {blob: net.blobs[blob].data[:size].copy() for blob in blobs}
            done += size


def _loaded(job: Run, stack: contextlib.ExitStack) -> caffe.Net:
    """The net with its weights; every layer that has parameters must find its own."""
    path, definition = job.net, _definition(job)
    larger = _enlarged(job, data_layer(path, definition))
    if job.records is not None or job.is_fed or larger:
        if job.is_fed:
            _take_pixels(data_layer(path, definition), next(_pixels(job, 1))[0][0].shape)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        caffe.write_prototxt(path, definition)
    net = caffe.Net(str(path), caffe.TEST)
    stack.callback(net.close)
    trained.copy(net, job.weights, job.net)
    return net


def _enlarged(job: Run, layer: caffe_pb2.LayerParameter) -> bool:
    """Take larger batches where those of a test are small so that it reads each image once; whether it was so.

    A net of somebody's may read images of different sizes, one at a time; those of a crop, or of a manifest, are of one size.
    """
    given, database = layer.data_param.batch_size, Path(layer.data_param.source)
    alike = layer.transform_param.crop_size or database.with_name(f"{database.name}.manifest.json").exists()
    if given >= FEW or not alike or (images := count(job)) < MANY:
        return False
    _, height, width = _transformer(layer).shape(next(_pixels(job, 1))[0][0].shape)
    layer.data_param.batch_size = max(given, min(BATCH, images, most_tested(height * width)))
    return layer.data_param.batch_size > given


def _transformer(layer: caffe_pb2.LayerParameter, view: int = 0) -> Transformer:
    """What the Data layer does to images: in testing, or in training, where each view has random numbers of its own."""
    param = caffe_pb2.TransformationParameter()
    param.CopyFrom(layer.transform_param)
    param.mirror &= view > 0
    return Transformer(param, caffe.TRAIN if view else caffe.TEST, f'layer "{layer.name}"', np.random.default_rng(view))


def _take_pixels(layer: caffe_pb2.LayerParameter, image: tuple[int, int, int]) -> None:
    """Make a Data layer an Input layer of the same tops, for images of that shape."""
    batch, shape = layer.data_param.batch_size, _transformer(layer).shape(image)
    layer.type = "Input"
    for field in ("data_param", "transform_param"):
        layer.ClearField(field)
    for dims in ((batch, *shape), (batch,))[: len(layer.top)]:
        layer.input_param.shape.add(dim=dims)


def _fed(job: Run, net: caffe.Net) -> Iterator[int]:
    """Put the images into the net, a batch each time, one view of all after the other; how many they are."""
    layer = data_layer(job.net, _definition(job))
    for view in range(job.views):
        transformer = _transformer(layer, view)
        for batch in _pixels(job, net.blobs[layer.top[0]].shape[0]):
            pixels, labels = zip(*batch, strict=True)
            for top, values in zip(layer.top, (transformer(list(pixels)).numpy(), labels), strict=False):
                net.blobs[top].data[: len(batch)] = values
            yield len(batch)


def _pixels(job: Run, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Pixels, uint8, channels × height × width, and labels, `size` images at a time."""
    return _of_files(job.listed, size) if job.listed else _of_records(job, size)


def _of_records(job: Run, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    records = ((key.decode(errors="replace"), caffe.parse_datum(value)) for key, value in _database(job).items())
    while batch := list(itertools.islice(records, size)):
        yield [(np.array(caffe.pixels_of(record, None, where)), record.label) for where, record in batch]


def _of_files(listed: Listed, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """The next images are read while these are used."""
    shape = None

    def one(entry: tuple[int, tuple[str, int]]) -> tuple[np.ndarray, int]:
        line, (path, label) = entry
        where, image = f"{listed.list}:{line}", listed.images[path]
        if image is None:
            found = f"{listed.images.root / path} cannot be read as an image"
            raise InputError(where, found, do="remove the line, or restore the file")
        if shape and image.shape != shape:
            found, wanted = ("×".join(map(str, one)) for one in (image.shape, shape))
            raise InputError(
                where, f"{path} is {found}", f"the first image is {wanted}", "resize them alike, or give preprocessing.json"
            )
        return image, label

    lines = enumerate(entries_of(listed.list), 1)
    shape = one((1, next(entries_of(listed.list))))[0].shape
    following = workers().map(one, list(itertools.islice(lines, size)))
    while batch := list(following):
        following = workers().map(one, list(itertools.islice(lines, size)))
        yield [(image.transpose(2, 0, 1) if image.ndim == 3 else image[None], label) for image, label in batch]


def _check(path: Path, net: caffe.Net, blobs: list[str]) -> None:
    images = next(iter(net.blobs.values())).shape[0]
    for blob in blobs:
        if blob not in net.blobs:
            known = ", ".join(net.blobs)
            raise InputError(path, f'no blob "{blob}"', f"there are {known}", caffe.nearest(blob, net.blobs))
        shape = tuple(net.blobs[blob].shape)
        if shape[:1] != (images,):
            raise InputError(
                path, f'blob "{blob}" of shape {shape}', f"features have a row for each of the batch's {images} images"
            )


def extract(job: Run, blobs: list[str], images: int) -> dict[str, np.ndarray]:
    """{blob: images × values, float32} for the first `images`, in their order; all in memory."""
    parts = list(batches(job, blobs, images))
    return {blob: np.concatenate([part[blob].reshape(len(part[blob]), -1) for part in parts]) for blob in blobs}
