"""Image preprocessing by transform_param: augmentation, crop, mirror, mean, scale."""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from caffe.errors import Error
from caffe.formats.stored import read_mean
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transfers import upload
from caffe.transforms.augmentation import Augmentation, Changes
from caffe.transforms.batch_augmentation import augment_batch
from caffe.transforms.random_crops import FixedCrops, RandomResize
from caffe.transforms.resizing import RandomAspect, Resizing, ShorterSide

SSD = frozenset(range(20001, 20101)) - {20003}
"""Field numbers of SSD's fields that only AnnotatedData applies."""
Drawn = RandomResize | FixedCrops | ShorterSide | RandomAspect
"""What gives images sizes that are drawn."""
_RESIZES: dict[type[Drawn], frozenset[str]] = {
    RandomResize: RandomResize.FIELDS,
    FixedCrops: FixedCrops.FIELDS,
    ShorterSide: frozenset(("random_resize_param",)),
    RandomAspect: frozenset(("random_aspect_ratio_param",)),
}
"""What changes sizes, and the fields that ask for it."""
WORKERS = min(8, os.cpu_count() or 1)
"""Number of threads that process the images of a batch."""
TOGETHER = 1 << 16
"""Values of small images from which the mean is subtracted at once: they stay in the cache."""
ALONE = 1 << 19
"""Values of a batch up to which one thread crops and normalises all: others would take longer to be told."""


@functools.cache
def workers() -> ThreadPoolExecutor:
    """The thread pool that all readers of the process share."""
    return ThreadPoolExecutor(WORKERS, thread_name_prefix="images")


def mean_values(param: caffe_pb2.TransformationParameter, channels: int, where: str) -> np.ndarray:
    """The mean value of each channel, float32, from one for all or one for each."""
    given = np.asarray(param.mean_value, np.float32)
    if len(given) not in (1, channels):
        raise Error(where, f"{len(given)} mean values", f"the images have {channels} channels", "give one, or one for each")
    return np.resize(given, channels)


def _is_by_pixel(image: np.ndarray) -> bool:
    """Whether an image, channels × height × width, has its channels last in memory."""
    return len(image) > 1 and image.strides[0] == image.itemsize


def _copy(window: np.ndarray, target: np.ndarray, mirrored: bool) -> None:
    """Copy an image to an array of its shape, mirrored or not; either may have its channels first or last in memory."""
    mirrored = mirrored and window.shape[2] > 1  # OpenCV takes no single pixel for an image of three channels
    if len(window) == 3 and window.dtype == target.dtype == np.uint8:
        pixels, into = window.transpose(1, 2, 0), target.transpose(1, 2, 0)
        is_by_pixel, goes_by_pixel = _is_by_pixel(window), _is_by_pixel(target)
        if is_by_pixel != goes_by_pixel:  # OpenCV takes a third of the time of an assignment
            if goes_by_pixel:
                cv2.merge(tuple(window), into)
            else:
                cv2.split(pixels, list(target))
            window, pixels = target, into
        if goes_by_pixel:
            if mirrored:
                cv2.flip(pixels, 1, into)
            elif pixels is not into:
                into[...] = pixels
            return
    if mirrored and window.dtype == target.dtype:
        for plane, other in zip(window, target, strict=True):
            cv2.flip(plane, 1, other)
    elif window is not target:
        target[...] = window[:, :, ::-1] if mirrored else window


class Windows(NamedTuple):
    """Crop position of each image of a batch, and whether it is then mirrored: arrays of N."""

    tops: np.ndarray
    lefts: np.ndarray
    mirrored: np.ndarray


def crop_of(param: caffe_pb2.TransformationParameter, where: str) -> tuple[int, int]:
    """Height and width of the crop, by crop_size or DeepLab's crop_height and crop_width; (0, 0) if there is none."""
    if bool(param.crop_height) != bool(param.crop_width) or (param.crop_size and param.crop_height):
        found = f"crop_size {param.crop_size}, crop_height {param.crop_height} and crop_width {param.crop_width}"
        raise Error(where, found, "give crop_size, or both crop_height and crop_width")
    return (param.crop_size,) * 2 if param.crop_size else (param.crop_height, param.crop_width)


