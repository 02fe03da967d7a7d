"""Resampling layers of forks: Interp, Upsample, Reorg."""

from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.utility import out_of_range


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
