"""Layers of videos of C3D (Tran et al. 2015 and 2016): Convolution3D, Deconvolution3D, Pooling3D."""

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import BIAS, WEIGHT, Layer, Shape, register
from caffe.proto import caffe_pb2


class _Volumes(Layer):
    """Base of C3D's layers (Tran et al. 2015), of windows of frames: the geometry of (N, C, L, H, W)."""

    def read_geometry(self, shape: Shape, temporal_pad: int) -> None:
        """Set kernel, stride and pad, each for the axes L, H and W."""
        p = self.settings_of(self.param)
        if len(shape) != 5:
            raise self.error(f"a bottom of shape {shape}", f"{self.type} takes 5 axes (N, C, L, H, W)")
        self.require_positive("kernel_size", "kernel_depth")
        self.kernel = (p.kernel_depth, p.kernel_size, p.kernel_size)
        self.stride = (p.temporal_stride, p.stride, p.stride)
        self.pad = (temporal_pad, p.pad, p.pad)
        if min(self.stride) < 1:
            raise self.error(f"stride {min(self.stride)}", "it must be at least 1")

    def counts(self, shape: Shape, rounds_up: bool) -> list[int]:
        """Numbers of windows along L, H and W."""
        counts = []
        for extent, kernel, stride, pad in zip(shape[2:], self.kernel, self.stride, self.pad, strict=True):
            padded = extent + 2 * pad
            counts.append((padded - kernel + rounds_up * (stride - 1)) // stride + 1)
            if padded < kernel or (counts[-1] - 1) * stride >= padded:
                raise self.error(
                    f"kernel {self.kernel} with stride {self.stride} on a bottom of shape {shape}",
                    "the kernel must fit, and no window may lie beyond the bottom",
                )
        return counts


class _Convolving(_Volumes):
    """Base of C3D's convolutions: weights, and a bias (1, 1, 1, 1, O)."""

    learns = (WEIGHT, BIAS)
    keeps_output = False
    drawn_as = "convolution"
    called = ""
    """What errors call it."""

    def setup(self, shape: Shape) -> None:
        p = self.param.convolution3d_param
        self.read_geometry(shape, p.temporal_pad)
        self.require_positive("num_output")
        if p.group != 1:
            raise self.error(f"group {p.group}", f"C3D's {self.called} has no groups")
        channels = (shape[1], p.num_output) if self.is_transposed else (p.num_output, shape[1])
        self.add_blob((*channels, *self.kernel), p.weight_filler)
        if p.bias_term:
            self.add_blob((1, 1, 1, 1, p.num_output), p.bias_filler)

    def forward(self, x: Tensor) -> Tensor:
        weight, *bias = self.parameters()
        convolve = functional.conv_transpose3d if self.is_transposed else functional.conv3d
        return convolve(x, weight, bias[0].flatten() if bias else None, self.stride, self.pad)


@register("Convolution3D")
class Convolution3D(_Convolving):
    """C3D's convolution: (N, C, L, H, W) × (O, C, k_l, k, k) → (N, O, L', H', W'); the bias is (1, 1, 1, 1, O)."""

    called = "convolution"

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(shape[0], self.param.convolution3d_param.num_output, *self.counts(shape, rounds_up=False))]


@register("Deconvolution3D", "convolution3d_param")
class Deconvolution3D(_Convolving):
    """C3D's transposed convolution: (N, C, L, H, W) × (C, O, k_l, k, k) → (N, O, L', H', W'); the bias is (1, 1, 1, 1, O).

    L' = (L - 1) · temporal_stride + kernel_depth - 2 · temporal_pad, and likewise H' and W'. Voxels to voxels, Tran et al. 2016.
    """

    is_transposed = True
    called = "transposed convolution"

    def top_shapes(self, shape: Shape) -> list[Shape]:
        geometry = zip(shape[2:], self.kernel, self.stride, self.pad, strict=True)
        extents = [(extent - 1) * stride + kernel - 2 * pad for extent, kernel, stride, pad in geometry]
        if min(extents) < 1:
            raise self.error(f"kernel {self.kernel} with pad {self.pad} on a bottom of shape {shape}", "nothing is left")
        return [(shape[0], self.param.convolution3d_param.num_output, *extents)]


@register("Pooling3D")
class Pooling3D(_Volumes):
    """C3D's pooling, MAX or AVE: (N, C, L, H, W) → (N, C, L', H', W'), extents rounded up; AVE may pad H and W."""

    drawn_as = "pooling"

    def setup(self, shape: Shape) -> None:
        p = self.param.pooling3d_param
        self.read_geometry(shape, temporal_pad=0)
        self.takes_maximum = p.pool == caffe_pb2.Pooling3DParameter.MAX
        if p.pool == caffe_pb2.Pooling3DParameter.STOCHASTIC:
            raise self.error("pool STOCHASTIC", "it must be MAX or AVE")
        if p.pad and self.takes_maximum:
            raise self.error(f"pad {p.pad}", "only AVE can pad")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(*shape[:2], *self.counts(shape, rounds_up=True))]

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_maximum:
            return functional.max_pool3d(x, self.kernel, self.stride, ceil_mode=True)
        # The divisor counts pixels of the padding, but none beyond it.
        sides, divisor = [], x.new_ones(())
        for axis, count in enumerate(self.counts(tuple(x.shape), rounds_up=True)):
            kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
            padded = x.shape[axis + 2] + 2 * pad
            starts = torch.arange(count, device=x.device) * stride
            divisor = divisor[..., None] * (padded - starts).clamp_max(kernel)
            sides.append((pad, max(pad, (count - 1) * stride + kernel - padded + pad)))
        padding = [extent for side in reversed(sides) for extent in side]
        return functional.avg_pool3d(functional.pad(x, padding), self.kernel, self.stride, divisor_override=1) / divisor
