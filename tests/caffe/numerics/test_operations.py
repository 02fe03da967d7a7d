"""Operations in reproducible arithmetic: right, the same everywhere, and refused where neither is known."""

import os
import subprocess
import sys

import pytest
import torch

from caffe.numerics.dispatch import EXACT_ANYWHERE, NotReproducibleError, Reproducible
from caffe.numerics.registry import OURS
from tests import without_vector_code
from tests.caffe.numerics.cases import CASES, results
from tests.conftest import ROOT


@pytest.mark.parametrize("name", [name for name in CASES if name != "subnormal"])
def test_results_and_gradients_are_those_of_float64_rounded(name):
    expected = results(name, torch.float64)
    with Reproducible():
        got = results(name)
    assert [tensor.dtype for tensor in got] == [torch.float32] * len(got)
    for mine, exactly in zip(got, expected, strict=True):
        scale = float(exactly.abs().max())
        assert torch.allclose(mine.double(), exactly, rtol=2e-6, atol=2e-6 * scale), (mine.double() - exactly).abs().max() / scale


def digests(threads: int, flush: bool, environment: dict[str, str]) -> dict[str, str]:
    """{case: digest} in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.caffe.numerics.cases", str(threads), str(int(flush))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines())


def test_bits_do_not_depend_on_threads_vector_code_or_the_handling_of_subnormal_numbers():
    first = digests(1, False, {})
    assert set(first) == set(CASES)
    for threads, flush, environment in ((2, False, {}), (3, True, {}), (1, True, without_vector_code.environment())):
        assert digests(threads, flush, environment) == first, (threads, flush, bool(environment))


def test_an_operation_that_may_differ_between_machines_is_refused_by_name():
    with Reproducible(), pytest.raises(NotReproducibleError, match=r"aten\.erfinv"):
        torch.zeros(3).erfinv()


def test_the_cases_reach_each_implementation(monkeypatch):
    reached = set()

    def noting(name, function):
        return lambda *arguments, **options: reached.add(name) or function(*arguments, **options)

    for name, function in list(OURS.items()):
        monkeypatch.setitem(OURS, name, noting(name, function))
    with Reproducible():
        for case in CASES:
            results(case)
    assert OURS.keys() - reached == set()


SPECIAL = [1.0, float("nan"), 2.0, float("inf"), -1.0]


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x.cumsum(0),
        lambda x: torch.zeros(3).scatter_add(0, torch.tensor([0, 1, 0, 2, 2]), x),
        lambda x: torch.zeros(3).index_put((torch.tensor([0, 1, 0, 2, 2]),), x, True),
        lambda x: torch.stack([x.sum(), x[2:].sum(), x.mean(), x[[0, 2]].sum()]),
        lambda x: torch.ones(2, 5) @ torch.stack([x, x.flip(0).nan_to_num(1.0, 1.0)], 1),
        lambda x: torch.nn.functional.interpolate(x.view(1, 1, 1, 5), size=(1, 9), mode="bilinear"),
    ],
    ids=["cumsum", "scatter", "index_put", "sum", "product", "interpolation"],
)
def test_nan_and_infinity_spread_as_in_float32_and_no_further(compute):
    expected = compute(torch.tensor(SPECIAL))
    with Reproducible():
        torch.testing.assert_close(compute(torch.tensor(SPECIAL)), expected, equal_nan=True)


def test_subnormal_operands_are_0():
    with Reproducible():
        results("subnormal")
        assert not any(tensor.any() for tensor in results("subnormal")[2:5])


def test_small_numbers_are_not_lost_beside_large_ones():
    numbers = torch.tensor([1e-12, 1e-22, 1.0])
    with Reproducible():
        added = torch.zeros(3).scatter_add(0, torch.tensor([2, 1, 0]), numbers)
        assert added.tolist() == numbers.flip(0).tolist()
        assert float(numbers.cumsum(0)[0]) == float(numbers[0])


def test_a_gradient_of_an_interpolated_image_does_not_depend_on_its_neighbours():
    seed = torch.ones(2, 1, 5, 5) * torch.tensor([1.0, 1e-20]).view(2, 1, 1, 1)
    seed[1, 0, 0, 0] = 1.0
    with Reproducible():
        x = torch.zeros(2, 1, 3, 3, requires_grad=True)
        torch.nn.functional.interpolate(x, size=(5, 5), mode="bilinear").backward(seed)
    assert float(x.grad[1, 0, 2, 2]) == pytest.approx(float(x.grad[0, 0, 2, 2]) * 1e-20, rel=1e-6)


REFUSED = {
    "fractions of a range": lambda: torch.arange(0.1, 1000.0, 0.1),
    "decimals": lambda: torch.ones(3).round(decimals=1),
    "half precision": lambda: torch.ones(3).half() * 2,
    "products of float64": lambda: torch.ones(2, 2).double() @ torch.ones(2, 2).double(),
    "a power of infinity": lambda: torch.ones(3) ** float("inf"),
    "an output": lambda: torch.mm(torch.ones(2, 2), torch.ones(2, 2), out=torch.ones(2, 2)),
    "an operation on lists": lambda: torch._foreach_lgamma([torch.ones(3)]),
    "functions of integers": lambda: torch.arange(3).lgamma(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_same_everywhere_is_refused(name):
    with Reproducible(), pytest.raises(NotReproducibleError):
        REFUSED[name]()


def test_integers_are_computed_as_always_and_their_fractions_by_us():
    five = torch.arange(5)
    with Reproducible():
        assert (five * 2 + 1).cumsum(0).tolist() == [1, 4, 9, 16, 25]
        assert torch.zeros(2, dtype=torch.int64).index_add(0, five % 2, five).tolist() == [6, 4]
        assert (five / 3).tolist() == (five.float() / 3).tolist()
        assert five.exp().tolist() == five.float().exp().tolist()
        assert (five.dtype, (five * 2.5).dtype) == (torch.int64, torch.float32)


def test_no_negative_zero_comes_out_of_an_operation():
    zero = torch.zeros(3)
    with Reproducible():
        made = torch.stack([-zero, torch.maximum(-zero, zero), zero * -1, zero - 0.0, (zero + 1e-30) * -1e-30])
    assert not made.signbit().any()


def test_no_operation_is_both_ours_and_passed_on():
    assert not EXACT_ANYWHERE & OURS.keys()


def test_pytorchs_compiler_is_not_imported():
    code = (
        "import sys, torch; from caffe.numerics.dispatch import Reproducible\n"
        "with Reproducible(): torch.ones(2, 3) @ torch.ones(3, 2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
