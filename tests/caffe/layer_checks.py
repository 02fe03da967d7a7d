"""Compare a layer with a plain reference: its tops, and its gradients with finite differences of the reference."""

import functools
import zlib
from unittest import mock

import numpy as np
import pytest

import caffe

rng = np.random.default_rng()


EXERCISED: set[str] = set()
"""Layer types that some test declares it exercises."""


def exercises(*types, chosen_by=None):
    """Declare that a test computes layers of these types; the test fails if one of them is never run.

    chosen_by  parameter of the test that selects which of the types a call computes
    """
    EXERCISED.update(types)

    def decorate(test):
        @functools.wraps(test)
        def watched(**arguments):
            computed = set()
            patches = [mock.patch.object(caffe.layer_type(name), "forward", recording_forward(name, computed)) for name in types]
            for patch in patches:
                patch.start()
            try:
                test(**arguments)
            finally:
                for patch in reversed(patches):
                    patch.stop()
            assert computed >= ({arguments[chosen_by]} & set(types) if chosen_by else set(types))

        return watched

    return decorate


def recording_forward(name, computed):
    """Wrap the type's `forward` so that it adds the layer's type to `computed`."""
    forward = caffe.layer_type(name).forward

    def computing(self, *bottoms):
        computed.add(self.type)
        return forward(self, *bottoms)

    return computing


def reseed(name):
    """Seed the generator by name, so that a test draws the same numbers whichever tests ran before."""
    rng.bit_generator.state = np.random.default_rng(zlib.crc32(name.encode())).bit_generator.state


def draw(*shape, low=-1.0, high=1.0):
    return rng.uniform(low, high, shape)


def make_net(write, layer, shapes, phase=caffe.TRAIN, tops=1):
    """A net of Inputs x0, x1, … of these shapes and one layer of tops y0, y1, …; `layer` has its type and parameters."""
    text = "force_backward: true\n"
    for index, shape in enumerate(shapes):
        dims = " ".join(f"dim: {extent}" for extent in shape)
        text += f'layer {{ name: "x{index}" type: "Input" top: "x{index}" input_param {{ shape {{ {dims} }} }} }}\n'
    bottoms = " ".join(f'bottom: "x{index}"' for index in range(len(shapes)))
    text += f'layer {{ name: "layer" {bottoms} ' + " ".join(f'top: "y{index}"' for index in range(tops)) + f" {layer} }}\n"
    return caffe.Net(write("net.prototxt", text), phase)


def finite_differences(function, x, step=1e-6):
    """Gradient of a scalar function with respect to the array x, by central differences."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function()
        x[index] = kept - step
        gradient[index] = (above - function()) / (2 * step)
        x[index] = kept
    return gradient


def check(write, layer, reference, *inputs, params=(), phase=caffe.TRAIN, wrt=(0,), learned=None, rtol=1e-4, atol=1e-5):
    """Assert that the tops, and the gradients of inputs `wrt` and `learned` parameters (default: all), equal the reference's.

    reference(*inputs, *params) gives the first top, or several, in double precision.
    """

    def tops():
        result = reference(*inputs, *params)
        return list(result) if isinstance(result, tuple) else [result]

    # Round to float32, so that both sides compute with the same values.
    inputs, params = ([np.array(a, np.float32).astype(float) for a in arrays] for arrays in (inputs, params))
    wanted = tops()
    net = make_net(write, layer, [x.shape for x in inputs], phase, len(wanted))
    for index, values in enumerate(inputs):
        net.blobs[f"x{index}"].data[...] = values
    for blob, values in zip(net.params.get("layer", []), params, strict=True):
        blob.data[...] = values
    said = [net.blobs[f"y{index}"].shape for index in range(len(wanted))]
    net.forward()
    for index, values in enumerate(wanted):
        assert said[index] == np.shape(values)
        assert net.blobs[f"y{index}"].shape == np.shape(values)
        np.testing.assert_allclose(net.blobs[f"y{index}"].data, values, rtol=rtol, atol=atol)
    direction = np.ones(()) if net.layers[-1].is_loss else draw(*np.shape(wanted[0]))
    net.blobs["y0"].diff[...] = direction
    net.backward()

    def objective():
        return float((tops()[0] * direction).sum())

    for index in wrt:
        got = net.blobs[f"x{index}"].diff
        np.testing.assert_allclose(got, finite_differences(objective, inputs[index]), rtol=1e-3, atol=1e-4, err_msg=f"x{index}")
    for index in range(len(params)) if learned is None else learned:
        got = net.params["layer"][index].diff
        np.testing.assert_allclose(
            got, finite_differences(objective, params[index]), rtol=1e-3, atol=1e-4, err_msg=f"parameter {index}"
        )
    return net


def layer_error(write, layer, *shapes, phase=caffe.TRAIN, tops=1):
    with pytest.raises(caffe.LayerError) as error:
        make_net(write, layer, shapes, phase, tops)
    return error.value
