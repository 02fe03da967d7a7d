"""Gaussian filtering of points in a space of a few dimensions, on the permutohedral lattice (Adams et al. 2010)."""

from typing import Any

import torch
from torch import Tensor


class Lattice:
    """Filters values of P points by a Gaussian of standard deviation 1 in their space of d dimensions.

    Values are spread to the d + 1 corners of each point's simplex, blurred along the d + 1 directions of the lattice, and read
    back: time and memory grow with P, where exact filtering takes P². A lattice has only the corners of its points' simplices.

    features  (P, d), float32; the results are not differentiable by them
    corners   (P, d + 1): numbers of the corners of each point's simplex, and `shares`, its barycentric coordinates
    neighbours  (d + 1, 2, corners): the next corners in both directions; the number of corners where there is none

    Raises OverflowError if points are too far apart for 64-bit keys.
    """

    def __init__(self, features: Tensor):
        count, d = features.shape
        steps = torch.arange(1, d + 1, device=features.device)
        scaled = features * ((2 / 3) ** 0.5 * (d + 1) / (steps * (steps + 1)).float().sqrt())
        # Onto the plane of coordinates that add up to 0.
        after = scaled.flip(1).cumsum(1).flip(1)
        elevated = torch.cat([after, after.new_zeros(count, 1)], 1)
        elevated[:, 1:] -= steps * scaled
        rounded = (elevated / (d + 1)).round()
        excess = rounded.sum(1, keepdim=True).long()
        base = rounded.long() * (d + 1)
        difference = elevated - base
        # The rank of each coordinate's difference, from the greatest on; of equal ones, the first coordinate's is less.
        above = difference[:, None, :] > difference[:, :, None]
        order = torch.arange(d + 1, device=features.device)
        ties = (difference[:, None, :] == difference[:, :, None]) & (order[None, :] < order[:, None])
        rank = (above | ties).sum(2) + excess
        wrap = (d + 1) * ((rank < 0).long() - (rank > d).long())
        rank, base = rank + wrap, base + wrap
        inside = (elevated - base) / (d + 1)
        shares = inside.new_zeros(count, d + 2).scatter_add_(1, d - rank, inside).scatter_add_(1, d + 1 - rank, -inside)
        shares[:, 0] += 1 + shares[:, d + 1]
        self.shares = shares[:, : d + 1].contiguous()
        keys = base[:, None, :d] + order[:, None] - (d + 1) * (rank[:, None, :d] > d - order[:, None])
        # One number for each key, with room for the neighbours' around.
        low = keys.amin((0, 1)) - (d + 1)
        extents = keys.amax((0, 1)) + (d + 1) - low + 1
        if float(extents.double().prod()) > 2.0**62:
            raise OverflowError(f"points lie up to {float((features.amax(0) - features.amin(0)).max()):.3g} deviations apart")
        strides = torch.cat([extents.new_ones(1), extents.cumprod(0)[:-1]])
        packed, corners = torch.unique(((keys - low) * strides).sum(2), return_inverse=True)
        self.corners = corners
        neighbours = []
        for direction in range(d + 1):
            offset = -strides.sum() + ((d + 1) * strides[direction] if direction < d else 0)
            pair = []
            for wanted in (packed + offset, packed - offset):
                place = torch.searchsorted(packed, wanted).clamp_max(len(packed) - 1)
                pair.append(torch.where(packed[place] == wanted, place, len(packed)))
            neighbours.append(torch.stack(pair))
        self.neighbours = torch.stack(neighbours)

    def filter(self, values: Tensor) -> Tensor:
        """Filter values, (P, C); differentiable."""
        filtered: Tensor = _Filtered.apply(values, self)
        return filtered

    def apply(self, values: Tensor, directions: range) -> Tensor:
        """Filter values, blurred along the directions in that order; the reverse order is the transposed filter."""
        size = self.neighbours.shape[2]
        spread = values.new_zeros(size + 1, values.shape[1])  # the last row stands for missing neighbours, and stays 0
        shares, corners = self.shares.to(values.dtype), self.corners
        for corner in range(corners.shape[1]):
            spread.index_add_(0, corners[:, corner], values * shares[:, corner, None])
        for direction in directions:
            first, second = self.neighbours[direction]
            blurred = spread[:-1] + 0.5 * (spread[first] + spread[second])
            spread = torch.cat([blurred, spread[-1:]])
        read = values.new_zeros(values.shape)
        for corner in range(corners.shape[1]):
            read += spread[corners[:, corner]] * shares[:, corner, None]
        return read / (1 + 2.0 ** (1 - corners.shape[1]))


class _Filtered(torch.autograd.Function):
    """Lattice.filter, which keeps no copies of the values on the lattice for its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice) -> Tensor:
        ctx.lattice = lattice
        return lattice.apply(values, range(len(lattice.neighbours)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        directions = range(len(ctx.lattice.neighbours) - 1, -1, -1)
        return ctx.lattice.apply(gradient, directions), None
