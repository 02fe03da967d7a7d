"""Where blobs come from: Input, DummyData, Data."""

from __future__ import annotations

import json
import queue
import threading

import numpy as np
import torch

from caffe import events
from caffe.engine import fillers, mode
from caffe.engine.layer import Layer, register
from caffe.errors import Error
from caffe.formats.datum import parse_datum, pixels_of
from caffe.formats.db import open_db
from caffe.proto import caffe_pb2
from caffe.transforms.transform import Transformer


class Source(Layer):
    """A layer without bottoms; it says its tops' shapes before there are values."""

    bottoms = (0, 0)
    tops = (1, None)
    is_source = True

    def share(self) -> tuple[int, int]:
        """(n, r): this solver reads the records r, r + n, r + 2 n, …; in testing, which one solver does, (1, 0)."""
        return (mode.solver_count(), mode.solver_rank()) if self.phase == caffe_pb2.TRAIN else (1, 0)


@register("Input")
class Input(Source):
    """Blobs that the caller fills: their tensors are what the caller sees as `net.blobs[name].data`."""

    is_input = True

    def top_shapes(self):
        shapes = [tuple(shape.dim) for shape in self.param.input_param.shape]
        tops = len(self.param.top)
        if len(shapes) not in (0, 1, tops):
            raise self.error(f"{len(shapes)} shapes for {tops} tops", "there is one for all, or one each")
        return shapes if len(shapes) == tops else (shapes or [()]) * tops


@register("DummyData")
class DummyData(Source):
    """Blobs filled by fillers: once where the filler is constant, else anew for every batch.

    values  the tops of the last batch, each in the order of memory that the next is made in
    """

    def top_shapes(self):
        p = self.param.dummy_data_param
        tops = len(self.param.top)
        if p.shape:
            shapes = [tuple(shape.dim) for shape in p.shape]
        else:
            legacy = (p.num, p.channels, p.height, p.width)
            if len({len(values) for values in legacy}) != 1:
                raise self.error(
                    "num, channels, height and width are given a different number of times", do="give shape { dim: … } instead"
                )
            shapes = list(zip(*legacy, strict=True))
        for name, count, least in (("shapes", len(shapes), 1), ("data_fillers", len(p.data_filler), 0)):
            if count not in {least, 1, tops}:
                raise self.error(f"{count} {name} for {tops} tops", "there is one for all, or one each")
        return shapes * tops if len(shapes) == 1 else shapes

    def setup(self, *shapes):
        p = self.param.dummy_data_param
        tops = len(self.param.top)
        given = list(p.data_filler) or [caffe_pb2.FillerParameter()]
        self.fillers = given * tops if len(given) == 1 else given
        self.values = [torch.zeros(shape, device=self.device) for shape in self.top_shapes()]
        for value, filler in zip(self.values, self.fillers, strict=True):
            fillers.fill(value, filler, self.where)

    def forward(self):
        for index, filler in enumerate(self.fillers):
            if filler.type != "constant":
                self.values[index] = torch.empty_like(self.values[index])
                fillers.fill(self.values[index], filler, self.where)
        return tuple(self.values)

    def use_channels_last(self):
        layouts = [torch.channels_last if value.dim() == 4 else torch.contiguous_format for value in self.values]
        self.values = [value.contiguous(memory_format=layout) for value, layout in zip(self.values, layouts, strict=True)]

    def batch_dependence(self):
        return "" if all(filler.type == "constant" for filler in self.fillers) else "draws its values at random"


class Records(Source):
    """A source that reads records in batches, over and over, from any of them on."""

    reads = "records"

    @property
    def batch_size(self) -> int:
        """Records in a batch."""
        return self.settings_of(self.param).batch_size

    def seek(self, position: int) -> None:
        """Continue with the batch that begins at the record `position`, counted over all epochs."""
        raise NotImplementedError

    def seek_batch(self, number):
        self.seek(number * self.batch_size)


