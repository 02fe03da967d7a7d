"""Bilinear pooling of regions and masks: ROIAlign (He et al. 2017), ROIWarping, MaskResize (Dai et al. 2016).

A bilinear value is a product of weights along both axes, so that a region's are two products of matrices.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.regions import _OverRegions, _round, padded
from caffe.proto import caffe_pb2


def weights(positions: Tensor, extent: int) -> Tensor:
    """Weights (…, extent) of the places of a map for positions (…) between 0 and extent - 1."""
    low = positions.detach().floor()
    share = (positions - low)[..., None]
    places = torch.arange(extent, device=positions.device)
    at_low, at_high = (places == each.long()[..., None] for each in (low, (low + 1).clamp_max(extent - 1)))
    return at_low * (1 - share) + at_high * share


class Along(NamedTuple):
    """A region's bins along an axis of extent E, each (R, bins, …): weights, those whose gradient is the region's, and its reach.

    weights  (R, bins, E)
    moving   the same, as functions of the region's ends; (R, bins, E)
    inner    whether a bin begins before the last place; (R, bins, 1)
    """

    weights: Tensor
    moving: Tensor
    inner: Tensor


def pool_along_axes(x: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums of maps x (N, C, H, W): (R, C, h, w).

    images         image of each region, (R,)
    rows, columns  weights (R, h, H) and (R, w, W)
    """
    top = x.new_zeros(len(images), x.shape[1], rows.shape[1], columns.shape[1])
    if torch.compiler.is_exporting():
        # Which images have regions is not known: those of another image have weights of 0.
        for image, own_map in enumerate(x):
            own_rows = rows * (images == image)[:, None, None]
            top = top + torch.einsum("rph,rchq->rcpq", own_rows, torch.einsum("chw,rqw->rchq", own_map, columns))
        return top
    for image in images.unique().tolist():
        own = (images == image).nonzero()[:, 0]
        across = torch.einsum("chw,rqw->rchq", x[image], columns[own])
        top = top.index_put((own,), torch.einsum("rph,rchq->rcpq", rows[own], across))
    return top


@register("ROIAlign")
class ROIAlign(_OverRegions):
    """Means of interpolated values in the bins of each region: (x (N, C, H, W), regions (R, 5)) → (R, C, pooled_h, pooled_w).

    With roi_align_param, as in the paper and Caffe2's RoIAlign: corners times spatial_scale are not rounded, a region is at
    least 1 wide and high, and a bin is the mean of sampling_ratio² values, those more than a pixel outside the map being 0.
    With roi_pooling_param, as in zhaoweicai's Cascade R-CNN: the values at the corners of the bins, (R, C, pooled_h + 1,
    pooled_w + 1), half a pixel further to the left and above, 0 if outside the map; pad_ratio enlarges the regions.
    """

    @classmethod
    def settings_of(cls, param: caffe_pb2.LayerParameter) -> Any:
        return param.roi_pooling_param if param.HasField("roi_pooling_param") else param.roi_align_param

    def setup(self, shape: Shape, regions: Shape) -> None:
        super().setup(shape, regions)
        self.at_corners = self.param.HasField("roi_pooling_param")
        if self.at_corners and self.param.HasField("roi_align_param"):
            raise self.error("roi_align_param and roi_pooling_param", "they are different layers' of this name", "give one")

    def top_shapes(self, shape: Shape, regions: Shape) -> list[Shape]:
        ((count, channels, height, width),) = super().top_shapes(shape, regions)
        return [(count, channels, height + self.at_corners, width + self.at_corners)]

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        p = self.settings_of(self.param)
        if self.at_corners:
            corners = padded(corners, p.pad_ratio)
        left, top, right, bottom = (corners * p.spatial_scale).unbind(1)
        along = self.corner_weights if self.at_corners else self.mean_weights
        rows, columns = along(top, bottom, p.pooled_h, x.shape[2]), along(left, right, p.pooled_w, x.shape[3])
        return pool_along_axes(x, images, rows, columns)

    @staticmethod
    def corner_weights(first: Tensor, last: Tensor, bins: int, extent: int) -> Tensor:
        """Weights (R, bins + 1, extent) of the ends of the bins along an axis."""
        first, size = first - 0.5, last - first
        positions = first[:, None] + torch.arange(bins + 1, device=first.device) * (size / bins)[:, None]
        there = (positions >= -0.5) & (positions <= extent - 0.5) & (size > 0)[:, None]
        return weights(positions.clamp(0, extent - 1), extent) * there[..., None]

    def mean_weights(self, first: Tensor, last: Tensor, bins: int, extent: int) -> Tensor:
        """Weights (R, bins, extent) of the means over the bins along an axis."""
        size = (last - first).clamp_min(1) / bins
        ratio = self.param.roi_align_param.sampling_ratio
        if ratio <= 0 and torch.compiler.is_exporting():
            raise self.error("no sampling_ratio", "how many values a bin has depends on its region, and is fixed in a program")
        counts = torch.full_like(size, ratio) if ratio > 0 else size.ceil()
        # Regions have different numbers of samples: sample `number` of those that have fewer is left out.
        most = ratio if ratio > 0 else max(1, int(counts.max()))
        result = first.new_zeros(len(first), bins, extent)
        bin_starts = first[:, None] + torch.arange(bins, device=first.device) * size[:, None]
        for number in range(most):
            positions = bin_starts + ((number + 0.5) * size / counts)[:, None]
            there = (positions >= -1) & (positions <= extent) & (number < counts)[:, None]
            result = result + weights(positions.clamp(0, extent - 1), extent) * there[..., None]
        return result / counts[:, None, None]


