"""Colorization by hypercolumns (Larsson et al. 2016), as of gustavla/autocolorize: ExtendedImageData, SoftmaxKLDLoss …"""

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.data import Batch
from caffe.layer_types.files import IMAGE_LIST, ImageData, numbered_lines, read_listed
from caffe.layer_types.loss import FLT_MIN, Loss, at_least
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2
from caffe.transforms.transform import Transformer


@register("BgrToMunsell")
class BgrToMunsell(Layer):
    """Hue, chroma and value of blue, green and red: (N, 3, H, W) → (N, 3, H, W). No gradient passes.

    Value is the greatest of the three, chroma the greatest less the least, and hue, from 0 to 1, the angle of the hexcone; 0 for
    greys.
    """

    differentiable_bottoms = ()
    keeps_shape = True

    def setup(self, shape: Shape) -> None:
        self.require_maps(shape)
        if shape[1] != 3:
            raise self.error(f"a bottom of shape {shape}", "3 channels, blue, green and red")

    def forward(self, x: Tensor) -> Tensor:
        blue, green, red = x.unbind(1)
        value = x.amax(1)
        chroma = value - x.amin(1)
        divisor = torch.where(chroma == 0, 1.0, chroma)
        sixths = torch.where(
            red == value,
            (green - blue) / divisor,
            torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
        )
        hue = torch.where(chroma == 0, 0.0, (sixths / 6).remainder(1.0))
        return torch.stack((hue, chroma, value), 1)


@register("UniformToHistogram")
class UniformToHistogram(Layer):
    """The bin of each value from 0 to 1, as that of `bins` channels that is 1: (N, 1, H, W) → (N, bins, H, W). No gradient."""

    differentiable_bottoms = ()

    def setup(self, shape: Shape) -> None:
        self.require_maps(shape)
        self.require_positive("bins")
        if shape[1] != 1:
            raise self.error(f"a bottom of shape {shape}", "1 channel")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(shape[0], self.param.uniform_to_histogram_param.bins, *shape[2:])]

    def forward(self, x: Tensor) -> Tensor:
        bins = self.param.uniform_to_histogram_param.bins
        numbers = (x * bins).long().clamp(0, bins - 1)
        return torch.zeros_like(x).expand(-1, bins, -1, -1).scatter(1, numbers, 1.0)


@register("StripDecimals")
class StripDecimals(Layer):
    """x without its fraction, towards 0; shape of x. No gradient passes."""

    differentiable_bottoms = ()
    keeps_shape = True
    is_elementwise = True

    def forward(self, x: Tensor) -> Tensor:
        return x.trunc()


def _check_places(layer: Layer, places: Shape, maps: Shape) -> None:
    """Raise LayerError unless there are places (N, P, 2) in maps of as many images."""
    layer.require_maps(maps)
    if len(places) < 3 or places[2] != 2 or math.prod(places[3:]) != 1 or places[0] != maps[0]:
        raise layer.error(f"places of shape {places} for maps of shape {maps}", "(N, P, 2) with as many images: y, x")


