"""When a GPU's kernel is used instead of PyTorch's operations; what kernels compute is in tests/kernels."""

from types import SimpleNamespace

import pytest
import torch

import caffe
from caffe import glog, kernels
from caffe.engine import machine
from tests.gpu import pretend

pytestmark = pytest.mark.own_device

NAME = "chains.twice"


def plain(x, factor):
    return x * factor


@pytest.fixture
def kernel(monkeypatch):
    """A kernel that can be changed, and counts its calls."""
    made = SimpleNamespace(calls=0, fits=lambda x, factor: factor == 2)

    def twice(x, factor):
        made.calls += 1
        made.given = x
        return x + x

    made.compute = twice
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    monkeypatch.setattr(kernels, "_works", {})
    monkeypatch.setattr(kernels, "_logged", set())
    monkeypatch.setattr(kernels, "_kernel", lambda name: made)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    return made


@pytest.fixture
def x():
    with pretend.gpus():
        yield torch.tensor([1.0, -2.0], device="cuda")


@pytest.fixture
def logged(monkeypatch, capfd):
    """logged() is what has been logged since the last call."""
    monkeypatch.setattr(glog._State, "level", glog.WARNING)
    monkeypatch.setattr(glog._State, "stderr", True)
    return lambda: capfd.readouterr().err


def tried():
    """Whether each type of values that was tried may be used."""
    return [(key[0], key[1], key[2][0][0], works) for key, works in kernels._works.items()]


def values(*arguments):
    return machine.by_kernel(NAME, plain, *arguments).cpu().tolist()


def test_a_kernel_is_used_once_it_gives_what_pytorch_gives(kernel, x, logged):
    assert values(x, 2) == [2, -4]
    assert kernel.calls == 2  # the first was the try
    assert values(x, 2) == [2, -4]
    assert kernel.calls == 3
    assert logged() == ""


def test_a_kernel_that_gives_other_values_is_not_used(kernel, x, logged):
    kernel.compute = lambda x, factor: x + 1.0001 * x
    assert values(x, 2) == [2, -4]
    assert logged().count(f"The kernel {NAME} is not used on cuda:0: it gives other values than PyTorch's operations") == 1
    kernel.compute = lambda x, factor: pytest.fail("it was used")
    assert values(x, 2) == [2, -4]
    assert logged() == ""


def test_a_kernel_of_another_shape_is_not_used(kernel, x):
    kernel.compute = lambda x, factor: (x + x)[:1]
    assert values(x, 2) == [2, -4]


def test_a_kernel_that_fails_is_not_used(kernel, x, logged):
    def fail(x, factor):
        raise RuntimeError("no driver\nmore of it")

    kernel.compute = fail
    for _ in range(2):
        assert values(x, 2) == [2, -4]
    assert logged().count("The kernel chains.twice is not used on cuda:0: no driver\n") == 1


def test_a_kernel_is_tried_with_drawn_numbers_in_the_same_layout(kernel):
    with pretend.gpus():
        for given in (torch.full((3, 4, 5, 6), float("inf")), torch.zeros(3, 4, 5, 6).to(memory_format=torch.channels_last)):
            kernels._works.clear()
            compute, tried = kernel.compute, []
            kernel.compute = lambda x, factor, compute=compute, tried=tried: tried.append(x) or compute(x, factor)
            given = given.cuda()
            assert torch.equal(machine.by_kernel(NAME, plain, given, 2), given + given)
            first, second = tried
            assert second is given
            assert first.stride() == given.stride()
            assert 0.9 < float(first.std()) < 1.1
            kernel.compute = compute


def test_a_kernel_is_tried_with_a_part_of_many_images(kernel, x, monkeypatch):
    monkeypatch.setattr(kernels, "TRIED", 20)
    shapes = []
    kernel.fits = lambda *given: True
    kernel.compute = lambda x, y, factors, target: shapes.append([tuple(each.shape) for each in (x, y, factors, target)]) or x * 2
    given = torch.ones(7, 2, 5), torch.ones(7, 2, 5), torch.ones(5), torch.ones(7, 1, 5, dtype=torch.int64)
    machine.by_kernel(NAME, lambda x, *_: x * 2, *(each.cuda() for each in given))
    assert shapes == [[(2, 2, 5), (2, 2, 5), (5,), (2, 1, 5)], [(7, 2, 5), (7, 2, 5), (5,), (7, 1, 5)]]