@register("ROIWarping")
class ROIWarping(_OverRegions):
    """Interpolated values at the first corners of a region's bins: (x (N, C, H, W), regions (R, 5)) → (R, C, pooled_h, pooled_w).

    Corners times spatial_scale are rounded; bin i begins at i / pooled of the way from the first to the last. 0 if that is more
    than half a pixel outside the map. Gradients reach the regions, too, as if their corners were not rounded and bins were
    those of a region one pixel larger, from positions that are not in the last row or column. As roi_warping_layer.cu of MNC,
    whose gradients of the maps leave out some bins of large regions; here they are the derivatives.
    """

    differentiable_bottoms = (0, 1)

    def pool(self, x: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        p = self.param.roi_warping_param
        left, top, right, bottom = (corners * p.spatial_scale).unbind(1)
        rows = self.along(top, bottom, p.pooled_h, x.shape[2])
        columns = self.along(left, right, p.pooled_w, x.shape[3])
        maps = pool_along_axes(x, images, rows.weights, columns.weights)
        if not corners.requires_grad:
            return maps
        by_rows = pool_along_axes(x.detach(), images, rows.moving, columns.weights * columns.inner)
        by_columns = pool_along_axes(x.detach(), images, rows.weights * rows.inner, columns.moving)
        moving = by_rows + by_columns
        # Only its gradient counts.
        return maps + (moving - moving.detach())

    @staticmethod
    def along(start: Tensor, end: Tensor, bins: int, extent: int) -> Along:
        first, last = _round(start.detach()), _round(end.detach())
        steps = torch.arange(bins, device=first.device)
        positions = first[:, None] + steps * ((last - first).clamp_min(0) / bins)[:, None]
        there = ((positions >= -0.5) & (positions <= extent - 0.5))[..., None]
        positions = positions.clamp(0, extent - 1)
        share = (positions - first[:, None]) / (last - first + 1).clamp_min(1)[:, None]
        free = start[:, None] * (1 - share) + end[:, None] * share
        inner = (positions.floor() < extent - 1)[..., None]
        moving = weights(positions + (free - free.detach()), extent) * (there & inner)
        return Along(weights(positions, extent) * there, moving, inner)


@register("MaskResize")
class MaskResize(Layer):
    """Bilinear interpolation: (N, C, H, W) → (N, C, output_height, output_width), place i from i · H / output_height.

    0 where that is more than half a pixel outside, as at the end of masks enlarged more than twice. As mask_resize_layer.cu of
    MNC, whose gradient leaves out places of masks that are enlarged; here it is the derivative.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.mask_resize_param
        self.require_maps(shape)
        if p.output_height < 1 or p.output_width < 1:
            raise self.error(f"output_height {p.output_height} and output_width {p.output_width}", "both must be at least 1")

    def top_shapes(self, shape: Shape) -> list[Shape]:
        p = self.param.mask_resize_param
        return [(*shape[:2], p.output_height, p.output_width)]

    def forward(self, x: Tensor) -> Tensor:
        p = self.param.mask_resize_param
        sides = []
        for extent, size in ((x.shape[2], p.output_height), (x.shape[3], p.output_width)):
            positions = torch.arange(size, device=x.device) * (extent / size)
            there = positions <= extent - 0.5
            sides.append(weights(positions.clamp_max(extent - 1), extent).to(x.dtype) * there[:, None])
        return sides[0] @ (x @ sides[1].t())
