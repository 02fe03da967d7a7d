"""Exact sums and products, against sums of fractions and float64."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe.numerics import elementary, exact

U = 2.0**-24
"""float32's relative rounding error."""


def numbers(seed: int, *shape: int, spread: int = 0) -> torch.Tensor:
    """Normal random numbers, times powers of two up to 2^±spread."""
    draw = np.random.default_rng(seed)
    powers = draw.integers(-spread, spread + 1, shape)
    return torch.from_numpy((draw.standard_normal(shape) * 2.0**powers).astype(np.float32))


def exact_product(a: torch.Tensor, b: torch.Tensor) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """a @ b, and |a| @ |b|, without rounding."""
    rows = [[Fraction(float(x)) for x in row] for row in a]
    columns = [[Fraction(float(x)) for x in column] for column in b.T]
    plain = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in rows]
    sizes = [[sum(abs(x * y) for x, y in zip(row, column, strict=True)) for column in columns] for row in rows]
    return plain, sizes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.integers(1, 5), st.integers(0, 40))
def test_a_product_is_within_the_error_bound_of_float32(seed, m, k, n, spread):
    a, b = numbers(seed, m, k, spread=spread), numbers(seed + 1, k, n, spread=spread)
    plain, sizes = exact_product(a, b)
    result = exact.product(a, b)
    for i in range(m):
        for j in range(n):
            error = abs(Fraction(float(result[i, j])) - plain[i][j])
            assert error <= sizes[i][j] * Fraction(k * U) + Fraction(exact.FLUSHED)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999), st.integers(1, 12), st.integers(2, 3000), st.integers(1, 6), st.sampled_from([0, 4, 20]),
    st.sampled_from([1.0, 0.1, 0.01]), st.sampled_from([1.0, 0.1, 0.01]),
)  # fmt: skip
def test_long_and_sparse_products_are_within_the_error_bound_of_float32(seed, m, k, n, spread, of_a, of_b):
    draw = np.random.default_rng(seed)
    a = numbers(seed, m, k, spread=spread) * torch.from_numpy(draw.random((m, k)) < of_a)
    b = numbers(seed + 1, k, n, spread=spread) * torch.from_numpy(draw.random((k, n)) < of_b)
    x, y = (each.numpy().astype(np.longdouble) for each in (a, b))
    error = np.abs(exact.product(a, b).numpy() - x @ y)
    assert (error <= np.abs(x) @ np.abs(y) * (k * U) + exact.FLUSHED).all()


@pytest.mark.parametrize("kind", ["dense", "some rows almost 0", "zero rows and columns"])
def test_ordinary_products_are_quick_and_have_no_entry_computed_once_more(monkeypatch, kind):
    a, b = numbers(1, 40, 1500), numbers(2, 1500, 30)
    if kind == "some rows almost 0":
        a[3:6, 7:] = 0
    elif kind == "zero rows and columns":
        a[::2], b[:, ::3] = 0, 0
    monkeypatch.setattr(exact, "_thorough", None)
    monkeypatch.setattr(exact, "_recompute", lambda total, places, *given: places.tolist() and pytest.fail("recomputed"))
    x, y = a.double(), b.double()
    error = (exact.product(a, b).double() - x @ y).abs()
    assert bool((error <= (x.abs() @ y.abs()) * 40 * U).all()), "far below the bound"


def test_a_column_of_small_numbers_has_a_scale_of_its_own(monkeypatch):
    monkeypatch.setattr(exact, "_thorough", None)
    a, b = numbers(1, 5, 300), numbers(2, 300, 4) * 10.0 ** -torch.arange(0, 40, 10)
    assert torch.allclose(exact.product(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=0)


def test_a_small_number_beside_a_large_one_keeps_its_digits():
    a = torch.tensor([[1.0, 1e-12, 3e-30]])
    b = torch.eye(3)
    assert torch.equal(exact.product(a, b), a)


@pytest.mark.parametrize("lies", ["in the third slice", "where nothing overlaps"])
def test_many_small_entries_are_not_computed_one_by_one(monkeypatch, lies):
    """A large number in each row and column, which meets zeros, makes the scale coarse for all others."""
    a, b = numbers(1, 20, 60), numbers(2, 60, 30)
    a[:, 0], a[:, 1], b[0], b[1] = 2.0**14, 0, 0, 2.0**14
    if lies == "where nothing overlaps":
        a[:, 2:], b[2:] = a[:, 2:] * (torch.arange(58) % 2), b[2:] * (1 - torch.arange(58) % 2)[:, None]
    recompute, places = exact._recompute, []
    monkeypatch.setattr(exact, "_recompute", lambda *given: places.extend(given[1]) or recompute(*given))
    plain, sizes = exact_product(a, b)
    result = exact.product(a, b)
    for i in range(20):
        for j in range(30):
            assert abs(Fraction(float(result[i, j])) - plain[i][j]) <= sizes[i][j] * Fraction(60 * U)
    assert len(places) < 10, "of 600"


@pytest.mark.parametrize("terms", [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 9000])
def test_blocks_of_terms_add_up(terms):
    a, b = numbers(1, 3, terms), numbers(2, terms, 4)
    expected = a.double() @ b.double()
    assert torch.allclose(exact.product(a, b).double(), expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, exact.SAMPLE), st.sampled_from([0, 12]))
