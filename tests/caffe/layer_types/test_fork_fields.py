"""Fields that forks added to BVLC Caffe's layers, compared with values by hand or plain loops over the forks' definitions."""

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def forward(write, layer, *bottoms, phase=caffe.TRAIN, tops=1):
    """The first top of a layer, for these bottoms."""
    arrays = [np.asarray(bottom, np.float32) for bottom in bottoms]
    net = make_net(write, layer, [array.shape for array in arrays], phase, tops)
    for index, array in enumerate(arrays):
        net.blobs[f"x{index}"].data[...] = array
    net.forward()
    return net.blobs["y0"].data.copy()


# ---- Dropout, ReLU, InnerProduct, Parameter


@pytest.mark.parametrize(("phase", "values"), [(caffe.TRAIN, {0, 4}), (caffe.TEST, {1})])
def test_dropout_that_scales_in_testing(write, phase, values):
    y = forward(write, 'type: "Dropout" dropout_param { dropout_ratio: 0.75 scale_train: false }', [[4] * 64], phase=phase)
    assert set(y.flat) == values


@pytest.mark.parametrize(("slope", "least"), [("", 0), ("negative_slope: 0.5", -4)])
@pytest.mark.parametrize("layer", ['"ReLU" relu_param { relu6: true %s }', '"ReLU6" relu6_param { %s }'])
def test_relu_up_to_6(write, layer, slope, least):
    y = forward(write, f"type: {layer % slope}", [[-8, 0, 5, 9]])
    assert y.tolist() == [[least, 0, 5, 6]]


@pytest.mark.parametrize("transpose", ["", "transpose: true"])
def test_inner_product_that_normalises_its_weights(write, transpose):
    layer = f'type: "InnerProduct" inner_product_param {{ num_output: 2 bias_term: false normalize: true {transpose} }}'
    net = make_net(write, layer, [(1, 2)])
    weights = np.array([[3, 4], [0, 2]])
    net.params["layer"][0].data[...] = weights.T if transpose else weights
    net.blobs["x0"].data[...] = [[5, 10]]
    net.forward()
    np.testing.assert_allclose(net.blobs["y0"].data, [[11, 10]], rtol=1e-5)
    stored = net.params["layer"][0].data
    np.testing.assert_allclose(stored.T if transpose else stored, [[0.6, 0.8], [0, 1]], rtol=1e-5)
    net.blobs["y0"].diff[...] = [[1, 0]]
    net.backward()
    gradient = net.params["layer"][0].diff
    np.testing.assert_allclose(gradient.T if transpose else gradient, [[5, 10], [0, 0]], rtol=1e-5)  # not projected


@pytest.mark.parametrize("frozen", ["in testing", "by lr_mult"])
def test_weights_that_do_not_learn_keep_their_bytes_while_they_are_normalised(write, frozen):
    param = "param { lr_mult: 0 }" if frozen == "by lr_mult" else ""
    layer = f'type: "InnerProduct" {param} inner_product_param {{ num_output: 2 bias_term: false normalize: true }}'
    text = f"""input: "x0" input_shape {{ dim: 1 dim: 2 }} layer {{ name: "layer" bottom: "x0" top: "y0" {layer} }}"""
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN if param else caffe.TEST)
    net.params["layer"][0].data[...] = [[3, 4], [0, 2]]
    net.blobs["x0"].data[...] = [[5, 10]]
    net.forward()
    np.testing.assert_allclose(net.blobs["y0"].data, [[11, 10]], rtol=1e-5)
    np.testing.assert_array_equal(net.params["layer"][0].data, [[3, 4], [0, 2]])


def test_parameter_with_a_filler(write):
    layer = 'type: "Parameter" parameter_param { shape { dim: 2 } blob_filler { type: "constant" value: 3 } }'
    assert make_net(write, layer, []).forward()["y0"].tolist() == [3, 3]


# ---- losses


LABELS = [[1], [0]]
SCORES = np.log([[1, 3], [1, 1]])  # the labels' probabilities are 3/4 and 1/2


@pytest.mark.parametrize(("divisor", "expected"), [("pre_fixed_normalizer: 4", 4), ("", 1), ("pre_fixed_normalizer: 0.25", 1)])
def test_a_loss_divided_by_a_given_number(write, divisor, expected):
    layer = f'type: "SoftmaxWithLoss" loss_param {{ normalization: PRE_FIXED {divisor} }}'
    assert forward(write, layer, SCORES, LABELS) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / expected)


