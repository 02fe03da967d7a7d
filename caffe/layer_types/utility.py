"""Layers that arrange and combine blobs: Concat, Split, Flatten, Eltwise, Silence, Softmax."""

from __future__ import annotations

import torch

from caffe.layer import Layer, register
from caffe.proto import caffe_pb2


@register("Concat")
class Concat(Layer):
    """Bottoms one after the other along `axis`; their other axes are equal."""

    bottoms = (1, None)

    def setup(self, *shapes):
        p = self.param.concat_param
        if p.HasField("axis") and p.HasField("concat_dim"):
            raise self.error("both axis and concat_dim", "one of them is wanted", "keep axis")
        self.along = self.axis(p.concat_dim if p.HasField("concat_dim") else p.axis, len(shapes[0]))
        for shape in shapes[1:]:
            if len(shape) != len(shapes[0]) or any(
                a != b for axis, (a, b) in enumerate(zip(shape, shapes[0], strict=True)) if axis != self.along
            ):
                raise self.error(f"bottoms of shapes {shapes[0]} and {shape}", f"they may differ in axis {self.along} only")

    def forward(self, *bottoms):
        return torch.cat(bottoms, self.along) if len(bottoms) > 1 else bottoms[0].view_as(bottoms[0])


@register("Split")
class Split(Layer):
    """The bottom, once for each consumer; nets insert it where a blob has several. The gradient is the sum of the tops'."""

    bottoms = (1, 1)
    tops = (1, None)

    def forward(self, x):
        return tuple(x.view_as(x) for _ in self.param.top)


@register("Flatten")
class Flatten(Layer):
    """Axes from `axis` to `end_axis` become one."""

    bottoms = (1, 1)

    def setup(self, shape):
        p = self.param.flatten_param
        self.first, self.last = self.axis(p.axis, len(shape)), self.axis(p.end_axis, len(shape))
        if self.last < self.first:
            raise self.error(f"end_axis {p.end_axis} before axis {p.axis}", "it comes after it")

    def forward(self, x):
        return x.flatten(self.first, self.last)


@register("Eltwise")
class Eltwise(Layer):
    """Product, weighted sum or maximum of bottoms of one shape.

    Caffe: where two bottoms are equally large, MAX sends the whole gradient to the later of the first two, and to the earlier
    of any others.
    """

    bottoms = (2, None)

    def setup(self, *shapes):
        p = self.param.eltwise_param
        if p.coeff and len(p.coeff) != len(shapes):
            raise self.error(f"{len(p.coeff)} values of coeff", f"there are {len(shapes)} bottoms")
        if p.coeff and p.operation == caffe_pb2.EltwiseParameter.PROD:
            raise self.error("coeff with operation PROD", "coefficients are for SUM")
        if any(shape != shapes[0] for shape in shapes[1:]):
            raise self.error(f"bottoms of shapes {', '.join(map(str, shapes))}", "all must have the same")

    def forward(self, first, *others):
        p = self.param.eltwise_param
        if p.operation == caffe_pb2.EltwiseParameter.PROD:
            for other in others:
                first = first * other
            return first
        if p.operation == caffe_pb2.EltwiseParameter.MAX:
            result = torch.where(first > others[0], first, others[0])
            for other in others[1:]:
                result = torch.where(other > result, other, result)
            return result
        coefficients = p.coeff or [1.0] * (1 + len(others))
        result = first * coefficients[0] if coefficients[0] != 1 else first
        for other, coefficient in zip(others, coefficients[1:], strict=True):
            result = torch.add(result, other, alpha=coefficient)
        return result


@register("Silence")
class Silence(Layer):
    """Takes blobs that nothing else reads, so that they are not outputs of the net."""

    bottoms = (1, None)
    tops = (0, 0)

    def forward(self, *bottoms):
        return ()


@register("Softmax")
class Softmax(Layer):
    """Exponentials that sum to 1 along `axis`; shape of the bottom."""

    bottoms = (1, 1)

    def setup(self, shape):
        self.along = self.axis(self.param.softmax_param.axis, len(shape))

    def forward(self, x):
        return torch.softmax(x, self.along)
