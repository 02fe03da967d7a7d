"""Each kernel gives what PyTorch's operations give, whatever the shape, the type and the layout in memory."""

import csv
import subprocess
import sys

import pytest
import torch

from caffe import kernels
from caffe.kernels.rules import Rule
from caffe.layer_types import loss, normalization, utility
from caffe.layer_types import response as layer
from tests.conftest import ROOT
from tests.kernels import compiled, kernels_of

chains, response, softmax, update = kernels_of("chains", "response", "softmax", "update")

LAYOUTS = {"row-major": torch.contiguous_format, "channels-last": torch.channels_last}
TYPES = [torch.float32, torch.bfloat16]
SHAPES = [(2, 7, 5, 3), (1, 32, 8, 8), (3, 1, 1, 2), (5, 6, 1, 1)]

each_type = pytest.mark.parametrize("dtype", TYPES, ids=["float32", "bfloat16"])
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def draw():
    """draw(shape, dtype, layout) gives normally distributed values."""
    random = torch.Generator().manual_seed(1)

    def values(shape, dtype=torch.float32, layout=torch.contiguous_format):
        return torch.randn(shape, generator=random).to(dtype).contiguous(memory_format=layout)

    return values


def assert_same(kernel, plain, *given):
    """The kernel's results are those of the plain operations in float32, rounded once."""
    exact = [each.float() if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in given]
    assert kernel.fits(*given)
    mine, theirs = ([each] if isinstance(each, torch.Tensor) else list(each) for each in (kernel.compute(*given), plain(*exact)))
    assert [each.shape for each in mine] == [each.shape for each in theirs]
    for ours, other in zip(mine, theirs, strict=True):
        tolerance = 1e-5 if ours.dtype is torch.float32 else 1e-2
        assert torch.allclose(ours.float(), other, rtol=tolerance, atol=tolerance)
    assert kernels.are_close(mine, theirs)


@each_shape
@each_layout
@each_type
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (3, 0.6), (1, 1.0)])
def test_lrn(draw, shape, layout, dtype, size, beta):
    x, gradient = draw(shape, dtype, layout), draw(shape, dtype, layout)
    assert_same(response.lrn, layer._forward, x, size, 0.3, beta, 1.5)
    assert_same(response.lrn_backward, layer._backward, x, gradient, size, 0.3, beta, 1.5)


def test_lrn_of_images_that_lie_otherwise(draw):
    """A slice of other images, a gradient in the other layout, and one value repeated."""
    x = draw((2, 9, 5, 6))[:, 1:8, :, 1:]
    assert_same(response.lrn, layer._forward, x, 5, 0.3, 0.75, 1.0)
    for gradient in (draw(x.shape, layout=torch.channels_last), torch.tensor(0.5).expand(x.shape)):
        assert_same(response.lrn_backward, layer._backward, x, gradient, 5, 0.3, 0.75, 1.0)
    channels_last = draw((2, 7, 5, 6), layout=torch.channels_last)
    assert_same(response.lrn_backward, layer._backward, channels_last, draw((2, 7, 5, 6)), 5, 0.3, 0.75, 1.0)


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered")
def test_lrn_of_zeros_without_k():
    """Neighbours beyond the edge, where the sum is 0, are none."""
    x = torch.zeros(1, 6, 1, 1)
    x[:, 2:] = 1
    given = x, torch.ones_like(x), 3, 1.0, 0.75, 0.0
    expected = layer._backward(*given)
    assert torch.equal(response.lrn_backward.compute(*given).isnan(), expected.isnan())
    assert expected[:, 2:].isfinite().all()
    assert torch.allclose(response.lrn_backward.compute(*given)[:, 2:], expected[:, 2:])


def test_lrn_does_not_take_wide_windows_and_other_types(draw):
    x = draw((1, 40, 2, 2))
    assert not response.lrn.fits(x, response.MOST_CHANNELS + 2, 1.0, 0.75, 1.0)
    assert not response.lrn.fits(x.double(), 5, 1.0, 0.75, 1.0)


@each_shape
@each_layout
@each_type
def test_sum_and_relu(draw, shape, layout, dtype):
    first, second = draw(shape, dtype, layout), draw(shape, dtype)
    assert_same(chains.sum_relu, utility._sum_relu, first, second)
    y = chains.sum_relu.compute(first, second)
    assert y.stride() == first.stride()
    for result in (y, first):
        assert_same(chains.relu_backward, utility._relu_backward, result, draw(shape, dtype))


