"""Sums and products of float32 numbers whose bits depend on the numbers alone: not on order, threads, vector width or device.

A float32 number is scaled by a power of two taken from the largest magnitude of its row (or column) and split into two integers
of 20 bits, held in float64. Each partial sum of up to 4096 products of such integers is an integer below 2^53, which float64
holds exactly, so that any order of summing gives the same. high · high and the two cross products are added and rounded once;
blocks of 4096 are added in their order.

Error of an entry of a product over K terms, for rows bounded by A and columns by B (powers of two): below
1.25 · K · 2^-40 · A · B, and so below float32's own bound, K · 2^-24 · Σ|a·b|, unless the entry is below 2^-15 · A · B. Where
many are, as in gradients for weights, a third slice lowers both by 2^-20. The few that are still below are computed once more
from the exact float64 products of their terms, added in a fixed order.

Infinite and NaN operands give what IEEE 754 says, with one NaN. Numbers below 2^-125 become 0 (see `settled`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 20
"""Bits of a slice."""
BLOCK = 4096
"""Terms of a partial sum: 2 · BITS + log2(BLOCK) is 52."""
SMALL = 2.0 ** (2 * BITS - 15)
"""Below this multiple of the scales, an entry is computed once more."""
FLUSHED = 2.0**-125
"""Numbers below are 0. Twice the smallest normal number: processors differ in whether a result that rounds to that is flushed."""
SUBNORMAL = 2.0**-126 - 2.0**-149
"""The largest subnormal number."""
LEAST = -320
"""Exponent that stands for smaller ones: below that of a product of two float32 numbers."""
PIECE = 1 << 20
"""Numbers of an operand or a result that are computed together, so that their float64 copies stay in a processor's cache."""
MANY = 64
"""If more than one entry of so many is below, a third slice takes less time than the terms of each."""
TERMS = 1 << 22
"""Terms of small entries in memory at once."""


def settled(x: Tensor) -> Tensor:
    """float32 results as every machine has them: 0 below FLUSHED, no -0.0, one NaN."""
    return torch.nn.functional.hardshrink(x, FLUSHED).nan_to_num_(math.nan, math.inf, -math.inf)


def flushed(x: Tensor) -> Tensor:
    """float32 operands with subnormal numbers as 0, which some devices and some threads would take them for."""
    return torch.nn.functional.hardshrink(x, SUBNORMAL) if x.dtype == torch.float32 else x


def rounded(x: Tensor) -> Tensor:
    """float64 results, rounded once to float32."""
    return settled(x.float())


def power_of_two(exponents: Tensor) -> Tensor:
    """2^exponents as float64, for int64 exponents from -1022 to 1023, from their bits."""
    return ((exponents + 1023) << 52).view(torch.float64)


def exponents(magnitudes: Tensor) -> Tensor:
    """The least e with |magnitude| < 2^e, int64, at least LEAST. Magnitudes are finite, at least 0."""
    return ((magnitudes.double().view(torch.int64) >> 52) - 1022).clamp_min_(LEAST)


@dataclass
class Sliced:
    """Numbers as scale · (high + low / 2^BITS), with integers of BITS bits in float64: a matrix, … × rows × columns.

    high     the larger parts
    low      None if all are 0, as for bytes
    scale    powers of two, broadcast to the matrix
    special  whether there are infinite or NaN values, which are 0 in the slices
    values   the numbers, float32

    As a product's right side it may be more than its numbers: the windows of an image (`caffe.numerics.convolution`). `dot` and
    `terms` are all that a product asks of it.
    """

    high: Tensor
    low: Tensor | None
    scale: Tensor
    special: bool
    values: Tensor

    @functools.cached_property
    def both(self) -> Tensor:
        """The rows of `high`, and below them those of `low`, for a product's left side."""
        return torch.cat([self.high, torch.zeros_like(self.high) if self.low is None else self.low], -2)

    def third(self) -> Tensor:
        """What high + low / 2^BITS leaves, times 2^(2 · BITS), as integers."""
        values = self.values
        if self.special:
            values = values.nan_to_num(0.0, 0.0, 0.0)
        rest = values.double() / self.scale  # by a tensor, and so exact
        rest.sub_(self.high)
        if self.low is not None:
            rest.sub_(self.low * 2.0**-BITS)
        return rest.mul_(2.0 ** (2 * BITS)).round_()

    def dot(self, left: Tensor, numbers: Tensor, into: list[Tensor] | None = None) -> list[Tensor]:
        """left @ numbers: a product for each block of at most BLOCK terms, added to those of `into`, if given.

        numbers  of the shape of `high`
        """
        starts = range(0, numbers.shape[-2], BLOCK)
        spans = [slice(start, start + BLOCK) for start in starts]
        totals: Sequence[Tensor | None] = into or [None] * len(spans)
        return [times(left[..., here], numbers[..., here, :], total) for here, total in zip(spans, totals, strict=True)]

    def terms(self, batch: tuple[Tensor, ...], columns: Tensor, shape: Sequence[int]) -> Tensor:
        """The numbers of some columns, columns × terms.

        batch, columns  indices of each, where the batches have this shape
        """
        return self.values.expand(*shape, *self.values.shape[-2:]).transpose(-1, -2)[*batch, columns]


