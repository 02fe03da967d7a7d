"""Vision layers, which work on windows of pixels: Convolution, Deconvolution, Im2col, Pooling, SPP."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import mode
from caffe.engine.layer import BIAS, WEIGHT, Layer, Shape, Tops, register
from caffe.layer_types.volumes import VolumePooling
from caffe.proto import caffe_pb2
from caffe.transfers import array_from_outside

_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
MAX = caffe_pb2.PoolingParameter.MAX
AVE = caffe_pb2.PoolingParameter.AVE
AVE_EXC_PAD = caffe_pb2.PoolingParameter.AVE_EXC_PAD
LOWEST = torch.finfo(torch.float32).min
THIN = 8
"""Channels of a group below which gradients take longer in bfloat16."""


def spatial(layer: Layer, name: str, axes: int, default: int | None) -> Shape:
    """One value for each spatial axis, from the setting `name`, single or repeated, or from `name_h` and `name_w`.

    The two-axis form of `kernel_size` is `kernel_h` and `kernel_w`.
    """
    param = layer.settings_of(layer.param)
    stem = name.removesuffix("_size")
    sides = [side for side in (f"{stem}_h", f"{stem}_w") if param.HasField(side)]
    field = getattr(param, name)
    values = field if not isinstance(field, int) else [field] * param.HasField(name)
    if sides:
        if axes != 2:
            raise layer.error(
                f"{stem}_h and {stem}_w for {axes} spatial axes", "they are for two axes", f"give {name} once for each axis"
            )
        if values:
            raise layer.error(f"both {name} and {stem}_h or {stem}_w", "only one form may be given")
        if default is None and len(sides) < 2:
            raise layer.error(f"only one of {stem}_h and {stem}_w", "both must be given")
        return tuple(getattr(param, side) if side in sides else default or 0 for side in (f"{stem}_h", f"{stem}_w"))
    if not values and default is None and axes:
        raise layer.error(f"no {name}", do=f"give {name}, or {stem}_h and {stem}_w")
    return tuple(layer.for_each(values or [default], axes, f"values of {name}", "spatial axes"))


def sided_pads(layer: Layer) -> tuple[int, int, int, int] | None:
    """Pads at the left, right, top and bottom (pad_l, pad_r, pad_t and pad_b of Synopsys' fork); None if none is given."""
    param = layer.settings_of(layer.param)
    left, right, top, bottom = (int(getattr(param, name)) for name in ("pad_l", "pad_r", "pad_t", "pad_b"))
    if not (left or right or top or bottom):
        return None
    if {field.name for field, _ in param.ListFields()} & {"pad", "pad_h", "pad_w"}:
        raise layer.error("pad_l, pad_r, pad_t or pad_b, and pad", "only one form may be given")
    return left, right, top, bottom


class _Windows(Layer):
    """Base of the layers with a convolution_param: the geometry of their windows."""

    def read_geometry(self, axes: int) -> None:
        """Set kernel, stride, pad and dilation, with a value for each of the spatial axes."""
        self.kernel = spatial(self, "kernel_size", axes, None)
        self.stride = spatial(self, "stride", axes, 1)
        self.pad = spatial(self, "pad", axes, 0)
        p = self.param.convolution_param
        # DeepLab's hole and BVLC Caffe's dilation are one thing.
        dilation = p.dilation or ([p.hole_h, p.hole_w] if p.HasField("hole_h") or p.HasField("hole_w") else [p.hole])
        self.dilation = tuple(self.for_each(dilation, axes, "values of dilation", "spatial axes"))
        for name, values in (("kernel_size", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            if min(values, default=1) < 1:
                raise self.error(f"{name} {min(values)}", "it must be at least 1")

    def extents(self, bottom: Shape) -> list[int]:
        """Spatial extents of the top, for a bottom of these: the number of windows along each axis."""
        axes = zip(bottom, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        counts = [(extent + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for extent, size, stride, pad, dilation in axes]
        if min(counts, default=1) < 1:
            raise self.error(
                f"kernel {self.kernel} with pad {self.pad} on a bottom of {'×'.join(map(str, bottom))} pixels",
                "the kernel must fit into the padded bottom",
            )
        return counts


class _Convolving(_Windows):
    """Base of Convolution and Deconvolution: one weight and bias for all bottoms."""

    learns = (WEIGHT, BIAS)
    bottoms = (1, None)
    tops = (1, None)
    keeps_output = False
    is_linear = True
    begins_layout = True
    gives_maps = True
    drawn_as = "convolution"
    takes_pairs = False
    """Whether images of one channel are convolved as pairs of columns."""
    sides: tuple[int, int, int, int] | None = None
    """Pads at the left, right, top and bottom, where they differ."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.convolution_param
        shape = shapes[0]
        if len(self.param.top) != len(shapes):
            raise self.error(f"{len(shapes)} bottoms and {len(self.param.top)} tops", "there must be one top for each bottom")
        self.channel_axis = self.axis(p.axis, len(shape))
        axes = len(shape) - self.channel_axis - 1
        if axes and axes not in _CONVOLUTIONS:
            raise self.error(f"a bottom of shape {shape}: {axes} spatial axes", "at most 3 are supported")
        self.read_geometry(axes)
        self.sides = sided_pads(self)
        if self.sides and (axes != 2 or self.is_transposed):
            raise self.error("pad_l, pad_r, pad_t or pad_b", "they are for convolutions of two spatial axes", "give pad")
        channels = shape[self.channel_axis]
        self.require_positive("num_output")
        for name, count in (("input channels", channels), ("outputs", p.num_output)):
            if p.group < 1 or count % p.group:
                raise self.error(f"group {p.group} for {count} {name}", "the groups must divide them evenly")
        outer, inner = (channels, p.num_output) if self.is_transposed else (p.num_output, channels)
        self.add_blob((outer, inner // p.group, *self.kernel), p.weight_filler)
        self.group = p.group
        # For the gradients of thin groups, oneDNN's kernels for bfloat16 take up to a hundred times as long as those for float32.
        if p.group > 1 and channels // p.group < THIN:
            self.takes_bfloat16 = False
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def lay_out(self, layout: torch.memory_format) -> None:
        """Lay out the weights of a two-dimensional convolution as its images."""
        if self.begins_layout and len(self.blobs[0].shape) == 4 and not self.takes_pairs:
            self.blobs[0].lay_out(layout)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        self.require_same_shape(*shapes)
        leading, bottom = shapes[0][: self.channel_axis], shapes[0][self.channel_axis + 1 :]
        if self.sides:
            left, right, top, below = self.sides
            bottom = (bottom[0] + top + below, bottom[1] + left + right)
        return [(*leading, self.param.convolution_param.num_output, *self.extents(bottom))] * len(shapes)

    def forward(self, *bottoms: Tensor) -> Tops:
        weight, *rest = self.parameters(bottoms[0])
        bias = rest[0] if rest else None
        if self.sides:
            bottoms = tuple(functional.pad(x, self.sides) for x in bottoms)
        if self.channel_axis == 1 and self.kernel:
            return tuple(self.convolve(x, weight, bias) for x in bottoms)
        tops = []
        for x in bottoms:
            flat = x.reshape(-1, *x.shape[self.channel_axis :])
            y = self.convolve(flat, weight, bias) if self.kernel else self.weigh(flat, weight, bias)
            tops.append(y.reshape(*x.shape[: self.channel_axis], *y.shape[1:]))
        return tuple(tops)

    def weigh(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution without spatial axes: vectors, N × C."""
        if self.is_transposed:
            return functional.conv_transpose1d(x[..., None], weight[..., None], bias, groups=self.group)[..., 0]
        return functional.conv1d(x[..., None], weight[..., None], bias, groups=self.group)[..., 0]


def _pairs_fit(x: Tensor, kernel: int, stride: int, pad: int) -> bool:
    """Whether the columns of the images and of their convolution both divide into pairs."""
    width = x.shape[3]
    return width % (2 * stride) == 0 and pad % (2 * stride) == 0 and ((width + 2 * pad - kernel) // stride) % 2 == 1


def _convolve_pairs(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape, pad: Shape) -> Tensor:
    """conv2d of single-channel images (N, 1, H, W), channels-last, by a convolution that computes two columns of tops at a time.

    The columns that one pair of tops does not share with the next become channels, and the weights hold each kernel twice, the
    second time shifted by one stride. oneDNN is optimised for many channels: LeNet's first layer takes three quarters of the time
    that it takes with one channel.
    """
    count, _, height, width = x.shape
    outputs, _, rows, columns = weight.shape
    step = 2 * stride[1]
    span = -(-(columns + stride[1]) // step) * step
    weight = torch.cat([functional.pad(weight, (shift, span - columns - shift)) for shift in (0, stride[1])])
    weight = weight.view(2 * outputs, rows, span // step, step).permute(0, 3, 1, 2)
    pairs = x.reshape(count, height, width // step, step).permute(0, 3, 1, 2)
    bias = None if bias is None else torch.cat((bias, bias))
    y = functional.conv2d(pairs, weight, bias, (stride[0], 1), (pad[0], pad[1] // step))
    y = y.permute(0, 2, 3, 1)
    return y.reshape(*y.shape[:2], 2 * y.shape[2], outputs).permute(0, 3, 1, 2)


@register("Convolution")
class Convolution(_Convolving, is_capturable=True, takes_bfloat16=True):
    """Cross-correlation with learned kernels: (…, C, d_1, …, d_n) × (O, C / group, k_1, …, k_n) → (…, O, e_1, …, e_n).

    Axes before `axis` are independent; at most 3 spatial axes. e = (d + 2 pad - dilation (k - 1) - 1) / stride + 1, rounded down.
    """

    is_classifier = True

    def setup(self, *shapes: Shape) -> None:
        super().setup(*shapes)
        plain = self.begins_layout and len(self.kernel) == 2 and self.group == 1 and self.dilation == (1, 1)
        self.takes_pairs = plain and self.blobs[0].shape[1] == 1 and self.device.type == "cpu"

    @property
    def can_be_folded(self) -> bool:
        is_plain = self.begins_layout and len(self.kernel) == 2 and self.channel_axis == 1 and len(self.param.bottom) == 1
        return is_plain and not self.sides

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A gradient that is rounded once for each half of the pairs would not be a GPU's.
        pairs = self.takes_pairs and mode.numerics() != "reproducible"
        if pairs and _pairs_fit(x, self.kernel[1], self.stride[1], self.pad[1]):
            return _convolve_pairs(x, weight, bias, self.stride, self.pad)
        convolution = _CONVOLUTIONS[len(self.kernel)]
        return convolution(x, weight, bias, self.stride, self.pad, self.dilation, self.group)


@register("Deconvolution", "convolution_param")
class Deconvolution(_Convolving, is_capturable=True, takes_bfloat16=True):
    """The gradient of a Convolution as a forward pass: (…, C, d_1, …, d_n) × (C, O / group, k_1, …, k_n) → (…, O, e_1, …, e_n).

    e = stride (d - 1) + dilation (k - 1) + 1 - 2 pad.
    """

    is_transposed = True

    def extents(self, bottom: Shape) -> list[int]:
        axes = zip(bottom, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        tops = [stride * (extent - 1) + dilation * (size - 1) + 1 - 2 * pad for extent, size, stride, pad, dilation in axes]
        if min(tops, default=1) < 1:
            raise self.error(
                f"pad {self.pad} on a bottom of {'×'.join(map(str, bottom))} pixels", "at least one pixel of the top must remain"
            )
        return tops

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        transposed = _TRANSPOSED[len(self.kernel)]
        return transposed(x, weight, bias, self.stride, self.pad, 0, self.group, self.dilation)


@register("Im2col", "convolution_param")
class Im2col(_Windows, is_capturable=True):
    """The windows of a convolution as columns: (N, C, H, W) → (N, C · k_h · k_w, H', W')."""

    def setup(self, shape: Shape) -> None:
        self.require_maps(shape)
        self.read_geometry(2)

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(shape[0], shape[1] * math.prod(self.kernel), *self.extents(shape[2:]))]

    def forward(self, x: Tensor) -> Tensor:
        columns = functional.unfold(x, self.kernel, self.dilation, self.pad, self.stride)
        return columns.view(*columns.shape[:2], *self.extents(x.shape[2:]))


@register("Pooling")
class Pooling(Layer, is_capturable=True, takes_bfloat16=True):
    """Maximum, mean or random value of every window: (N, C, H, W) → (N, C, H', W'); MAX has the positions as a second top.

    H' is rounded up unless round_mode: FLOOR (forks: ceil_mode: false), and a last window that starts beyond the bottom and its
    padding is left out. AVE divides by the window's size within the padded bottom, AVE_EXC_PAD (Synopsys' fork; intel/caffe:
    avg_include_pad: false) by its size within the bottom. pad_l, pad_r, pad_t and pad_b (Synopsys) are the pads of each side.
    STOCHASTIC samples with probabilities proportional to the values in training and gives their expectation in testing (Zeiler
    and Fergus 2013). Volumes (N, C, D, H, W), which BVLC Caffe refuses, are pooled by VolumePooling.
    """

    tops = (1, 2)
    keeps_output = False
    gives_maps = True
    drawn_as = "pooling"
    known_shape: tuple[int, ...] | None = None
    """The bottom's shape that `fit` was last called for."""
    volumes: VolumePooling | None = None

    def setup(self, shape: Shape) -> None:
        p = self.param.pooling_param
        if len(shape) == 5:
            self.volumes, self.takes_bfloat16 = VolumePooling(self), False
            return
        self.excludes_pad = p.pool == AVE_EXC_PAD or (p.pool == AVE and not p.avg_include_pad)
        self.method = AVE if self.excludes_pad else p.pool
        self.ceil = p.round_mode == caffe_pb2.PoolingParameter.CEIL if p.HasField("round_mode") else p.ceil_mode
        self.gives_positions = len(self.param.top) > 1
        if self.gives_positions or p.pool == caffe_pb2.PoolingParameter.STOCHASTIC:
            self.takes_bfloat16 = False
        self.require_maps(shape)
        if self.gives_positions and p.pool != MAX:
            raise self.error("two tops", "only MAX pooling has a second top, the positions")
        self.stride, self.pad = spatial(self, "stride", 2, 1), spatial(self, "pad", 2, 0)
        self.pad_after = self.pad
        if sides := sided_pads(self):
            left, right, top, bottom = sides
            self.pad, self.pad_after = (top, left), (bottom, right)
            if p.pool == caffe_pb2.PoolingParameter.STOCHASTIC:
                raise self.error("pad_l, pad_r, pad_t or pad_b with STOCHASTIC", "they are for MAX and AVE")
        if p.global_pooling:
            if p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w"):
                raise self.error("global_pooling and a kernel size", "global pooling takes its kernel from the bottom")
            self.kernel = None
            if any(self.pad + self.pad_after) or self.stride != (1, 1):
                raise self.error(f"global_pooling with pad {self.pad} and stride {self.stride}", "pad must be 0 and stride 1")
            return
        self.kernel = spatial(self, "kernel_size", 2, None)
        if min(self.kernel) < 1 or min(self.stride) < 1:
            raise self.error(f"kernel {self.kernel} and stride {self.stride}", "both must be at least 1")
        if any(pad >= kernel for pad, kernel in zip(self.pad + self.pad_after, self.kernel * 2, strict=True)):
            raise self.error(f"pad {self.pad} with kernel {self.kernel}", "the padding must be smaller than the kernel")

    @property
    def is_by_channel(self) -> bool:
        return not self.volumes and not self.gives_positions and self.method in (MAX, AVE)

    def outputs(self, extent: int, kernel: int, stride: int, pad: int, after: int) -> int:
        """Number of windows along one axis, padded by `pad` and `after`."""
        span = extent + pad + after - kernel
        count = (math.ceil(span / stride) if self.ceil else span // stride) + 1
        padded = pad or after
        if padded and (count - 1) * stride >= extent + pad:
            count -= 1
        if count < 1:
            raise self.error(f"kernel {kernel} with pad {pad} on {extent} pixels", "the kernel must fit into the padded bottom")
        beyond = (count - 1) * stride - extent - pad
        if beyond >= 0 and (padded or self.method != MAX):
            raise self.error(
                f"kernel {kernel} and stride {stride} on {extent} pixels: the last window starts outside the bottom",
                do="use a stride no larger than the kernel, or round_mode: FLOOR",
            )
        return count

    def top_shapes(self, shape: Shape) -> list[Shape]:
        if self.volumes:
            return [self.volumes.sizes(shape)]
        self.fit(shape)
        return [(*shape[:2], *self.sizes)] * len(self.param.top)

    def batch_dependence(self) -> str:
        draws = self.param.pooling_param.pool == caffe_pb2.PoolingParameter.STOCHASTIC and self.phase == caffe_pb2.TRAIN
        return "draws values at random" if draws else ""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.volumes:
            return (self.volumes.pool(x),)
        if x.shape != self.known_shape:
            self.fit(x.shape)
        pad, width = self.inner_pad, x.shape[3]
        if self.pads_first:
            x = functional.pad(x, self._margins(), value=-math.inf if self.method == MAX else 0.0)
        elif any(self.beyond):
            x = functional.pad(x.float(), (0, self.beyond[1], 0, self.beyond[0]), value=LOWEST)  # infinite in bfloat16
        tops: tuple[Tensor, ...]
        if self.gives_positions:
            top, positions = functional.max_pool2d(x, self.window, self.stride, pad, ceil_mode=self.ceil, return_indices=True)
            if x.shape[3] != width or self.pads_first:
                row, column = positions // x.shape[3], positions % x.shape[3]
                outer = self.pad if self.pads_first else (0, 0)
                positions = (row - outer[0]) * width + column - outer[1]
            if any(self.beyond):
                positions = positions.where(top != LOWEST, -1)
            tops = top, positions.to(x.dtype)
        elif self.method == MAX:
            tops = (torch.max_pool2d(x, self.window, self.stride, pad, ceil_mode=self.ceil),)
        elif self.method == AVE:
            tops = (self.mean(x),)
        else:
            tops = (self.stochastic(x),)
        return tops if not self.pads_first else tuple(top[:, :, : self.sizes[0], : self.sizes[1]] for top in tops)

    def fit(self, shape: tuple[int, ...]) -> None:
        """Compute what depends on the bottom's shape: the window, and the number of windows down and across."""
        self.known_shape = shape
        self.window = self.kernel or tuple(shape[2:])
        geometry = zip(shape[2:], self.window, self.stride, self.pad, self.pad_after, strict=True)
        self.sizes = tuple(self.outputs(*axis) for axis in geometry)
        # In Caffe the maximum of a window beyond the bottom, which only a stride above the kernel leads to, is the lowest number.
        axes = zip(self.sizes, shape[2:], self.window, self.stride, strict=True)
        self.beyond = [
            (n - 1) * stride + kernel - extent if (n - 1) * stride >= extent and not any(self.pad + self.pad_after) else 0
            for n, extent, kernel, stride in axes
        ]
        # PyTorch pads by at most half a window; for more, pad first and drop the windows that Caffe leaves out.
        wide = any(2 * pad > size for pad, size in zip(self.pad, self.window, strict=True))
        self.pads_first = wide or self.pad != self.pad_after
        self.inner_pad = (0, 0) if self.pads_first else self.pad
        self.shares = self._shares_inside(shape) if self.excludes_pad else None

    def _margins(self) -> tuple[int, int, int, int]:
        """The pads at the left, right, top and bottom."""
        return self.pad[1], self.pad_after[1], self.pad[0], self.pad_after[0]

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each window, of a bottom that is already padded if `pads_first`."""
        pooled = functional.avg_pool2d(x, self.window, self.stride, self.inner_pad, ceil_mode=self.ceil, count_include_pad=True)
        if self.shares is None:
            return pooled
        return pooled[:, :, : self.sizes[0], : self.sizes[1]] / self.shares

    def _shares_inside(self, shape: tuple[int, ...]) -> Tensor:
        """Share of each window within the padded bottom that lies in the bottom itself."""
        inside = functional.pad(torch.ones((1, 1, *shape[2:]), device=self.device), self._margins())
        shares = functional.avg_pool2d(inside, self.window, self.stride, ceil_mode=self.ceil)
        return shares[:, :, : self.sizes[0], : self.sizes[1]]

    def stochastic(self, x: Tensor) -> Tensor:
        """Pool stochastically; values outside the bottom are 0, and so are never drawn."""
        kernel, (height, width) = self.window, self.sizes
        below = max(0, (height - 1) * self.stride[0] + kernel[0] - x.shape[2] - self.pad[0])
        right = max(0, (width - 1) * self.stride[1] + kernel[1] - x.shape[3] - self.pad[1])
        x = functional.pad(x, (self.pad[1], right, self.pad[0], below))
        windows = x.unfold(2, kernel[0], self.stride[0]).unfold(3, kernel[1], self.stride[1])[:, :, :height, :width].flatten(4)
        total = windows.sum(-1, keepdim=True)
        if self.phase == caffe_pb2.TEST:
            return (windows * windows).sum(-1) / total[..., 0].clamp_min(torch.finfo(x.dtype).tiny)
        drawn_for = tuple(total.shape)
        numbers = array_from_outside(lambda: mode.generator.random(drawn_for), x.device)
        threshold = numbers.to(total) * total
        drawn = (windows.cumsum(-1) >= threshold).to(torch.uint8).argmax(-1, keepdim=True)
        return windows.gather(-1, drawn)[..., 0]


@register("SPP")
class SPP(Layer):
    """Spatial pyramid pooling (He et al. 2014): pooling over grids of 1, 2 × 2, 4 × 4, … windows → (N, C · (1 + 4 + 16 + …)).

    One level alone keeps its axes: (N, C, 1, 1).
    """

    gives_maps = False
    drawn_as = "pooling"

    def setup(self, shape: Shape) -> None:
        self.require_positive("pyramid_height")

    def fit(self, shape: tuple[int, ...]) -> None:
        """Create the levels' poolings for a bottom of this shape."""
        self.known_shape = shape
        self.levels = [self._level(1 << level, shape) for level in range(self.param.spp_param.pyramid_height)]

    def _level(self, grid: int, shape: tuple[int, ...]) -> Pooling:
        param = caffe_pb2.LayerParameter(name=self.param.name, type="Pooling", top=self.param.top, bottom=self.param.bottom)
        pooling = param.pooling_param
        pooling.pool = self.param.spp_param.pool  # type: ignore[assignment] # two enums of the same values
        for side, extent in zip("hw", shape[2:], strict=True):
            kernel = -(-extent // grid)
            setattr(pooling, f"kernel_{side}", kernel)
            setattr(pooling, f"stride_{side}", kernel)
            setattr(pooling, f"pad_{side}", (kernel * grid - extent + 1) // 2)
        level = Pooling(param, self.phase, self.where, self.device)
        level.setup(shape)
        return level

    def top_shapes(self, shape: Shape) -> list[Shape]:
        self.fit(shape)
        if len(self.levels) == 1:  # as it is, not flattened
            return self.levels[0].top_shapes(shape)
        return [(shape[0], shape[1] * sum(4**level for level in range(len(self.levels))))]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape != self.known_shape:
            self.fit(x.shape)
        pooled = [level.forward(x)[0] for level in self.levels]
        return torch.cat([each.flatten(1) for each in pooled], 1) if len(pooled) > 1 else pooled[0]
