"""Layers of fully connected nets: InnerProduct, Embed, Dropout, Parameter."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import mode
from caffe.engine.layer import BIAS, WEIGHT, Layer, Shape, register
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2
from caffe.transfers import array_from_outside


@register("InnerProduct")
class InnerProduct(Layer, is_capturable=True, takes_bfloat16=True):
    """Fully connected: (d_0, …, d_axis-1, K) × (N, K)ᵀ → (d_0, …, d_axis-1, N); K is the product of the axes from `axis` on.

    With `transpose` the weights are stored as (K, N). With `normalize` (happynear/caffe-windows) each output's weights are
    divided by √(Σ w² + 1e-6) before each pass, and stay so where they learn; their gradient is not projected.
    """

    learns = (WEIGHT, BIAS)
    keeps_output = False
    is_linear = True
    gives_maps = False
    is_classifier = True
    drawn_as = "inner product"

    def setup(self, shape: Shape) -> None:
        p = self.param.inner_product_param
        self.require_positive("num_output")
        self.is_capturable = self.is_capturable and not p.normalize  # a pass changes the weights
        self.normalizes, self.transposes = p.normalize, p.transpose
        if p.normalize:  # its weights, in their own type
            self.takes_bfloat16 = False
        self.first = self.axis(p.axis, len(shape))
        self.inputs = math.prod(shape[self.first :])
        self.add_blob((self.inputs, p.num_output) if p.transpose else (p.num_output, self.inputs), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def top_shapes(self, shape: Shape) -> list[Shape]:
        inputs = math.prod(shape[self.first :])
        if inputs != self.inputs:
            raise self.error(
                f"a bottom of shape {shape}: {inputs} inputs",
                f"the weights take {self.inputs}",
                "a fully connected layer fixes the image size; keep that size, or make the layer a convolution",
            )
        return [(*shape[: self.first], self.param.inner_product_param.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        weight, *bias = self.parameters(x)
        if self.normalizes:
            weight = self.normalized(weight)
        if self.transposes:
            weight = weight.t()
        rows = x.flatten(self.first)
        if rows.shape[-1] != self.inputs:
            self.top_shapes(tuple(x.shape))
        return functional.linear(rows, weight, *bias)

    def normalized(self, weight: Tensor) -> Tensor:
        """The weights with those of each output scaled to norm 1; changed in place if they learn."""
        inputs = 0 if self.transposes else 1
        with torch.no_grad():
            norms = (weight.square().sum(inputs, keepdim=True) + 1e-6).sqrt()
            if self.phase == caffe_pb2.TRAIN and self.blobs[0].leaf.requires_grad:
                self.blobs[0].tensor.div_(norms)
                return weight
        return weight / norms


@register("Embed")
class Embed(Layer):
    """Lookup of learned rows by index: (d_0, …) → (d_0, …, N); an InnerProduct of one-hot vectors.

    Blobs: weights (input_dim, N); bias (N,). Bottom: indices from 0 to input_dim - 1.
    """

    learns = (WEIGHT, BIAS)
    differentiable_bottoms = ()
    drawn_as = "inner product"

    def setup(self, shape: Shape) -> None:
        p = self.param.embed_param
        self.require_positive("num_output", "input_dim")
        self.add_blob((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape, self.param.embed_param.num_output)]

    def forward(self, x: Tensor) -> Tensor:
        weight, *bias = self.parameters()
        indices = x.long()
        count = len(weight)
        if (index := out_of_range(indices, count)) is not None:
            raise self.error(f"index {index}", f"input_dim is {count}: indices go from 0 to {count - 1}")
        rows = functional.embedding(indices, weight)
        return rows + bias[0] if bias else rows


@register("Parameter")
class Parameter(Layer, is_capturable=True):
    """A learned blob of the given shape as a top; initially 0, or as blob_filler says (happynear/caffe-windows)."""

    learns = (WEIGHT,)
    bottoms = (0, 0)

    def setup(self) -> None:
        p = self.param.parameter_param
        self.add_blob(tuple(p.shape.dim), p.blob_filler)

    def top_shapes(self) -> list[Shape]:
        return [self.blobs[0].shape]

    def forward(self) -> Tensor:
        (blob,) = self.parameters()
        return blob.view_as(blob)


@register("Dropout")
class Dropout(Layer, is_capturable=True, takes_bfloat16=True):
    """In training, zero values with probability dropout_ratio and divide the others by 1 - dropout_ratio; else identity.

    scale_train: false (py-faster-rcnn's fork) divides nothing in training, and multiplies by 1 - dropout_ratio in testing.
    A ratio of 0 drops nothing, and one of 1 everything (NaN in BVLC Caffe).
    """

    keeps_shape = True
    copies_values = True
    is_elementwise = True

    def setup(self, shape: Shape) -> None:
        ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= ratio <= 1:
            raise self.error(f"dropout_ratio {ratio:g}", "it must lie between 0 and 1")

    def batch_dependence(self) -> str:
        return "drops values at random" if self.phase == caffe_pb2.TRAIN else ""

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.dropout_param
        keep = 1 - p.dropout_ratio
        if self.phase != caffe_pb2.TRAIN or keep == 1:
            return x if p.scale_train else x * keep
        if keep == 0:  # Caffe multiplies 0 by an infinite scale
            return x * 0.0
        kept = array_from_outside(functools.partial(mode.generator.chosen, keep, tuple(x.shape)), x.device)
        return x * (kept * (1 / keep)) if p.scale_train else x * kept
