"""Layers that rearrange, select and combine values: Concat, Slice, Split, Reshape, Flatten, Tile, Crop, Filter, Eltwise …"""

import functools
import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from caffe.engine import machine
from caffe.engine.layer import Layer, Shape, Tops, register
from caffe.proto import caffe_pb2


def out_of_range(indices: Tensor, count: int) -> int | None:
    """One of the integers `indices` that is not in 0 … count - 1, or None, as in a program that torch.export traces."""
    if torch.compiler.is_exporting() or not indices.numel():
        return None
    low, high = (int(end) for end in indices.aminmax())
    return low if low < 0 else high if high >= count else None


def _axis(layer: Layer, legacy: str, axes: int) -> int:
    """The setting `axis`, or the field `legacy` that it replaced, as a position from 0."""
    p = layer.settings_of(layer.param)
    if p.HasField("axis") and p.HasField(legacy):
        raise layer.error(f"both axis and {legacy}", "only one may be given", "keep axis")
    return layer.axis(getattr(p, legacy if p.HasField(legacy) else "axis"), axes)


@register("Concat")
class Concat(Layer, is_capturable=True, takes_bfloat16=True):
    """Concatenation along `axis`; all other axes must be equal."""

    bottoms = (1, None)
    drawn_as = "arrangement"
    is_channelwise = True

    def setup(self, *shapes: Shape) -> None:
        self.along = _axis(self, "concat_dim", len(shapes[0]))
        self.keeps_output = len(shapes) == 1  # a view of the bottom

    @property
    def joins_channels(self) -> bool:
        return self.along == 1

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        first, along = shapes[0], self.along
        for shape in shapes[1:]:
            if len(shape) != len(first) or shape[:along] + shape[along + 1 :] != first[:along] + first[along + 1 :]:
                raise self.error(f"bottoms of shapes {first} and {shape}", f"they may differ in axis {along} only")
        return [(*first[:along], sum(shape[along] for shape in shapes), *first[along + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.along) if len(bottoms) > 1 else bottoms[0].view_as(bottoms[0])


@register("Split")
class Split(Layer, is_capturable=True, takes_bfloat16=True):
    """Copy the bottom for each of its consumers; nets insert it if a blob has several. The tops' gradients are summed."""

    keeps_shape = True
    tops = (1, None)
    drawn_as = "arrangement"
    copies_values = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in self.param.top)


@register("Flatten")
class Flatten(Layer, is_capturable=True, takes_bfloat16=True):
    """Merge the axes from `axis` to `end_axis` into one."""

    drawn_as = "arrangement"
    copies_values = True
    gives_maps = False

    def setup(self, shape: Shape) -> None:
        p = self.param.flatten_param
        self.first, self.last = self.axis(p.axis, len(shape)), self.axis(p.end_axis, len(shape))
        if self.last < self.first:
            raise self.error(f"end_axis {p.end_axis} before axis {p.axis}", "it must not come before it")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[: self.first], math.prod(shape[self.first : self.last + 1]), *shape[self.last + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.first, self.last)


class _SumRelu(torch.autograd.Function):
    """max(first + second, 0), by a kernel of a GPU."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        y = machine.by_kernel("chains.sum_relu", _sum_relu, first, second)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (y,) = ctx.saved_tensors
        passed = machine.by_kernel("chains.relu_backward", _relu_backward, y, gradient)
        return passed, passed


def _sum_relu(first: Tensor, second: Tensor) -> Tensor:
    return torch.relu_(first + second)


def _relu_backward(y: Tensor, gradient: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(gradient, y, 0)


@register("Eltwise")
class Eltwise(Layer, is_capturable=True, takes_bfloat16=True):
    """Product, weighted sum or maximum of bottoms of one shape.

    As in Caffe, at equal maxima MAX passes the whole gradient to the later of the first two bottoms, else to the earliest. A
    single bottom, which BVLC Caffe refuses, is taken as it is, in a SUM times its coeff (FlowNet's nets scale flow so).
    """

    bottoms = (1, None)
    drawn_as = "arrangement"
    is_elementwise = True
    keeps_output = False

    def setup(self, *shapes: Shape) -> None:
        p = self.param.eltwise_param
        if not self.only_adds or len(shapes) > 2:  # rounded once
            self.takes_bfloat16 = False
        self.takes_relu = self.only_adds and len(shapes) == 2
        if p.coeff and len(p.coeff) != len(shapes):
            raise self.error(f"{len(p.coeff)} values of coeff", f"there are {len(shapes)} bottoms")
        if p.coeff and p.operation == caffe_pb2.EltwiseParameter.PROD:
            raise self.error("coeff with operation PROD", "it applies to SUM only")

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        self.require_same_shape(*shapes)
        return [shapes[0]]

    @property
    def only_adds(self) -> bool:
        p = self.param.eltwise_param
        return p.operation == caffe_pb2.EltwiseParameter.SUM and all(coefficient == 1 for coefficient in p.coeff)

    def then_relu(self, first: Tensor, second: Tensor) -> Tensor:
        self.require_same_shape(tuple(first.shape), tuple(second.shape))
        y: Tensor = _SumRelu.apply(first, second)
        return y

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        if any(other.shape != first.shape for other in others):
            self.require_same_shape(*(tuple(bottom.shape) for bottom in (first, *others)))
        p = self.param.eltwise_param
        if p.operation == caffe_pb2.EltwiseParameter.PROD:
            return functools.reduce(torch.mul, others, first)
        if p.operation == caffe_pb2.EltwiseParameter.MAX:
            result = torch.where(first > others[0], first, others[0]) if others else first
            for other in others[1:]:
                result = torch.where(other > result, other, result)
            return result
        coefficients = p.coeff or [1.0] * (1 + len(others))
        result = first * coefficients[0] if coefficients[0] != 1 else first
        for other, coefficient in zip(others, coefficients[1:], strict=True):
            result = torch.add(result, other, alpha=coefficient)
        return result


@register("Silence")
class Silence(Layer, is_capturable=True):
    """Consumes blobs that no other layer reads, so that they are not outputs of the net."""

    bottoms = (1, None)
    tops = (0, 0)
    reads_out = True

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        return []

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


@register("Softmax")
class Softmax(Layer, is_capturable=True):
    """y = e^x / Σ e^x along `axis`; shape of the bottom."""

    keeps_shape = True
    is_channelwise = True
    applies_softmax = True
    reads_out = True
    drawn_as = "loss"

    def setup(self, shape: Shape) -> None:
        self.along = self.axis(self.param.softmax_param.axis, len(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.along)


@register("Slice")
class Slice(Layer, is_capturable=True, takes_bfloat16=True):
    """Split the bottom along `axis` at `slice_point`, or into equal parts, one for each top."""

    tops = (1, None)
    drawn_as = "arrangement"
    is_channelwise = True

    def setup(self, shape: Shape) -> None:
        self.along = _axis(self, "slice_dim", len(shape))

    def extents(self, extent: int) -> list[int]:
        """Extent of each top along the axis, whose extent is given."""
        tops, points = len(self.param.top), list(self.param.slice_param.slice_point)
        if points and len(points) != tops - 1:
            raise self.error(f"{len(points)} values of slice_point for {tops} tops", f"there must be {tops - 1}")
        ends = [0, *points, extent]
        if points and any(low >= high for low, high in pairwise(ends)):
            raise self.error(f"slice_point {', '.join(map(str, points))}", f"they must rise, between 0 and {extent}")
        if not points and extent % tops:
            raise self.error(f"{extent} along axis {self.along} for {tops} tops", "it must divide evenly", "give slice_point")
        return [high - low for low, high in pairwise(ends)] if points else [extent // tops] * tops

    def top_shapes(self, shape: Shape) -> list[Shape]:
        before, after = shape[: self.along], shape[self.along + 1 :]
        return [(*before, extent, *after) for extent in self.extents(shape[self.along])]

    def forward(self, x: Tensor) -> Tops:
        if len(self.param.top) == 1:
            return x.view_as(x)
        return tuple(x.split(self.extents(x.shape[self.along]), self.along))


@register("Reshape")
class Reshape(Layer, is_capturable=True, takes_bfloat16=True):
    """The same values in another shape: dim 0 copies the bottom's axis, -1 is inferred.

    Only `num_axes` axes from `axis` on are replaced (-1: all that follow); those before and after stay.
    """

    drawn_as = "arrangement"
    copies_values = True

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p = self.param.reshape_param
        start = p.axis if p.axis >= 0 else len(shape) + 1 + p.axis
        if not 0 <= start <= len(shape):
            raise self.error(f"axis {p.axis}", f"its bottom has {len(shape)} axes")
        end = len(shape) if p.num_axes == -1 else start + p.num_axes
        if not start <= end <= len(shape):
            raise self.error(f"num_axes {p.num_axes} from axis {start} on", f"its bottom has {len(shape)} axes")
        dims = []
        for index, dim in enumerate(p.shape.dim):
            if dim == 0 and start + index >= end:
                raise self.error(f"dim 0 at position {index}", f"there is no such axis in a bottom of shape {shape}")
            dims.append(shape[start + index] if dim == 0 else dim)
        if dims.count(-1) > 1 or min(dims, default=0) < -1:
            raise self.error(f"dims {list(p.shape.dim)}", "at most one may be -1, and no other negative")
        count = math.prod(shape)
        known = math.prod((*shape[:start], *(dim for dim in dims if dim != -1), *shape[end:]))
        fits = known > 0 and count % known == 0 if -1 in dims else count == known
        if not fits:
            raise self.error(f"dims {list(p.shape.dim)} for a bottom of shape {shape}", f"it has {count} values")
        dims = [count // known if dim == -1 else dim for dim in dims]
        return [(*shape[:start], *dims, *shape[end:])]

    def forward(self, x: Tensor) -> Tensor:
        # Row-major order of values, whatever the memory layout.
        return x.reshape(*self.top_shapes(tuple(x.shape)))


@register("Tile")
class Tile(Layer, is_capturable=True):
    """Repeat the bottom `tiles` times along `axis`."""

    def setup(self, shape: Shape) -> None:
        self.require_positive("tiles")
        self.along = self.axis(self.param.tile_param.axis, len(shape))

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[: self.along], shape[self.along] * self.param.tile_param.tiles, *shape[self.along + 1 :])]

    def forward(self, x: Tensor) -> Tensor:
        times = [1] * x.dim()
        times[self.along] = self.param.tile_param.tiles
        return x.repeat(times)


@register("ArgMax")
class ArgMax(Layer, is_capturable=True):
    """Indices of the top_k largest values along `axis`, or of each image. Of equal values the last comes first.

    Without axis the top is (N, 1, top_k), or with out_max_val (N, 2, top_k): indices and values. With axis, its extent becomes
    top_k, and out_max_val gives the values instead of the indices. No gradient.
    """

    differentiable_bottoms = ()
    reads_out = True

    def setup(self, shape: Shape) -> None:
        p = self.param.argmax_param
        self.along = self.axis(p.axis, len(shape)) if p.HasField("axis") else None

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p, along = self.param.argmax_param, self.along
        choices = math.prod(shape[1:]) if along is None else shape[along]
        if not 1 <= p.top_k <= choices:
            raise self.error(f"top_k {p.top_k}", f"there are {choices} values to choose from")
        if along is not None:
            return [(*shape[:along], p.top_k, *shape[along + 1 :])]
        return [(shape[0], 2 if p.out_max_val else 1, p.top_k, *(1,) * (len(shape) - 3))]

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.argmax_param
        along = 1 if self.along is None else self.along
        values = x.reshape(len(x), -1) if self.along is None else x
        last = values.shape[along] - 1
        ordered, positions = values.flip(along).sort(dim=along, descending=True, stable=True)
        ordered = ordered.narrow(along, 0, p.top_k)
        positions = (last - positions.narrow(along, 0, p.top_k)).to(x.dtype)
        if self.along is not None:
            return ordered if p.out_max_val else positions
        rows = torch.stack((positions, ordered), 1) if p.out_max_val else positions[:, None]
        return rows.reshape(*rows.shape, *(1,) * (x.dim() - 3))


@register("Reduction")
class Reduction(Layer, is_capturable=True):
    """Sum, sum of magnitudes, sum of squares or mean over all axes from `axis` on, times coeff."""

    def setup(self, shape: Shape) -> None:
        self.first = self.axis(self.param.reduction_param.axis, len(shape))

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [shape[: self.first]]

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.reduction_param
        rows = x.reshape(*x.shape[: self.first], -1)
        operations = caffe_pb2.ReductionParameter
        if p.operation == operations.ASUM:
            rows = rows.abs()
        elif p.operation == operations.SUMSQ:
            rows = rows.square()
        result = rows.mean(-1) if p.operation == operations.MEAN else rows.sum(-1)
        return result * p.coeff if p.coeff != 1 else result


@register("BatchReindex")
class BatchReindex(Layer):
    """Select images by index, which may repeat: (N, …), indices from 0 to N - 1 (M,) → (M, …)."""

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, first: Shape, numbers: Shape) -> None:
        if len(numbers) != 1:
            raise self.error(f"image numbers of shape {numbers}", "they must have one axis")

    def top_shapes(self, first: Shape, numbers: Shape) -> list[Shape]:
        return [(*numbers, *first[1:])]

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        chosen = numbers.long()
        if (number := out_of_range(chosen, x.shape[0])) is not None:
            raise self.error(f"image number {number}", f"there are {x.shape[0]} images")
        return x.index_select(0, chosen)


@register("Filter")
class Filter(Layer):
    """Keep the images for which the last bottom, the selector, is not 0; one top for each other bottom."""

    bottoms = (2, None)
    tops = (1, None)

    def setup(self, *shapes: Shape) -> None:
        *data, selector = shapes
        if len(self.param.top) != len(data):
            raise self.error(
                f"{len(self.param.top)} tops for {len(data)} bottoms besides the selector", "there must be one for each"
            )
        if any(extent != 1 for extent in selector[1:]):
            raise self.error(f"a selector of shape {selector}", "it must have one value for each image")
        self.differentiable_bottoms = tuple(range(len(data)))

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        *data, selector = shapes
        for shape in data:
            if shape[0] != selector[0]:
                raise self.error(f"bottoms of shapes {shape} and {selector}", "they must have the same number of images")
        return data

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        *data, selector = bottoms
        chosen = selector.reshape(-1).nonzero().reshape(-1)
        return tuple(x.index_select(0, chosen) for x in data)


@register("Crop")
class Crop(Layer, is_capturable=True):
    """Crop the first bottom to the second's extents from `axis` on, at `offset`: one for all of those axes, or one for each."""

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, first: Shape, second: Shape) -> None:
        self.start = self.axis(self.param.crop_param.axis, len(first))
        if len(first) != len(second):
            raise self.error(f"bottoms of shapes {first} and {second}", "they must have the same number of axes")
        offsets = self.param.crop_param.offset or [0]
        self.offsets = self.for_each(offsets, len(first) - self.start, "values of offset", "cropped axes")

    def top_shapes(self, first: Shape, second: Shape) -> list[Shape]:
        for axis, offset in enumerate(self.offsets, self.start):
            if offset + second[axis] > first[axis]:
                raise self.error(
                    f"offset {offset} and extent {second[axis]} on axis {axis} of a bottom of shape {first}",
                    "the crop must lie within the bottom",
                )
        return [first[: self.start] + second[self.start :]]

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        self.top_shapes(tuple(x.shape), tuple(reference.shape))
        for axis, offset in enumerate(self.offsets, self.start):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x
