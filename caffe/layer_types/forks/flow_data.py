"""FlowNet's sources of images and optical flow, and its writer: CustomData, FloData, ImgReader, FLOWriter."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from caffe.engine.layer import Shape, register
from caffe.errors import Error, FileError
from caffe.formats.datum import parse_datum
from caffe.formats.flo import read_flo, write_flo
from caffe.formats.stored import read_array
from caffe.layer_types.data import Batch, Data, Prefetching, Source
from caffe.layer_types.files import IMAGE_LIST, ImageData, lines_of, read_image
from caffe.layer_types.forks.small import Annealed
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.transform import Transformer

DATA = caffe_pb2.DataParameter
_FLOW_UNIT = 32
"""Steps of encoded flow in a pixel; 32767 encodes that it is not known."""


@register("CustomData", "data_param")
class CustomData(Data):
    """Slices of the channels of Datum records, repeated endlessly: → (N, channels of each slice, H, W) …[, labels (N, 1, 1, 1)].

    slice_point: first channels of the slices after the first. encoding, for each slice: UINT8; UINT16FLOW, two bytes, in 32nds
    of a pixel, NaN where unknown; BOOL1, one bit, of slices of one channel. A value is (value - mean) · scale, of data_param; the
    mean is mean_file, or `subtract`, one value for each channel. The records are those whose line in preselection_file is
    preselection_label, of them those from range_start to range_end (both included). rand_permute draws their order, before or
    after the range is taken, within blocks of block_size if given, and again after each permute_every_iter batches;
    rand_permute_seed, if not 0, determines it; else each of n solvers that train together reads all records in an order of its
    own. Source: custom_data_layer.cpp of lmb-freiburg/flownet2.
    """

    tops = (1, None)
    reads = "records"

    def setup(self, *shapes: Shape) -> None:
        Prefetching.setup(self)
        p = self.param.data_param
        self.require_positive("batch_size")
        self.ahead = p.prefetch
        if p.crop_size or p.mirror or p.rand_skip or p.shuffle or self.param.HasField("transform_param"):
            found = "crop_size, mirror, rand_skip, shuffle or transform_param"
            raise self.error(found, "CustomData crops, mirrors and skips nothing", "use rand_permute, and DataAugmentation")
        bounds = [0, *p.slice_point]
        datum = self.datum(next(self.database.values()))
        self.size: tuple[int, ...] = (datum.height, datum.width)
        self.bounds = [*bounds, datum.channels]
        if any(first >= last for first, last in itertools.pairwise(self.bounds)):
            found = f"slice_point {', '.join(map(str, p.slice_point))}"
            raise self.error(found, f"they must rise from 1 to less than {datum.channels}, the records' channels")
        slices = len(bounds)
        if len(self.param.top) not in (slices, slices + 1):
            raise self.error(f"{len(self.param.top)} tops for {slices} slices", "one for each, and one more for labels")
        self.encodings = [*p.encoding, *[DATA.UINT8] * slices][:slices]
        self.mean = self._mean(datum.channels)
        self.chosen = self._chosen()
        self.seed = p.rand_permute_seed or (self.rng.seed() if p.rand_permute else None)
        self.decode(datum)

    def _mean(self, channels: int) -> np.ndarray:
        p = self.param.data_param
        if p.mean_file:
            mean = read_array(p.mean_file, "mean file", "correct data_param.mean_file")
            if mean.shape[-3:] != (channels, *self.size):
                raise self.error(f"{p.mean_file} of shape {mean.shape}", f"the records have {(channels, *self.size)}")
            return mean.reshape(channels, *self.size)
        if p.subtract and len(p.subtract) != channels:
            raise self.error(f"{len(p.subtract)} values of subtract", f"the records have {channels} channels")
        return np.array(list(p.subtract) or [0] * channels, np.float32)[:, None, None]

    def _chosen(self) -> np.ndarray:
        """Positions of the records that preselection_file chooses."""
        p = self.param.data_param
        if not p.preselection_file:
            return np.arange(len(self.database))
        if not p.HasField("preselection_label"):
            raise self.error("preselection_file without preselection_label", "both must be given")
        words = " ".join(lines_of(p.preselection_file, "list of labels", self.where)).split()
        if len(words) != len(self.database):
            raise FileError(p.preselection_file, f"{len(words)} labels", f"the database has {len(self.database)} records")
        chosen = np.array([index for index, word in enumerate(words) if word == str(p.preselection_label)], int)
        if not len(chosen):
            raise FileError(p.preselection_file, f"no label {p.preselection_label}", do="correct preselection_label")
        return chosen

    def order(self, drawing: int) -> np.ndarray:
        """Positions of the records in the order of that number, of those that are drawn one after another."""
        p = self.param.data_param
        last = len(self.chosen) - 1
        first = min(max(p.range_start, 0), last)
        last = last if p.range_end < 0 else min(p.range_end, last)
        if last < first:
            raise self.error(f"range_start {p.range_start} and range_end {p.range_end}", "they must rise")
        window = slice(first, last + 1)
        # Later drawings permute what the first one has left in the range.
        order = self.chosen
        if p.rand_permute and p.rand_permute_order == DATA.FIRST_PERMUTE_THEN_RANGE:
            order = self._permuted(order, 0)
        order = order[window]
        if p.rand_permute and (drawing or p.rand_permute_order == DATA.FIRST_RANGE_THEN_PERMUTE):
            order = self._permuted(order, drawing)
        return order

    def _permuted(self, order: np.ndarray, drawing: int) -> np.ndarray:
        assert self.seed is not None
        keys = Generator(self.seed, drawing).raw(len(order))
        block = self.param.data_param.block_size or len(order)
        return order[np.lexsort((keys, np.arange(len(order)) // block))]

    def top_shapes(self) -> list[Shape]:
        slices = [(self.batch_size, last - first, *self.size) for first, last in itertools.pairwise(self.bounds)]
        return [*slices, (self.batch_size, 1, 1, 1)][: len(self.param.top)]

    def batch_dependence(self) -> str:
        return "permutes its records" if self.param.data_param.rand_permute else ""

    def datum(self, record: bytes | memoryview) -> Any:
        """A record as a Datum."""
        source = self.param.data_param.source
        try:
            datum = parse_datum(record)
        except Exception as error:
            raise Error(source, f"a record that is not a Datum ({error})", do="rebuild the database") from error
        if datum.encoded:
            raise Error(source, "a compressed image", "CustomData reads pixels", "rebuild the database without encoding")
        return datum

    def decode(self, datum: Any) -> np.ndarray:
        """The values of a record, channels × height × width, float32."""
        source, pixels = self.param.data_param.source, self.size[0] * self.size[1]
        if (datum.channels, datum.height, datum.width) != (self.bounds[-1], *self.size):
            found = f"a record of {datum.channels}×{datum.height}×{datum.width}"
            raise Error(source, found, f"the first has {self.bounds[-1]}×{self.size[0]}×{self.size[1]}")
        values: list[np.ndarray] = []
        if len(datum.float_data):
            if self.param.data_param.encoding:
                raise Error(source, "records of floats", "encoding is that of bytes", "leave encoding out")
            values.append(np.asarray(datum.float_data, np.float32))
        else:
            rest = np.frombuffer(bytes(datum.data), np.uint8)
            for (first, last), encoding in zip(itertools.pairwise(self.bounds), self.encodings, strict=True):
                count = pixels * (last - first)
                if encoding == DATA.BOOL1 and last - first > 1:
                    raise self.error(f"BOOL1 for a slice of {last - first} channels", "it encodes one channel")
                length = {DATA.UINT8: count, DATA.UINT16FLOW: 2 * count, DATA.BOOL1: -(-count // 8)}[encoding]
                part, rest = rest[:length], rest[length:]
                if len(part) < length:
                    raise Error(source, f"a record of {len(datum.data)} bytes", "its slices are larger", "correct encoding")
                if encoding == DATA.UINT16FLOW:
                    steps = part.view("<i2")
                    values.append(np.where(steps == np.iinfo(np.int16).max, np.nan, steps / np.float32(_FLOW_UNIT)))
                else:
                    values.append(np.unpackbits(part, count=count, bitorder="little") if encoding == DATA.BOOL1 else part)
            if len(rest):
                found = f"a record of {len(datum.data)} bytes"
                raise Error(source, found, f"its slices take {len(datum.data) - len(rest)}", "correct encoding")
        whole = np.concatenate(values).astype(np.float32)
        if whole.size != self.bounds[-1] * pixels:
            raise Error(source, f"a record of {whole.size} values", f"it has {self.bounds[-1]}×{self.size[0]}×{self.size[1]}")
        return (whole.reshape(-1, *self.size) - self.mean) * np.float32(self.param.data_param.scale)

    def places(self, position: int) -> Iterator[int]:
        """Positions in the database of this solver's records, from the one at `position` on.

        Of one order for all solvers that train together it takes its share, and all of one that it has drawn itself.
        """
        p = self.param.data_param
        solvers, rank = (1, 0) if p.rand_permute and not p.rand_permute_seed else self.share()
        every = p.permute_every_iter if p.rand_permute else 0
        drawing, order = -1, self.chosen
        for number in itertools.count(position):
            wanted = number // (every * self.batch_size) if every else 0
            if wanted != drawing:
                drawing, order = wanted, self.order(wanted)
            yield int(order[(number * solvers + rank) % len(order)])

    def read(self, position: int) -> Iterator[Batch]:
        data = (self.datum(self.database.record(place)) for place in self.places(position))
        while True:
            batch = list(itertools.islice(data, self.batch_size))
            values = np.stack([self.decode(datum) for datum in batch])
            labels = np.array([datum.label for datum in batch], np.float32).reshape(-1, 1, 1, 1)
            yield *(values[:, first:last] for first, last in itertools.pairwise(self.bounds)), labels


@register("FloData", "image_data_param")
class FloData(ImageData):
    """Optical flow from a list of .flo files, repeated endlessly: → (N, 2, H, W), u and v; the flow is not transformed.

    image_data_param: source, batch_size, root_folder, shuffle, rand_skip. Source: FloDataLayer of liruoteng/FlowNet's fork.
    """

    tops = (1, 1)
    reads = "records"

    def make_transformer(self) -> Transformer:
        if self.param.HasField("transform_param") or self.param.image_data_param.new_height:
            raise self.error("transform_param or new_height", "flow is not transformed", "leave it out")
        return super().make_transformer()

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, *self.image)]

    def read_list(self) -> list[tuple[str, Any]]:
        p = self.param.image_data_param
        return [(p.root_folder + line.split()[0], None) for line in lines_of(p.source, IMAGE_LIST, self.where)]

    def pixels(self, line: tuple[str, Any]) -> np.ndarray:
        return read_flo(line[0])

    def read(self, position: int) -> Iterator[Batch]:
        lines = self.ordered(position)
        with ThreadPoolExecutor(2) as pool:
            while True:
                flows = list(pool.map(self.pixels, itertools.islice(lines, self.batch_size)))
                if len({flow.shape for flow in flows}) > 1:
                    raise self.error("flows of different sizes in one batch", do="set batch_size: 1")
                yield (np.stack(flows),)


@register("ImgReader", "reader_param")
class ImgReader(Source):
    """One image file, `num` times: → (num, C, H, W), transformed as transform_param says, once (FlowNet 2.0)."""

    tops = (1, 1)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.reader_param
        self.require_positive("num")
        transform = Transformer(self.param.transform_param, self.phase, self.where, Generator(0))
        color = True if transform.color is None else transform.color
        self.image = transform([read_image(p.file, color)]).to(self.device)

    def top_shapes(self) -> list[Shape]:
        return [(self.param.reader_param.num, *self.image.shape[1:])]

    def forward(self) -> Tensor:
        return self.image.repeat(self.param.reader_param.num, 1, 1, 1)


@register("FLOWriter", "writer_param")
class FLOWriter(Annealed):
    """Writes each flow (N, 2, H, W) to a .flo file: `file`, or folder/prefix0000000suffix.flo, the number of the pass.

    Of N > 1 flows, which need a folder, the number of each follows in brackets: 0000000(001). Source: flowriter_layer.cpp of
    lmb-freiburg/flownet2, where the number is the solver's iteration. The folder is made if there is none.
    """

    tops = (0, 0)
    differentiable_bottoms = ()

    def setup(self, shape: Shape) -> None:
        p = self.param.writer_param
        self.require_maps(shape)
        if shape[1] != 2:
            raise self.error(f"a bottom of shape {shape}", "a flow has 2 channels")
        if not p.file and not p.folder:
            raise self.error("neither file nor folder", "one must be given")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        if self.param.writer_param.file and shape[0] > 1:
            raise self.error(f"{shape[0]} flows for one file", "each is written to a file of its own", "give folder, not file")
        return []

    def forward(self, flow: Tensor) -> tuple[Tensor, ...]:
        p = self.param.writer_param
        for number, each in enumerate(flow.detach().float().cpu().numpy()):
            which = f"({number:03})" if len(flow) > 1 else ""
            write_flo(p.file or f"{p.folder}/{p.prefix}{self.passes:07}{which}{p.suffix}.flo", each)
        self.passes += 1
        return ()
