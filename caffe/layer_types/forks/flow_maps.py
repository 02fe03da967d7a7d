"""Layers of FlowNet 2.0 (Ilg et al. 2017) on maps: Resample, ChannelNorm."""

import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.proto import caffe_pb2

RESAMPLE = caffe_pb2.ResampleParameter


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel (1981) with a = -1/2."""
    near = distance * distance * (1.5 * distance - 2.5) + 1
    far = distance * (distance * (-0.5 * distance + 2.5) - 4) + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


@register("Resample")
class Resample(Layer):
    """Maps in another size: (x (N, C, H, W)[, a map of the new size]) → (N, C, H', W').

    H' and W' are height and width, or the second bottom's. LINEAR and CUBIC (Keys 1981, a = -1/2) weigh the values around a place
    by their distance, along both axes, and divide by the weights inside the map; if a side becomes shorter, with antialias, the
    kernels are as many times as wide as H / H' and W / W'. NEAREST takes the nearest value. As in the fork's resample_layer.cu,
    column j' lies at j' · W / W' + H / 2 H' - 1/2, where only equal ratios align the maps' borders, and rows accordingly. The
    fork has no gradient; here it is the derivative. A value that is NaN makes all of its map NaN.
    """

    bottoms = (1, 2)
    differentiable_bottoms = (0,)

    def setup(self, shape: Shape, *like: Shape) -> None:
        p = self.param.resample_param
        for given in (shape, *like):
            self.require_maps(given)
        if p.type == RESAMPLE.AREA:
            raise self.error("type AREA", "it must be NEAREST, LINEAR or CUBIC")

    def top_shapes(self, shape: Shape, *like: Shape) -> list[Shape]:
        p = self.param.resample_param
        size = like[0][2:] if like else (p.height, p.width)
        if min(size) < 1:
            raise self.error(f"height {size[0]} and width {size[1]}", "both must be given, or a second bottom")
        return [(*shape[:2], *size)]

    def places(self, ratio: float, other: float, count: int) -> Tensor:
        """Where each of the new places along an axis lies in the old map; `other` is the ratio of the other axis."""
        return torch.arange(count, dtype=torch.float64) * ratio + other / 2 - 0.5

    def weights(self, old: int, places: Tensor, stretch: float) -> Tensor:
        """How much each of `old` places contributes to each new one: (new, old), rows of sum 1, or 0 if nothing is near."""
        distances = (places[:, None] - torch.arange(old)).abs() / stretch
        weights = (_linear if self.param.resample_param.type == RESAMPLE.LINEAR else _cubic)(distances)
        total = weights.sum(1, keepdim=True)
        return torch.where(total == 0, 0.0, weights / total).float().to(self.device)

    def matrices(self, old: Shape, new: Shape) -> tuple[Tensor, Tensor]:
        """How much the old rows contribute to the new ones, (H', H), and the old columns, (W', W), for LINEAR and CUBIC."""
        down, across = (before / after for before, after in zip(old, new, strict=True))
        widens = self.param.resample_param.antialias and max(down, across) > 1
        rows, columns = self.places(down, across, new[0]), self.places(across, down, new[1])
        return self.weights(old[0], rows, down if widens else 1), self.weights(old[1], columns, across if widens else 1)

    def nearest(self, old: Shape, new: Shape) -> tuple[Tensor, Tensor]:
        """The old row of each new one, (H',), and the old column, (W',), for NEAREST."""
        down, across = (before / after for before, after in zip(old, new, strict=True))
        # Halves are rounded away from 0; -1/2 and less only occurs where the ratios differ.
        rows, columns = (
            (places + 0.5).floor().clamp(0, before - 1).long().to(self.device)
            for places, before in zip((self.places(down, across, new[0]), self.places(across, down, new[1])), old, strict=True)
        )
        return rows, columns

    def forward(self, x: Tensor, *like: Tensor) -> Tensor:
        (top,) = self.top_shapes(tuple(x.shape), *[tuple(each.shape) for each in like])
        if self.param.resample_param.type == RESAMPLE.NEAREST:
            rows, columns = self.nearest(x.shape[2:], top[2:])
            return x[:, :, rows[:, None], columns]
        of_rows, of_columns = self.matrices(x.shape[2:], top[2:])
        return of_rows @ x @ of_columns.t()


@register("ChannelNorm")
class ChannelNorm(Layer):
    """√(Σ x²) over the channels at each position: (N, C, H, W) → (N, 1, H, W); the gradient at 0 is 0 (FlowNet 2.0)."""

    def setup(self, shape: Shape) -> None:
        self.require_maps(shape)

    def top_shapes(self, shape: Shape) -> list[Shape]:
        return [(shape[0], 1, *shape[2:])]

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=1, keepdim=True)
