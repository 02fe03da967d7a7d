"""Deformable networks (Dai et al. 2017, Zhu et al. 2019): convolution and position-sensitive pooling at learned offsets.

As of the Caffe ports of unsky and zhanglonghao1992 (convolutions), and makefile/frcnn (pooling).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from caffe.engine.layer import BIAS, WEIGHT, Shape, register
from caffe.layer_types.forks.regions import _OverRegions, _round
from caffe.layer_types.vision import _Windows, spatial


def bilinear(
    rows: Tensor, columns: Tensor, value: Callable[[Tensor, Tensor], Tensor], upper: Callable[[Tensor], Tensor]
) -> Tensor:
    """Bilinear interpolation at rows and columns, whose gradients are those of the cell beyond a whole number, or none.

    value  gives what is at whole rows and columns
    upper  gives the next whole number of positions; if that is themselves for whole ones, their gradient is 0
    """
    up, left = rows.detach().floor(), columns.detach().floor()
    down, right = upper(rows.detach()), upper(columns.detach())
    beta, alpha = rows - up, columns - left
    up, left, down, right = (each.long() for each in (up, left, down, right))
    above = (1 - alpha) * value(up, left) + alpha * value(up, right)
    below = (1 - alpha) * value(down, left) + alpha * value(down, right)
    return (1 - beta) * above + beta * below


class _Deformable(_Windows):
    """Base of both convolutions: geometry, weights, and where each weight of a window is applied."""

    learns = (WEIGHT, BIAS)
    keeps_output = False
    gives_maps = True

    def setup(self, shape: Shape, offsets: Shape, *masks: Shape) -> None:
        p = self.settings_of(self.param)
        self.require_maps(shape)
        self.require_positive("num_output")
        if self.axis(p.axis, 4) != 1:
            raise self.error(f"axis {p.axis}", "the channels are axis 1")
        self.kernel = spatial(self, "kernel_size", 2, None)
        self.stride = spatial(self, "stride", 2, 1)
        self.pad = spatial(self, "pad", 2, 0)
        self.dilation = tuple(self.for_each(p.dilation or [1], 2, "values of dilation", "spatial axes"))
        for name, values in (("kernel_size", self.kernel), ("stride", self.stride), ("dilation", self.dilation)):
            if min(values) < 1:
                raise self.error(f"{name} {min(values)}", "it must be at least 1")
        for offset in (offsets, *masks):
            self.require_maps(offset)
        self.groups = p.deformable_group if p.HasField("deformable_group") else offsets[1] // (2 * math.prod(self.kernel))
        for name, group, count in (
            ("group", p.group, shape[1]),
            ("group", p.group, p.num_output),
            ("deformable_group", self.groups, shape[1]),
        ):
            if group < 1 or count % group:
                raise self.error(f"{name} {group} for {count} channels", "the groups must divide them evenly")
        self.add_blob((p.num_output, shape[1] // p.group, *self.kernel), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def top_shapes(self, shape: Shape, offsets: Shape, *masks: Shape) -> list[Shape]:
        size = tuple(self.extents(shape[2:]))
        places = self.groups * math.prod(self.kernel)
        for what, found, wanted in zip(("offsets", "masks"), (offsets, *masks), (2 * places, places), strict=False):
            if found != (shape[0], wanted, *size):
                raise self.error(f"{what} of shape {found}", f"kernel, groups and top need {(shape[0], wanted, *size)}")
        return [(shape[0], self.settings_of(self.param).num_output, *size)]

    def positions(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the bottom for each weight of each window, (N, groups, weights, H', W')."""
        moved = offsets.reshape(len(offsets), self.groups, -1, 2, *offsets.shape[2:])
        grids = []
        for extent, stride, pad in zip(offsets.shape[2:], self.stride, self.pad, strict=True):
            grids.append(torch.arange(extent, device=offsets.device) * stride - pad)
        down, across = (torch.arange(size, device=offsets.device) for size in self.kernel)
        first = (down * self.dilation[0]).repeat_interleave(self.kernel[1])[:, None, None] + grids[0][:, None]
        second = (across * self.dilation[1]).repeat(self.kernel[0])[:, None, None] + grids[1]
        return moved[:, :, :, 0] + first, moved[:, :, :, 1] + second

    def convolve(self, values: Tensor) -> Tensor:
        """The top, from what each weight is applied to: (N, groups, channels of a group, weights, H', W')."""
        p = self.settings_of(self.param)
        images, (height, width) = len(values), values.shape[-2:]
        columns = values.reshape(images, p.group, -1, height * width)
        weight, *bias = self.parameters()
        top = weight.reshape(p.group, p.num_output // p.group, -1) @ columns
        top = top.reshape(images, p.num_output, height, width)
        return top + bias[0][:, None, None] if bias else top


def reader(x: Tensor, groups: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from rows and columns (N, groups, …) to the values there, (N, groups, channels of a group, …)."""
    images, channels, _, width = x.shape
    pixels = x.reshape(images, groups, channels // groups, -1)

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        places = (rows * width + columns).flatten(2)[:, :, None].expand(-1, -1, channels // groups, -1)
        return pixels.gather(3, places).unflatten(3, rows.shape[2:])

    return at


@register("DeformableConvolution")
class DeformableConvolution(_Deformable):
    """Convolution at learned offsets: (x (N, C, H, W), offsets (N, 2 · G · k_h · k_w, H', W')) → (N, O, H', W').

    Offsets of row and column, in pixels, for each weight of a window and each of G = deformable_group groups of channels.
    Values between pixels are interpolated, those outside [0, H) × [0, W) are 0.
    """

    bottoms = (2, 2)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = self.positions(offsets)
        inside = (rows >= 0) & (columns >= 0) & (rows < height) & (columns < width)
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        at = reader(x, self.groups)

        def value(row: Tensor, column: Tensor) -> Tensor:
            return at(row.clamp_max(height - 1), column.clamp_max(width - 1))

        found = bilinear_of_channels(rows, columns, value)
        return self.convolve(found * inside[:, :, None])


@register("ModulatedDeformableConvolution")
class ModulatedDeformableConvolution(_Deformable):
    """DeformableConvolution with a factor for each weight, the third bottom (N, G · k_h · k_w, H', W') (Zhu et al. 2019).

    The map is continued by zeros: values up to a pixel outside are interpolated towards 0.
    """

    bottoms = (3, 3)

    def forward(self, x: Tensor, offsets: Tensor, masks: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = self.positions(offsets)
        inside = (rows > -1) & (columns > -1) & (rows < height) & (columns < width)
        rows, columns = (torch.where(inside, each, 0.0) for each in (rows, columns))
        at = reader(x, self.groups)

        def value(row: Tensor, column: Tensor) -> Tensor:
            there = (row >= 0) & (column >= 0) & (row < height) & (column < width)
            return at(row.clamp(0, height - 1), column.clamp(0, width - 1)) * there[:, :, None]

        factors = masks.reshape(len(masks), self.groups, -1, *masks.shape[2:]) * inside
        return self.convolve(bilinear_of_channels(rows, columns, value) * factors[:, :, None])


def bilinear_of_channels(rows: Tensor, columns: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`bilinear` at rows and columns (N, groups, …) of maps whose `value` has the channels as a third axis."""
    return bilinear(
        rows[:, :, None], columns[:, :, None], lambda row, column: value(row[:, :, 0], column[:, :, 0]), lambda at: at.floor() + 1
    )


@register("DeformablePSROIPooling")
class DeformablePSROIPooling(_OverRegions):
    """Position-sensitive average pooling over bins that are moved by learned offsets (Dai et al. 2017).

    (x (N, output_dim · group_size², H, W), regions (R, 5)[, offsets (R, 2 · classes, part_size, part_size)]) → (R, output_dim,
    pooled_size, pooled_size). A bin is the mean of sample_per_part² interpolated values, as far as they are at most half a pixel
    outside the map. Offsets, of column and row, are times trans_std in sides of the region; those of a class are for its share of
    the output channels. pooled_size is group_size if it is not given, part_size then pooled_size.
    """

    bottoms = (2, 3)
    differentiable_bottoms = (0, 2)

    def setup(self, shape: Shape, regions: Shape, offsets: Shape | None = None) -> None:
        p = self.param.deformable_psroi_pooling_param
        self.check(shape, regions)
        for name in ("output_dim", "group_size", "spatial_scale", "sample_per_part"):
            if getattr(p, name) <= 0:
                raise self.error(f"{name} {getattr(p, name):g}", "it must be larger than 0")
        if shape[1] != p.output_dim * p.group_size**2:
            needed = f"output_dim {p.output_dim} and group_size {p.group_size} need {p.output_dim * p.group_size**2}"
            raise self.error(f"{shape[1]} channels", needed)
        if p.no_trans == (offsets is not None):
            found = f"no_trans: {str(p.no_trans).lower()} and {2 if offsets is None else 3} bottoms"
            raise self.error(found, "offsets are the third bottom, unless no_trans is true")
        self.pooled = p.pooled_size or p.group_size
        self.parts = p.part_size or self.pooled

    def top_shapes(self, shape: Shape, regions: Shape, offsets: Shape | None = None) -> list[Shape]:
        p = self.param.deformable_psroi_pooling_param
        if offsets is not None:
            fits = len(offsets) == 4 and offsets[1] and offsets[1] % 2 == 0 and not p.output_dim % (offsets[1] // 2)
            if not fits or (offsets[0], *offsets[2:]) != (regions[0], self.parts, self.parts):
                needed = (
                    f"({regions[0]}, 2 · classes, {self.parts}, {self.parts}), with classes that divide output_dim {p.output_dim}"
                )
                raise self.error(f"offsets of shape {offsets}", needed)
        return [(regions[0], p.output_dim, self.pooled, self.pooled)]

    def forward(self, x: Tensor, regions: Tensor, offsets: Tensor | None = None) -> Tensor:
        self.offsets = offsets
        return super().forward(x, regions)

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        p = self.param.deformable_psroi_pooling_param
        bins, samples, (height, width) = self.pooled, p.sample_per_part, x.shape[2:]
        whole = _round(corners)
        low, high = whole[:, :2] * p.spatial_scale - 0.5, (whole[:, 2:] + 1) * p.spatial_scale - 0.5
        sides = (high - low).clamp_min(0.1)
        grid = torch.arange(bins, device=x.device)
        if self.offsets is None:
            moved = x.new_zeros(len(images), 1, 2, bins, bins)
        else:
            part = (grid / bins * self.parts).floor().long()
            moved = self.offsets.reshape(len(images), -1, 2, self.parts, self.parts)[:, :, :, part[:, None], part]
            moved = moved * p.trans_std * sides[:, None, :, None, None]
        # Along each axis, (R, classes, bins, bins, samples, samples).
        steps = torch.arange(samples, device=x.device) / samples
        size = (sides / bins)[:, :, None]
        starts = low[:, :, None] + grid * size
        columns = starts[:, None, 0, None, :] + moved[:, :, 0]
        rows = starts[:, None, 1, :, None] + moved[:, :, 1]
        columns = columns[..., None, None] + (steps * size[:, 0])[:, None, None, None, None, :]
        rows = rows[..., None, None] + (steps * size[:, 1])[:, None, None, None, :, None]
        rows, columns = torch.broadcast_tensors(rows, columns)
        inside = (columns >= -0.5) & (columns <= width - 0.5) & (rows >= -0.5) & (rows <= height - 0.5)
        rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)

        classes = rows.shape[1]
        group = (grid * p.group_size // bins).clamp(0, p.group_size - 1)
        outputs = torch.arange(p.output_dim, device=x.device).view(1, classes, -1, 1, 1)
        channels = (images.view(-1, 1, 1, 1, 1) * p.output_dim + outputs) * p.group_size + group[:, None]
        channels = (channels * p.group_size + group)[..., None, None] * (height * width)
        values = x.reshape(-1)

        def value(row: Tensor, column: Tensor) -> Tensor:
            return values[channels + row * width + column]

        found = bilinear(rows[:, :, None], columns[:, :, None], value, torch.ceil) * inside[:, :, None]
        counts = inside.sum((-2, -1)).clamp_min(1)[:, :, None]
        return (found.sum((-2, -1)) / counts).flatten(1, 2)
