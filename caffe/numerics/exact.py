"""Sums and products of float32 numbers whose bits depend on the numbers alone: not on order, threads, vector width or device.

A float32 number is scaled by a power of two taken from the largest magnitude of its row (or column) and split into integers,
held in float64, whose products' partial sums are integers of at most 2^53. float64 holds those exactly, so that any order of
summing gives the same; they are combined in a fixed order and rounded once to float32. There are two ways, here for rows bounded
by A and columns bounded by B, both powers of two, and K terms:

- quick: two products, in blocks of 1024 terms. Rows are two slices of 15 bits, columns one of 28. An entry's error is below
  (2^-31 + R · 2^-29) · K · A · B, where R · A is the mean of the row's magnitudes, and so below half of float32's own bound,
  K · 2^-24 · Σ|a·b|, if Σ|a·b| is at least (2^-6 + R · 2^-4) · A · B. Whether it is, some of its terms tell, without their signs.
- thorough: three products, in blocks of 4096 terms. Rows and columns are two slices of 20 bits. The error is below
  1.25 · K · 2^-40 · A · B, and so below half of float32's bound unless the entry is below 2^-14 · A · B. Where many are, a third
  slice lowers both by 2^-20.

A product is thorough if there are many entries of which the first does not tell. The few entries of either way that may have a
larger error are computed once more, from the exact float64 products of their terms, added in a fixed order.

Infinite and NaN operands give what IEEE 754 says, with one NaN. Numbers below 2^-125 become 0 (see `settled`).
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BITS = 20
"""Bits of a slice in a thorough product."""
BLOCK = 4096
"""Terms of a thorough product's partial sum: 2 · BITS + log2(BLOCK) is 52."""
SMALL = 2.0 ** (2 * BITS - 14)
"""Below this multiple of the scales, an entry of a thorough product is computed once more."""
NARROW, WIDE = 15, 28
"""Bits of a row's slices and of a column's one in a quick product."""
QUICK_BLOCK = 1024
"""Terms of a quick product's partial sum: NARROW + WIDE + log2(QUICK_BLOCK) is 53."""
SAMPLE = 256
"""Terms, at most, that tell whether an entry's error is below half of float32's bound; QUICK_BLOCK at most."""
FLUSHED = 2.0**-125
"""Numbers below are 0. Twice the smallest normal number: processors differ in whether a result that rounds to that is flushed."""
SUBNORMAL = 2.0**-126 - 2.0**-149
"""The largest subnormal number."""
LEAST = -320
"""Exponent that stands for smaller ones: below that of a product of two float32 numbers."""
PIECE = 1 << 20
"""Numbers of an operand or a result that are computed together, so that their float64 copies stay in a processor's cache."""
MANY = 64
"""If more than one entry of so many has a larger error, more slices take less time than the terms of each."""
FEW = 4
"""If at most one row of so many has entries that a sample does not tell about, all terms of these rows are looked at."""
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


