"""Data layers: Input, DummyData, Data; and the base of those that read ahead on a thread."""

import atexit
import contextlib
import itertools
import json
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe import events
from caffe.engine import fillers, mode
from caffe.engine.layer import Layer, Shape, register
from caffe.errors import Error
from caffe.formats.datum import Parser, Record, pixels_of
from caffe.formats.db import open_db
from caffe.formats.lmdb_file import LMDBFile
from caffe.layer_types.order import pooled, positions
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transfers import Sent, SideStream
from caffe.transforms.transform import Transformer, workers

Batch = tuple[np.ndarray | Tensor, ...]
Item = tuple[Sent, int, Mapping[str, Any]] | Exception
"""A batch, the position after it and the state of the random generator; or what reading raised."""


class Source(Layer):
    """A layer without bottoms, whose tops' shapes are known before it reads anything."""

    bottoms = (0, 0)
    tops: tuple[int, int | None] = (1, None)
    is_source = True

    def share(self) -> tuple[int, int]:
        """Number of solvers n and rank r: this solver reads records r, r + n, …; (1, 0) in testing, which one solver does."""
        return (mode.solver_count(), mode.solver_rank()) if self.phase == caffe_pb2.TRAIN else (1, 0)


@register("Input")
class Input(Source):
    """Input blobs that the caller fills through `net.blobs[name].data`."""

    is_input = True

    def top_shapes(self) -> list[Shape]:
        shapes = [tuple(shape.dim) for shape in self.param.input_param.shape]
        return self.for_each(shapes or [()], len(self.param.top), "shapes", "tops")


@register("DummyData")
class DummyData(Source):
    """Blobs filled by fillers: once if the filler is constant, and then as the user leaves them; else again for every batch.

    values  the tops of the last batch; the next batch is made in the same memory layout
    """

    def top_shapes(self) -> list[Shape]:
        p = self.param.dummy_data_param
        if p.shape:
            shapes = [tuple(shape.dim) for shape in p.shape]
        else:
            legacy = (p.num, p.channels, p.height, p.width)
            if len({len(values) for values in legacy}) != 1:
                raise self.error(
                    "num, channels, height and width are given a different number of times", do="give shape { dim: … } instead"
                )
            shapes = list(zip(*legacy, strict=True))
        return self.for_each(shapes, len(self.param.top), "shapes", "tops")

    def setup(self, *shapes: Shape) -> None:
        given = self.param.dummy_data_param.data_filler or [caffe_pb2.FillerParameter()]
        self.fillers = self.for_each(given, len(self.param.top), "data_fillers", "tops")
        self.values = [torch.zeros(shape, device=self.device) for shape in self.top_shapes()]
        for value, filler in zip(self.values, self.fillers, strict=True):
            fillers.fill(value, filler, self.where)
        self.made_once = {slot: self.values[slot] for slot, filler in enumerate(self.fillers) if filler.type == "constant"}

    def forward(self) -> tuple[Tensor, ...]:
        for index, filler in enumerate(self.fillers):
            if filler.type != "constant":
                self.values[index] = torch.empty_like(self.values[index])
                fillers.fill(self.values[index], filler, self.where)
        return tuple(self.values)

    def lay_out(self, layout: torch.memory_format) -> None:
        self.values = [value.contiguous(memory_format=layout) if value.dim() == 4 else value for value in self.values]

    def batch_dependence(self) -> str:
        return "" if all(filler.type == "constant" for filler in self.fillers) else "draws its values at random"


class Records(Source):
    """A source that reads records in batches, repeated endlessly, from any record on."""

    reads = "records"

    @property
    def batch_size(self) -> int:
        """Records in a batch."""
        return self.settings_of(self.param).batch_size

    def seek(self, position: int) -> None:
        """Continue with the batch that starts at the record `position`, counted over all epochs."""
        raise NotImplementedError

    def seek_batch(self, number: int) -> None:
        self.seek(number * self.batch_size)


