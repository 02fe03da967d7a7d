"""Attention: ChannelScale (NormFace), AttPooling or PwAttend (PiCANet), and JÂA-Net's AUMaskBasedLand and AlignDataTransform."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Layer, Shape, register
from caffe.proto import caffe_pb2


class _Scaled(torch.autograd.Function):
    """x · s, or x, with gradients that need not be its derivatives: s · g or g for x, and Σ x · g or 0 for s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, settings: caffe_pb2.ChannelScaleParameter) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.settings = settings
        return x * scale if settings.do_forward else x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        of_x = gradient * scale if ctx.settings.do_backward_feature else gradient
        of_scale = (x * gradient).sum(1, keepdim=True) if ctx.settings.do_backward_scale else torch.zeros_like(scale)
        return of_x, of_scale, None


@register("ChannelScale")
class ChannelScale(Layer):
    """x · s, one factor for all channels of a position: (x (N, C, …), s (N, …), C times fewer) → shape of x.

    do_forward: false leaves the values, and do_backward_feature and do_backward_scale: false leave the factor out of x's gradient
    and make that of s 0. Source: channel_scale_layer of happynear/caffe-windows (NormFace; GNAP of AM-Softmax).
    """

    bottoms = (2, 2)
    keeps_shape = True
    rescales = True

    def setup(self, x: Shape, scale: Shape) -> None:
        if len(x) < 2 or scale[:1] != x[:1] or math.prod(scale) * x[1] != math.prod(x):
            raise self.error(f"factors of shape {scale} for a bottom of shape {x}", "one for each image and position")

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        factors = scale.reshape(len(x), 1, *x.shape[2:])
        scaled: Tensor = _Scaled.apply(x, factors, self.param.channel_scale_param)
        return scaled