class Sliced:
    """Numbers with a scale of each row or column, and their slices as they are asked for: a matrix, … × rows × columns.

    values   the numbers, float32
    special  whether there are infinite or NaN values, which are 0 in the slices
    scale    powers of two that bound the magnitudes, broadcast to the numbers

    As a product's right side it may be more than its numbers: the windows of an image (`caffe.numerics.convolution`). `dot`,
    `sample`, `terms`, `scaled` and `is_zero` are all that a product asks of it.
    """

    def __init__(self, values: Tensor, axes: int | tuple[int, ...], bounds: Tensor | None = None):
        """Numbers that differ in `axes` only have one scale; values are flushed. bounds: their largest magnitudes, or more."""
        self.values = self.finite = values
        self.bounds = values.abs().amax(axes, keepdim=True) if bounds is None else bounds
        self.special = not bool(self.bounds.isfinite().all())
        if self.special:
            self.finite = values.nan_to_num(0.0, 0.0, 0.0)
            self.bounds = self.finite.abs().amax(axes, keepdim=True)
        self.exponents = exponents(self.bounds)

    @functools.cached_property
    def scale(self) -> Tensor:
        return power_of_two(self.exponents)

    def cut(self, bits: int, *more: int) -> tuple[Tensor, ...]:
        """The numbers over `scale` as integers of so many bits, and what they leave, times 2^bits, as further ones."""
        rest = self.finite.to(torch.float64, copy=True).mul_(power_of_two(bits - self.exponents))
        parts = []
        for following in more:
            parts.append(rest.round())
            rest.sub_(parts[-1]).mul_(2.0**following)
        return *parts, rest.round_()

    @functools.cached_property
    def wide(self) -> Tensor:
        """The slice of a quick product's right side."""
        return self.cut(WIDE)[0]

    @functools.cached_property
    def narrow(self) -> Tensor:
        """The slices of a quick product's left side: the rows of the second are below those of the first."""
        return torch.cat(self.cut(NARROW, NARROW), -2)

    @functools.cached_property
    def fine(self) -> tuple[Tensor, Tensor | None]:
        """The slices of a thorough product; None if all numbers of the second are 0, as for bytes."""
        high, low = self.cut(BITS, BITS)
        return high, low if bool(low.any()) else None

    @functools.cached_property
    def both(self) -> Tensor:
        """The rows of the slices of a thorough product's left side, one below the other."""
        high, low = self.fine
        return torch.cat([high, torch.zeros_like(high) if low is None else low], -2)

    def third(self) -> Tensor:
        """What a thorough product's slices leave, times 2^(2 · BITS), as integers."""
        return self.cut(BITS, BITS, BITS)[2]

    def dot(self, left: Tensor, numbers: Tensor, into: list[Tensor] | None = None, block: int = BLOCK) -> list[Tensor]:
        """left @ numbers: a product for each block of so many terms at most, added to those of `into`, if given.

        numbers  of the shape of `values`
        """
        starts = range(0, numbers.shape[-2], block)
        spans = [slice(start, start + block) for start in starts]
        totals: Sequence[Tensor | None] = into or [None] * len(spans)
        return [times(left[..., here], numbers[..., here, :], total) for here, total in zip(spans, totals, strict=True)]

    def sample(self, left: Tensor) -> Tensor:
        """left @ the magnitudes of `wide`, of a few of their terms."""
        some = slice(None, None, -(-left.shape[-1] // SAMPLE))
        return times(left[..., some], self.wide[..., some, :].abs())

    def terms(self, batch: tuple[Tensor, ...], columns: Tensor, shape: Sequence[int]) -> Tensor:
        """The numbers of some columns, columns × terms.

        batch, columns  indices of each, where the batches have this shape
        """
        return self.values.expand(*shape, *self.values.shape[-2:]).transpose(-1, -2)[*batch, columns]

    def scaled(self, total: Tensor, rows: Tensor) -> Tensor:
        """A product, in place, times the scales of its rows and of these columns, which are powers of two within 2^±400."""
        if self.scale.numel() == 1:
            return total.mul_(rows * self.scale.reshape(()))
        return total.mul_(rows).mul_(self.scale)

    def is_zero(self) -> Tensor:
        """Mask of the columns that are all zeros, broadcast to a product's entries."""
        return self.bounds == 0


def sliced(values: Tensor, axis: int) -> Sliced:
    """A matrix with one scale for each row (axis -1, the terms of a product's left side) or column (axis -2)."""
    return Sliced(flushed(values), axis)


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
    unsure = _unsure(a, b)
    if unsure is not None and _many(unsure) and _many(unsure := unsure & (overlap := _overlap(a.values, b))):
        total, unsure = _thorough(a, b, overlap)
        b.scaled(total, a.scale * 2.0 ** (-2 * BITS))
    else:
        total = b.scaled(_quick(a, b), a.scale * 2.0 ** -(NARROW + WIDE))
    if unsure is not None:
        _recompute(total, unsure.nonzero(), a, b)
    if a.special or b.special:
        plain = _added(b.dot(a.values.double(), b.values.double()))
        total = torch.where(plain.isfinite(), total, plain)
    return total


def _unsure(a: Sliced, b: Sliced) -> Tensor | None:
    """Which entries of a quick product may have a larger error than half of float32's bound; None if none has."""
    magnitudes = a.narrow[..., : a.values.shape[-2], :].abs()
    # The sum is of integers, and exact in any order; CUDA would divide by multiplying with a reciprocal of its own.
    mean = (magnitudes.sum(-1, keepdim=True) * (1 / magnitudes.shape[-1]) + 0.5) * 2.0**-NARROW
    enough = 2.0 ** (25 + NARROW + WIDE) * (2.0 ** (-2 * NARROW - 1) + mean * 2.0 ** (-WIDE - 1))
    # Slices may have been rounded up, by half a unit: so much less the rows count, and so much more the columns must give.
    magnitudes.sub_(1).clamp_min_(0)
    enough += magnitudes.shape[-1] * 2.0 ** (NARROW - 1)
    told = b.sample(magnitudes)
    if not told.numel() or bool((told.amin(-1, keepdim=True) >= enough).all()):
        return None
    unsure = (told < enough) & ~((a.bounds == 0) | b.is_zero())
    rows = unsure.any(-1).view(-1, unsure.shape[-2]).any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    if FEW * len(rows) <= unsure.shape[-2]:  # such as those of a gradient that is 0 in most places
        some = unsure[..., rows, :]
        some &= _added(b.dot(magnitudes[..., rows, :], b.wide.abs(), block=QUICK_BLOCK)) < enough[..., rows, :]
        some &= _overlap(a.values[..., rows, :], b)
        unsure[..., rows, :] = some
    return unsure


def _overlap(rows: Tensor, b: Sliced) -> Tensor:
    """Which entries of a product have a term that is not 0, by counts, which float32 holds exactly."""
    return _added(b.dot((rows != 0).float(), (b.values != 0).float())) > 0


def _quick(a: Sliced, b: Sliced) -> Tensor:
    """The product of two slices with one, before it is scaled."""
    count = a.values.shape[-2]
    products = b.dot(a.narrow, b.wide, block=QUICK_BLOCK)
    return _added([each[..., :count, :].add_(each[..., count:, :], alpha=2.0**-NARROW) for each in products])


def _thorough(a: Sliced, b: Sliced, overlap: Tensor) -> tuple[Tensor, Tensor]:
    """The product of two slices with two, or of three, before it is scaled; and which entries are to be computed once more.

    overlap  which have a term that is not 0
    """
    count = a.values.shape[-2]
    high, low = b.fine
    products = b.dot(a.both, high)
    highs, crosses = [each[..., :count, :] for each in products], [each[..., count:, :] for each in products]
    if low is not None:
        b.dot(a.fine[0], low, crosses)
    # Times a power of two, and so rounded once, fused or not.
    total = _added([high.add_(cross, alpha=2.0**-BITS) for high, cross in zip(highs, crosses, strict=True)])
    small = (total.abs() < SMALL) & overlap
    if _many(small):
        total = torch.where(small, total + _third(a, b), total)
        small &= total.abs() < SMALL * 2.0**-BITS
    return total, small


def _many(entries: Tensor) -> bool:
    return MANY * int(entries.sum()) > entries.numel()


def _added(blocks: list[Tensor]) -> Tensor:
    """The sum of the blocks of a product, in their order."""
    total, *others = blocks
    for block in others:
        total = block.add_(total)
    return total


def _third(a: Sliced, b: Sliced) -> Tensor:
    """What a third slice of each operand adds to their product, before it is scaled."""
    # Blocks of one pair each: the sum of three may need 54 bits.
    (a_high, a_low), (b_high, b_low) = a.fine, b.fine
    pairs = [(a_high, b.third()), (a.third(), b_high)]
    if a_low is not None and b_low is not None:
        pairs.append((a_low, b_low))
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
    axes = tuple(axis % values.dim() for axis in ((axes,) if isinstance(axes, int) else axes))
    count = math.prod(values.shape[axis] for axis in axes)
    if not count:
        return values.double().sum(axes, keepdim)
    # Some at a time, as their float64 copies are large.
    parts = torch.split(values, max(1, PIECE // 8 // max(1, values[:1].numel()))) if 0 in axes else (values,)
    bounds = functools.reduce(torch.maximum, (flushed(part).abs().amax(axes, keepdim=True) for part in parts))
    if bool(bounds.isfinite().all()):
        shift, e = _shift(count), exponents(bounds)
        scale = power_of_two(shift - e)
        whole = [(flushed(part).double() * scale).round_().to(torch.int64).sum(axes, keepdim=True) for part in parts]
        sums = from_integers(functools.reduce(Tensor.add_, whole), power_of_two(e - shift))
    else:
        sums = added(values, axes, count, lambda terms: terms.sum(axes, keepdim=True))
    return sums if keepdim else sums.reshape([size for axis, size in enumerate(sums.shape) if axis not in axes])


def _shift(count: int) -> int:
    """So many numbers times 2^this, below 1 in magnitude, have a sum of 63 bits."""
    return 61 - math.ceil(math.log2(count))


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
    shift = _shift(count)
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