class Prefetching(Records):
    """A source whose batches are made ahead of need on a thread, in one order whatever the timing.

    Subclasses give `batch(position)`: the tops for the batch that begins at the record `position`, and the next position.
    """

    tops = (1, 2)
    ahead = 4

    def setup(self, *shapes):
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, self.ahead))
        self._stop = threading.Event()
        self.rng = np.random.default_rng(mode.data_rng.integers(2**63))
        self._position = 0
        self._generator: dict | None = None
        """The generator after the last batch that was given; the thread has drawn for later ones."""

    def read(self, position: int):
        """Yield batches for ever, the first one beginning at the record `position`."""
        raise NotImplementedError

    def seek(self, position):
        self.close()
        self._position = position

    def keep(self, state):
        state.position = self._position
        state.generator = json.dumps(self._generator or self.rng.bit_generator.state)

    def resume(self, state):
        self.seek(state.position)
        self._generator = self.rng.bit_generator.state = json.loads(state.generator)

    def batch_dependence(self):
        transform = self.param.transform_param
        crops = transform.crop_size and self.phase == caffe_pb2.TRAIN
        if crops or transform.mirror or transform.HasField("augmentation_param"):
            return "crops, mirrors or changes images at random"
        return ""

    def close(self) -> None:
        """Stop reading ahead."""
        if self._thread is not None:
            self._stop.set()
            while self._thread.is_alive():
                while not self._queue.empty():
                    self._queue.get_nowait()
                self._thread.join(0.01)
            self._thread = None

    def _start(self) -> None:
        if self._generator is not None:
            self.rng.bit_generator.state = self._generator
        self._stop = threading.Event()
        self._queue = queue.Queue(maxsize=max(1, self.ahead))
        arguments = (self._position, self._queue, self._stop)
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True, name=f"read {self.param.name}")
        self._thread.start()

    def _work(self, position: int, batches: queue.Queue, stop: threading.Event) -> None:
        def put(item):
            while not stop.is_set():
                try:
                    return batches.put(item, timeout=0.1)
                except queue.Full:
                    continue

        try:
            for batch in self.read(position):
                position += self.batch_size
                put((batch, position, self.rng.bit_generator.state))
                if stop.is_set():
                    return
        except Exception as error:  # handed to the thread that waits for the batch
            put(error)

    def forward(self):
        if self._thread is None:
            self._start()
        item = self._queue.get()
        if isinstance(item, Exception):
            self._thread = None
            raise item
        batch, self._position, self._generator = item
        return tuple(torch.as_tensor(top).to(self.device) for top in batch[: len(self.param.top)])


@register("Data")
class Data(Prefetching):
    """Images and labels from a database of Datum records, in key order, over and over: → (N, C, H, W), (N,)."""

    reads = "database"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        p = self.param.data_param
        self.database = open_db(p.source, p.backend)
        opened = events.lmdb_opened if p.backend == caffe_pb2.DataParameter.LMDB else events.leveldb_opened
        opened(p.source)

    def setup(self, *shapes):
        super().setup()
        p = self.param.data_param
        if p.batch_size < 1:
            raise self.error("batch_size is not given", "it must be at least 1")
        self.ahead = p.prefetch
        self.transformer = Transformer(self.param.transform_param, self.phase, self.where, self.rng, self.device)
        self.color = True if p.force_encoded_color else self.transformer.color
        self.image = self.pixels(next(self.database.values()))[0].shape
        shape = self.transformer.shape(self.image)
        events.database_batch_shaped(",".join(map(str, (p.batch_size, *shape))))

    def top_shapes(self):
        batch = self.param.data_param.batch_size
        return [(batch, *self.transformer.shape(self.image)), (batch,)][: len(self.param.top)]

    def pixels(self, record) -> tuple[np.ndarray, int]:
        """Image and label of a record."""
        try:
            datum = parse_datum(record)
        except Exception as error:
            raise Error(
                self.param.data_param.source, f"a record that is no Datum ({error})", do="rebuild the database"
            ) from error
        return pixels_of(datum, self.color, self.param.data_param.source), datum.label

    def records(self, position: int):
        """Images and labels from `position`, over and over; n solvers that train together take every n-th record each."""
        solvers, rank = self.share()
        offset = position * solvers
        start = offset % len(self.database)
        while True:
            for record in self.database.values(start):
                if offset % solvers == rank:
                    yield self.pixels(record)
                offset += 1
            start = 0
            events.database_restarted()

    def read(self, position):
        size = self.param.data_param.batch_size
        records = self.records(position)
        while True:
            images, labels = zip(*(next(records) for _ in range(size)), strict=True)
            yield self.transformer(list(images)), np.asarray(labels, np.float32)