def test_an_error_of_pytorchs_operations_is_not_the_kernels(kernel, x):
    def fail(x, factor):
        raise RuntimeError("The size of tensor a must match")

    with pytest.raises(RuntimeError, match="must match"):
        machine.by_kernel(NAME, fail, x, 2)
    assert kernels._works == {}
    assert values(x, 2) == [2, -4]
    assert tried() == [(NAME, x.device, torch.float32, True)]


def test_a_kernel_that_fails_later_is_not_used_any_more(kernel, x, logged):
    assert values(x, 2) == [2, -4]
    error = RuntimeError("no variant")

    def fail(x, factor):
        raise error

    kernel.compute = fail
    assert values(x, 2) == [2, -4]
    assert logged().count("The kernel chains.twice is not used on cuda:0: no variant\n") == 1
    kernels._works.update(dict.fromkeys(kernels._works, True))
    error = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        values(x, 2)


def test_a_kernel_that_fails_in_a_capture_ends_it(kernel, x, monkeypatch):
    assert values(x, 2) == [2, -4]

    def fail(x, factor):
        raise RuntimeError("not permitted when stream is capturing")

    kernel.compute = fail
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="capturing"):
        values(x, 2)
    assert tried() == [(NAME, x.device, torch.float32, True)]


def test_what_a_kernel_does_not_take_is_computed_by_pytorch(kernel, x):
    assert values(x, 3) == [3, -6]
    assert kernel.calls == 0
    assert values(x, 2) == [2, -4]
    assert kernel.calls == 2
    assert values(x, 3) == [3, -6]
    assert kernel.calls == 2


def test_each_type_of_values_is_tried(kernel, x):
    values(x, 2)
    kernel.compute = lambda x, factor: x
    assert values(x.bfloat16(), 2) == [2, -4]
    assert tried() == [(NAME, x.device, torch.float32, True), (NAME, x.device, torch.bfloat16, False)]


def test_each_variant_is_tried_and_a_kernel_that_is_not_used_is_logged_once(kernel, x, logged):
    kernel.fits = lambda x, factor: True
    assert values(x, 2) == [2, -4]
    assert values(x, 3) == [3, -6]  # where the kernel gives twice
    assert values(x.view(2, 1), 5) == [[5], [-10]]
    assert [works for *_, works in tried()] == [True, False, False]
    assert values(x, 2) == [2, -4]
    assert logged().count("The kernel") == 1


def test_a_trial_for_which_memory_is_short_is_put_off(kernel, x, logged):
    compute = kernel.compute

    def fail(x, factor):
        raise torch.OutOfMemoryError("no memory")

    kernel.compute = fail
    assert values(x, 2) == [2, -4]
    assert tried() == []
    kernel.compute = compute
    assert values(x, 2) == [2, -4]
    assert [works for *_, works in tried()] == [True]
    assert logged() == ""


def test_kernels_are_not_used_in_reproducible(kernel, x):
    caffe.set_numerics("reproducible")
    assert values(x, 2) == [2, -4]
    caffe.set_numerics("fp32")
    assert kernel.calls == 0


def test_kernels_can_be_turned_off(kernel, x, monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert values(x, 2) == [2, -4]
    assert kernel.calls == 0


def test_kernels_are_not_used_without_triton(kernel, x, monkeypatch, logged):
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert values(x, 2) == [2, -4]
    assert kernel.calls == 0
    assert logged() == ""


def test_kernels_are_not_used_on_a_cpu(kernel):
    assert values(torch.tensor([1.0]), 2) == [2]
    assert kernel.calls == 0


def test_a_version_of_triton_in_which_kernels_cannot_be_written_is_as_none(x, monkeypatch, logged):
    def missing(name):
        raise AttributeError("module 'triton.language' has no attribute 'div_rn'")

    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    monkeypatch.setattr(kernels.importlib, "import_module", missing)
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    kernels._kernel.cache_clear()
    for _ in range(2):
        assert values(x, 2) == [2, -4]
    assert logged().count("The kernel chains.twice is not used on GPUs: module 'triton.language' has no attribute 'div_rn'") == 1
    kernels._kernel.cache_clear()