@register("AttPooling")
class AttPooling(Layer):
    """Weighted sums of a map by attention: (x (N, C, H, W), weights (N, k², H', W')) → (N, C, H', W') (PiCANet, Liu et al. 2018).

    LOCAL: at each position the k × k window of x around it, of kernel_size, pad, stride and dilation, is weighted by the k²
    channels of the weights. GLOBAL: the only window covers x (kernel_size is by default its side), and each position weights all
    of it. The names of one layer in Liu's and Yang's nets: AttPooling, and PwAttend for pixel-wise attention.
    """

    bottoms = (2, 2)
    drawn_as = "pooling"

    def setup(self, x: Shape, weights: Shape) -> None:
        self.require_maps(x)
        self.require_maps(weights)
        p = self.settings_of(self.param)
        self.is_global = p.att_mode == caffe_pb2.AttPoolingParameter.GLOBAL
        if not self.is_global:
            self.require_positive("kernel_size")
        if min(p.stride, p.dilation) < 1:
            raise self.error(f"stride {p.stride} and dilation {p.dilation}", "both must be at least 1")

    def top_shapes(self, x: Shape, weights: Shape) -> list[Shape]:
        p = self.settings_of(self.param)
        side = p.kernel_size or x[2]
        extent = p.dilation * (side - 1) + 1
        places = tuple((size + 2 * p.pad - extent) // p.stride + 1 for size in x[2:])
        if weights[:2] != (x[0], side * side):
            raise self.error(f"weights of shape {weights}", f"{x[0]} images and kernel_size² = {side * side} channels")
        if self.is_global and places != (1, 1):
            raise self.error(f"{places[0]}×{places[1]} windows of side {extent} on a bottom of shape {x}", "GLOBAL needs one")
        if not self.is_global and places != weights[2:]:
            raise self.error(f"weights of shape {weights}", f"there are {places[0]}×{places[1]} windows on a bottom of shape {x}")
        return [(*x[:2], *weights[2:])]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        p = self.settings_of(self.param)
        side = p.kernel_size or x.shape[2]
        values = functional.unfold(x, side, p.dilation, p.pad, p.stride).unflatten(1, (x.shape[1], side * side))
        factors = weights.flatten(2)
        pooled = values[..., 0] @ factors if self.is_global else (values * factors[:, None]).sum(2)
        return pooled.unflatten(2, weights.shape[2:])


@register("PwAttend")
class PwAttend(AttPooling):
    """AttPooling under the name that its examples have (examples/mnist/lenet_pwatt_train_test.prototxt)."""


_UNITS = (
    ((4, -1 / 2), (5, -1 / 2)),
    ((1, -1 / 3), (8, -1 / 3)),
    ((2, 1 / 3), (7, 1 / 3)),
    ((24, 1.0), (29, 1.0)),
    ((21, 0.0), (26, 0.0)),
    ((43, 0.0), (45, 0.0)),
    *[((31, 0.0), (37, 0.0))] * 3,
    ((39, 1 / 2), (41, 1 / 2)),
    *[((34, 0.0), (40, 0.0))] * 2,
)
"""Each action unit's two centres: a landmark of 49, and how far below it, in distances between the inner corners of the eyes."""
_INNER_CORNERS = 22, 25


@register("AUMaskBasedLand")
class AUMaskBasedLand(Layer):
    """Initial attention of 12 facial action units: landmarks (N, 98) → 12 maps (N, 1, S, S), and their maximum (JÂA-Net).

    Landmarks are x, y of 49 points in an image of img_size; S = img_size · spatial_scale. Around both centres of a unit, within
    (img_size - 1) / 2 · spatial_ratio, a map is 1 - fill_coeff · 100 / (img_size · spatial_scale) times the city-block distance
    from the centre, at least fill_value; the second centre's window lies over the first one's, and elsewhere it is fill_value.
    No gradient passes. Source: Shao et al. 2018 (rules of the units' centres), and au_mask_based_land_layer of ZhiwenShao/JAANet.
    """

    tops = (13, 13)
    differentiable_bottoms = ()
    gives_maps = True

    def setup(self, landmarks: Shape) -> None:
        p = self.param.au_mask_based_land_param
        if math.prod(landmarks[1:]) != 98:
            raise self.error(f"landmarks of shape {landmarks}", "x and y of 49 points for each image")
        if p.fill_type != "manhattan":
            raise self.error(f'fill_type "{p.fill_type}"', "manhattan, the only one that is defined")
        self.require_positive("img_size")
        if min(p.spatial_ratio, p.spatial_scale) <= 0:
            raise self.error(f"spatial_ratio {p.spatial_ratio:g} and spatial_scale {p.spatial_scale:g}", "both above 0")
        self.side = _rounded(torch.tensor(p.img_size * p.spatial_scale)).item()

    def top_shapes(self, landmarks: Shape) -> list[Shape]:
        return [(landmarks[0], 1, int(self.side), int(self.side))] * 13

    def forward(self, landmarks: Tensor) -> tuple[Tensor, ...]:
        p = self.param.au_mask_based_land_param
        points = landmarks.detach().reshape(-1, 49, 2)
        inner = (points[:, _INNER_CORNERS[0], 0] - points[:, _INNER_CORNERS[1], 0]).abs()
        empty = points.new_full((len(points), int(self.side), int(self.side)), p.fill_value)
        maps, greatest = [], empty
        for unit in _UNITS:
            drawn = empty
            for landmark, below in unit:
                values, inside = self.window(points[:, landmark], points[:, landmark, 1] + below * inner)
                drawn = torch.where(inside, values, drawn)
                greatest = torch.where(inside, torch.maximum(greatest, values), greatest)
            maps.append(drawn[:, None])
        return *maps, greatest[:, None]

    def window(self, point: Tensor, centre_y: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N, S, S) around one centre of each image, and where they count."""
        p = self.param.au_mask_based_land_param
        half = (p.img_size - 1) / 2 * p.spatial_ratio
        places = torch.arange(int(self.side), device=point.device, dtype=point.dtype)
        distances, within = [], []
        for centre in (centre_y, point[:, 0]):
            first, last = (_rounded((centre + sign * half) * p.spatial_scale).clamp(0, self.side - 1) for sign in (-1, 1))
            distances.append((places - centre[:, None] * p.spatial_scale).abs())
            within.append((places >= first[:, None]) & (places <= last[:, None]))
        slope = p.fill_coeff * 100 / (p.img_size * p.spatial_scale)
        values = 1 - (distances[0][:, :, None] + distances[1][:, None]) * slope
        return values.clamp_min(p.fill_value), within[0][:, :, None] & within[1][:, None]


def _rounded(x: Tensor) -> Tensor:
    """Whole numbers, halves away from 0."""
    return x.sign() * (x.abs() + 0.5).floor()


@register("AlignDataTransform")
class AlignDataTransform(Layer):
    """Landmarks as in a cropped and mirrored image: (points (N, 2 L, …), crops (N, 4), mirrored order (L, …)) → (N, 2 L, …).

    Points are x, y. A crop is whether it is mirrored, its side, its upper and its left edge, as Data gives them with
    get_mirror_crop. In a mirrored image x becomes side - 1 - x, and point i is the one that the order names, counted from 1.
    Source: align_data_transform_layer of ZhiwenShao/JAANet (Shao et al. 2018).
    """

    bottoms = (3, 3)
    differentiable_bottoms = (0,)
    keeps_shape = True

    def setup(self, points: Shape, crops: Shape, order: Shape) -> None:
        count = math.prod(points[1:])
        if count % 2 or math.prod(crops) != 4 * points[0] or math.prod(order) < count // 2:
            found = f"points of shape {points}, crops of shape {crops} and an order of shape {order}"
            raise self.error(found, "x and y of each point, 4 values for each image, and the number of a point for each point")

    def forward(self, points: Tensor, crops: Tensor, order: Tensor) -> Tensor:
        x, y = points.reshape(len(points), -1, 2).unbind(2)
        mirrored, side, upper, left = crops.reshape(-1, 4, 1).unbind(1)
        indices = order.flatten()[: x.shape[1]].long() - 1
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < x.shape[1]:
            wrong = next(int(each) + 1 for each in indices if not 0 <= each < x.shape[1])
            raise self.error(f"{wrong} in the mirrored order", f"points are counted from 1 to {x.shape[1]}")
        x, y = x - left, y - upper
        flipped = mirrored != 0
        x = torch.where(flipped, (side - 1 - x)[:, indices], x)
        y = torch.where(flipped, y[:, indices], y)
        return torch.stack((x, y), 2).reshape(points.shape)