def slices(values: Tensor, axes: int | tuple[int, ...]) -> tuple[Tensor, Tensor | None, Tensor, bool]:
    """(high, low, scale, special) of flushed numbers, with one scale for all that differ in `axes` only; as in Sliced."""
    bounds = values.abs().amax(axes, keepdim=True)
    if special := not bool(bounds.isfinite().all()):
        values = values.nan_to_num(0.0, 0.0, 0.0)
        bounds = values.abs().amax(axes, keepdim=True)
    e = exponents(bounds)
    scaled = values.double() * power_of_two(BITS - e)
    high = scaled.round()
    low = scaled.sub_(high).mul_(2.0**BITS).round_()
    return high, low if bool(low.any()) else None, power_of_two(e - BITS), special


def sliced(values: Tensor, axis: int) -> Sliced:
    """Slice a matrix with one scale for each row (axis -1, the terms of a product's left side) or column (axis -2)."""
    values = flushed(values)
    return Sliced(*slices(values, axis), values)


def times(a: Tensor, b: Tensor, total: Tensor | None = None) -> Tensor:
    """a @ b, added to `total`, if given, in place."""
    if a.dim() == b.dim() == 3 and len(a) == len(b) == 1:  # a batch of one takes longer than a matrix
        return times(a[0], b[0], None if total is None else total[0])[None]
    if total is None:
        return a @ b
    if a.dim() == b.dim() == 2:
        return total.addmm_(a, b)
    return total.baddbmm_(a, b) if a.dim() == b.dim() == 3 and len(a) == len(b) == len(total) else total.add_(a @ b)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b: … × M × K times … × K × N, float32, batches broadcast; rounded once from a sum with the error stated above."""
    if not a.shape[-1]:
        return a @ b
    left, columns = sliced(a, -1), b.shape[-1]
    step = max(32, PIECE // max(1, *a.shape[-2:]))
    if step >= columns:
        return rounded(sum_of_products(left, sliced(b, -2)))
    pieces = [rounded(sum_of_products(left, sliced(b[..., start : start + step], -2))) for start in range(0, columns, step)]
    return torch.cat(pieces, -1)


def sum_of_products(a: Sliced, b: Sliced) -> Tensor:
    """The product of sliced matrices, float64; the scale of `a` has one column and that of `b` one row."""
    count = a.high.shape[-2]
    products = b.dot(a.both, b.high)
    highs, crosses = [each[..., :count, :] for each in products], [each[..., count:, :] for each in products]
    if b.low is not None:
        b.dot(a.high, b.low, crosses)
    # Times a power of two, and so rounded once, fused or not.
    total = _added([high.add_(cross, alpha=2.0**-BITS) for high, cross in zip(highs, crosses, strict=True)])
    small = total.abs() < SMALL
    places = small.nonzero()
    if MANY * len(places) > total.numel():
        small &= _added(b.dot((a.values != 0).float(), (b.values != 0).float())) > 0  # counts, exact in float32
        if MANY * int(small.sum()) > total.numel():
            total = torch.where(small, total + _third(a, b), total)
            small &= total.abs() < SMALL * 2.0**-BITS
        places = small.nonzero()
    if b.scale.numel() == 1:
        total.mul_(a.scale * b.scale.reshape(()))  # both are powers of two, within 2^±300
    else:
        total.mul_(a.scale).mul_(b.scale)
    if len(places):
        _recompute(total, places, a, b)
    if a.special or b.special:
        plain = _added(b.dot(a.values.double(), b.values.double()))
        total = torch.where(plain.isfinite(), total, plain)
    return total


def _added(blocks: list[Tensor]) -> Tensor:
    """The sum of the blocks of a product, in their order."""
    total, *others = blocks
    for block in others:
        total = block.add_(total)
    return total


def _third(a: Sliced, b: Sliced) -> Tensor:
    """What a third slice of each operand adds to their product, before it is scaled."""
    # Blocks of one pair each: the sum of three may need 54 bits.
    pairs = [(a.high, b.third()), (a.third(), b.high)]
    if b.low is not None:
        pairs.append((a.both[..., a.high.shape[-2] :, :], b.low))
    sums = zip(*(b.dot(left, numbers) for left, numbers in pairs), strict=True)
    return _added([functools.reduce(Tensor.add_, each) for each in sums]).mul_(2.0 ** (-2 * BITS))


def _recompute(total: Tensor, places: Tensor, a: Sliced, b: Sliced) -> None:
    """Overwrite entries of a product, places × axes, by the sums of their exact terms in a fixed order."""
    batch, rows = total.shape[:-2], a.values.expand(*total.shape[:-2], *a.values.shape[-2:])
    for some in torch.split(places, max(1, TERMS // a.values.shape[-1])):
        *outer, row, column = some.unbind(1)
        terms = rows[*outer, row].double() * b.terms(tuple(outer), column, batch).double()
        total[*outer, row, column] = in_order(terms)


def in_order(terms: Tensor) -> Tensor:
    """Sums over the last axis in a fixed order, float64: halves are added until one number is left."""
    while (length := terms.shape[-1]) > 1:
        half = length // 2
        added = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([added, terms[..., 2 * half :]], -1) if length % 2 else added
    return terms[..., 0] if terms.shape[-1] else terms.new_zeros(terms.shape[:-1])


def total(values: Tensor, axes: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """Sums of float32 or float64 numbers over some axes, float64.

    Each term is rounded to a unit of 2^-61 of the largest magnitude times the number of terms; the integers are added exactly.
    """
    axes = (axes,) if isinstance(axes, int) else axes
    count = math.prod(values.shape[axis] for axis in axes)
    if not count:
        return values.double().sum(axes, keepdim)
    sums = added(values, axes, count, lambda terms: terms.sum(axes, keepdim=True))
    kept = [size for axis, size in enumerate(sums.shape) if axis not in {axis % sums.dim() for axis in axes}]
    return sums if keepdim else sums.reshape(kept)


def added(values: Tensor, axes: tuple[int, ...], count: int, add: Callable[[Tensor], Tensor], twice: bool = False) -> Tensor:
    """What `add` makes of numbers by adding some of them, in any order, float64.

    axes   numbers that differ in these axes only have one scale: all of them, or each sum has numbers of one scale
    count  the most numbers that are added into one
    add    takes and returns int64, or float64 where numbers are infinite or NaN
    twice  for sums of small and of large numbers with one scale: terms are rounded to about 2^-120 of the largest, not 2^-61
    """
    values = flushed(values)
    special = not bool(values.isfinite().all())
    finite = values.nan_to_num(0.0, 0.0, 0.0) if special else values
    e = exponents(finite.abs().amax(axes, keepdim=True))
    shift = 61 - math.ceil(math.log2(count))
    scaled = finite.double() * power_of_two(shift - e)
    whole = scaled.round()
    unit = power_of_two(e - shift)
    unit = unit.reshape(()) if unit.numel() == 1 else unit
    sums = from_integers(add(whole.to(torch.int64)), unit)
    if twice:
        rest = scaled.sub_(whole).mul_(2.0 ** (shift - 1)).round_()
        sums += from_integers(add(rest.to(torch.int64)), unit * 2.0 ** (1 - shift))
    if not special:
        return sums
    plain = add(values.double())
    return torch.where(plain.isfinite(), sums, plain)


def from_integers(whole: Tensor, unit: Tensor) -> Tensor:
    """Multiples of a unit as float64, rounded once; converted in two exact halves, as some processors convert no 64 bits."""
    return ((whole >> 31).double() * 2.0**31 + (whole & (2**31 - 1)).double()) * unit
