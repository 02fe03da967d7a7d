"""Data layers on image lists, HDF5 files and arrays: ImageData, DenseImageData, HDF5Data, HDF5Output, MemoryData."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from caffe import events
from caffe.engine import mode
from caffe.engine.layer import Layer, Shape, register
from caffe.errors import Error, FileError
from caffe.formats.files import missing
from caffe.layer_types.data import Batch, Prefetching, Records, Source
from caffe.layer_types.order import positions
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transfers import upload
from caffe.transforms.random_crops import resized
from caffe.transforms.transform import Transformer, workers

IMAGE_LIST, HDF5_LIST = "image list", "list of HDF5 files"
_HOW = {
    IMAGE_LIST: "write it: a line `path label` for each image, with labels from 0; or correct its path",
    HDF5_LIST: "write it: the path of an .h5 file in each line; or correct its path",
}


def lines_of(path: str, what: str, reader: str = "") -> list[str]:
    """The non-empty lines of a list file; `reader` is the layer that reads it, as errors name it."""
    return [line for _, line in numbered_lines(path, what, reader)]


def numbered_lines(path: str, what: str, reader: str = "") -> list[tuple[int, str]]:
    """(number, line) of each non-empty line of a list file, counted from 1."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise missing(path, what, _HOW.get(what, "correct its path"), reader) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"not a {what} ({error})") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise FileError(path, f"an empty {what}")
    return lines


def labelled_lines(path: str, reader: str = "") -> list[tuple[str, int]]:
    """Path and label of each line of an image list; any whitespace separates them, as in Caffe of 2014."""
    labelled = []
    for number, line in numbered_lines(path, IMAGE_LIST, reader):
        try:
            image, label = line.rsplit(None, 1)
            if not float(label).is_integer():
                raise ValueError
        except ValueError:
            raise Error(f"{path}:{number}", f'"{line}"', 'a line must be "path label", with an integer label') from None
        labelled.append((image, int(float(label))))
    return labelled