class Prefetching(Records):
    """A source that prefetches batches on a thread; their order does not depend on timing."""

    tops: tuple[int, int | None] = (1, 2)
    ahead = 4
    seeds: tuple[str, ...] = ("seed",)
    """Attributes that determine an order; those that are not None are kept in the field of a LayerState of their name."""
    seed: int | None = None

    def setup(self, *shapes: Shape) -> None:
        self._thread: threading.Thread | None = None
        self._stream: SideStream | None = None
        self.rng = Generator(mode.generator.seed())
        self._position = 0
        self._generator: Mapping[str, Any] | None = None
        """State of the random generator after the last batch returned; the thread is already ahead of it."""

    @property
    def transform_device(self) -> torch.device:
        """Where images are transformed: a GPU interpolates with other roundings than the CPU."""
        return torch.device("cpu") if mode.numerics() == "reproducible" else self.device

    def lay_out(self, layout: torch.memory_format) -> None:
        if isinstance(transformer := getattr(self, "transformer", None), Transformer):
            transformer.pixel_after_pixel = layout is torch.channels_last

    def read(self, position: int) -> Iterator[Batch]:
        """Yield the tops of batch after batch endlessly, starting at the record `position`; subclasses define it."""
        raise NotImplementedError

    def seek(self, position: int) -> None:
        self.close()
        self._position = position

    def keep(self, state: caffe_pb2.LayerState) -> None:
        state.position = self._position
        state.generator = json.dumps(self._generator or self.rng.state)
        for name in self.seeds:
            if (seed := getattr(self, name)) is not None:
                setattr(state, name, seed)

    def resume(self, state: caffe_pb2.LayerState) -> None:
        self.seek(state.position)
        generator = json.loads(state.generator)
        if "bit_generator" not in generator:  # NumPy's, in states from before 0.3
            self._generator = self.rng.state = generator
        for name in self.seeds:
            if getattr(self, name) is not None and state.HasField(name):
                setattr(self, name, getattr(state, name))

    def batch_dependence(self) -> str:
        transform = self.param.transform_param
        crops = transform.crop_size and self.phase == caffe_pb2.TRAIN
        if crops or transform.mirror or transform.HasField("augmentation_param"):
            return "crops, mirrors or changes images at random"
        return ""

    def close(self) -> None:
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                while not self._queue.empty():
                    self._queue.get_nowait()
                self._thread.join(0.01)
            self._thread = None

    def _start(self) -> None:
        if self._generator is not None:
            self.rng.state = self._generator
        self._stream = self._stream or SideStream(self.device)
        self._stop = threading.Event()
        self._queue: queue.Queue[Item] = queue.Queue(maxsize=max(1, self.ahead))
        arguments = (self._position, self._queue, self._stop, self._stream)
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True, name=f"read {self.param.name}")
        self._thread.start()
        _reading.add(self)

    def _work(self, position: int, batches: queue.Queue[Item], stop: threading.Event, stream: SideStream) -> None:
        def put(item: Item) -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    batches.put(item, timeout=0.1)
                    return

        try:
            with stream.working():
                for batch in self.read(position):
                    position += self.batch_size
                    put((Sent(batch[: len(self.param.top)], self.device), position, self.rng.state))
                    if stop.is_set():
                        return
        except Exception as error:  # raised in the thread that waits for the batch
            put(error)

    def forward(self) -> tuple[Tensor, ...]:
        if self._thread is None:
            self._start()
        item = self._queue.get()
        if isinstance(item, Exception):
            self._thread = None
            raise item
        batch, self._position, self._generator = item
        return batch.received()


_reading: weakref.WeakSet[Prefetching] = weakref.WeakSet()


@atexit.register
def _stop_reading() -> None:
    """End the threads that read: one that is in a library's C++ code when the interpreter goes would abort the process."""
    for layer in list(_reading):
        layer.close()


