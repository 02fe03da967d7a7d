"""Resampling layers of forks: Interp, Upsample, Reorg, Unpooling."""

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine import mode
from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2


@register("Interp")
class Interp(Layer):
    """Bilinear interpolation with aligned corners (DeepLab, PSPNet): (N, C, H, W) → (N, C, H', W').

    H' is height, or (H - 1) / shrink_factor · zoom_factor + 1, with the quotient rounded down. pad_beg and pad_end, at most 0,
    are first cropped from all sides.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.interp_param
        self.require_maps(shape)
        self.by_factor = p.HasField("zoom_factor") or p.HasField("shrink_factor")
        if self.by_factor == (p.HasField("height") and p.HasField("width")):
            raise self.error(
                "zoom_factor or shrink_factor, and height and width" if self.by_factor else "no size",
                "the size must be given in one way",
                "give height and width, or zoom_factor, or shrink_factor",
            )
        for name in ("zoom_factor", "shrink_factor") if self.by_factor else ("height", "width"):
            if getattr(p, name) < 1:
                raise self.error(f"{name} {getattr(p, name)}", "it must be at least 1")
        if max(p.pad_beg, p.pad_end) > 0:
            raise self.error(f"pad_beg {p.pad_beg} and pad_end {p.pad_end}", "neither can be above 0: they crop")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p = self.param.interp_param
        if -p.pad_beg - p.pad_end >= min(shape[2:]):
            raise self.error(f"pad_beg {p.pad_beg} and pad_end {p.pad_end} on a bottom of shape {shape}", "pixels must remain")
        if not self.by_factor:
            return [(*shape[:2], p.height, p.width)]
        kept = (extent + p.pad_beg + p.pad_end for extent in shape[2:])
        return [(*shape[:2], *(((extent - 1) // p.shrink_factor) * p.zoom_factor + 1 for extent in kept))]

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.interp_param
        ((*_, height, width),) = self.top_shapes(tuple(x.shape))
        if p.pad_beg or p.pad_end:
            x = x[:, :, -p.pad_beg : x.shape[2] + p.pad_end, -p.pad_beg : x.shape[3] + p.pad_end]
        return bilinear(x, height, width)


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Images of another size, corners aligned."""
    if mode.numerics() == "reproducible":  # `interpolate` takes it apart on a GPU, into operations that are not
        return torch._C._nn.upsample_bilinear2d(x, [height, width], True, None)
    return functional.interpolate(x, (height, width), mode="bilinear", align_corners=True)


@register("Upsample")
class Upsample(Layer):
    """Max unpooling (SegNet), 0 at other positions: (x, positions), both (N, C, H, W) → (N, C, H', W').

    The positions are Pooling's second top. H' and W' are upsample_h and upsample_w, or H and W times scale (or scale_h and
    scale_w), less one with pad_out_h and pad_out_w. If windows overlapped and a position occurs several times, the last value is
    kept, and each of them gets the gradient. Without positions, nearest-neighbour upsampling by that scale (YOLO).
    """

    bottoms = (1, 2)
    differentiable_bottoms = (0,)

    def setup(self, shape: Shape, positions: Shape | None = None) -> None:
        p = self.param.upsample_param
        self.require_maps(shape)
        if positions is not None and positions != shape:
            raise self.error(f"bottoms of shapes {shape} and {positions}", "there must be a position for each value")
        if p.HasField("upsample_h") != p.HasField("upsample_w") or p.HasField("scale_h") != p.HasField("scale_w"):
            raise self.error("a height without a width, or the reverse", "both must be given")
        self.sized = p.HasField("upsample_h")
        if self.sized and positions is None:
            raise self.error(
                "upsample_h and upsample_w without positions", do="give the second top of the pooling as a second bottom"
            )
        self.scales = (p.scale_h, p.scale_w) if p.HasField("scale_h") else (p.scale, p.scale)
        name, extents = ("upsample_h and upsample_w", (p.upsample_h, p.upsample_w)) if self.sized else ("scale", self.scales)
        if min(extents) < 2:
            raise self.error(f"{name} {extents}", "it must be at least 2")
        for pad, scale in zip((p.pad_out_h, p.pad_out_w), self.scales, strict=True):
            if pad and scale != 2 and not self.sized:
                raise self.error(f"pad_out with scale {scale}", "it needs a scale of 2")

    def top_shapes(self, shape: Shape, positions: Shape | None = None) -> list[Shape]:
        p = self.param.upsample_param
        if self.sized:
            return [(*shape[:2], p.upsample_h, p.upsample_w)]
        cut = (0, 0) if positions is None else (p.pad_out_h, p.pad_out_w)
        return [(*shape[:2], *(extent * scale - pad for extent, scale, pad in zip(shape[2:], self.scales, cut, strict=True)))]

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            return x.repeat_interleave(self.scales[0], 2).repeat_interleave(self.scales[1], 3)
        ((*_, height, width),) = self.top_shapes(tuple(x.shape), tuple(positions.shape))
        places = positions.flatten(2).long()
        if (position := out_of_range(places, height * width)) is not None:
            raise self.error(
                f"position {position} in an image of {height}×{width}",
                f"positions go from 0 to {height * width - 1}",
                "give the size of the pooling's bottom as upsample_h and upsample_w",
            )
        spread = x.new_zeros(*x.shape[:2], height * width).scatter(2, places, x.flatten(2))
        return spread.view(*x.shape[:2], height, width)