def test_nan_stays_nan():
    x = torch.tensor([float("nan"), -1.0, 1.0, float("inf")])
    y = chains.sum_relu.compute(x, torch.zeros(4))
    assert y.isnan().tolist() == [True, False, False, False]
    gradient = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    expected = torch.ops.aten.threshold_backward(gradient, y, 0)
    assert torch.equal(chains.relu_backward.compute(y, gradient), expected) or expected.isnan()[3]
    assert chains.relu_backward.compute(y, gradient)[:3].tolist() == [1, 0, 3]
    probabilities = softmax.softmax_loss.compute(
        torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.tensor([[0], [1]]), None, 1, 1e-30
    )
    assert [each.isnan().any(-1).tolist() for each in probabilities] == [[True, False], [True, False]]


@each_shape
@each_layout
@each_type
@pytest.mark.parametrize("relu", [False, True], ids=["alone", "with ReLU"])
@pytest.mark.parametrize("has_terms", [False, True], ids=["factors", "and terms"])
def test_scale(draw, shape, layout, dtype, relu, has_terms):
    x, gradient, factors = draw(shape, dtype, layout), draw(shape, dtype, layout), draw(shape[1:2])
    terms = draw(shape[1:2]) if has_terms else None
    assert_same(chains.scale, normalization._scaled, x, factors, terms, relu)
    y = draw(shape, dtype, layout)
    assert_same(chains.scale_backward, normalization._scaled_backward, x, y, gradient, factors, has_terms, relu)