class Transformer:
    """Applies a TransformationParameter to images of one batch.

    rng      the random generator of crops and changes in training, and of mirrors in both phases
    windows  the crops and mirrors of the last batch
    pixel_after_pixel  may be set: batches of bytes on a CPU are made channels-last, for nets that compute so
    device   of the batches; to a GPU, images are copied as bytes, and augmented and converted to floats there
    """

    def __init__(
        self,
        param: caffe_pb2.TransformationParameter,
        phase: int,
        where: str,
        rng: Generator,
        device: torch.device = torch.device("cpu"),  # noqa: B008, it is immutable
    ):
        if param.mean_file and param.mean_value:
            raise Error(where, "both mean_file and mean_value", "only one may be given")
        if param.force_color and param.force_gray:
            raise Error(where, "both force_color and force_gray", "only one may be given")
        for field, _ in param.ListFields():
            if field.number in SSD:
                raise Error(where, f"transform_param has {field.name}", "only AnnotatedData applies it", "leave it out")
            if field.name == "scale_factors":
                raise Error(where, "transform_param has scale_factors", "only ImageSegData applies it", "leave it out")
        self.param, self.where, self.rng, self.device = param, where, rng, device
        self.windows: Windows
        self.pixel_after_pixel = False
        self._kept_means: dict[tuple[bool, int, int], tuple[np.ndarray, ...] | None] = {}
        self.training = phase == caffe_pb2.TRAIN
        self.color = param.force_color if param.force_color or param.force_gray else None
        self.mean = read_mean(param.mean_file) if param.mean_file else None
        self.crop_extents = crop_of(param, where)
        self.resize = self._resizing()
        if self.mean is not None and self.draws_sizes:
            self.mean = self._central(self.mean)
        self.mean_is_cropped = self.resize is not None and not isinstance(self.resize, Resizing)
        self.augmentation = None
        if param.HasField("augmentation_param") and self.training:
            self.augmentation = Augmentation(param.augmentation_param, where, rng)

    def _resizing(self) -> Drawn | Resizing | None:
        """What changes the sizes of images before their crop."""
        given = {field.name for field, _ in self.param.ListFields()}
        found: list[Drawn | Resizing] = []
        for kind, fields in _RESIZES.items():
            if given & fields and (self.training or kind is not FixedCrops):
                found.append(kind(self.param, self.crop_extents, self.where, self.rng))
        if self.param.resize_param:
            found.append(Resizing(self.param.resize_param[0], self.where, self.rng))
        if len(self.param.resize_param) > 1:
            raise Error(
                self.where, f"{len(self.param.resize_param)} resize_param", "only AnnotatedData draws one of them", "give one"
            )
        if len(found) > 1:
            names = ", ".join(sorted(given & {"resize_param", *itertools.chain(*_RESIZES.values())}))
            raise Error(self.where, f"several changes of size ({names})", "they exclude each other", "give one")
        return found[0] if found else None

    @property
    def draws_sizes(self) -> bool:
        """Whether images get sizes that are drawn before they are cropped."""
        return isinstance(self.resize, (RandomResize, ShorterSide, RandomAspect))

    def _central(self, mean: np.ndarray) -> np.ndarray:
        """The centre of the mean image, as large as the crop: NVIDIA's mean of images whose size is drawn."""
        height, width = self.crop_extents
        if mean.shape[1] < height or mean.shape[2] < width:
            raise Error(self.where, f"{self.param.mean_file} has shape {mean.shape}", f"the crop has {height}×{width}")
        top, left = (mean.shape[1] - height) // 2, (mean.shape[2] - width) // 2
        return mean[:, top : top + height, left : left + width]

    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Channels, height and width after transforming an image of that shape."""
        return self.cropped((image[0], *self.resize.extents(image[1:])) if isinstance(self.resize, Resizing) else image)

    def cropped(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Channels, height and width after cropping an image of that shape."""
        crop = self.crop_extents
        if self.draws_sizes:
            return (image[0], *crop)
        if crop[0] > image[1] or crop[1] > image[2]:
            size = f"{crop[0]}" if self.param.crop_size else f"{crop[0]}×{crop[1]}"
            raise Error(self.where, f"crop_size {size} on images of {image[1]}×{image[2]}", "the crop must fit into the image")
        if self.mean is not None and self.mean.shape != tuple(image):
            found = f"{self.param.mean_file} has shape {self.mean.shape}"
            raise Error(self.where, found, f"the images have {tuple(image)}", "compute the mean from this database")
        if self.param.mean_value:
            mean_values(self.param, image[0], self.where)
        return (image[0], *crop) if any(crop) else tuple(image)

    def __call__(self, images: list[np.ndarray]) -> torch.Tensor:
        """float32 batch × channels × height × width: (crop(augment(image)) - mean) · scale, mirrored at random with `mirror`."""
        if self.param.bgr2rgb or self.param.cvt_bgr2rgb:
            images = [image[::-1] for image in images]
        if isinstance(self.resize, Resizing):
            images = [self.resize(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in images]
        elif self.resize:
            images = [self.resize(image) for image in images]
        self.windows = windows = self.draw(images)
        changes = self.augmentation.draw(len(images)) if self.augmentation else None
        if self.device.type == "cpu":
            return torch.from_numpy(self.normalize(self.crop(images, windows, changes), windows))
        if self.augmentation and changes and len({image.shape for image in images}) == 1:
            augmented = augment_batch(self.augmentation, upload(torch.from_numpy(np.stack(images)), self.device), changes)
            return self.normalize_on_device(self.crop_on_device(augmented, windows), windows)
        return self.normalize_on_device(upload(torch.from_numpy(self.crop(images, windows, changes)), self.device), windows)

    def draw(self, images: list[np.ndarray]) -> Windows:
        """Draw crops, random in training and central in testing, and mirrors."""
        channels, height, width = shape = self.cropped(images[0].shape)
        sizes = [image.shape for image in images]
        for size in {*sizes} - {sizes[0]}:
            if size[0] != channels or self.cropped(size) != shape:
                found = f"an image of shape {size} in a batch of {sizes[0]}"
                raise Error(self.where, found, do="resize them to one size, or set crop_size")
        room = np.array(sizes, int)[:, 1:] - np.array((height, width))
        if room.min() < 0:
            raise Error(
                self.where, f"a crop of {height}×{width} on a smaller image", "the crop must fit", "give allow_upscale: true"
            )
        corners = self.rng.integers(room + 1, room.shape) if self.training and any(self.crop_extents) else room // 2
        mirrored = self.rng.integers(2, len(images)) if self.param.mirror else np.zeros(len(images), int)
        return Windows(corners[:, 0], corners[:, 1], mirrored.astype(bool))

    # ---- on the CPU

    def crop(self, images: list[np.ndarray], windows: Windows, changes: Changes | None = None) -> np.ndarray:
        """Augment, crop and mirror the images: batch × channels × height × width, of the images' type.

        In memory the channels come last if `pixel_after_pixel` is set, for images of three channels of bytes.
        """
        channels, height, width = self.cropped(images[0].shape)
        dtype = images[0].dtype
        if self.pixel_after_pixel and channels == 3 and dtype == np.uint8 and self.device.type == "cpu":
            batch = np.empty((len(images), height, width, channels), dtype).transpose(0, 3, 1, 2)
        else:
            batch = np.empty((len(images), channels, height, width), dtype)

        is_whole = not (changes or any(self.crop_extents) or windows.mirrored.any())
        if is_whole and batch.size <= ALONE and all(image.flags.c_contiguous for image in images):
            planes = batch if batch.flags.c_contiguous else np.empty(batch.shape, dtype)
            np.concatenate(images, out=planes.reshape(-1, height, width), casting="unsafe")
            if planes is not batch:  # all images as one, whose rows are images
                rows = planes.reshape(len(images), channels, -1)
                into = batch.transpose(0, 2, 3, 1).reshape(len(images), -1, channels)
                cv2.merge([rows[:, channel] for channel in range(channels)], into)
        else:
            placed = list(zip(*(each.tolist() for each in windows), strict=True))

            def crop_one(index: int) -> None:
                image = images[index]
                if self.augmentation and changes:
                    image = self.augmentation.apply(image, changes, index)
                top, left, is_mirrored = placed[index]
                _copy(image[:, top : top + height, left : left + width], batch[index], is_mirrored)

            self._for_each(crop_one, len(images), batch[0].size)
        self.negate_flow(batch, windows)
        return batch

    def negate_flow(self, batch: Any, windows: Windows) -> None:
        """Negate the horizontal flow of mirrored images, 255 - x, in place: channel 2 (LRCN's `flow`) or even ones (is_flow).

        batch  an array or a tensor
        """
        channels = slice(2, 3) if self.param.flow else slice(0, None, 2)
        if self.param.flow or self.param.is_flow:
            for index in np.flatnonzero(windows.mirrored):
                batch[int(index), channels] = 255 - batch[int(index), channels]

    def normalize(self, pixels: np.ndarray, windows: Windows) -> np.ndarray:
        """Subtract the mean, cropped and mirrored like the image, and scale; float32."""
        batch = np.empty_like(pixels, np.float32)
        height, width = pixels.shape[2:]
        means = self._means(pixels[0])
        is_cut = self.mean is not None and any(self.crop_extents) and not self.mean_is_cropped
        is_one_mean = self.mean is None or not (is_cut or windows.mirrored.any())

        def normalize_some(number: int) -> None:
            first = number * together
            here = slice(first, first + together)
            target = batch[here]
            target[...] = pixels[here]
            if means:
                mean = means[int(windows.mirrored[first])]
                if is_cut:
                    top, left = windows.tops[first], windows.lefts[first]
                    left = mean.shape[2] - left - width if windows.mirrored[first] else left
                    mean = mean[:, top : top + height, left : left + width]
                target -= mean
            if self.param.scale != 1:
                target *= np.float32(self.param.scale)

        size = batch[0].size
        together = max(1, TOGETHER // max(1, size)) if is_one_mean else 1
        self._for_each(normalize_some, -(-len(pixels) // together), size * together)
        return batch

    def _means(self, image: np.ndarray) -> tuple[np.ndarray, ...] | None:
        """What is subtracted from images and from mirrored ones, in the order of an image in memory; None if nothing is."""
        is_by_pixel = _is_by_pixel(image)
        key = is_by_pixel, len(image), image.shape[2] if is_by_pixel else 0
        if key not in self._kept_means:
            mean = self.mean
            if self.param.mean_value:
                mean = mean_values(self.param, len(image), self.where)[:, None, None]
                mean = np.broadcast_to(mean, (len(image), 1, image.shape[2])) if is_by_pixel else mean
            order, back = ((1, 2, 0), (2, 0, 1)) if is_by_pixel else ((0, 1, 2), (0, 1, 2))
            pair = () if mean is None else (mean, mean[:, :, ::-1])
            self._kept_means[key] = tuple(np.ascontiguousarray(each.transpose(order)).transpose(back) for each in pair) or None
        return self._kept_means[key]

    @staticmethod
    def _for_each(function: Callable[[int], None], count: int, size: int) -> None:
        """Call function(0) … function(count - 1), every n-th of them on each of n workers; small work is not shared.

        size  number of values that a call computes
        """
        if count * size <= ALONE:
            for index in range(count):
                function(index)
            return

        def call_some(worker: int) -> None:
            for index in range(worker, count, WORKERS):
                function(index)

        list(workers().map(call_some, range(WORKERS)))

    # ---- on the device

    def window_indices(self, windows: Windows, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column indices of the windows' pixels: N × 1 × height × 1 and N × 1 × 1 × width."""
        rows = windows.tops[:, None] + np.arange(height)
        columns = np.where(windows.mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + windows.lefts[:, None]
        down, across = (upload(torch.from_numpy(indices), self.device) for indices in (rows, columns))
        return down[:, None, :, None], across[:, None, None, :]

    @functools.cached_property
    def mean_on_device(self) -> torch.Tensor:
        """The mean image, or the mean of each channel."""
        mean = torch.tensor(list(self.param.mean_value)) if self.mean is None else torch.from_numpy(self.mean)
        return upload(mean, self.device)

    def crop_on_device(self, images: torch.Tensor, windows: Windows) -> torch.Tensor:
        """`crop` of images of one size, batch × channels × height × width, on the device."""
        rows, columns = self.window_indices(windows, *self.cropped(images.shape[1:])[1:])
        indices, channels = (torch.arange(extent, device=self.device) for extent in images.shape[:2])
        batch = images[indices[:, None, None, None], channels[:, None, None], rows, columns]
        self.negate_flow(batch, windows)
        return batch

    def normalize_on_device(self, pixels: torch.Tensor, windows: Windows) -> torch.Tensor:
        """`normalize` on the device."""
        batch = pixels.float()
        if self.mean is not None:
            nowhere = np.zeros_like(windows.tops)
            placed = windows._replace(tops=nowhere, lefts=nowhere) if self.mean_is_cropped else windows
            rows, columns = self.window_indices(placed, *pixels.shape[2:])
            channels = torch.arange(pixels.shape[1], device=self.device)[:, None, None]
            batch -= self.mean_on_device[channels, rows, columns]
        elif self.param.mean_value:
            batch -= self.mean_on_device[:, None, None]
        return batch.mul_(self.param.scale) if self.param.scale != 1 else batch
