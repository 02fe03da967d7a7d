"""DenseBlock of Tongcheng's fork: a block of DenseNet (Huang et al. 2017) as one layer."""

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import mode
from caffe.engine.layer import BlobSpec, Layer, Shape, register
from caffe.layer_types.normalization import normalize_batch, stop_learning
from caffe.proto import caffe_pb2

_EPSILON = 1e-5
_PARTS = ("weight", "scale", "bias", "running_mean", "running_var")
_IS_LEARNED = (True, True, True, False, False)


@register("DenseBlock", "denseblock_param")
class DenseBlock(Layer):
    """x followed by the growthRate channels of each of numTransition steps: (N, C, H, W) → (N, C + steps · growthRate, H, W).

    A step is BN, ReLU and a 3 × 3 convolution of all channels before it; with use_BC, BN, ReLU, a 1 × 1 convolution to
    4 · growthRate channels, BN, ReLU and the 3 × 3 one. Dropout follows it if use_dropout. BN uses the batch's statistics in
    training, and in testing running averages, to which training adds moving_average_fraction of the batch's.
    Blobs, one of a kind for each step: weights (growthRate, channels, 3, 3), scales, biases, means and variances (1, channels, 1,
    1); with use_BC then those of the 1 × 1 convolution and of the BN after it; and a last one (1,), not used. Convolutions are
    those of mathematics: kernels are stored turned by 180 degrees. Source: DenseBlock_layer.cu of Tongcheng/caffe, whose CPU code
    averages otherwise. Channels are the bottom's, as in senlinuc/caffe_ocr, also where initChannel gives others.
    """

    keeps_output = False
    drawn_as = "convolution"

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        p = param.denseblock_param
        specs = [
            BlobSpec(f"{stage}{step}_{part}", learned)
            for stage in (("conv", "reduction") if p.use_BC else ("conv",))
            for part, learned in zip(_PARTS, _IS_LEARNED, strict=True)
            for step in range(p.numTransition)
        ]
        return *specs, BlobSpec("passes", learned=False)

    @classmethod
    def has_statistics(cls, param: caffe_pb2.LayerParameter) -> bool:
        return False  # none that can be frozen: the fork has no setting for it

    def setup(self, shape: Shape) -> None:
        p = self.param.denseblock_param
        self.require_maps(shape)
        if min(p.numTransition, p.growthRate) < 1:
            raise self.error(f"numTransition {p.numTransition} and growthRate {p.growthRate}", "both must be at least 1")
        self.channels = shape[1]
        geometry = (p.filter_H, p.filter_W, p.pad_h, p.pad_w, p.conv_verticalStride, p.conv_horizentalStride)
        if geometry != (3, 3, 1, 1, 1, 1):
            raise self.error(f"filters, pads and strides {geometry}", "the fork's block has 3 × 3 filters, pad 1 and stride 1")
        if not 0 <= p.dropout_amount < 1:
            raise self.error(f"dropout_amount {p.dropout_amount:g}", "it must lie within [0, 1)")
        one, zero = (caffe_pb2.FillerParameter(type="constant", value=value) for value in (1.0, 0.0))
        fillers = (p.Filter_Filler, p.BN_Scaler_Filler, p.BN_Bias_Filler, zero, one)
        grown = [self.channels + step * p.growthRate for step in range(p.numTransition)]
        wide = [4 * p.growthRate] * p.numTransition
        stages = [(wide if p.use_BC else grown, p.growthRate, 3, grown)]
        if p.use_BC:
            stages.append((grown, 4 * p.growthRate, 1, wide))
        for inputs, outputs, side, normalized in stages:
            for part, filler in zip(_PARTS, fillers, strict=True):
                for before, channels in zip(inputs, normalized, strict=True):
                    self.add_blob((outputs, before, side, side) if part == "weight" else (1, channels, 1, 1), filler)
        self.add_blob((1,), zero)
        specs = self.blob_specs(self.param)
        stop_learning(self.param, *(index for index, spec in enumerate(specs) if not spec.learned))

    def batch_dependence(self) -> str:
        return "batch statistics are of each process's own batch" if self.phase == caffe_pb2.TRAIN else ""

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p = self.param.denseblock_param
        if shape[1] != self.channels:
            raise self.error(f"a bottom of shape {shape}", f"it must have {self.channels} channels")
        return [(shape[0], shape[1] + p.numTransition * p.growthRate, *shape[2:])]

    def normalized(self, x: Tensor, parameters: list[Tensor], first: int) -> Tensor:
        """relu(BN(x)), with the scale, bias, mean and variance of a step, which are blobs `first`, first + steps, …"""
        steps = self.param.denseblock_param.numTransition
        scale, bias = (parameters[first + index * steps].reshape(-1) for index in (0, 1))
        averages = [self.blobs[first + index * steps] for index in (2, 3)]
        if self.phase == caffe_pb2.TEST:
            mean, variance = (blob.tensor.reshape(-1) for blob in averages)
            return torch.relu(functional.batch_norm(x, mean, variance, scale, bias, eps=_EPSILON))
        y, *statistics = normalize_batch(x, scale, bias, _EPSILON, biased=False)
        share = self.param.denseblock_param.moving_average_fraction
        for blob, value in zip(averages, statistics, strict=True):
            blob.tensor = blob.tensor * (1 - share) + value.detach().view(blob.shape) * share
        return torch.relu(y)

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.denseblock_param
        steps, parameters = p.numTransition, self.parameters()
        for step in range(steps):
            y = self.normalized(x, parameters, steps + step)
            if p.use_BC:
                y = functional.conv2d(y, parameters[5 * steps + step])
                y = self.normalized(y, parameters, 6 * steps + step)
            y = functional.conv2d(y, parameters[step].flip(2, 3), padding=1)
            if p.use_dropout and self.phase == caffe_pb2.TRAIN:
                kept = torch.from_numpy(mode.generator.chosen(1 - p.dropout_amount, tuple(y.shape))).to(y.device)
                y = y * (kept / (1 - p.dropout_amount))
            x = torch.cat([x, y], 1)
        return x