@register("Reorg")
class Reorg(Layer):
    """Space to depth: (N, C, H, W) → (N, C · s², H / s, W / s); with reverse, depth to space.

    YOLO's order of values (Redmon and Farhadi 2017), on which its trained weights depend: the forward direction reads each image
    as if it were (C / s², H · s, W · s). So C must be a multiple of s² in both directions.
    """

    def setup(self, shape: Shape) -> None:
        self.require_maps(shape)
        self.require_positive("stride")
        self.stride = self.param.reorg_param.stride

    def top_shapes(self, shape: Shape) -> list[Shape]:
        s, (count, channels, height, width) = self.stride, shape
        if channels % s**2 or (not self.param.reorg_param.reverse and (height % s or width % s)):
            raise self.error(
                f"stride {s} on a bottom of shape {shape}", f"channels must be a multiple of {s**2}, height and width of {s}"
            )
        if self.param.reorg_param.reverse:
            return [(count, channels // s**2, height * s, width * s)]
        return [(count, channels * s**2, height // s, width // s)]

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        count, channels, height, width = x.shape
        self.top_shapes(tuple(x.shape))
        if self.param.reorg_param.reverse:
            blocks = x.reshape(count, s, s, channels // s**2, height, width)
            return blocks.permute(0, 3, 4, 1, 5, 2).reshape(count, channels // s**2, height * s, width * s)
        blocks = x.reshape(count, channels // s**2, height, s, width, s)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(count, channels * s**2, height // s, width // s)


@register("Unpooling")
class Unpooling(Layer):
    """Unpooling of DeconvNet (Noh et al. 2015): (x[, positions], both (N, C, H, W)) → (N, C, H', W').

    H' and W' are unpool_size, or unpool_h and unpool_w; else the least that pools to H and W. MAX puts each value at its
    position, Pooling's second top, or without positions at the first place of its window, and 0 elsewhere. AVE and TILE add it to
    all places of its window: its share, or the whole value. As in the fork, the gradient of TILE is that of AVE.
    """

    bottoms = (1, 2)
    differentiable_bottoms = (0,)

    def setup(self, shape: Shape, positions: Shape | None = None) -> None:
        p = self.param.unpooling_param
        self.require_maps(shape)
        if positions is not None and positions != shape:
            raise self.error(f"bottoms of shapes {shape} and {positions}", "there must be a position for each value")
        if p.pad or p.pad_h or p.pad_w:
            raise self.error("pad", "the fork's windows have none", "leave it out")
        self.kernel = self.pair("kernel", "kernel_size")
        self.stride = self.pair("stride", "stride")
        if not min(self.kernel + self.stride):
            raise self.error(f"kernel {self.kernel} and stride {self.stride}", "both must be at least 1")
        self.size = self.pair("unpool", "unpool_size")

    def pair(self, name: str, square: str) -> tuple[int, int]:
        """A setting of both axes, given as one value or as two."""
        p = self.param.unpooling_param
        given = [p.HasField(f"{name}_h"), p.HasField(f"{name}_w")]
        if given[0] != given[1] or (given[0] and p.HasField(square)):
            raise self.error(f"{name}_h or {name}_w", f"give {square}, or both {name}_h and {name}_w")
        return (getattr(p, f"{name}_h"), getattr(p, f"{name}_w")) if given[0] else (getattr(p, square),) * 2

    def top_shapes(self, shape: Shape, positions: Shape | None = None) -> list[Shape]:
        starts = [(count - 1) * stride for count, stride in zip(shape[2:], self.stride, strict=True)]
        axes = zip(starts, self.kernel, self.stride, strict=True)
        size = self.size if any(self.size) else [start + max(kernel, stride + 1) for start, kernel, stride in axes]
        if positions is None and any(start >= extent for start, extent in zip(starts, size, strict=True)):
            found = f"windows of stride {self.stride} on a bottom of shape {shape}"
            raise self.error(f"{found} in {size[0]}×{size[1]}", "none may start outside")
        return [(*shape[:2], *size)]

    def forward(self, x: Tensor, *positions: Tensor) -> Tensor:
        ((*_, height, width),) = self.top_shapes(tuple(x.shape), *[tuple(each.shape) for each in positions])
        starts = [torch.arange(count, device=x.device) * stride for count, stride in zip(x.shape[2:], self.stride, strict=True)]
        if self.param.unpooling_param.unpool == caffe_pb2.UnpoolingParameter.MAX:
            places = (starts[0][:, None] * width + starts[1]).expand_as(x) if not positions else positions[0].long()
            if (position := out_of_range(places, height * width)) is not None:
                raise self.error(
                    f"position {position} in an image of {height}×{width}",
                    f"positions go from 0 to {height * width - 1}",
                    "give the size of the pooling's bottom as unpool_h and unpool_w",
                )
            spread = x.new_zeros(*x.shape[:2], height * width).scatter(2, places.flatten(2), x.flatten(2))
            return spread.view(*x.shape[:2], height, width)
        tall, wide = (
            (extent - start).clamp_max(kernel) for start, extent, kernel in zip(starts, (height, width), self.kernel, strict=True)
        )
        share = x / (tall[:, None] * wide)
        if self.param.unpooling_param.unpool == caffe_pb2.UnpoolingParameter.TILE:
            share = share + (x - share).detach()
        ones = x.new_ones(1, 1, *self.kernel)
        spread = functional.conv_transpose2d(share.reshape(-1, 1, *x.shape[2:]), ones, stride=self.stride)
        below, right = height - spread.shape[2], width - spread.shape[3]
        return functional.pad(spread, (0, right, 0, below)).view(*x.shape[:2], height, width)