@pytest.mark.parametrize(
    ("settings", "weights", "expected"),
    [
        ("", [[2], [1]], -(2 * np.log(0.75) + np.log(0.5)) / 3),
        ("", [[0], [0.5]], -0.5 * np.log(0.5)),  # divided by 1 at least
        ("loss_param { normalization: BATCH_SIZE }", [[2], [4]], -(2 * np.log(0.75) + 4 * np.log(0.5)) / 2),
        ("loss_param { ignore_label: 1 }", [[2], [4]], -np.log(0.5)),
    ],
)
def test_softmax_loss_with_a_weight_for_each_label(write, settings, weights, expected):
    assert forward(write, f'type: "SoftmaxWithLoss" {settings}', SCORES, LABELS, weights) == pytest.approx(expected)


def test_the_gradient_of_a_weighted_softmax_loss(write):
    def loss(scores, labels, weights):
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        chosen = np.array([p[n, int(labels[n, 0, i]), i] for n in range(2) for i in range(3)]).reshape(2, 3)
        return -(weights[:, 0] * np.log(chosen)).sum() / weights.sum()

    labels = np.array([[[0, 1, 2]], [[3, 3, 0]]], float)
    check(write, 'type: "SoftmaxWithLoss"', loss, draw(2, 4, 3), labels, draw(2, 1, 3, low=1, high=3))


def test_weights_of_another_number_than_labels_are_an_error(write):
    assert "bottoms of shapes" in layer_error(write, 'type: "SoftmaxWithLoss"', (2, 3), (2, 1), (3, 1)).found


# ---- windows