def read_image(path: str, color: bool, size: tuple[int, int] | None = None, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Read an image file, channels × height × width, uint8, BGR; resized to `size` (height, width) if it is given."""
    if not Path(path).exists():  # OpenCV would print a warning of its own
        raise FileError(path, "no such image")
    image = cv2.imread(path, cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise FileError(path, "not an image that OpenCV can read")
    if size:
        image = cv2.resize(image, size[::-1], interpolation=how)
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def read_listed(
    source: str, root: str, path: str, color: bool, size: tuple[int, int] | None = None, how: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """`read_image` of a line of a list: an error names the list and the line.

    root  what the layer puts before the list's paths
    """
    try:
        return read_image(path, color, size, how)
    except FileError as error:
        listed = path.removeprefix(root)
        for number, line in numbered_lines(source, IMAGE_LIST):
            if listed in (line, line.rsplit(None, 1)[0], *line.split()):
                raise FileError(f"{source}:{number}", str(error), do="correct the path, or root_folder before it") from None
        raise


@register("ImageData")
class ImageData(Prefetching):
    """Images and labels from a list of `path label` lines, repeated endlessly: → (N, C, H, W), (N,).

    short_side (NVIDIA/caffe) resizes the shorter side to that length, and the other in proportion; so does new_dim
    (yihui-he/caffe-pro), which rounds the other's length, with bicubic by cubic interpolation.
    shuffle draws a new order for each epoch; rand_skip skips a random number of lines, below it, at the start. Each of n
    solvers that train together reads every n-th line or, with shuffle, all lines in an order that only it uses. pair_size p
    (xiaolonw/caffe-video_triplet) keeps each p lines together when they are shuffled, and leaves out fewer that remain.
    """

    tops = (2, 2)
    reads = "image list"

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p = self.settings_of(self.param)
        if bool(p.new_height) != bool(p.new_width):
            raise self.error(f"new_height {p.new_height} and new_width {p.new_width}", "give both, or neither")
        if sum(map(bool, (getattr(p, "new_dim", 0), getattr(p, "short_side", 0), p.new_height))) > 1:
            raise self.error("several of new_dim, short_side and new_height", "only one may be given")
        events.image_list_opened(p.source)
        self.lines = self.read_list()
        events.images_listed(len(self.lines))
        self.transformer = self.make_transformer()
        self.seed = self.rng.seed() if p.shuffle else None
        if p.shuffle:
            events.image_list_shuffled()
        self.skipped = self.rng.integers(p.rand_skip) if p.rand_skip else 0
        if not 1 <= getattr(p, "pair_size", 1) <= len(self.lines):
            raise self.error(f"pair_size {p.pair_size}", f"it must lie between 1 and the number of lines, {len(self.lines)}")
        if self.skipped >= len(self.lines):
            raise self.error(f"rand_skip {p.rand_skip}", f"there are {len(self.lines)} images")
        self.size = (p.new_height, p.new_width) if p.new_height else None
        self.image = self.pixels(self.lines[0]).shape
        events.image_batch_shaped(",".join(map(str, self.top_shapes()[0])))

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, *self.transformer.shape(self.image)), (self.batch_size,)]

    def keep(self, state: caffe_pb2.LayerState) -> None:
        super().keep(state)
        state.skipped = self.skipped

    def resume(self, state: caffe_pb2.LayerState) -> None:
        super().resume(state)
        self.skipped = state.skipped

    def batch_dependence(self) -> str:
        p = self.settings_of(self.param)
        random = "shuffles its lines" if p.shuffle else "skips lines at random (rand_skip)" if p.rand_skip else ""
        return random or super().batch_dependence()

    def make_transformer(self) -> Transformer:
        """What transforms the images."""
        return Transformer(self.param.transform_param, self.phase, self.where, self.rng, self.transform_device)

    def read_list(self) -> list[tuple[str, Any]]:
        """Image path and label, or path of the label image, for each line of the list."""
        p = self.settings_of(self.param)
        return [(p.root_folder + path, label) for path, label in labelled_lines(p.source, self.where)]

    def pixels(self, line: tuple[str, Any]) -> np.ndarray:
        """The image of a line."""
        p = self.settings_of(self.param)
        image = read_listed(p.source, p.root_folder, line[0], p.is_color, self.size)
        if side := getattr(p, "new_dim", 0):
            height, width = (round(side * extent / min(image.shape[1:])) for extent in image.shape[1:])
            how = cv2.INTER_CUBIC if p.bicubic else cv2.INTER_LINEAR
            scaled = cv2.resize(image.transpose(1, 2, 0), (width, height), interpolation=how)
            return scaled.reshape(height, width, -1).transpose(2, 0, 1)
        return self.with_short_side(image, getattr(p, "short_side", 0))

    @staticmethod
    def with_short_side(image: np.ndarray, side: int) -> np.ndarray:
        """The image with its shorter side resized to `side`; 0 leaves it."""
        shorter = min(image.shape[1:])
        if not side or side == shorter:
            return image
        height, width = (extent * side // shorter for extent in image.shape[1:])
        return resized(image, height, width)

    def labels(self, lines: list[tuple[str, Any]]) -> np.ndarray:
        """The labels of some lines."""
        return np.asarray([label for _, label in lines], np.float32)

    def ordered(self, position: int) -> Iterator[tuple[str, Any]]:
        """This solver's lines from `position` on, endlessly; seed and epoch determine each epoch's order."""
        solvers, rank = self.share() if self.seed is None else (1, 0)
        numbers, again = itertools.tee(itertools.count(position * solvers + rank + self.skipped, solvers))
        together = 1 if self.seed is None else getattr(self.settings_of(self.param), "pair_size", 1)
        groups = (number // together for number in again)
        ordered = positions(len(self.lines) // together, groups, self.seed, events.image_list_restarted)
        return (self.lines[group * together + number % together] for number, group in zip(numbers, ordered, strict=False))

    def read(self, position: int) -> Iterator[Batch]:
        lines = self.ordered(position)
        while True:
            batch = list(itertools.islice(lines, self.batch_size))
            yield self.transformer(list(workers().map(self.pixels, batch))), self.labels(batch)


@register("DenseImageData")
class DenseImageData(ImageData):
    """SegNet's source of images and label images, from a list of `path path` lines: → (N, C, H, W), (N, 1, H, W).

    Labels are gray values, not transformed; resized by nearest neighbour if a size is given.
    ENet's fork (TimoSaemann/caffe-enet): labels have label_divide_factor times fewer rows and columns; mirror flips both at
    random; root_folder_image and root_folder_label are before the paths.
    """

    reads = "records"

    def setup(self, *shapes: Shape) -> None:
        if self.param.dense_image_data_param.label_divide_factor < 1:
            raise self.error("label_divide_factor 0", "it must be at least 1")
        super().setup(*shapes)
        if self.param.transform_param.mirror or any(self.transformer.crop_extents) or self.transformer.resize:
            raise self.error("mirror or crop_size in transform_param", "labels are not transformed", "leave it out")
        if (labels := self.labels(self.lines[:1]).shape[2:]) != self.label_extents():
            raise Error(self.lines[0][1], "labels of {}×{}".format(*labels), "the image has {}×{}".format(*self.image[1:]))

    def label_extents(self) -> tuple[int, int]:
        """Height and width of the labels."""
        factor = self.param.dense_image_data_param.label_divide_factor
        return self.image[1] // factor, self.image[2] // factor

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, *self.transformer.shape(self.image)), (self.batch_size, 1, *self.label_extents())]

    def read_list(self) -> list[tuple[str, Any]]:
        p = self.param.dense_image_data_param
        source, of_images, of_labels = p.source, p.root_folder_image or p.root_folder, p.root_folder_label or p.root_folder
        words = [word for line in lines_of(source, IMAGE_LIST, self.where) for word in line.split()]
        if len(words) % 2:
            raise FileError(source, f"{len(words)} paths", "each image is followed by its label image")
        return [(of_images + image, of_labels + labels) for image, labels in zip(words[::2], words[1::2], strict=True)]

    def labels(self, lines: list[tuple[str, Any]]) -> np.ndarray:
        size, p = self.label_extents() if self.size else None, self.param.dense_image_data_param
        root = p.root_folder_label or p.root_folder
        return np.array([read_listed(p.source, root, path, False, size, cv2.INTER_NEAREST) for _, path in lines], np.float32)

    def batch_dependence(self) -> str:
        return "mirrors images at random" if self.param.dense_image_data_param.mirror else super().batch_dependence()

    def read(self, position: int) -> Iterator[Batch]:
        for images, labels in super().read(position):
            if not self.param.dense_image_data_param.mirror:
                yield images, labels
                continue
            chosen = torch.from_numpy(self.rng.integers(2, self.batch_size).astype(bool)).view(-1, 1, 1, 1)
            values, maps = torch.as_tensor(images), torch.as_tensor(labels)
            yield torch.where(chosen.to(values.device), values.flip(-1), values), torch.where(chosen, maps.flip(-1), maps)


@register("HDF5Data")
class HDF5Data(Records):
    """Rows of HDF5 datasets named as the tops, from a list of files, repeated endlessly: → (N, …) each.

    shuffle draws a new order of the files, and of the rows in each, for every epoch. Each of n solvers that train together
    reads every n-th row or, with shuffle, all rows in an order that only it uses.
    """

    def setup(self, *shapes: Shape) -> None:
        p = self.param.hdf5_data_param
        if self.param.HasField("transform_param"):
            raise self.error("transform_param", "HDF5 rows are not transformed", "transform them before they are written")
        self.require_positive("batch_size")
        events.hdf5_list_read(p.source)
        self.files = lines_of(p.source, HDF5_LIST, self.where)
        events.hdf5_files_listed(len(self.files))
        self.shuffle = p.shuffle
        self.seed = mode.generator.seed() if p.shuffle else 0
        self.count_rows = functools.cache(lambda path: len(self._load(path)[0]))
        self.seek(0)
        self.shapes = [array.shape[1:] for array in self._load(self.files[0])]

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, *shape) for shape in self.shapes]

    def seek(self, position: int) -> None:
        """Continue at this solver's row `position`, counted over all epochs."""
        solvers, rank = (1, 0) if self.shuffle else self.share()
        self.position, self.rows = position, itertools.islice(self._rows(position * solvers), rank, None, solvers)

    def batch_dependence(self) -> str:
        return "shuffles its rows" if self.shuffle else ""

    def keep(self, state: caffe_pb2.LayerState) -> None:
        state.position, state.seed = self.position, self.seed

    def resume(self, state: caffe_pb2.LayerState) -> None:
        self.seed = state.seed
        self.seek(state.position)

    def _load(self, path: str) -> list[np.ndarray]:
        import h5py

        if not Path(path).exists():
            raise FileError(path, "no such file", do=f"correct {self.param.hdf5_data_param.source}")
        try:
            with h5py.File(path, "r") as file:
                missing = [name for name in self.param.top if name not in file]
                if missing:
                    raise FileError(
                        path, f'no dataset "{missing[0]}"', f"it has {', '.join(file)}", "name the tops as the datasets"
                    )
                arrays = [np.asarray(file[name], np.float32) for name in self.param.top]
        except (OSError, ValueError, TypeError) as error:
            raise FileError(path, f"not an HDF5 file of numeric datasets ({error})") from error
        if min(array.ndim for array in arrays) < 1 or len({len(array) for array in arrays}) > 1 or not len(arrays[0]):
            raise FileError(
                path,
                f"datasets of shapes {[array.shape for array in arrays]}",
                "their numbers of rows must be equal and at least 1",
            )
        events.hdf5_rows_loaded(len(arrays[0]))
        return arrays

    def _order(self, count: int, *place: int) -> Sequence[int] | np.ndarray:
        """Order of the files, or of the rows of a file; `place` is the epoch, and for rows the file's index."""
        return Generator(self.seed, *place).permutation(count) if self.shuffle else range(count)

    def _rows(self, position: int) -> Iterator[list[np.ndarray]]:
        """Rows from `position` on, endlessly; seed and epoch determine each epoch's order."""
        epoch = 0
        if position:
            epoch, position = divmod(position, sum(map(self.count_rows, self.files)))
        while True:
            for index in self._order(len(self.files), epoch):
                path = self.files[index]
                if position and position >= self.count_rows(path):
                    position -= self.count_rows(path)
                    continue
                arrays = self._load(path)
                for row in self._order(len(arrays[0]), epoch, index)[position:]:
                    yield [array[row] for array in arrays]
                position = 0
            epoch += 1

    def forward(self) -> tuple[Tensor, ...]:
        self.position += self.batch_size
        columns = zip(*itertools.islice(self.rows, self.batch_size), strict=True)
        try:
            return tuple(upload(torch.from_numpy(np.stack(column)), self.device) for column in columns)
        except ValueError as error:
            raise self.error(
                f"rows of different shapes in one batch ({error})", "rows of all files must have one shape"
            ) from None


@register("HDF5Output")
class HDF5Output(Layer):
    """Writes its bottoms, as datasets `data` and `label`, to an HDF5 file; batches are appended along the first axis."""

    bottoms = (2, 2)
    tops = (0, 0)
    differentiable_bottoms = ()

    def setup(self, data: Shape, label: Shape) -> None:
        import h5py

        path = self.param.hdf5_output_param.file_name
        if not path:
            raise self.error("no file_name", do="give hdf5_output_param { file_name: … }")
        if data[0] != label[0]:
            raise self.error(f"bottoms of shapes {data} and {label}", "both must have the same number of rows")
        try:
            self.file = h5py.File(path, "w")
        except OSError as error:
            raise FileError(path, f"cannot be written ({error})") from None

    def top_shapes(self, data: Shape, label: Shape) -> list[Shape]:
        return []

    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        events.hdf5_output_begun(self.param.hdf5_output_param.file_name)
        for name, value in (("data", data), ("label", label)):
            rows = value.detach().cpu().numpy()
            if name not in self.file:
                self.file.create_dataset(name, data=rows, maxshape=(None, *rows.shape[1:]))
                continue
            dataset = self.file[name]
            dataset.resize(len(dataset) + len(rows), axis=0)
            dataset[-len(rows) :] = rows
        self.file.flush()
        events.hdf5_output_saved()
        return ()

    def close(self) -> None:
        self.file.close()


@register("MemoryData")
class MemoryData(Source):
    """Images and labels set by `net.set_input_arrays`, batch by batch, repeated endlessly: → (N, C, H, W), (N,)."""

    tops = (2, 2)
    reads = "arrays"

    def setup(self, *shapes: Shape) -> None:
        p = self.param.memory_data_param
        if min(p.batch_size, p.channels, p.height, p.width) < 1:
            raise self.error(
                f"batch_size {p.batch_size}, channels {p.channels}, height {p.height}, width {p.width}", "all must be at least 1"
            )
        self.data: np.ndarray | None = None
        self.position = 0

    def top_shapes(self) -> list[Shape]:
        p = self.param.memory_data_param
        return [(p.batch_size, p.channels, p.height, p.width), (p.batch_size,)]

    def set_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Take new arrays: data (N, C, H, W) and labels (N,), float32, N a multiple of the batch size; not copied."""
        batch, *image = self.top_shapes()[0]
        for name, array in (("data", data), ("labels", labels)):
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                raise self.error(f"{name} of type {array.dtype}", "it must be float32 and C-contiguous")
        if data.ndim != 4 or list(data.shape[1:]) != image:
            raise self.error(f"data of shape {data.shape}", f"the layer takes (N, {', '.join(map(str, image))})")
        if labels.size != len(labels) or len(labels) != len(data):
            raise self.error(f"labels of shape {labels.shape} for {len(data)} images", "there must be one for each")
        if not len(data) or len(data) % batch:
            raise self.error(f"{len(data)} images", f"their number must be a multiple of the batch size, {batch}")
        self.data, self.labels, self.position = data, labels.reshape(-1), 0

    def forward(self) -> tuple[Tensor, ...]:
        if self.data is None:
            raise self.error("no data", do="call net.set_input_arrays(data, labels) first")
        rows = slice(self.position, self.position + self.param.memory_data_param.batch_size)
        self.position = rows.stop % len(self.data)
        return upload(torch.tensor(self.data[rows]), self.device), upload(torch.tensor(self.labels[rows]), self.device)
