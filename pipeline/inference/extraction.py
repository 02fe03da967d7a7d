"""Run a trained net on a database's records or a list's images, and yield the values of its blobs, batch by batch."""

import contextlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import caffe
from caffe.db import LevelDB, LMDBFile
from caffe.proto import caffe_pb2
from caffe.transform import Transformer, workers
from pipeline import devices
from pipeline.errors import InputError
from pipeline.formats.images import Files, Resized, open_images
from pipeline.formats.lists import iter_image_list
from pipeline.formats.records import manifest_path, open_database
from pipeline.formats.roots import Root
from pipeline.inference import trained
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Fitted
from pipeline.nets.solver_defaults import FEW, MANY, most_tested
from pipeline.options.base import Device

BATCH = 32
"""Batch size, if the net's own is smaller."""


@dataclass(frozen=True)
class ListedImages:
    """Images of a list of `path label` lines, instead of records; `images` has the pixels of a path."""

    list: Path
    images: Resized | Files | Fitted


@dataclass(frozen=True)
class Run:
    """A net with a Data layer, in the TEST phase, its weights, and what to run it on.

    records  a database, LMDB or LevelDB, instead of the Data layer's own
    listed   images of a list, instead of a database
    views    passes over all images: the first with the transformations of testing, further ones with those of training, cropped
             and mirrored at random
    """

    net: Path
    weights: Path
    device: Device = field(default_factory=Device)
    records: Path | None = None
    listed: ListedImages | None = None
    views: int = 1

    @property
    def is_fed(self) -> bool:
        """Whether images are fed to the net by an Input layer instead of its Data layer."""
        return self.listed is not None or self.views > 1


def open_list(source: Path, root: Path, how: Path, color: bool | None = None) -> ListedImages:
    """The images of a list below `root`: the resize step's, or files, which are resized like the dataset's images.

    how    preprocessing.json
    color  without that file, images have the net's size, and are read as BGR or gray; None: the file is required
    """
    images = open_images(root, bool(color))
    fitted = isinstance(images, Files) and (color is None or how.exists())
    return ListedImages(source, Fitted(root, preprocessing.read(how)) if fitted else images)


def data_layer(path: Path, net: caffe_pb2.NetParameter) -> caffe_pb2.LayerParameter:
    """The Data layer of the TEST phase."""
    layer: caffe_pb2.LayerParameter
    for layer in net.layer:
        reads = caffe.layer_type(layer.type).reads
        if reads == "database" and all(rule.phase == caffe.TEST for rule in layer.include if rule.HasField("phase")):
            return layer
    raise InputError(path, "no Data layer in the TEST phase", "a Data layer reads the images", "give the test prototxt")


def entries(job: Run) -> Iterator[tuple[str, int]]:
    """(path, label) of every image; of a record, the path in its key (`NUMBER_PATH`, by convert_imageset)."""
    if job.listed:
        for path, label in iter_image_list(job.listed.list):
            yield path.encode(errors="surrogateescape").decode(errors="backslashreplace"), label
    else:
        for key, value in _database(job).items():
            yield re.sub(rb"^\d{8}_", b"", bytes(key)).decode(errors="backslashreplace"), caffe.parse_datum(value).label


def count(job: Run) -> int:
    """The number of images; checks every line of a list."""
    if not job.listed:
        return len(_database(job))
    images = job.listed.images
    root = None if isinstance(images, Resized) else Root(images.root)
    return sum(1 for _ in iter_image_list(job.listed.list, root=root))


def _database(job: Run) -> LMDBFile | LevelDB:
    param = data_layer(job.net, _definition(job)).data_param
    return open_database(param.source, param.backend)


def _definition(job: Run) -> caffe_pb2.NetParameter:
    """The net's prototxt, reading job.records if that is given."""
    net = caffe.read_net(job.net)
    param = data_layer(job.net, net).data_param
    if job.records is not None:
        param.source = str(job.records)
        param.backend = param.LEVELDB if (job.records / "CURRENT").exists() else param.LMDB
    return net


