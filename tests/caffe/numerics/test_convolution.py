"""Windows of images as a product's right side: their products and their terms are those of PyTorch's unfolded images."""

import pytest
import torch

from caffe.numerics import convolution, exact
from caffe.numerics.convolution import Geometry

GEOMETRIES = [  # kernel, stride, padding, dilation, groups; images are 2 × 6 channels × 11 × 9
    Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    Geometry((5, 2), (1, 1), (0, 1), (1, 1), 2),
    Geometry((3, 4), (2, 3), (1, 2), (1, 1), 3),
    Geometry((4, 3), (3, 1), (2, 0), (2, 2), 1),
    Geometry((2, 3), (2, 2), (0, 0), (3, 1), 6),
    Geometry((1, 1), (2, 2), (0, 0), (1, 1), 1),
    Geometry((1, 3), (4, 1), (0, 1), (1, 1), 2),
]
each = pytest.mark.parametrize("g", GEOMETRIES, ids=str)


def images() -> torch.Tensor:
    return torch.randn(2, 6, 11, 9, generator=torch.Generator().manual_seed(1))


def unfolded(g: Geometry, x: torch.Tensor) -> torch.Tensor:
    """groups × terms, by row of the kernel and then by channel × positions, images innermost."""
    columns = torch.nn.functional.unfold(x, g.kernel, g.dilation, g.padding, g.stride)
    columns = columns.view(len(x), g.groups, -1, *g.kernel, columns.shape[-1])  # images, groups, channels, kernel, positions
    return columns.permute(1, 3, 2, 4, 5, 0).reshape(g.groups, columns[0, 0, ..., 0].numel(), -1)


@each
@pytest.mark.parametrize("block", [4096, 5])
def test_products_are_those_of_unfolded_images(g, block):
    x, draw = images(), torch.Generator().manual_seed(2)
    expected = unfolded(g, x).double()
    for windows, matrix in ((convolution._AsColumns(g, x), expected), (convolution._AsRows(g, x), expected.transpose(1, 2))):
        left = torch.randn(g.groups, 3, matrix.shape[1], dtype=torch.float64, generator=draw)
        numbers = windows.values.double()
        blocks = windows.dot(left, numbers, block=block)
        assert (len(blocks) > 1) == (matrix.shape[1] > block)
        torch.testing.assert_close(sum(blocks), left @ matrix)
        again = windows.dot(left, numbers, [each.clone() for each in blocks], block)
        torch.testing.assert_close(sum(again), 2 * (left @ matrix))


@each
def test_terms_are_those_of_unfolded_images(g):
    x = images()
    expected = unfolded(g, x)
    for windows, matrix in ((convolution._AsColumns(g, x), expected), (convolution._AsRows(g, x), expected.transpose(1, 2))):
        columns = torch.arange(matrix.shape[-1]).repeat(g.groups)
        groups = torch.arange(g.groups).repeat_interleave(matrix.shape[-1])
        assert windows.terms((groups,), columns, (g.groups,)).equal(matrix.transpose(1, 2).reshape(-1, matrix.shape[1]))


@each
def test_small_entries_have_the_precision_of_float32(g):
    """Images whose values span 24 orders of magnitude: every output is within float32's rounding of the sum of its terms."""
    x = images() * 10.0 ** torch.randint(-12, 13, (2, 6, 11, 9), generator=torch.Generator().manual_seed(3))
    weight = torch.randn(6, 6 // g.groups, *g.kernel, generator=torch.Generator().manual_seed(4))
    settings = (None, g.stride, g.padding, g.dilation, g.groups)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), *settings)
    terms = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), *settings)
    error = (convolution.forward(g, x, weight).double() - expected).abs()
    assert bool((error <= 2.0**-23 * terms).all())
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    expected = of_weights(gradient.double(), x.double(), weight.shape, settings)
    terms = of_weights(gradient.double().abs(), x.double().abs(), weight.shape, settings)
    error = (convolution.weight_gradient(g, gradient, x, weight.shape).double() - expected).abs()
    assert bool((error <= 2.0**-23 * terms).all())


@each
def test_images_that_are_mostly_zero_have_the_precision_of_float32(g):
    """With an image, a channel and a kernel that are 0, and a gradient that is 0 in most places."""
    draw = torch.Generator().manual_seed(6)
    x = images() * (torch.rand(2, 6, 11, 9, generator=draw) < 0.2)
    weight = torch.randn(6, 6 // g.groups, *g.kernel, generator=draw)
    x[:, 2], x[1], weight[4] = 0, 0, 0
    settings = (None, g.stride, g.padding, g.dilation, g.groups)
    y = torch.nn.functional.conv2d(x.double(), weight.double(), *settings)
    terms = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), *settings)
    assert bool(((convolution.forward(g, x, weight).double() - y).abs() <= 2.0**-22 * terms).all())
    gradient = torch.randn(y.shape, generator=draw) * (torch.rand(y.shape, generator=draw) < 0.05)
    expected = of_weights(gradient.double(), x.double(), weight.shape, settings)
    terms = of_weights(gradient.double().abs(), x.double().abs(), weight.shape, settings)
    error = (convolution.weight_gradient(g, gradient, x, weight.shape).double() - expected).abs()
    assert bool((error <= 2.0**-22 * terms).all())


def test_a_dark_image_beside_a_bright_one_is_as_precise(monkeypatch):
    """Each image has a scale of its own, so that neither needs the thorough way."""
    monkeypatch.setattr(exact, "_thorough", None)
    g = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    x, weight = images() * torch.tensor([1.0, 1e-9])[:, None, None, None], torch.randn(4, 6, 3, 3)
    y, terms = (torch.nn.functional.conv2d(f(x.double()), f(weight.double())) for f in (torch.clone, torch.abs))
    assert bool(((convolution.forward(g, x, weight).double() - y).abs() <= 2.0**-22 * terms).all())


def of_weights(gradient: torch.Tensor, x: torch.Tensor, shape: torch.Size, settings: tuple) -> torch.Tensor:
    weight = torch.zeros(shape, dtype=x.dtype, requires_grad=True)
    torch.nn.functional.conv2d(x, weight, *settings).backward(gradient)
    return weight.grad


def test_a_product_of_many_terms_is_added_in_blocks():
    x, weight = torch.randn(1, 700, 4, 4), torch.randn(3, 700, 3, 3)
    assert exact.BLOCK < 700 * 9
    g = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(convolution.forward(g, x, weight).double(), expected, rtol=1e-6, atol=1e-5)
