"""Layers of FlowNet (Dosovitskiy et al. 2015, Ilg et al. 2017): Correlation, FlowWarp, Downsample, Mean, L1Loss."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.formats.stored import read_array
from caffe.layer_types.loss import Loss
from caffe.proto import caffe_pb2


@register("Correlation")
class Correlation(Layer):
    """Correlation of displaced maps: (a, b (N, C, H, W)) → (N, D², H', W'), D = 2 ⌊max_displacement / stride_2⌋ + 1.

    Channel (i, j): the mean of a · b (or |a - b|: SUBTRACT) over the channels and a window of kernel_size, that of b displaced by
    i and j multiples of stride_2 (down, right). Both maps are padded by `pad`.
    H' = ⌈(H + 2 pad - 2 border) / stride_1⌉, border = max_displacement + (kernel_size - 1) / 2.
    """

    bottoms = (2, 2)

    def setup(self, a: Shape, b: Shape) -> None:
        p = self.param.correlation_param
        self.require_maps(a)
        if not (p.HasField("kernel_size") and p.HasField("max_displacement")):
            raise self.error("kernel_size and max_displacement", "both must be given")
        if p.kernel_size % 2 == 0 or min(p.stride_1, p.stride_2) < 1:
            raise self.error(
                f"kernel_size {p.kernel_size}, stride_1 {p.stride_1}, stride_2 {p.stride_2}",
                "the kernel must be odd, strides at least 1",
            )
        radius = p.max_displacement // p.stride_2
        self.displacements = [step * p.stride_2 for step in range(-radius, radius + 1)]

    def top_shapes(self, a: Shape, b: Shape) -> list[Shape]:
        p = self.param.correlation_param
        self.require_same_shape(a, b)
        border = p.max_displacement + p.kernel_size // 2
        extents = [math.ceil((extent + 2 * p.pad - 2 * border) / p.stride_1) for extent in a[2:]]
        if min(extents) < 1:
            raise self.error(f"bottoms of shape {a} with pad {p.pad}", f"a border of {2 * border} pixels must fit into them")
        return [(a[0], len(self.displacements) ** 2, *extents)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        p = self.param.correlation_param
        ((*_, rows, columns),) = self.top_shapes(tuple(a.shape), tuple(b.shape))
        height, width = ((count - 1) * p.stride_1 + p.kernel_size for count in (rows, columns))
        a, b = (functional.pad(x, [p.pad] * 4) for x in (a, b))
        first = p.max_displacement
        window = a[:, :, first : first + height, first : first + width]
        multiplies = p.correlation_type == caffe_pb2.CorrelationParameter.MULTIPLY
        channels = []
        for down in self.displacements:
            for right in self.displacements:
                other = b[:, :, first + down : first + down + height, first + right : first + right + width]
                alike = window * other if multiplies else (window - other).abs()
                channels.append(alike.mean(1, keepdim=True))
        return functional.avg_pool2d(torch.cat(channels, 1), p.kernel_size, p.stride_1)


@register("FlowWarp")
class FlowWarp(Layer):
    """The image at (x + u, y + v), bilinear, for each pixel: (image (N, C, H, W), flow (u, v) (N, 2, H, W)) → shape of the image.

    0, or NaN as fill_value says, where that is outside [0, W) × [0, H).
    """

    bottoms = (2, 2)
    keeps_shape = True

    def setup(self, image: Shape, flow: Shape) -> None:
        self.require_maps(image)
        if flow != (image[0], 2, *image[2:]):
            raise self.error(f"a flow of shape {flow} for images of shape {image}", f"it must be {(image[0], 2, *image[2:])}")

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        height, width = image.shape[2:]
        x = flow[:, 0] + torch.arange(width, device=image.device)
        y = flow[:, 1] + torch.arange(height, device=image.device)[:, None]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        x, y = (torch.where(inside, at, 0.0) for at in (x, y))
        left, upper = x.detach().long(), y.detach().long()
        alpha, beta = (x - left)[:, None], (y - upper)[:, None]
        right, lower = (left + 1).clamp_max(width - 1), (upper + 1).clamp_max(height - 1)
        pixels = image.flatten(2)

        def at(row: Tensor, column: Tensor) -> Tensor:
            places = (row * width + column).flatten(1)[:, None].expand(-1, image.shape[1], -1)
            return pixels.gather(2, places).view_as(image)

        above = (1 - alpha) * at(upper, left) + alpha * at(upper, right)
        below = (1 - alpha) * at(lower, left) + alpha * at(lower, right)
        fills_zero = self.param.flow_warp_param.fill_value == caffe_pb2.FlowWarpParameter.ZERO
        return torch.where(inside[:, None], (1 - beta) * above + beta * below, 0.0 if fills_zero else math.nan)


@register("Downsample")
class Downsample(Layer):
    """Smaller maps: (x (N, C, H, W)[, a map of the new size]) → (N, C, H', W'), without a gradient, as in FlowNet.

    H' and W' are the second bottom's, or top_height and top_width. Each value is the mean of those less than s away, weighted by
    1 - distance / s along both axes, s = (H - 1) / (H' - 1). NaN are left out; the mean is NaN if they weigh more than half as
    much as the others.
    """

    bottoms = (1, 2)
    differentiable_bottoms = ()

    def setup(self, shape: Shape, *like: Shape) -> None:
        for given in (shape, *like):
            self.require_maps(given)

    def top_shapes(self, shape: Shape, *like: Shape) -> list[Shape]:
        p = self.param.downsample_param
        size = like[0][2:] if like else (p.top_height, p.top_width)
        if any(new != old and not 2 <= new < old for new, old in zip(size, shape[2:], strict=True)):
            raise self.error(
                f"a bottom of shape {shape} to be made {size[0]}×{size[1]}", "height and width must be at least 2 and not larger"
            )
        return [(*shape[:2], *size)]

    def weights(self, old: int, new: int) -> Tensor:
        """What each of `old` places contributes to each of `new`, without its divisor: (new, old)."""
        if new == old:
            return torch.eye(old, device=self.device)
        scale = (old - 1) / (new - 1)
        centres = torch.arange(new, dtype=torch.float64)[:, None] * scale
        distances = (torch.arange(old, dtype=torch.float64) - centres).abs()
        return (1 - distances / scale).clamp_min(0).float().to(self.device)

    def forward(self, x: Tensor, *like: Tensor) -> Tensor:
        ((*_, height, width),) = self.top_shapes(tuple(x.shape), *[tuple(each.shape) for each in like])
        if x.shape[2:] == (height, width):
            return x.clone()
        rows, columns = self.weights(x.shape[2], height), self.weights(x.shape[3], width).t()
        missing = x.isnan()
        total, used, left_out = (rows @ values @ columns for values in (x.nan_to_num(0), (~missing).float(), missing.float()))
        return torch.where(left_out > used / 2, math.nan, total / used)


@register("Mean")
class Mean(Layer):
    """y = output_scale · (input_scale · x ± mean_scale · mean), bottom by bottom, (N, C, H, W) each.

    `operation` adds or subtracts. The mean is a value for each channel, or `file`, a binaryproto of maps as large as x; fewer
    values or maps than channels are repeated.
    """

    bottoms = (1, None)
    tops = (1, None)
    rescales = True

    def setup(self, *shapes: Shape) -> None:
        p = self.param.mean_param
        if not p.HasField("operation"):
            raise self.error("no operation", "it must be ADD or SUBTRACT")
        if len(self.param.top) != len(shapes):
            raise self.error(f"{len(shapes)} bottoms and {len(self.param.top)} tops", "there must be one top for each bottom")
        if p.HasField("file") == bool(p.value):
            raise self.error("values and a file" if p.value else "neither values nor a file", "the mean must be given in one way")
        if p.value:
            mean = torch.tensor(list(p.value))[:, None, None]
        else:
            stored = torch.from_numpy(read_array(p.file, "mean file", "write it as a binaryproto"))
            mean = stored.reshape(-1, *stored.shape[-2:])
        sign = 1 if p.operation == caffe_pb2.MeanParameter.ADD else -1
        self.term = (mean * (sign * p.mean_scale)).to(self.device)

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        maps, *size = self.term.shape
        for shape in shapes:
            self.require_maps(shape)
            if shape[1] % maps or tuple(size) not in ((1, 1), shape[2:]):
                raise self.error(f"a mean of shape {(maps, *size)} for a bottom of shape {shape}", "it must fit, or be repeated")
        return list(shapes)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        p = self.param.mean_param
        repeats = [x.shape[1] // len(self.term) for x in bottoms]
        terms = [self.term.repeat(count, 1, 1) for count in repeats]
        return tuple(p.output_scale * (p.input_scale * x + term) for x, term in zip(bottoms, terms, strict=True))


@register("L1Loss")
class L1Loss(Loss):
    """Σ |a - b| / N: (a, b (N, …)) → scalar (DetectNet); FlowNet's, where l1_loss_param is given: (a[, b] (N, C, H, W)) → scalar.

    FlowNet's leaves out differences that are NaN, and those smaller than `plateau`. With l2_per_location it sums √(s + epsilon)
    over positions, s the sum of the squares over channels, or their mean (l2_prescale_by_channels). With normalize_by_num_entries
    the divisor is the number of differences that are not NaN, by the number of channels.
    """

    bottoms = (1, 2)

    def setup(self, a: Shape, *b: Shape) -> None:
        self.require_same_images(a, *b)
        self.is_flownets = self.param.HasField("l1_loss_param")
        if self.is_flownets:
            self.require_maps(a)

    def batch_dependence(self) -> str:
        if not self.param.l1_loss_param.normalize_by_num_entries:
            return ""
        return "divides by the number of differences in its batch that are not NaN (normalize_by_num_entries)"

    def forward(self, a: Tensor, *b: Tensor) -> Tensor:
        p = self.param.l1_loss_param
        difference = a - b[0].reshape(a.shape) if b else a
        if not self.is_flownets:
            return difference.abs().sum() / a.shape[0]
        counted = ~difference.isnan()
        divisor = counted.sum() / a.shape[1] if p.normalize_by_num_entries else a.shape[0]
        difference = torch.where(counted, difference, 0.0)
        if p.l2_per_location:
            squares = difference.square()
            squares = squares.mean(1) if p.l2_prescale_by_channels else squares.sum(1)
            squares = torch.where(squares < p.plateau * p.plateau, 0.0, squares)
            return (squares + p.epsilon).sqrt().sum() / divisor
        return torch.where(difference.abs() < p.plateau, 0.0, difference).abs().sum() / divisor


@register("AbsLoss")
class AbsLoss(L1Loss):
    """Σ |a - b| / N: (a, b (N, …)) → scalar."""

    bottoms = (2, 2)
