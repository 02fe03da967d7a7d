"""Random numbers: a seed's numbers never change, are what they are said to be, and resume anywhere."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from caffe.numerics import scalars
from caffe.numerics.generator import Generator
from caffe.numerics.normal import pairs
from tests import without_vector_code
from tests.conftest import ROOT


def test_a_seed_gives_these_numbers_for_good():
    """Changed numbers change every net that is trained from a seed."""
    drawn = Generator(1)
    assert drawn.raw(3).tolist() == [14895600803673721366, 2961464874935675902, 17416491598648017802]
    assert drawn.integers(10, (6,)).tolist() == [3, 9, 4, 2, 0, 9]
    assert [value.hex() for value in drawn.random((2,)).tolist()] == ["0x1.24fad94c06dfcp-2", "0x1.3f6a56bac7f80p-8"]
    normal = ["-0x1.ccb4f00000000p-1", "-0x1.199be20000000p+0", "-0x1.0a35ae0000000p+1"]
    assert [value.hex() for value in drawn.normal(0, 1, (3,)).tolist()] == normal
    assert drawn.permutation(6).tolist() == [2, 5, 1, 0, 3, 4]
    assert drawn.chosen(0.5, (8,)).tolist() == [False, True, False, True, False, False, False, False]


def test_normal_numbers_do_not_depend_on_vector_code_or_threads():
    code = (
        "import hashlib; from caffe.numerics.generator import Generator\n"
        "print(hashlib.sha256(Generator(5).normal(0, 1, (100_001,)).tobytes()).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, **more},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads, more in (("1", {}), ("2", {}), ("1", without_vector_code.environment()))
    }
    assert len(results) == 1


def test_a_stream_continues_from_its_state_at_any_position():
    drawn, other = Generator(7), Generator(8)
    for count in range(9):
        drawn.raw(count)
        other.state = json.loads(json.dumps(drawn.state))
        assert other.raw(11).tolist() == generator_at(drawn.state).raw(11).tolist()
        assert other.random((5,)).tolist() == generator_at(drawn.state, 11).random((5,)).tolist()


def generator_at(state, skipped=0):
    made = Generator(0)
    made.state = state
    made.raw(skipped)
    return made


def test_numbers_do_not_depend_on_how_many_are_drawn_at_once():
    one, other = Generator(3), Generator(3)
    together = one.normal(0, 1, (12,))
    assert np.concatenate([other.normal(0, 1, (size,)) for size in (4, 2, 6)]).tolist() == together.tolist()
    assert np.concatenate([other.random((1,)), other.random((4,))]).tolist() == one.random((5,)).tolist()


def test_seeds_give_different_streams_and_no_seed_a_new_one():
    streams = [Generator(0), Generator(1), Generator(0, 1), Generator(1, 0), Generator(), Generator()]
    assert len({int(stream.raw(1)[0]) for stream in streams}) == len(streams)


def test_distributions_have_their_moments():
    drawn, n = Generator(2), 200_000
    uniform, normal = drawn.uniform(-1, 3, (n,)), drawn.normal(2, 3, (n,))
    assert uniform.min() >= -1
    assert uniform.max() < 3
    # Bounds of five standard errors.
    assert abs(uniform.mean() - 1) < 5 * (4 / math.sqrt(12)) / math.sqrt(n)
    assert abs(normal.mean() - 2) < 5 * 3 / math.sqrt(n)
    assert abs(normal.std() - 3) < 5 * 3 / math.sqrt(2 * n)
    assert abs(((normal - 2) ** 4).mean() / 81 - 3) < 5 * math.sqrt(96 / n)
    counts = np.bincount(drawn.integers(7, (n,)), minlength=7)
    assert (abs(counts - n / 7) < 5 * math.sqrt(n * 6 / 49)).all()
    assert abs(drawn.chosen(0.3, (n,)).mean() - 0.3) < 5 * math.sqrt(0.21 / n)
    assert sorted(drawn.permutation(1000)) == list(range(1000))


def test_normal_numbers_are_those_of_box_and_mullers_formula():
    words = np.array([[0, 0], [2**32 - 1, 2**32 - 1], *np.random.RandomState(0).randint(0, 2**32, (5000, 2))], np.uint32)
    u, v = (words >> 8).astype(np.float64).T
    radius, angle = np.sqrt(-2 * np.log((u + 0.5).astype(np.float32) / 2.0**24)), np.pi / 2 * v / 2**24
    signs = 1 - 2.0 * ((words[:, 1:] >> np.array([0, 1], np.uint32)) & 1)
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) * signs
    np.testing.assert_allclose(pairs(words), expected, rtol=0, atol=2e-6)
    assert pairs(words).dtype == np.float32


def test_bounds_of_integers_may_be_an_array():
    bounds = np.array([[1, 2], [5, 100]])
    drawn = np.stack([Generator(seed).integers(bounds, (2, 2)) for seed in range(300)])
    assert (drawn < bounds).all()
    assert (drawn.min(0) == 0).all()
    assert (drawn[:, 0, 1].max(), drawn[:, 1, 0].max()) == (1, 4)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_and_impossible_choices(probability):
    assert (Generator(1).chosen(probability, (1000,)) == bool(probability)).all()


def test_scalar_functions_are_those_of_the_c_library_to_the_last_bits():
    draw = np.random.default_rng(0)
    for x in draw.uniform(-700, 700, 2000):
        assert scalars.exp(x) == pytest.approx(math.exp(x), rel=1e-15)
    for x in np.exp(draw.uniform(-300, 300, 2000)):
        assert scalars.log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-15)
    for x, exponent in zip(draw.uniform(0, 5, 2000), draw.uniform(-3, 3, 2000), strict=True):
        assert scalars.power(x, exponent) == pytest.approx(x**exponent, rel=5e-15)
    for turns in draw.uniform(-1, 2, 2000):
        expected = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
        assert scalars.cosine_and_sine(turns) == pytest.approx(expected, abs=2e-15)


def test_functions_of_arrays_give_the_bits_of_scalar_ones():
    draw = np.random.default_rng(0)
    x = np.append(draw.uniform(-700, 700, 2000), 0)
    assert scalars.exps(x).tolist() == [scalars.exp(each) for each in x.tolist()]
    x = np.append(np.exp(draw.uniform(-300, 300, 2000)), [1, 0.5, math.sqrt(0.5)])
    assert scalars.logs(x).tolist() == [scalars.log(each) for each in x.tolist()]
    turns = np.append(draw.uniform(-3, 3, 2000), [0, 0.125, -0.25, 0.5])
    assert list(zip(*map(np.ndarray.tolist, scalars.cosines_and_sines(turns)), strict=True)) == [
        scalars.cosine_and_sine(each) for each in turns.tolist()
    ]


def test_edges_of_scalar_functions():
    assert (scalars.exp(-746), scalars.exp(710), scalars.exp(0)) == (0, math.inf, 1)
    assert math.isnan(scalars.exp(math.nan))
    assert [scalars.power(0.5, n) for n in (0, 1, -2)] == [1, 0.5, 4]
    assert [scalars.power(0.0, e) for e in (0, 0.5, -1, -0.5)] == [1, 0, math.inf, math.inf]
    assert math.isnan(scalars.power(-1.0, 0.5))
    assert scalars.power(-2.0, 3) == -8