def batches(job: Run, blobs: list[str], images: int) -> Iterator[dict[str, np.ndarray]]:
    """{blob: images of one batch × the blob's shape, float32}, batch by batch, of the first `images` images (or views)."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.computing(job.device))
        net = _open_net(job, stack)
        _check(job.net, net, blobs)
        sizes = _feed(job, net) if job.is_fed else itertools.repeat(net.blobs[blobs[0]].shape[0])
        done = 0
        while done < images:
            size = min(next(sizes), images - done)
            net.forward()
            yield {blob: net.blobs[blob].data[:size].copy() for blob in blobs}
            done += size


def _open_net(job: Run, stack: contextlib.ExitStack) -> caffe.Net:
    """The net with all of its weights, reading larger batches or fed images if the job asks for it."""
    definition = _definition(job)
    layer = data_layer(job.net, definition)
    changed = _enlarge_batches(job, layer) or job.records is not None
    if job.is_fed:
        _replace_by_input(layer, next(_pixels(job, 1))[0][0].shape)
        changed = True
    net = caffe.Net(definition if changed else job.net, caffe.TEST)  # errors in a file name its lines
    stack.callback(net.close)
    trained.copy_all_weights(net, job.weights, job.net)
    return net


def _enlarge_batches(job: Run, layer: caffe_pb2.LayerParameter) -> bool:
    """Enlarge small batches for speed; return whether it did: tests have small batches to read each image exactly once.

    A user's net may read images of different sizes, one by one; with a crop or a manifest, all have one size.
    """
    size, database = layer.data_param.batch_size, Path(layer.data_param.source)
    same_size = layer.transform_param.crop_size or manifest_path(database).exists()
    if size >= FEW or not same_size or (images := count(job)) < MANY:
        return False
    _, height, width = _transformer(layer).shape(next(_pixels(job, 1))[0][0].shape)
    layer.data_param.batch_size = max(size, min(BATCH, images, most_tested(height * width)))
    return bool(layer.data_param.batch_size > size)


def _transformer(layer: caffe_pb2.LayerParameter, view: int = 0) -> Transformer:
    """The Data layer's transformations: of testing for view 0, of training for others, each with its own random numbers."""
    param = caffe_pb2.TransformationParameter()
    param.CopyFrom(layer.transform_param)
    param.mirror &= view > 0
    return Transformer(param, caffe.TRAIN if view else caffe.TEST, f'layer "{layer.name}"', caffe.Generator(view))


def _replace_by_input(layer: caffe_pb2.LayerParameter, image: tuple[int, int, int]) -> None:
    """Replace a Data layer by an Input layer with the same tops, for images of that shape."""
    batch, shape = layer.data_param.batch_size, _transformer(layer).shape(image)
    layer.type = "Input"
    for name in ("data_param", "transform_param"):
        layer.ClearField(name)
    for dims in ((batch, *shape), (batch,))[: len(layer.top)]:
        layer.input_param.shape.add(dim=dims)


def _feed(job: Run, net: caffe.Net) -> Iterator[int]:
    """Feed images to the net, a batch at a time, all images of one view before the next view; yields batch sizes."""
    layer = data_layer(job.net, _definition(job))
    for view in range(job.views):
        transformer = _transformer(layer, view)
        for batch in _pixels(job, net.blobs[layer.top[0]].shape[0]):
            pixels, labels = zip(*batch, strict=True)
            for top, values in zip(layer.top, (transformer(list(pixels)).numpy(), labels), strict=False):
                net.blobs[top].data[: len(batch)] = values
            yield len(batch)


def _pixels(job: Run, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """(pixels, label) of `size` images at a time: uint8, channels × height × width."""
    return _file_batches(job.listed, size) if job.listed else _record_batches(job, size)


def _record_batches(job: Run, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    records = ((key.decode(errors="replace"), caffe.parse_datum(value)) for key, value in _database(job).items())
    while batch := list(itertools.islice(records, size)):
        yield [(np.array(caffe.pixels_of(record, None, where)), record.label) for where, record in batch]


def _file_batches(listed: ListedImages, size: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Batches of a list's images; while one is used, the next is read."""
    shape = None

    def read(entry: tuple[int, tuple[str, int]]) -> tuple[np.ndarray, int]:
        line, (path, label) = entry
        where, image = f"{listed.list}:{line}", listed.images[path]
        if image is None:
            found = f"{listed.images.root / path} cannot be read as an image"
            raise InputError(where, found, do="remove the line, or restore the file")
        if shape and image.shape != shape:
            found, expected = ("×".join(map(str, size)) for size in (image.shape, shape))
            do = "resize them alike, or give preprocessing.json"
            raise InputError(where, f"{path} is {found}", f"the first image is {expected}", do)
        return image, label

    lines = enumerate(iter_image_list(listed.list), 1)
    shape = read((1, next(iter_image_list(listed.list))))[0].shape
    following = workers().map(read, list(itertools.islice(lines, size)))
    while batch := list(following):
        following = workers().map(read, list(itertools.islice(lines, size)))
        yield [(image.transpose(2, 0, 1) if image.ndim == 3 else image[None], label) for image, label in batch]


def _check(path: Path, net: caffe.Net, blobs: list[str]) -> None:
    images = next(iter(net.blobs.values())).shape[0]
    for blob in blobs:
        if blob not in net.blobs:
            written = {top for layer in caffe.read_net(path).layer for top in layer.top}
            known = [name for name in net.blobs if name in written]  # without those of inserted splits
            raise InputError(path, f'no blob "{blob}"', f"the net has {', '.join(known)}", caffe.nearest(blob, known))
        shape = tuple(net.blobs[blob].shape)
        if shape[:1] != (images,):
            raise InputError(path, f'blob "{blob}" of shape {shape}', f"its first axis must have the batch's {images} images")


def extract(job: Run, blobs: list[str], images: int) -> dict[str, np.ndarray]:
    """{blob: images × values, float32} of the first `images` images, in their order, in memory."""
    parts = list(batches(job, blobs, images))
    return {blob: np.concatenate([part[blob].reshape(len(part[blob]), -1) for part in parts]) for blob in blobs}
