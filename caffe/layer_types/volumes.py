"""Pooling of volumes: what Pooling does with bottoms of five axes, as in Caffe's forks for volumes (Çiçek et al. 2016)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape
from caffe.proto import caffe_pb2

_MAX, _AVE = caffe_pb2.PoolingParameter.MAX, caffe_pb2.PoolingParameter.AVE
_SIDED = "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "pad_l", "pad_r", "pad_t", "pad_b"


class VolumePooling:
    """Maximum or mean of windows of (N, C, D, H, W) that have one kernel_size, stride and pad for the three axes.

    Extents are rounded up, as those of maps; a last window that starts in the padding is left out. AVE divides by the window's
    size within the padded bottom.
    """

    def __init__(self, layer: Layer):
        p = layer.param.pooling_param
        self.layer = layer
        given = [name for name in _SIDED if p.HasField(name)]
        if p.pool not in (_MAX, _AVE) or given or len(layer.param.top) > 1 or not p.avg_include_pad:
            kind = f"{caffe_pb2.PoolingParameter.PoolMethod.Name(p.pool)} with {len(layer.param.top)} tops"
            raise layer.error(f"{', '.join(given) or kind} on a volume", "MAX or AVE with kernel_size, stride, pad, and one top")
        self.is_maximum, self.kernel, self.stride, self.pad = p.pool == _MAX, p.kernel_size, p.stride, p.pad
        self.ceil = p.round_mode == caffe_pb2.PoolingParameter.CEIL if p.HasField("round_mode") else p.ceil_mode
        if p.global_pooling:
            if p.HasField("kernel_size") or self.pad or self.stride != 1:
                raise layer.error("global_pooling with a kernel_size, pad or stride", "it takes its kernel from the bottom")
            self.kernel = 0
        elif self.kernel < 1 or self.stride < 1 or self.pad >= self.kernel:
            found = f"kernel_size {self.kernel}, stride {self.stride} and pad {self.pad}"
            raise layer.error(found, "kernel and stride of at least 1, and a smaller pad")

    def sizes(self, shape: Shape) -> Shape:
        """The top's shape."""
        if not self.kernel:
            return (*shape[:2], 1, 1, 1)
        counts = []
        for extent in shape[2:]:
            span = extent + 2 * self.pad - self.kernel
            count = (math.ceil(span / self.stride) if self.ceil else span // self.stride) + 1
            count -= bool(self.pad) and (count - 1) * self.stride >= extent + self.pad
            if count < 1 or (count - 1) * self.stride >= extent + self.pad:
                found = f"kernel {self.kernel} with stride {self.stride} and pad {self.pad} on {extent} values"
                raise self.layer.error(found, "the kernel must fit, and no window may start beyond the bottom")
            counts.append(count)
        return (*shape[:2], *counts)

    def pool(self, x: Tensor) -> Tensor:
        """The top."""
        if not self.kernel:
            return x.amax((2, 3, 4), keepdim=True) if self.is_maximum else x.mean((2, 3, 4), keepdim=True)
        margins, divisor = [], x.new_ones(())
        for extent, count in zip(x.shape[2:], self.sizes(tuple(x.shape))[2:], strict=True):
            starts = torch.arange(count, device=x.device) * self.stride - self.pad
            divisor = divisor[..., None] * (extent + self.pad - starts).clamp_max(self.kernel)
            needed = (count - 1) * self.stride + self.kernel - extent - self.pad
            margins.append((self.pad, max(needed, 0)))
        padding = [side for sides in reversed(margins) for side in sides]
        padded = functional.pad(x, padding, value=-math.inf if self.is_maximum else 0.0)
        counts = self.sizes(tuple(x.shape))[2:]
        if self.is_maximum:
            pooled: Tensor = torch.max_pool3d(padded, self.kernel, self.stride)
        else:
            pooled = functional.avg_pool3d(padded, self.kernel, self.stride, divisor_override=1)
        pooled = pooled[:, :, : counts[0], : counts[1], : counts[2]]
        return pooled if self.is_maximum else pooled / divisor
