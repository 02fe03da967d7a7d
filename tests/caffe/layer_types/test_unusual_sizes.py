"""Layers of sizes that BVLC Caffe computes and that are rare: windows larger than the bottom or beyond it, vectors, one level."""

import numpy as np
import pytest

import caffe

LOWEST = np.finfo(np.float32).min


def run(write, shape, layer, phase=caffe.TRAIN):
    """A net of one input and one layer, after a forward and backward pass on 1, 2, 3, …"""
    dims = " ".join(f"dim: {axis}" for axis in shape)
    text = f'force_backward: true input: "x" input_shape {{ {dims} }} layer {{ name: "y" bottom: "x" top: "y" {layer} }}'
    net = caffe.Net(write("net.prototxt", text), phase)
    net.blobs["x"].data[...] = np.arange(1, np.prod(shape) + 1).reshape(shape)
    net.forward()
    net.blobs["y"].diff[...] = 1
    net.backward()
    return net


def pooling(size, method="MAX", **settings):
    given = " ".join(f"{name}: {value}" for name, value in settings.items())
    return (1, 1, size, size), f'type: "Pooling" pooling_param {{ pool: {method} {given} }}'


@pytest.mark.parametrize(("method", "expected"), [("MAX", 4), ("AVE", 2.5)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 3), (3, 3)])
def test_a_window_larger_than_the_bottom_pools_what_there_is(write, method, expected, kernel, stride):
    net = run(write, *pooling(2, method, kernel_size=kernel, stride=stride))
    assert net.blobs["y"].data.ravel().tolist() == [expected]
    assert net.blobs["x"].diff.sum() == pytest.approx(1)


def test_nets_declared_with_one_pixel_are_built_and_reshaped(write):
    net = run(write, *pooling(1, kernel_size=2, stride=2))
    assert net.blobs["y"].data.shape == (1, 1, 1, 1)
    net.blobs["x"].reshape(1, 1, 6, 8)
    net.forward()
    assert net.blobs["y"].data.shape == (1, 1, 3, 4)


def test_the_maximum_of_a_window_beyond_the_bottom_is_the_lowest_number(write):
    shape, layer = pooling(5, kernel_size=1, stride=3)
    net = run(write, shape, layer + ' top: "at"')
    assert net.blobs["y"].data[0, 0].tolist() == [[1, 4, LOWEST], [16, 19, LOWEST], [LOWEST] * 3]
    assert net.blobs["at"].data[0, 0].tolist() == [[0, 3, -1], [15, 18, -1], [-1] * 3]
    assert net.blobs["x"].diff.sum() == 4


@pytest.mark.parametrize(
    ("size", "method", "settings", "found"),
    [
        (1, "MAX", {"kernel_size": 4, "stride": 1}, "kernel 4 with pad 0 on 1 pixels"),
        (5, "AVE", {"kernel_size": 1, "stride": 3}, "the last window starts outside the bottom"),
    ],
)
def test_what_caffe_crashes_on_or_divides_by_zero_is_refused(write, size, method, settings, found):
    with pytest.raises(caffe.LayerError, match=found):
        run(write, *pooling(size, method, **settings))


@pytest.mark.parametrize(("height", "shape"), [(1, (1, 2, 1, 1)), (2, (1, 10))])
def test_a_pyramid_of_one_level_keeps_its_axes(write, height, shape):
    net = run(write, (1, 2, 5, 5), f'type: "SPP" spp_param {{ pyramid_height: {height} }}')
    assert net.blobs["y"].data.shape == shape
    assert net.blobs["y"].data.ravel()[0] == 25


@pytest.mark.parametrize("kernel", ["", "kernel_size: 1"])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_a_convolution_of_vectors_weighs_each_group(write, kind, kernel):
    net = run(
        write,
        (3, 6),
        f'type: "{kind}" convolution_param {{ num_output: 4 group: 2 {kernel} weight_filler {{ type: "xavier" }} }}',
    )
    weight, bias = net.params["y"]
    bias.data[...] = [1, 2, 3, 4]
    net.forward()
    assert weight.data.shape == ((4, 3) if kind == "Convolution" else (6, 2))
    halves = np.split(net.blobs["x"].data, 2, axis=1)
    matrices = [part.T if kind == "Convolution" else part for part in np.split(weight.data, 2)]
    expected = np.hstack([half @ matrix for half, matrix in zip(halves, matrices, strict=True)]) + bias.data
    np.testing.assert_allclose(net.blobs["y"].data, expected, rtol=1e-5)


@pytest.mark.parametrize(("ratio", "factor"), [(0, 1), (1, 0)])
def test_dropout_of_nothing_and_of_everything(write, ratio, factor):
    layer = f'type: "Dropout" dropout_param {{ dropout_ratio: {ratio} }}'
    net = run(write, (2, 3), layer)
    np.testing.assert_array_equal(net.blobs["y"].data, net.blobs["x"].data * factor)
    np.testing.assert_array_equal(net.blobs["x"].diff, np.full((2, 3), factor))
    np.testing.assert_array_equal(run(write, (2, 3), layer, caffe.TEST).blobs["y"].data, net.blobs["x"].data)
