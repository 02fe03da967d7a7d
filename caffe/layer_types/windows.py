"""Data layer of image windows for R-CNN detectors: WindowData."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from caffe import events
from caffe.engine.layer import Shape, register
from caffe.errors import Error
from caffe.layer_types.data import Batch, Prefetching
from caffe.layer_types.files import numbered_lines, read_listed
from caffe.transforms.transform import Transformer


@dataclass(frozen=True)
class Window:
    """A box in an image (inclusive corners x1, y1, x2, y2), its label and its overlap with an object."""

    image: int
    label: int
    overlap: float
    box: tuple[int, int, int, int]


@register("WindowData")
class WindowData(Prefetching):
    """Windows drawn at random from the images of a window file (Girshick et al. 2014): → (N, C, crop, crop), (N,).

    fg_fraction of a batch overlap an object by fg_threshold or more and have its label; the others overlap by less than
    bg_threshold and have label 0. A window is warped to the crop, with a context of context_pad pixels; pixels outside the image
    are 0. crop_mode "square" first widens the window to a square.
    """

    tops = (2, 2)

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p = self.param.window_data_param
        self.crop = self.param.transform_param.crop_size
        if self.crop < 1 or p.batch_size < 1:
            raise self.error(f"crop_size {self.crop} and batch_size {p.batch_size}", "both must be at least 1")
        if 2 * p.context_pad >= self.crop:
            raise self.error(f"context_pad {p.context_pad}", f"it must be less than half of crop_size {self.crop}")
        if p.crop_mode not in ("warp", "square"):
            raise self.error(f'crop_mode "{p.crop_mode}"', 'it must be "warp" or "square"')
        events.windows_begun()
        self.images, self.windows, self.channels = self._parse(p.source)
        self.foreground = [window for window in self.windows if window.overlap >= p.fg_threshold]
        self.background = [window for window in self.windows if window.overlap < min(p.bg_threshold, p.fg_threshold)]
        self.objects = int(p.batch_size * p.fg_fraction)
        kinds = ("foreground", self.foreground, self.objects), ("background", self.background, p.batch_size - self.objects)
        for name, windows, count in kinds:
            if count and not windows:
                raise Error(p.source, f"no {name} windows", f"every batch needs {count}", "correct the thresholds")
        if any(window.label < 1 for window in self.foreground):
            raise Error(p.source, "a foreground window of label 0", "0 is the background")
        events.window_images_listed(len(self.images))
        # The transformer only loads and checks the mean; mirror, scale and mean are applied here.
        self.transformer = Transformer(self.param.transform_param, self.phase, self.where, self.rng, self.transform_device)
        ignored = [name for name in ("bgr2rgb", "cvt_bgr2rgb") if getattr(self.param.transform_param, name)]
        if self.transformer.resize:
            ignored.append("a change of size")
        if ignored:
            raise self.error(f"transform_param has {' and '.join(ignored)}", "windows are not changed by it", "leave it out")
        mean = self.transformer.mean
        self.offset = 0
        if mean is not None:
            if mean.shape[0] != self.channels or mean.shape[1] != mean.shape[2] or mean.shape[1] < self.crop:
                raise self.error(
                    f"a mean of shape {mean.shape}", f"it must be square, at least {self.crop}, with {self.channels} channels"
                )
            self.offset = (mean.shape[1] - self.crop) // 2
        self.cache: dict[int, np.ndarray] = {}
        events.window_batch_shaped(*self.top_shapes()[0])

    def _parse(self, path: str) -> tuple[list[str], list[Window], int]:
        """Read a window file: image paths, windows and the number of channels."""
        lines = iter(numbered_lines(path, "window file", self.where))
        images, windows, channels = [], [], 0
        number = 0
        try:
            for number, line in lines:
                if not line.startswith("#"):
                    raise ValueError("an image begins with # and its number")
                number, image = next(lines)
                images.append(self.param.window_data_param.root_folder + image)
                number, line = next(lines)
                channels = int(line)
                _height, _width = next(lines), next(lines)
                number, count = next(lines)
                for _ in range(int(count)):
                    number, line = next(lines)
                    label, overlap, *box = line.split()
                    if len(box) != 4:
                        raise ValueError("a window is label, overlap, x1, y1, x2 and y2")
                    x1, y1, x2, y2 = map(int, box)
                    windows.append(Window(len(images) - 1, int(label), float(overlap), (x1, y1, x2, y2)))
        except (ValueError, StopIteration) as error:
            raise Error(f"{path}:{number}", f"not a window file ({error})", do="see the format of the R-CNN example") from None
        return images, windows, channels

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, self.channels, self.crop, self.crop), (self.batch_size,)]

    def batch_dependence(self) -> str:
        return "draws its windows at random"

    def read(self, position: int) -> Iterator[Batch]:
        while True:
            yield self.batch()

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Randomly drawn windows, background first, and their labels."""
        data = np.zeros(self.top_shapes()[0], np.float32)
        labels = np.zeros(self.batch_size, np.float32)
        for row in range(self.batch_size):
            is_object = row >= self.batch_size - self.objects
            windows = self.foreground if is_object else self.background
            window = windows[self.rng.integers(len(windows))]
            mirror = self.param.transform_param.mirror and bool(self.rng.integers(2))
            self.fill(data[row], window, mirror)
            labels[row] = window.label if is_object else 0
        return data, labels

    def image(self, index: int) -> np.ndarray:
        """An image in OpenCV's layout, height × width × channels; cached in memory with cache_images."""
        if index in self.cache:
            return self.cache[index]
        p = self.param.window_data_param
        pixels = read_listed(p.source, p.root_folder, self.images[index], self.channels == 3)
        image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        if p.cache_images:
            self.cache[index] = image
        return image

    def fill(self, target: np.ndarray, window: Window, mirror: bool) -> None:
        """Warp a window into `target`, channels × crop × crop."""
        image = self.image(window.image)
        (x1, x2, left, right), (y1, y2, top, bottom) = self._spans(window.box, image.shape[:2])
        width, height = min(right, self.crop) - left, min(bottom, self.crop) - top
        part = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], (max(1, width), max(1, height)))
        part = part.reshape(*part.shape[:2], self.channels)
        if mirror:
            part = part[:, ::-1]
            left = self.crop - left - part.shape[1]
        rows, columns = slice(top, top + part.shape[0]), slice(left, left + part.shape[1])
        values = part.transpose(2, 0, 1).astype(np.float32)
        p = self.param.transform_param
        if self.transformer.mean is not None:
            shifted = self.transformer.mean[:, self.offset : self.offset + self.crop, self.offset : self.offset + self.crop]
            values -= shifted[:, rows, columns]
        elif p.mean_value:
            values -= np.asarray(p.mean_value, np.float32)[:, None, None]
        target[:, rows, columns] = values * np.float32(p.scale)

    def _spans(self, box: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        """For x and y: first and last pixel in the image, and start and end in the crop."""
        p = self.param.window_data_param
        x1, y1, x2, y2 = box
        ends = [(x1, x2), (y1, y2)]
        if p.context_pad or p.crop_mode == "square":
            scale = self.crop / (self.crop - 2 * p.context_pad)
            halves = [(last - first + 1) / 2 for first, last in ends]
            reach = [max(halves)] * 2 if p.crop_mode == "square" else halves
            ends = [
                (round(first + half - extent * scale), round(first + half + extent * scale))
                for (first, _), half, extent in zip(ends, halves, reach, strict=True)
            ]
        spans = []
        for (first, last), extent in zip(ends, size[::-1], strict=True):
            factor = self.crop / (last - first + 1)
            inside = max(first, 0), min(last, extent - 1)
            if inside[1] < inside[0]:
                raise self.error(f"window {box}", f"the image has {size[1]}×{size[0]} pixels")
            start = round((inside[0] - first) * factor)
            spans.append((*inside, start, start + round((inside[1] - inside[0] + 1) * factor)))
        return spans