def test_the_order_of_the_terms_does_not_change_a_bit(seed, k, spread):
    a, b = numbers(seed, 4, k, spread=spread), numbers(seed + 1, k, 3, spread=spread)
    order = np.random.default_rng(seed).permutation(k)
    same = torch.zeros(4, 3, dtype=torch.bool)  # entries that are computed once more keep the order of their terms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_recompute", lambda total, at, *given: same.index_put_(at.unbind(1), torch.tensor(True)))
        first, second = exact.product(a, b), exact.product(a[:, order], b[order])
    assert bool(((first == second) | same).all())
    assert torch.equal(exact.total(a[:, order], 1), exact.total(a, 1))


def test_infinite_and_nan_operands_give_what_ieee_says():
    a = torch.tensor([[1.0, math.inf], [math.nan, 1.0], [1.0, 2.0]])
    b = torch.tensor([[1.0, 1.0, -1.0], [1.0, 0.0, -math.inf]])
    expected = a.double() @ b.double()
    assert torch.equal(exact.product(a, b).double().nan_to_num(123.0), expected.nan_to_num(123.0))
    assert exact.total(torch.tensor([1.0, math.inf]), 0).item() == math.inf
    assert math.isnan(exact.total(torch.tensor([math.inf, -math.inf]), 0).item())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 8), st.sampled_from([(0,), (1,), (0, 2), (-3, 1, 2)]))
def test_a_total_is_the_same_in_pieces(seed, count, piece, axes):
    x = numbers(seed, count, 3, 4, spread=40)
    x[count - 1, 0, 0] = 2.0**-140  # subnormal
    whole = exact.total(x, axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "PIECE", 8 * 3 * 4 * piece)
        assert torch.equal(exact.total(x, axes), whole)
        x[count - 1, 2, 3] = math.inf
        assert exact.total(x, axes).isinf().any()


def test_there_are_no_subnormal_numbers_no_negative_zero_and_one_nan():
    given_bits = torch.tensor(
        [0x00000001, 0x007FFFFF, -0x80000000, 0x00800001, 0x7FC00001, -0x400000, 0x3F800000], dtype=torch.int32
    )
    bits = exact.settled(given_bits.view(torch.float32)).view(torch.int32).tolist()
    assert bits == [0, 0, 0, 0, 0x7FC00000, 0x7FC00000, 0x3F800000]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 2000), st.integers(0, 30))
def test_a_sum_is_rounded_once(seed, count, spread):
    x = numbers(seed, count, spread=spread)
    expected = sum(Fraction(float(value)) for value in x)
    error = abs(Fraction(exact.total(x, 0).item()) - expected)
    assert error <= Fraction(float(x.abs().max())) * count * Fraction(2.0**-50)


@pytest.mark.parametrize(
    ("ours", "numpys", "low", "high"),
    [(elementary.exp, np.exp, -700, 700), (elementary.log, np.log, 1e-300, 1e300), (elementary.log, np.log, 0.5, 2.0)],
)
def test_elementary_functions_agree_with_long_doubles(ours, numpys, low, high):
    x = np.linspace(low, high, 20_001)
    expected = numpys(x.astype(np.longdouble))
    got = ours(torch.from_numpy(x)).numpy().astype(np.longdouble)
    assert float(np.max(np.abs(got - expected) / np.maximum(np.abs(expected), 1e-300))) < 1e-15


@pytest.mark.parametrize("exponent", [-0.75, 0.5, 2, -3, 2.2, 1.25, -0.1, 0])
def test_powers(exponent):
    x = np.linspace(0.01, 50, 5001)
    expected = x.astype(np.longdouble) ** np.longdouble(exponent)
    got = elementary.power(torch.from_numpy(x), exponent).numpy().astype(np.longdouble)
    assert float(np.max(np.abs(got / expected - 1))) < 1e-14


def test_edges_of_elementary_functions():
    inf, nan = math.inf, math.nan
    x = torch.tensor([0.0, -1.0, inf, -inf, nan, 800.0, -800.0], dtype=torch.float64)
    exps = elementary.exp(x).tolist()
    assert exps[:1] + exps[2:4] + exps[5:] == [1.0, inf, 0.0, inf, 0.0]
    assert math.isnan(exps[4])
    logs = elementary.log(x).tolist()
    assert [logs[0], logs[2]] == [-inf, inf]
    assert all(math.isnan(logs[index]) for index in (1, 3, 4))
