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


@pytest.mark.parametrize("name", CASES)
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


def test_no_operation_is_both_ours_and_passed_on():
    assert not EXACT_ANYWHERE & OURS.keys()