def test_scale_of_vectors_and_of_many_pixels(draw):
    """More than a program sums, and channels that fill no piece."""
    for shape in ((5, 40), (3, 33, chains.PIXELS * chains.PIECES // 2)):
        x, gradient, factors = draw(shape), draw(shape), draw(shape[1:2])
        y = chains.scale.compute(x, factors, factors, True)
        assert_same(chains.scale_backward, normalization._scaled_backward, x, y, gradient, factors, True, True)


def test_scale_takes_one_factor_for_each_channel(draw):
    x, factors = draw((2, 5, 3, 3)), draw((3,))
    assert not chains.scale.fits(x, factors, None, False)
    assert not chains.scale.fits(x, draw((5,)), factors, False)
    assert not chains.scale_backward.fits(x, x, x, factors, False, False)


def test_nothing_is_started_for_no_values():
    empty = torch.zeros(0, 5, 2, 2)
    assert not chains.sum_relu.fits(empty, empty)
    assert not response.lrn.fits(empty, 5, 1.0, 0.75, 1.0)
    assert not softmax.softmax_loss.fits(empty, torch.zeros(0, 1, 2, 2), None, 1, 0.0)


@pytest.mark.parametrize(
    ("shape", "along"),
    [((4, 10), 1), ((3, 1000), 1), ((2, 5, 3, 4), 1), ((2, 5, 3, 4), 3), ((2, 5, 3), 0), ((4, 1), 1), ((7, 6, 1, 1), 1)],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True], ids=["all weigh 1", "weights"])
@each_layout
def test_softmax_and_its_loss(draw, shape, along, weighted, layout):
    scores = 3 * draw(shape, layout=layout if len(shape) == 4 else torch.contiguous_format)
    places = [1 if axis == along else count for axis, count in enumerate(shape)]
    target = torch.arange(torch.Size(places).numel()).view(places) % shape[along]
    weights = (torch.arange(target.numel()).view(places) % 3).float() if weighted else None
    given = scores, target, weights, along, loss.FLT_MIN
    assert_same(softmax.softmax_loss, loss._log_probabilities, *given)
    _, probability = softmax.softmax_loss.compute(*given)
    for smoothing, others in ((0.0, 0.0), (0.1, 0.02)):
        given = probability, target, weights, torch.tensor(0.25), along, smoothing, others
        assert_same(softmax.softmax_loss_backward, loss._differences, *given)


def test_a_probability_of_zero_has_the_smallest_ones_logarithm():
    logarithms, probability = softmax.softmax_loss.compute(
        torch.tensor([[0.0, 200.0]]), torch.tensor([[0]]), None, 1, loss.FLT_MIN
    )
    assert probability.tolist() == [[0, 1]]
    assert logarithms.item() == pytest.approx(torch.tensor(loss.FLT_MIN).log().item(), rel=1e-6)


def test_softmax_does_not_take_more_classes_than_fit(draw):
    assert not softmax.softmax_loss.fits(draw((1, softmax.MOST_CLASSES + 1)), torch.zeros(1, 1), None, 1, 0.0)


@pytest.mark.parametrize("name", update.RULES)
@pytest.mark.parametrize("is_l1", [False, True], ids=["L2", "L1"])
@pytest.mark.parametrize(("scale", "decay"), [(1.0, 0.0), (0.5, 0.01)])
@pytest.mark.parametrize("counts", [(8, 2 * update.BLOCK + 4), (3, 5, 1, 0)], ids=["aligned", "odd"])
def test_an_update_goes_through_all_tensors(draw, name, is_l1, scale, decay, counts):
    """Twice, with other gradients; the values beside the tensors stay."""
    kernel = update.Fused(torch.device("cpu"))
    rule = Rule(name, scale, decay, is_l1, 0.9, 0.99, 0.95, 1e-4)
    memory = [[draw((count + 8,)) for count in counts] for _ in range(4)]
    for history in memory[2:]:
        for each in history:
            each.abs_()
    expected = [[each.double() for each in group] for group in memory]
    (data, gradients, first, second) = ([each[4 : 4 + len(each) - 8] for each in group] for group in memory)
    histories = [first, second] if name in ("AdaDelta", "Adam") else [first]
    for rate in (0.1, 0.05):
        subtracted = kernel(rule, data, gradients, histories, torch.tensor(rate))
        in_double = [[each[4 : 4 + len(each) - 8] for each in group] for group in expected]
        for number, values in enumerate(zip(*in_double, strict=True)):
            by_hand(rule, rate, *values)
            assert torch.allclose(subtracted[number].double(), values[2 if name == "SGD" else 1], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(memory, expected, strict=True):
        for ours, other in zip(mine, theirs, strict=True):
            assert torch.allclose(ours.double(), other, rtol=1e-4, atol=1e-6)


def by_hand(rule, rate, w, g, h, k):
    """Caffe's rules in float64, in place; g becomes what is subtracted, but for SGD, where that is h."""
    m, m2 = rule.momentum, rule.momentum2
    d = rule.scale * g + rule.decay * (w.sign() if rule.is_l1 else w)
    if rule.name == "SGD":
        h.mul_(m).add_(rate * d)
        w -= h
        return
    if rule.name == "Nesterov":
        before = h.clone()
        h.mul_(m).add_(rate * d)
        u = (1 + m) * h - m * before
    elif rule.name in ("AdaGrad", "RMSProp"):
        h.copy_(h + d * d if rule.name == "AdaGrad" else rule.rms_decay * h + (1 - rule.rms_decay) * d * d)
        u = rate * d / (h.sqrt() + rule.delta)
    elif rule.name == "AdaDelta":
        h.copy_(m * h + (1 - m) * d * d)
        u = d * ((k + rule.delta) / (h + rule.delta)).sqrt()
        k.copy_(m * k + (1 - m) * u * u)
        u = rate * u
    else:
        h.copy_(m * h + (1 - m) * d)
        k.copy_(m2 * k + (1 - m2) * d * d)
        u = rate * h / (k.sqrt() + rule.delta)
    w -= u
    g.copy_(u)


def test_an_update_finds_tensors_that_have_moved(draw):
    kernel = update.Fused(torch.device("cpu"))
    rule = Rule("SGD", 1.0, 0.0, False, 0.0, 0.0, 0.0, 0.0)
    data, history = [torch.zeros(5)], [torch.zeros(5)]
    for _ in range(3):
        version = data[0]._version
        kernel(rule, data, [torch.ones(5)], [history], torch.tensor(1.0))
        assert data[0]._version > version
        data = [data[0].clone()]
    assert data[0].tolist() == [-3] * 5


@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
def test_all_kernels_compile_for_a_gpu(capability):
    """By Triton's compiler for NVIDIA's GPUs, which needs none."""
    found = compiled.in_another_process(capability)
    assert set(found) == compiled.FUNCTIONS
    assert all(found.values())


def test_the_benchmark_measures_all_kernels(tmp_path):
    command = [sys.executable, "benchmarks/kernels.py", "--tiny", "--turns", "1", "--csv", str(tmp_path / "figures.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "FAILED" not in done.stdout
    with (tmp_path / "figures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done.stdout.splitlines()) - 2 > 30
    assert all(float(row["kernel ms"]) > 0 for row in rows)
