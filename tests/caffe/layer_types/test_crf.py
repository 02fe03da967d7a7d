"""CRF-RNN's mean-field layer, compared with lattices and iterations point by point, and with exact Gaussians."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import caffe
from caffe.layer_types.forks.permutohedral import Lattice
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _start(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reseed(request.node.name)


def simplex(feature):
    """The corners of a point's simplex in the permutohedral lattice, and its share of each (Adams et al. 2010, pages 5 to 10)."""
    d = len(feature)
    scaled = [value / math.sqrt((i + 2) * (i + 1)) * math.sqrt(2 / 3) * (d + 1) for i, value in enumerate(feature)]
    elevated = [sum(scaled[max(i, 0) :]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)]
    rounded = [round(value / (d + 1)) for value in elevated]
    base = [value * (d + 1) for value in rounded]
    excess = sum(rounded)
    order = sorted(range(d + 1), key=lambda i: -(elevated[i] - base[i]))
    rank = {i: place + excess for place, i in enumerate(order)}
    for i in range(d + 1):
        if not 0 <= rank[i] <= d:
            step = d + 1 if rank[i] < 0 else -(d + 1)
            rank[i] += step
            base[i] += step
    shares = [0.0] * (d + 2)
    for i in range(d + 1):
        value = (elevated[i] - base[i]) / (d + 1)
        shares[d - rank[i]] += value
        shares[d + 1 - rank[i]] -= value
    shares[0] += 1 + shares[d + 1]
    corners = [tuple(base[i] + r - (d + 1) * (rank[i] > d - r) for i in range(d + 1)) for r in range(d + 1)]
    return corners, shares[: d + 1]


def lattice_matrix(features):
    """The filter as a matrix (P, P)."""
    simplices = [simplex(feature) for feature in features]
    numbers = {corner: number for number, corner in enumerate(dict.fromkeys(itertools.chain(*(each[0] for each in simplices))))}
    d = len(features[0])
    spread = np.zeros((len(numbers), len(features)))
    for point, (corners, shares) in enumerate(simplices):
        for corner, share in zip(corners, shares, strict=True):
            spread[numbers[corner], point] += share
    result = spread
    for direction in range(d + 1):
        blur = np.eye(len(numbers))
        for corner, number in numbers.items():
            for sign in (1, -1):
                other = tuple(value - sign * (1 - (d + 1) * (i == direction)) for i, value in enumerate(corner))
                if other in numbers:
                    blur[number, numbers[other]] += 0.5
        result = blur @ result
    return spread.T @ result / (1 + 2.0**-d)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_the_lattice_is_that_of_its_definition(d):
    features = draw(40, d, low=-3, high=3).astype(np.float32)
    values = draw(40, 4)
    filtered = Lattice(torch.from_numpy(features)).filter(torch.from_numpy(values))
    np.testing.assert_allclose(filtered, lattice_matrix(features.tolist()) @ values, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_lattice_is_the_transposed_filter():
    features = torch.from_numpy(draw(30, 5, low=-2, high=2).astype(np.float32))
    values = torch.from_numpy(draw(30, 3)).requires_grad_()
    assert torch.autograd.gradcheck(Lattice(features).filter, (values,))


def test_the_lattice_approximates_a_gaussian():
    rows, columns = np.mgrid[:24, :24]
    places = np.stack([columns, rows], -1).reshape(-1, 2) / 3
    exact = np.exp(-0.5 * ((places[:, None] - places) ** 2).sum(2))
    exact /= exact.sum(1, keepdims=True)
    lattice = Lattice(torch.from_numpy(places.astype(np.float32)))
    values = draw(24 * 24, 2)
    divisor = lattice.filter(torch.ones(24 * 24, 1, dtype=torch.float64))
    got = (lattice.filter(torch.from_numpy(values)) / divisor).numpy()
    expected = exact @ values
    assert np.abs(got - expected).max() < 0.25 * np.abs(expected).max()
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.95


SETTINGS = "num_iterations: 3 theta_alpha: 4 theta_beta: 20 theta_gamma: 2"


@exercises("MultiStageMeanfield")
def test_mean_field_iterations(write):
    images = draw(2, 3, 4, 5, low=0, high=255).astype(np.float32)
    places = [(x, y) for y in range(4) for x in range(5)]
    spatial = lattice_matrix([(x / 2, y / 2) for x, y in places])
    spatial /= spatial.sum(1, keepdims=True)
    filters = []
    for image in images:
        colours = image.reshape(3, -1).T / 20
        matrix = lattice_matrix([(x / 4, y / 4, *colour) for (x, y), colour in zip(places, colours.tolist(), strict=True)])
        filters.append(matrix / matrix.sum(1, keepdims=True))

    def mean_field(unary, first, _, near, alike, compatibility):
        tops = []
        for scores, now, bilateral in zip(unary.reshape(2, 3, -1), first.reshape(2, 3, -1), filters, strict=True):
            for _ in range(3):
                share = np.exp(now) / np.exp(now).sum(0)
                message = near[0, 0] @ (share @ spatial.T) + alike[0, 0] @ (share @ bilateral.T)
                now = scores - compatibility[0, 0] @ message
            tops.append(now)
        return np.stack(tops).reshape(unary.shape)

    layer = f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {SETTINGS} }}'
    bottoms = [draw(2, 3, 4, 5), draw(2, 3, 4, 5), images]
    check(write, layer, mean_field, *bottoms, params=[draw(1, 1, 3, 3) for _ in range(3)], wrt=(0, 1), rtol=1e-3, atol=1e-4)