def pool(x, kernel, stride, pads, method):
    """Pooling with pads at the left, right, top and bottom as in Synopsys' Caffe, of which the last window starts inside."""
    left, right, top, bottom = pads
    height, width = x.shape[2:]
    rows, columns = (
        min(-(-(extent + before + after - kernel) // stride) + 1, -(-(extent + before) // stride))
        for extent, before, after in ((height, top, bottom), (width, left, right))
    )
    y = np.zeros((*x.shape[:2], rows, columns))
    for i, j in np.ndindex(rows, columns):
        i0, j0 = i * stride - top, j * stride - left
        i1, j1 = min(i0 + kernel, height + bottom), min(j0 + kernel, width + right)
        window = x[:, :, max(i0, 0) : i1, max(j0, 0) : j1]
        size = (i1 - i0) * (j1 - j0) if method == "AVE" else window.shape[2] * window.shape[3]
        y[:, :, i, j] = window.max((2, 3)) if method == "MAX" else window.sum((2, 3)) / size
    return y


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD"])
@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (1, 0, 0, 2), (1, 1, 1, 1), (2, 0, 1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_with_a_pad_for_each_side(write, method, pads, stride):
    given = "".join(f"pad_{side}: {pad} " for side, pad in zip("lrtb", pads, strict=True))
    layer = f'type: "Pooling" pooling_param {{ pool: {method} kernel_size: 3 stride: {stride} {given} }}'
    check(write, layer, lambda x: pool(x, 3, stride, pads, method), draw(2, 2, 6, 5))


@pytest.mark.parametrize("settings", ["pool: AVE_EXC_PAD", "pool: AVE avg_include_pad: false"])
@pytest.mark.parametrize(("size", "pad", "stride"), [(3, 1, 2), (3, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_pooling_to_the_mean_of_what_is_not_padding(write, settings, size, pad, stride):
    layer = f'type: "Pooling" pooling_param {{ {settings} kernel_size: {size} pad: {pad} stride: {stride} }}'
    check(write, layer, lambda x: pool(x, size, stride, (pad,) * 4, "AVE_EXC_PAD"), draw(1, 2, 6, 5))


def test_the_positions_of_maxima_count_pixels_of_the_bottom(write):
    layer = 'type: "Pooling" pooling_param { pool: MAX kernel_size: 2 stride: 2 pad_l: 1 }'
    net = make_net(write, layer, [(1, 1, 2, 3)], tops=2)
    net.blobs["x0"].data[...] = [[[[1, 5, 2], [9, 3, 4]]]]
    net.forward()
    assert net.blobs["y0"].data.tolist() == [[[[9, 5]]]]
    assert net.blobs["y1"].data.tolist() == [[[[3, 1]]]]


def test_convolution_with_a_pad_for_each_side(write):
    def convolve(x, weight, bias):
        padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (2, 0)))
        y = np.zeros((2, 4, 2, 3))
        for n, o, i, j in np.ndindex(y.shape):
            y[n, o, i, j] = (padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * weight[o]).sum() + bias[o]
        return y

    layer = 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad_l: 2 pad_b: 1 }'
    check(write, layer, convolve, draw(2, 3, 5, 5), params=(draw(4, 3, 3, 3), draw(4)))


@pytest.mark.parametrize(
    ("holes", "dilations"),
    [("hole: 2", "dilation: 2"), ("hole_h: 2 hole_w: 1", "dilation: 2 dilation: 1"), ("hole_w: 2", "dilation: [1, 2]")],
)
def test_holes_are_dilations(write, holes, dilations):
    x = draw(1, 2, 7, 7)
    layer = 'type: "Convolution" convolution_param {{ num_output: 1 kernel_size: 3 weight_filler {{ value: 1 }} {} }}'
    y = forward(write, layer.format(holes), x)
    assert y.shape != (1, 1, 5, 5)
    np.testing.assert_array_equal(y, forward(write, layer.format(dilations), x))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Pooling"])
def test_pads_of_sides_that_cannot_be(write, kind):
    pads = "pad_l: 1" if kind == "Deconvolution" else "pad_l: 1 pad: 1"
    name = "pooling_param { " if kind == "Pooling" else "convolution_param { num_output: 1 "
    assert layer_error(write, f'type: "{kind}" {name} kernel_size: 3 {pads} }}', (1, 1, 5, 5)).found.startswith("pad_l, pad_r")


# ---- normalisation


@pytest.mark.parametrize("settings", ['normalize_param { normalize_type: "%s" }', 'softmax_param { normalize_type: "%s" }'])
@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_normalize_of_happynear_learns_no_scale(write, settings, kind):
    def normalize(x):
        norm = np.abs(x).sum(1, keepdims=True) + 1e-6 if kind == "L1" else np.sqrt((x * x).sum(1, keepdims=True) + 1e-6)
        return x / norm, norm

    net = check(write, f'type: "Normalize" {settings % kind}', normalize, draw(2, 3, 2, 2))
    assert "layer" not in net.params


@pytest.mark.parametrize(("settings", "passed"), [("bp_norm: true", [0.6, 0.8]), ("", [0, 0])])
def test_the_norms_of_normalize_pass_their_gradient_on_if_told(write, settings, passed):
    net = make_net(write, f'type: "Normalize" normalize_param {{ {settings} }}', [(1, 2, 1, 1)], tops=2)
    net.blobs["x0"].data.flat = 3, 4
    net.forward()
    assert net.blobs["y1"].data.item() == pytest.approx(5)
    net.blobs["y0"].diff[...], net.blobs["y1"].diff[...] = 0, 1
    net.backward()
    assert net.blobs["x0"].diff.ravel() == pytest.approx(passed)


def test_normalize_to_softmax_is_an_error(write):
    assert (
        layer_error(write, 'type: "Normalize" normalize_param { normalize_type: "max" }', (2, 3)).found == 'normalize_type "max"'
    )


CHEN = "scale_filler { value: 2 } shift_filler { value: 1 } decay: 0.75 var_eps: 1"


@pytest.mark.parametrize(("averages", "tested"), [("", [1, 1]), ("moving_average: true", [1 + 2 * 4 / np.sqrt(1 + 1)] * 2)])
def test_bn_of_chen_keeps_averages_and_uses_them_if_asked(write, averages, tested):
    layer = f'type: "BN" bn_param {{ {CHEN} {averages} }}'
    net = make_net(write, layer, [(2, 1)])
    net.params["layer"][2].data[...], net.params["layer"][3].data[...] = 4, 8
    net.blobs["x0"].data[...] = [[3], [7]]  # mean 5, variance 4
    net.forward()
    np.testing.assert_allclose(net.blobs["y0"].data.ravel(), [1 - 4 / np.sqrt(5), 1 + 4 / np.sqrt(5)], rtol=1e-5)
    assert [blob.data.item() for blob in net.params["layer"]] == [2, 1, 0.75 * 4 + 0.25 * 5, 0.75 * 8 + 0.25 * 4]
    net = make_net(write, layer, [(2, 1)], caffe.TEST)
    net.params["layer"][3].data[...] = 1
    net.blobs["x0"].data[...] = 4
    assert net.forward()["y0"].ravel() == pytest.approx(tested)
    assert [blob.data.item() for blob in net.params["layer"]] == [2, 1, 0, 1]


@pytest.mark.parametrize(("averages", "tested"), [("", 4), ("moving_average: true", 4), ("moving_average: false", 0)])
def test_bn_of_yjxiong_tests_by_the_batch_if_told(write, averages, tested):
    layer = f'type: "BN" bn_param {{ slope_filler {{ value: 1 }} {averages} }}'
    net = make_net(write, layer, [(2, 1)], caffe.TEST)
    net.params["layer"][3].data[...] = 1
    net.blobs["x0"].data[...] = 4
    assert net.forward()["y0"].ravel() == pytest.approx([tested] * 2, abs=1e-4)
