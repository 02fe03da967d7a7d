"""Face layers compared with plain loops over their definitions, their gradients with finite differences of those."""

import math

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


LABELS = np.array([2, 0, 3, 1, 1])


@exercises("CosinAddm")
def test_cosin_add_m_adds_an_angle(write):
    def add(cosines, labels):
        y = cosines.copy()
        for row, label in zip(y, labels.astype(int), strict=True):
            angle = math.acos(row[label])
            row[label] = math.cos(angle + 0.5) if angle + 0.5 < math.pi else row[label] - 0.5 * math.sin(0.5)
        return y

    cosines = draw(5, 4, low=-0.8, high=0.95)
    cosines[1, 0] = -0.97  # θ + m exceeds π
    layer = 'type: "CosinAddm" cosin_add_m_param { m: 0.5 }'
    check(write, layer, add, cosines, LABELS)
    check(write, layer, lambda x, _: x, cosines, LABELS, phase=caffe.TEST)
    net = make_net(write, layer, [(1, 2), (1,)])
    net.blobs["x0"].data[...] = [[1.5, 0.3]]
    np.testing.assert_allclose(net.forward()["y0"], [[math.cos(0.5), 0.3]], rtol=1e-6)
    net.blobs["y0"].diff[...] = 2
    net.backward()
    assert net.blobs["x0"].diff.tolist() == [[2, 2]]


@exercises("CombinedMargin")
def test_combined_margin(write):
    def combine(cosines, labels):
        y = cosines.copy()
        for row, label in zip(y, labels.astype(int), strict=True):
            if label >= 0:
                row[label] = math.cos(1.5 * math.acos(row[label]) + 0.2) - 0.35
        return y

    layer = 'type: "CombinedMargin" combined_margin_param { m1: 1.5 m2: 0.2 m3: 0.35 }'
    check(write, layer, combine, draw(5, 4, low=-0.9, high=0.9), np.array([2, 0, -1, 1, 1]))
    check(write, layer, combine, draw(2, 4, 1, 1, low=-0.9, high=0.9).reshape(2, 4), np.array([2, 3]), phase=caffe.TEST)


@pytest.mark.parametrize("name", ["CosinAddm", "CombinedMargin"])
def test_margins_take_a_label_of_a_class_for_each_image(write, name):
    assert "2 labels" in layer_error(write, f'type: "{name}"', (3, 4), (2,)).found
    net = make_net(write, f'type: "{name}"', [(1, 3), (1,)])
    net.blobs["x1"].data[...] = 3
    with pytest.raises(caffe.Error) as error:
        net.forward()
    assert error.value.found == "label 3"
    assert layer_error(write, 'type: "CosinAddm" cosin_add_m_param { m: 4 }', (3, 4), (3,)).found == "m 4"


@pytest.mark.parametrize(("kind", "multiple"), [("SINGLE", 1), ("DOUBLE", 2), ("TRIPLE", 3), ("QUADRUPLE", 4)])
@exercises("LargeMarginInnerProduct")
def test_large_margin_inner_product(write, kind, multiple):
    balance = 2 * (1 + 0.5 * 1) ** -1

    def margin(x, labels, weight):
        y = x @ weight.T
        if multiple > 1:
            for row, vector, label in zip(y, x, labels.astype(int), strict=True):
                length = np.linalg.norm(vector) * np.linalg.norm(weight[label])
                angle = math.acos(row[label] / length)
                k = int(angle * multiple / math.pi)
                psi = (-1) ** k * math.cos(multiple * angle) - 2 * k
                row[label] = (length * psi + balance * row[label]) / (1 + balance)
        return y, np.array([balance])

    settings = f"num_output: 4 type: {kind} base: 2 gamma: 0.5"
    layer = f'type: "LargeMarginInnerProduct" largemargin_inner_product_param {{ {settings} }}'
    check(write, layer, margin, draw(5, 3), LABELS, params=[draw(4, 3)])


def test_the_share_of_plain_scores_is_annealed_and_kept(write):
    settings = "num_output: 4 type: DOUBLE base: 8 gamma: 1 lambda_min: 1.5 iteration: 1"
    layer = f'type: "LargeMarginInnerProduct" largemargin_inner_product_param {{ {settings} }}'

    def shares(net, count):
        return [float(net.forward()["y1"][0]) for _ in range(count)]

    net, other = (make_net(write, layer, [(2, 3), (2,)], tops=2) for _ in range(2))
    np.testing.assert_allclose(shares(net, 2), [8 / 3, 8 / 4], rtol=1e-6)
    state = caffe_pb2.LayerState()
    net.layers[-1].keep(state)
    other.layers[-1].resume(state)
    np.testing.assert_allclose(shares(other, 2), [8 / 5, 1.5], rtol=1e-6)
    assert layer_error(write, 'type: "LargeMarginInnerProduct"', (2, 3), (2,)).found == "num_output is not given"
    assert "one for each vector" in layer_error(write, layer, (2, 3), (3,)).expected
    net.blobs["x1"].data[...] = 4
    with pytest.raises(caffe.Error, match="label 4"):
        net.forward()


@exercises("SoftmaxWithLoss")
def test_label_smoothing_changes_the_gradient_alone(write):
    scores = draw(5, 4)
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    layer = 'type: "SoftmaxWithLoss" loss_param { label_smoothing: 0.2 ignore_label: 3 }'
    counted = LABELS != 3

    def loss(scores, labels):
        chosen = np.exp(scores[np.arange(5), LABELS]) / np.exp(scores).sum(1)
        return -np.log(chosen[counted]).sum() / 4

    net = check(write, layer, loss, scores, LABELS, wrt=())
    expected = probability - 0.2 / 3
    expected[np.arange(5), LABELS] -= 0.8
    np.testing.assert_allclose(net.blobs["x0"].diff, expected * counted[:, None] / 4, rtol=1e-4, atol=1e-6)
    found = layer_error(write, layer.replace("0.2", "2"), (5, 4), (5,)).found
    assert found == "label_smoothing 2"


COMBINATION = 'type: "Combination" combination_param { xcoord: 0 ycoord: 0 xcoord: 3 ycoord: 1 }'


@exercises("Combination")
def test_combination_places_bottoms(write):
    def combine(a, b):
        y = np.zeros((2, 3, 4, 5))
        y[:, :, :2, :3] = a
        y[:, :, 1:4, 3:5] = b
        return y

    check(write, COMBINATION, combine, draw(2, 3, 2, 3), draw(2, 3, 3, 2), wrt=(0, 1))
    net = make_net(write, COMBINATION.replace("xcoord: 3", "xcoord: 1"), [(1, 1, 2, 3), (1, 1, 3, 2)])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = 1, 2
    assert net.forward()["y0"][0, 0].tolist() == [[1, 1, 1], [1, 2, 2], [0, 2, 2], [0, 2, 2]]
    net.blobs["y0"].diff[...] = 3
    net.backward()
    assert (net.blobs["x0"].diff == 3).all()
    assert layer_error(write, COMBINATION, (1, 1, 2, 3)).found == "2 values of xcoord and 2 of ycoord"
    assert layer_error(write, COMBINATION, (1, 1, 5, 3), (1, 1, 3, 2)).found == "a bottom of 5×3 at (0, 0)"
    assert "same images" in layer_error(write, COMBINATION, (1, 1, 2, 3), (1, 2, 3, 2)).expected