def parameters(write, settings=""):
    shapes = [(1, 3, 4, 5)] * 3
    net = make_net(write, f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {SETTINGS} {settings} }}', shapes)
    return [blob.data[0, 0].tolist() for blob in net.params["layer"]]


def test_the_first_weights_are_settings_or_those_of_files(write):
    weights = parameters(write, "spatial_filter_weight: 3 bilateral_filter_weight: 5")
    assert weights == [(factor * np.eye(3)).tolist() for factor in (3, 5, -1)]
    Path("spatial.par").write_text("1\n2\n3\n")
    assert parameters(write)[0] == np.diag([1, 2, 3]).tolist()
    Path("bilateral.par").write_text("1 2")
    with pytest.raises(caffe.Error, match="2 numbers"):
        parameters(write)
    Path("bilateral.par").write_text("one")
    with pytest.raises(caffe.Error, match="not a list of numbers"):
        parameters(write)


@exercises("MultiStageMeanfield")
def test_another_size_is_filtered_by_its_own_lattice(write):
    layer = f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {SETTINGS} }}'
    nets = [make_net(write, layer, [(1, 3, *size)] * 3) for size in ((4, 5), (6, 3))]
    bottoms = draw(3, 1, 3, 6, 3)
    nets[0].forward()
    for index, values in enumerate(bottoms):
        nets[0].blobs[f"x{index}"].reshape(1, 3, 6, 3)
        for net in nets:
            net.blobs[f"x{index}"].data[...] = values
    np.testing.assert_array_equal(*(net.forward()["y0"] for net in nets))


@pytest.mark.parametrize(
    ("settings", "shapes", "found"),
    [
        ("", [(1, 3, 4, 5)] * 3, "num_iterations 1"),
        ("num_iterations: 2 theta_beta: 0", [(1, 3, 4, 5)] * 3, "theta_alpha 10, theta_beta 0, theta_gamma 10"),
        ("num_iterations: 2", [(1, 2, 4, 5)] * 3, "images of shape (1, 2, 4, 5) for scores of shape (1, 2, 4, 5)"),
        ("num_iterations: 2", [(1, 2, 4, 5), (1, 3, 4, 5), (1, 3, 4, 5)], "bottoms of shapes (1, 2, 4, 5), (1, 3, 4, 5)"),
    ],
)
def test_mean_field_says_what_it_takes(write, settings, shapes, found):
    layer = f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {settings} }}'
    assert layer_error(write, layer, *shapes).found == found


def test_points_that_are_too_far_apart_for_the_lattice_are_an_error(write):
    settings = "num_iterations: 2 theta_alpha: 1e-3 theta_beta: 1e-3 theta_gamma: 1"
    net = make_net(write, f'type: "MultiStageMeanfield" multi_stage_meanfield_param {{ {settings} }}', [(1, 3, 40, 50)] * 3)
    for blob in net.blobs.values():
        blob.data[...] = draw(*blob.shape, low=0, high=255)
    with pytest.raises(caffe.LayerError, match="deviations apart; give larger theta_alpha"):
        net.forward()
