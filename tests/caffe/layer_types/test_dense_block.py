"""DenseBlock compared with plain loops over its definition."""

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed

STEPS, GROWTH, CHANNELS = 2, 2, 3


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def layer(settings=""):
    given = f"numTransition: {STEPS} growthRate: {GROWTH} initChannel: {CHANNELS} {settings}"
    return f'type: "DenseBlock" denseblock_param {{ {given} }}'


def shapes(reduced):
    grown = [CHANNELS + step * GROWTH for step in range(STEPS)]
    wide = [4 * GROWTH] * STEPS
    result = [(GROWTH, channels, 3, 3) for channels in (wide if reduced else grown)]
    result += [(1, channels, 1, 1) for _ in range(4) for channels in grown]
    if reduced:
        result += [(4 * GROWTH, channels, 1, 1) for channels in grown]
        result += [(1, channels, 1, 1) for _ in range(4) for channels in wide]
    return [*result, (1,)]


def convolve(x, weight):
    """A convolution of mathematics: the kernel is turned by 180 degrees."""
    side = weight.shape[2]
    pad = side // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.zeros((len(x), len(weight), *x.shape[2:]))
    for i, j in np.ndindex(x.shape[2:]):
        window = padded[:, :, i : i + side, j : j + side]
        y[:, :, i, j] = np.einsum("nchw,ochw->no", window, weight[:, :, ::-1, ::-1])
    return y


def block(x, params, reduced, training):
    def normalized(x, first):
        scale, bias, mean, variance = params[first::STEPS][:4]
        if training:
            mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        return np.maximum(scale * (x - mean) / np.sqrt(variance + 1e-5) + bias, 0)

    for step in range(STEPS):
        y = normalized(x, STEPS + step)
        if reduced:
            y = normalized(convolve(y, params[5 * STEPS + step]), 6 * STEPS + step)
        x = np.concatenate([x, convolve(y, params[step])], 1)
    return x


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@exercises("DenseBlock")
def test_each_step_adds_channels(write, reduced, phase):
    params = [draw(*shape, low=0.4, high=1.2) for shape in shapes(reduced)]
    stages = range(2 if reduced else 1)
    for stage in stages:  # of both signs
        for index in (*range(STEPS), *range(2 * STEPS, 4 * STEPS)):
            params[5 * STEPS * stage + index] -= 0.8
    learned = [5 * STEPS * stage + index for stage in stages for index in range(3 * STEPS)]

    def reference(x, *params):
        return block(x, list(params), reduced, phase == caffe.TRAIN)

    settings = f"use_BC: {str(reduced).lower()}"
    net = check(
        write,
        layer(settings),
        reference,
        draw(2, CHANNELS, 3, 4),
        params=params,
        phase=phase,
        wrt=() if phase == caffe.TEST else (0,),
        learned=() if phase == caffe.TEST else learned,
        rtol=1e-3,
        atol=1e-4,
    )
    specs = caffe.layer_type("DenseBlock").blob_specs(net.layers[-1].param)
    assert [index for index, spec in enumerate(specs) if spec.learned] == learned
    assert [blob.data.shape for blob in net.params["layer"]] == shapes(reduced)


def test_averages_follow_the_batches_in_training(write):
    net = make_net(write, layer("moving_average_fraction: 0.25 Filter_Filler { type: 'msra' }"), [(4, CHANNELS, 3, 4)])
    mean, variance = (net.params["layer"][index * STEPS] for index in (3, 4))
    expected = np.zeros(CHANNELS), np.ones(CHANNELS)
    for _ in range(3):
        x = net.blobs["x0"].data[...] = draw(4, CHANNELS, 3, 4)
        net.forward()
        batch = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, batch, strict=True)]
    np.testing.assert_allclose(mean.data.ravel(), expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance.data.ravel(), expected[1], rtol=1e-4)
    assert net.layers[-1].param.param[3 * STEPS].lr_mult == 0
    assert net.layers[-1].param.param[2 * STEPS].lr_mult == 1


def test_dropout_leaves_out_new_channels_in_training(write):
    settings = "use_dropout: true dropout_amount: 0.25 BN_Bias_Filler { value: 1 } Filter_Filler { value: 1 }"
    net = make_net(write, layer(settings), [(4, CHANNELS, 30, 40)])
    y = net.forward()["y0"][:, CHANNELS : CHANNELS + GROWTH, 1:-1, 1:-1]  # 27 ones, times 4 / 3
    assert set(np.unique(y)) == {0, 36}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "shape", "found"),
    [
        ("filter_H: 5", (1, 3, 4, 4), "filters, pads and strides (5, 3, 1, 1, 1, 1)"),
        ("dropout_amount: 1", (1, 3, 4, 4), "dropout_amount 1"),
    ],
)
def test_a_dense_block_says_what_it_takes(write, settings, shape, found):
    assert layer_error(write, layer(settings), shape).found == found
    none = 'type: "DenseBlock" denseblock_param { initChannel: 3 numTransition: 0 }'
    assert layer_error(write, none, (1, 3, 4, 4)).found == "numTransition 0 and growthRate 12"


def test_a_dense_block_has_the_channels_of_its_bottom(write):
    net = make_net(write, layer(""), [(1, CHANNELS + 2, 4, 4)])  # initChannel is CHANNELS
    assert net.blobs["y0"].shape == (1, CHANNELS + 2 + STEPS * GROWTH, 4, 4)
    assert net.params["layer"][1].shape[1] == CHANNELS + 2 + GROWTH