@register("SparseHistogramExtractor")
class SparseHistogramExtractor(Layer):
    """Mean histograms of windows around places: (places (N, P, 2), bins (N, B, H, W)) → (N · P, B) for each `size`. No gradient.

    A window of size × size pixels has the place, y and x, in its middle; what lies outside the map does not count, and a window
    without any count gives a uniform histogram.
    """

    bottoms = (2, 2)
    tops = (1, None)
    differentiable_bottoms = ()

    def setup(self, places: Shape, histograms: Shape) -> None:
        sizes = list(self.param.sparse_histogram_extractor_param.size)
        if len(sizes) != len(self.param.top) or min(sizes) < 1:
            raise self.error(f"size {sizes} for {len(self.param.top)} tops", "one, at least 1, for each top")

    def top_shapes(self, places: Shape, histograms: Shape) -> list[Shape]:
        _check_places(self, places, histograms)
        return [(places[0] * places[1], histograms[1])] * len(self.param.top)

    def forward(self, places: Tensor, histograms: Tensor) -> tuple[Tensor, ...]:
        images, bins, height, width = histograms.shape
        sums = functional.pad(histograms.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
        points = places.reshape(images, -1, 2).long()
        numbers = torch.arange(images, device=places.device)[:, None]
        tops = []
        for size in self.param.sparse_histogram_extractor_param.size:
            first = points - size // 2
            (upper, left), (lower, right) = (
                (edge[..., 0].clamp(0, height), edge[..., 1].clamp(0, width)) for edge in (first, first + size)
            )
            ends = ((lower, right), (upper, right), (lower, left), (upper, left))
            parts = [sums[numbers, :, row, column] for row, column in ends]
            counts = (parts[0] - parts[1] - parts[2] + parts[3]).reshape(-1, bins)
            total = counts.sum(1, keepdim=True)
            tops.append(torch.where(total > 0, counts / torch.where(total > 0, total, 1.0), 1 / bins).to(histograms.dtype))
        return tuple(tops)


@register("SparseHypercolumnExtractor")
class SparseHypercolumnExtractor(Layer):
    """Values of maps at places, interpolated: (places (N, P, 2), maps (N, C_i, H_i, W_i) …) → (N · P, Σ C_i).

    A place y, x of the image is (y - offset_height) / scale, (x - offset_width) / scale in map i, moved into the map if it lies
    outside. scale, offset_height and offset_width: one for each map; activation_mult, 1 by default, multiplies a map's values.
    """

    bottoms = (2, None)

    def setup(self, places: Shape, *maps: Shape) -> None:
        p = self.param.sparse_hypercolumn_extractor_param
        given = (p.scale, p.offset_height, p.offset_width)
        if {len(values) for values in given} != {len(maps)} or len(p.activation_mult) > len(maps) or min(p.scale) <= 0:
            found = f"{len(p.scale)} scale, {len(p.offset_height)} offset_height and {len(p.offset_width)} offset_width"
            raise self.error(f"{found} for {len(maps)} maps", "one of each for each map, scales above 0")
        self.factors = [*p.activation_mult, *[1.0] * (len(maps) - len(p.activation_mult))]
        self.differentiable_bottoms = tuple(range(1, len(maps) + 1))

    def top_shapes(self, places: Shape, *maps: Shape) -> list[Shape]:
        for shape in maps:
            _check_places(self, places, shape)
            if min(shape[2:]) < 2:
                raise self.error(f"a map of shape {shape}", "at least 2 rows and columns, to interpolate between")
        return [(places[0] * places[1], sum(shape[1] for shape in maps))]

    def forward(self, places: Tensor, *maps: Tensor) -> Tensor:
        p = self.param.sparse_hypercolumn_extractor_param
        points = places.detach().reshape(len(places), -1, 2)
        numbers = torch.arange(len(points), device=points.device)[:, None]
        columns = []
        for x, scale, *offsets, factor in zip(maps, p.scale, p.offset_height, p.offset_width, self.factors, strict=True):
            limits = torch.tensor(x.shape[2:]).to(points) - 1.0001
            local = torch.minimum(((points - torch.tensor(offsets).to(points)) / scale).clamp_min(0), limits)
            low = local.long()
            row, column = low.unbind(-1)
            below, right = (local - low)[..., None].unbind(2)
            above, left = 1 - below, 1 - right
            upper = left * x[numbers, :, row, column] + right * x[numbers, :, row, column + 1]
            lower = left * x[numbers, :, row + 1, column] + right * x[numbers, :, row + 1, column + 1]
            columns.append((above * upper + below * lower).flatten(0, 1) * factor)
        return torch.cat(columns, 1)


@register("SoftmaxKLDLoss")
class SoftmaxKLDLoss(Loss):
    """Kullback-Leibler divergence of a softmax from given distributions t: (scores, t[, weights of positions]) → scalar.

    -Σ w t (log p - log t), along softmax_param's axis; type CROSS_ENTROPY leaves log t out. Normalised as loss_param says, where
    VALID counts the sum of the weights. p and t are at least the smallest float in the logarithms.
    """

    bottoms = (2, 3)
    differentiable_bottoms = (0,)
    applies_softmax = True

    def setup(self, scores: Shape, targets: Shape, weights: Shape | None = None) -> None:
        self.along = self.axis(self.param.softmax_param.axis, len(scores))
        self.read_loss_param()
        self.require_same_count(scores, targets)
        positions = math.prod(scores) // scores[self.along]
        if weights is not None and math.prod(weights) != positions:
            raise self.error(f"weights of shape {weights} for scores of shape {scores}", "there must be one for each position")

    def batch_dependence(self) -> str:
        weighted = len(self.param.bottom) > 2 and self.normalization == caffe_pb2.LossParameter.VALID
        return "divides by the sum of its batch's weights (normalization: VALID)" if weighted else ""

    def forward(self, scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        t = targets.detach().reshape(scores.shape)
        terms = at_least(torch.log_softmax(scores, self.along), math.log(FLT_MIN))
        if self.param.softmax_kld_loss_param.type == caffe_pb2.SoftmaxKLDLossParameter.KL_DIVERGENCE:
            terms = terms - t.clamp_min(FLT_MIN).log()
        terms = -(terms * t).sum(self.along)
        counted = None if weights is None else weights.detach().reshape(terms.shape)
        return self.normalized_sum(terms, scores.shape[: self.along].numel(), counted)


@register("ExtendedImageData", "image_data_param")
class ExtendedImageData(ImageData):
    """Images of a list of `path` or `path label` lines whose shorter side is drawn: → (N, C, H, W)[, labels (N,)].

    The shorter side is resized to a length from shortest_side to below shortest_side_max, the other in proportion, rounded down.
    random_seed determines orders, crops, sizes and mirrors, so that layers with the same seed and settings match. image_type is
    PIXEL.
    """

    tops = (1, 2)

    def setup(self, *shapes: Shape) -> None:
        p, settings = self.param.image_data_param, self.param.extended_image_data_param
        if settings.image_type != caffe_pb2.ExtendedImageDataParameter.PIXEL:
            kind = caffe_pb2.ExtendedImageDataParameter.ImageType.Name(settings.image_type)
            raise self.error(f"image_type {kind}", "PIXEL, an image file")
        if settings.shortest_side and (p.new_height or p.new_width):
            raise self.error("shortest_side with new_height or new_width", "only one of them")
        if settings.shortest_side_max and not 0 < settings.shortest_side <= settings.shortest_side_max:
            raise self.error(
                f"shortest_side {settings.shortest_side} and shortest_side_max {settings.shortest_side_max}",
                "they must rise from 1",
            )
        super().setup(*shapes)

    def top_shapes(self) -> list[Shape]:
        return super().top_shapes()[: len(self.param.top)]

    def batch_dependence(self) -> str:
        drawn = self.param.extended_image_data_param.shortest_side_max
        return super().batch_dependence() or ("resizes images at random" if drawn else "")

    def make_transformer(self) -> Transformer:
        seed = self.param.extended_image_data_param.random_seed
        if seed >= 0:
            self.rng = Generator(seed)
        return super().make_transformer()

    def read_list(self) -> list[tuple[str, Any]]:
        p = self.param.image_data_param
        rows = [line.split() for _, line in numbered_lines(p.source, IMAGE_LIST, self.where)]
        try:
            return [(p.root_folder + words[0], int(words[1]) if len(words) > 1 else 0) for words in rows]
        except ValueError as error:
            raise self.error(
                f"{p.source} with a label that is not a number ({error})", "lines of path, or path and label"
            ) from None

    def pixels(self, line: tuple[str, Any]) -> np.ndarray:
        return self.sized(line, self.param.extended_image_data_param.shortest_side)

    def sized(self, line: tuple[str, Any], side: int) -> np.ndarray:
        """The image of a line with its shorter side resized; 0 leaves it."""
        p = self.param.image_data_param
        image = read_listed(p.source, p.root_folder, line[0], p.is_color, self.size)
        if not side:
            return image
        shorter = min(image.shape[1:])
        height, width = (int(side * extent / shorter) for extent in image.shape[1:])
        resized = cv2.resize(image.transpose(1, 2, 0), (width, height)).reshape(height, width, -1)
        return np.ascontiguousarray(resized.transpose(2, 0, 1))

    def read(self, position: int) -> Iterator[Batch]:
        p = self.param.extended_image_data_param
        lines = self.ordered(position)
        with ThreadPoolExecutor(2) as pool:
            while True:
                batch = list(itertools.islice(lines, self.batch_size))
                range_of = max(0, p.shortest_side_max - p.shortest_side)
                sides = [p.shortest_side + int(range_of * part) for part in self.rng.random(len(batch))]
                yield self.transformer(list(pool.map(self.sized, batch, sides))), self.labels(batch)
