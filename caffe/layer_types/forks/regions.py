"""Region-of-interest pooling: ROIPooling (Fast R-CNN), PSROIPooling (R-FCN)."""

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.utility import out_of_range

Ends = tuple[Tensor, Tensor]
"""First and last + 1 position of each bin along an axis, each (R, bins)."""


def _round(values: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from 0, as C's `round` does."""
    whole = values.trunc()
    return torch.where((values - whole).abs() == 0.5, whole + values.sign(), values.round())


def padded(corners: Tensor, ratio: float) -> Tensor:
    """Regions x1, y1, x2, y2 (R, 4), with their last pixels, enlarged at each end by `ratio` times their sides."""
    pad = (corners[:, 2:] - corners[:, :2] + 1) * ratio
    return torch.cat((corners[:, :2] - pad, corners[:, 2:] + pad), 1)


class _OverRegions(Layer):
    """Base of layers over regions (R, 5) of image index, x1, y1, x2, y2 in pixels of the net's input.

    Their tops are (R, C, pooled_h, pooled_w), unless a layer has other settings.
    """

    bottoms = (2, 2)
    differentiable_bottoms: tuple[int, ...] | None = (0,)

    def setup(self, shape: Shape, regions: Shape) -> None:
        p = self.settings_of(self.param)
        self.check(shape, regions)
        if p.pooled_h < 1 or p.pooled_w < 1:
            raise self.error(f"pooled_h {p.pooled_h} and pooled_w {p.pooled_w}", "both must be at least 1")

    def top_shapes(self, shape: Shape, regions: Shape) -> list[Shape]:
        p = self.settings_of(self.param)
        return [(regions[0], shape[1], p.pooled_h, p.pooled_w)]

    def check(self, shape: tuple[int, ...], regions: tuple[int, ...]) -> None:
        """Raise LayerError unless the first bottom is a feature map and regions have five values."""
        self.require_maps(shape)
        if len(regions) < 2 or regions[1:] != (5,) + (1,) * (len(regions) - 2):
            raise self.error(f"regions of shape {regions}", "each must have an image index and x1, y1, x2, y2: (R, 5)")

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        if not len(regions):
            return x.new_zeros(self.top_shapes(tuple(x.shape), tuple(regions.shape))[0])
        rows, count = regions.reshape(-1, 5), len(x)
        if not torch.compiler.is_exporting() and not rows.isfinite().all():
            raise self.error("a region that is not finite", "image index, x1, y1, x2 and y2 must be finite")
        images = rows[:, 0].long()
        if (image := out_of_range(images, count)) is not None:
            raise self.error(f"a region in image {image}", f"there are {count} images (0 to {count - 1})")
        return self.pool(x, images, rows[:, 1:])

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        """The top, from the image index (R,) and the corners x1, y1, x2, y2 (R, 4) of at least one region."""
        raise NotImplementedError


def _argmax(x: Tensor, images: Tensor, rows: Ends, columns: Ends) -> Tensor:
    """Position in its image of each bin's maximum, as row · W + column, the first of equal ones; (R, bins, bins, C).

    rows, columns  first and last + 1 of each bin, (R, bins); of an empty bin the result is undefined

    A sparse table: any rectangle is covered by four with sides of powers of two, whose maxima all bins share. Value and position
    are packed into one integer, so that one comparison finds both: bits that order as the values do, then the position, counted
    from the last.
    """
    height, width = x.shape[2:]
    bits = (x.detach().permute(0, 2, 3, 1).float() + 0.0).contiguous().view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    places = torch.arange(height * width - 1, -1, -1, device=x.device).view(height, width, 1)
    tall = ordered * 2**32 + places
    sides, levels = [], []
    for (first, last), extent in ((rows, height), (columns, width)):
        first = first.clamp_max(extent - 1)
        size = (last - first).clamp_min(1)
        level = torch.frexp(size.float())[1].long() - 1
        sides.append((first, first + size - (1 << level)))
        levels.append(level)
    greatest = tall.new_zeros(*rows[0].shape, columns[0].shape[1], x.shape[1])
    for down in range(int(levels[0].max()) + 1):
        if down:
            step = 1 << (down - 1)
            tall = torch.maximum(tall[:, :-step], tall[:, step:])
        both = tall
        for across in range(int(levels[1].max()) + 1):
            if across:
                step = 1 << (across - 1)
                both = torch.maximum(both[:, :, :-step], both[:, :, step:])
            region, i, j = ((levels[0] == down)[:, :, None] & (levels[1] == across)[:, None, :]).nonzero(as_tuple=True)
            if not len(region):
                continue
            corners = [both[images[region], top[region, i], left[region, j]] for top in sides[0] for left in sides[1]]
            greatest[region, i, j] = torch.stack(corners).amax(0)
    return height * width - 1 - (greatest & 0xFFFFFFFF)


@register("ROIPooling")
class ROIPooling(_OverRegions):
    """Max pooling over the bins of each region: (x (N, C, H, W), regions (R, 5)) → (R, C, pooled_h, pooled_w) (Girshick 2015).

    Corners times spatial_scale are rounded to whole positions, both inclusive; bins overlap if the region does not divide
    evenly. A bin outside the map is 0. pad_ratio first enlarges a region at each end by so many of its sides (MS-CNN).
    """

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        p = self.param.roi_pooling_param
        _, channels, height, width = x.shape
        corners = padded(corners, p.pad_ratio) if p.pad_ratio else corners
        left, top, right, bottom = _round(corners * p.spatial_scale).unbind(1)
        down = self.bins(top, bottom, p.pooled_h, height)
        across = self.bins(left, right, p.pooled_w, width)
        places = _argmax(x, images, down, across) + (images * (height * width))[:, None, None, None]
        positions = x.permute(0, 2, 3, 1).reshape(-1, channels)
        pooled = positions.gather(0, places.view(-1, channels)).view(places.shape)
        filled = (down[1] > down[0])[:, :, None] & (across[1] > across[0])[:, None, :]
        return (pooled * filled[..., None]).permute(0, 3, 1, 2)

    @staticmethod
    def bins(first: Tensor, last: Tensor, count: int, extent: int) -> Ends:
        """First and last + 1 of each region's bins along one axis of the map, (R, count)."""
        size = (last - first + 1).clamp_min(1) / count
        edges = torch.arange(count + 1, device=size.device) * size[:, None]
        ends = edges[:, :-1].floor(), edges[:, 1:].ceil()
        # Bins are computed relative to the region's start, as a sum of whole numbers is exact.
        begin, end = ((end + first[:, None]).clamp(0, extent).long() for end in ends)
        return begin, end


@register("PSROIPooling")
class PSROIPooling(_OverRegions):
    """Position-sensitive average pooling over the bins of each region (Dai et al. 2016).

    (x (N, output_dim · group_size², H, W), regions (R, 5)) → (R, output_dim, group_size, group_size): bin i, j of output d is
    taken from channel (d · g + i) · g + j. A region is at least 0.1 wide and high, and a bin outside the map is 0.
    """

    def setup(self, shape: Shape, regions: Shape) -> None:
        p = self.param.psroi_pooling_param
        self.check(shape, regions)
        for name in ("output_dim", "group_size", "spatial_scale"):
            if getattr(p, name) <= 0:
                raise self.error(f"{name} {getattr(p, name):g}", "it must be larger than 0")
        if shape[1] != p.output_dim * p.group_size**2:
            raise self.error(
                f"{shape[1]} channels",
                f"output_dim {p.output_dim} and group_size {p.group_size} need {p.output_dim * p.group_size**2}",
            )

    def top_shapes(self, shape: Shape, regions: Shape) -> list[Shape]:
        p = self.param.psroi_pooling_param
        return [(regions[0], p.output_dim, p.group_size, p.group_size)]

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        p = self.param.psroi_pooling_param
        bins, (height, width) = p.group_size, x.shape[2:]
        corners = _round(corners)
        corners = torch.cat((corners[:, :2], corners[:, 2:] + 1), 1) * p.spatial_scale
        left, right = (end[:, None, None, :] for end in self.bins(corners[:, 0], corners[:, 2], bins, width))
        top, bottom = (end[:, None, :, None] for end in self.bins(corners[:, 1], corners[:, 3], bins, height))
        # An integral image: sums over rectangles are differences of cumulative sums; in double, as those grow with the map.
        sums = functional.pad(x.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
        sums = sums.reshape(x.shape[0], p.output_dim, bins, bins, (height + 1) * (width + 1))
        outputs = torch.arange(p.output_dim, device=x.device)[:, None, None]
        grid = torch.arange(bins, device=x.device)
        of_bin = images[:, None, None, None], outputs, grid[:, None], grid

        def until(row: Tensor, column: Tensor) -> Tensor:
            return sums[*of_bin, row * (width + 1) + column]

        total = until(bottom, right) - until(top, right) - until(bottom, left) + until(top, left)
        area = (bottom - top).clamp_min(0) * (right - left).clamp_min(0)
        return torch.where(area > 0, total / area.clamp_min(1), 0.0).to(x.dtype)

    @staticmethod
    def bins(first: Tensor, last: Tensor, count: int, extent: int) -> Ends:
        """First and last + 1 of each region's bins along one axis of the map, (R, count)."""
        size = (last - first).clamp_min(0.1) / count
        edges = torch.arange(count + 1, device=size.device) * size[:, None] + first[:, None]
        return edges[:, :-1].floor().clamp(0, extent).long(), edges[:, 1:].ceil().clamp(0, extent).long()