@register("Data")
class Data(Prefetching):
    """Images and labels from a database of Datum records, in key order, repeated endlessly: → (N, C, H, W), (N,).

    shuffle (yjxiong/caffe, intel/caffe) draws a new order for each epoch; each of n solvers that train together then reads all
    records in an order that only it uses. shuffle_pool_size s (Cysu/caffe): once s batches have been read in order, the records
    of a batch are drawn from the s · batch_size in a pool, where the next records take their places. get_mirror_crop
    (ZhiwenShao/JAANet): the second top is (N, 4, 1, 1), whether it is mirrored, crop_size, and the crop's upper and left edge.
    """

    reads = "database"

    def __init__(self, param: caffe_pb2.LayerParameter, phase: int, where: str, device: torch.device):
        super().__init__(param, phase, where, device)
        p = self.param.data_param
        self.database = open_db(p.source, p.backend if p.HasField("backend") else None, self.where)
        opened = events.lmdb_opened if isinstance(self.database, LMDBFile) else events.leveldb_opened
        opened(p.source)
        self._as_datum = Parser()

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p = self.param.data_param
        self.require_positive("batch_size")
        self.ahead = p.prefetch
        self.transformer = Transformer(self.param.transform_param, self.phase, self.where, self.rng, self.transform_device)
        self.seed = self.order_seed()
        if self.param.transform_param.bgr2rgb:
            raise self.error("bgr2rgb", "of intel/caffe's layers only ImageData applies it", "leave it out")
        self.color = True if p.force_encoded_color else self.transformer.color
        first = next(self.database.values())
        self.is_encoded = self.datum(first).encoded
        self.image = self.pixels(first)[0].shape
        events.database_batch_shaped(",".join(map(str, self.top_shapes()[0])))

    def top_shapes(self) -> list[Shape]:
        labels = (self.batch_size, 4, 1, 1) if self.param.data_param.get_mirror_crop else (self.batch_size,)
        return [(self.batch_size, *self.transformer.shape(self.image)), labels][: len(self.param.top)]

    def pixels(self, record: bytes | memoryview) -> tuple[np.ndarray, int]:
        """Image and label of a record."""
        datum = self.datum(record)
        return pixels_of(datum, self.color, self.param.data_param.source), datum.label

    def datum(self, record: bytes | memoryview) -> Record | caffe_pb2.Datum:
        """A record as a Datum; raises Error for one that is none."""
        try:
            return self._as_datum(record)
        except Exception as error:
            found = f"a record that is not a Datum ({error})"
            raise Error(self.param.data_param.source, found, do="rebuild the database") from error

    def order_seed(self) -> int | None:
        """A seed that determines the order of the records; None is that of their keys."""
        p = self.param.data_param
        if p.shuffle and p.shuffle_pool_size > 1:
            raise self.error(f"shuffle and shuffle_pool_size {p.shuffle_pool_size}", "only one may be given")
        return self.rng.seed() if p.shuffle or p.shuffle_pool_size > 1 else None

    def records(self, position: int) -> Iterator[bytes | memoryview]:
        """Yield records from `position` on, endlessly; each of n solvers that train together reads every n-th record."""
        solvers, rank = self.share()
        if self.param.data_param.shuffle_pool_size > 1:
            assert self.seed is not None
            for number in pooled(position, self.batch_size, self.param.data_param.shuffle_pool_size, self.seed):
                yield self.database.record((number * solvers + rank) % len(self.database))
        if self.seed is not None:
            numbers = positions(len(self.database), itertools.count(position), self.seed, events.database_restarted)
            yield from map(self.database.record, numbers)
        offset = position * solvers
        start = offset % len(self.database)
        while True:
            for record in self.database.values(start):
                if offset % solvers == rank:
                    yield record
                offset += 1
            start = 0
            events.database_restarted()

    def batch_dependence(self) -> str:
        return "shuffles its records" if self.seed is not None else super().batch_dependence()

    def read(self, position: int) -> Iterator[Batch]:
        records = self.records(position)
        # Pixels are only looked up, compressed images decoded, which worker threads share.
        each = workers().map if self.is_encoded else map
        while True:
            images, labels = zip(*each(self.pixels, itertools.islice(records, self.batch_size)), strict=True)
            batch = self.transformer(list(images))
            yield batch, self.crops() if self.param.data_param.get_mirror_crop else np.asarray(labels, np.float32)

    def crops(self) -> np.ndarray:
        """How the last batch was mirrored and cropped, (N, 4, 1, 1)."""
        windows = self.transformer.windows
        side = np.full(len(windows.tops), self.param.transform_param.crop_size)
        return np.stack((windows.mirrored, side, windows.tops, windows.lefts), 1).astype(np.float32)[:, :, None, None]
