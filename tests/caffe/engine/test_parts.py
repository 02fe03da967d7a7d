"""Layers that read the parts of concatenated channels give every blob its values, and put nothing together."""

import numpy as np
import pytest

import caffe
from caffe.errors import LayerError
from tests.caffe.engine.test_fusion import (
    INPUT,
    Operations,
    assert_close,
    convolution,
    joined,
    layer,
    made,
    normalised,
    one_by_one,
    randomise,
    values,
)

POOLING = "pooling_param {{ {} kernel_size: 3 stride: 2 }}"
FIRE = (
    convolution("a", "data", 5, "kernel_size: 1")
    + layer("ReLU", "relu_a", "a", "a")
    + convolution("b", "data", 9)
    + normalised("b")
    + layer("Concat", "cat", "a b", "cat")
)
READ = convolution("c", "cat", 4, "kernel_size: 3 stride: 2 pad: 2 dilation: 2") + normalised("c")
READS_PARTS = {
    "a convolution": READ,
    "a convolution with a leaky ReLU": READ.replace('name: "relu_c" type: "ReLU"', 'name: "relu_c" type: "PReLU"'),
    "a convolution without bias": convolution("c", "cat", 4, "kernel_size: 1 bias_term: false"),
    "pooling": layer("Pooling", "c", "cat", "c", POOLING.format("pool: AVE")),
    "pooling, then a convolution": layer("Pooling", "pool", "cat", "pool", POOLING.format("pad: 1"))
    + READ.replace("cat", "pool"),
    "global pooling": layer("Pooling", "c", "cat", "c", "pooling_param { pool: AVE global_pooling: true }"),
}
READS_ALL = {
    "a convolution of many outputs": convolution("c", "cat", 14),
    "groups": convolution("c", "cat", 4, "kernel_size: 1 group: 2"),
    "two layers": convolution("c", "cat", 4) + convolution("d", "cat", 4),
    "a layer in place": layer("PReLU", "p", "cat", "cat") + READ,
    "a sum with another blob": convolution("c", "cat", 6) + layer("Eltwise", "sum", "c data", "sum"),
    "pooling with positions": layer("Pooling", "c", "cat", 'c" top: "mask', POOLING.format("")),
    "stochastic pooling": layer("Pooling", "c", "cat", "c", POOLING.format("pool: STOCHASTIC")),
    "nobody": "",
}


def read_by(net):
    """{blob: the blobs that it is first computed from}."""
    return {call.tops[0]: [name for name, _ in call.sources] for call in reversed(joined(net))}


@pytest.mark.own_device
@pytest.mark.parametrize("reader", READS_PARTS)
def test_channels_are_not_put_together_before(write, reader):
    net = made(write, FIRE + READS_PARTS[reader])
    expected = one_by_one(net)
    with Operations() as operations:
        net._forward(0, len(net.layers) - 1)
    assert read_by(net)["pool" if "then" in reader else "c"] == ["a", "b"]
    assert operations.counts["cat"] == (reader in ("pooling", "global pooling"))
    assert_close(values(net), expected)


@pytest.mark.parametrize("reader", READS_ALL)
def test_channels_are_put_together_before(write, reader):
    net = made(write, FIRE + READS_ALL[reader])
    expected = one_by_one(net)
    net._forward(0, len(net.layers) - 1)
    assert not any(call.joined for call in joined(net) if call.step.layer.type == "Concat")
    assert not any({"a", "b"} & set(sources) for top, sources in read_by(net).items() if top != "cat")
    assert_close(values(net), expected)


@pytest.mark.own_device
def test_three_parts_are_read_where_that_takes_less_time(write):
    """Each sum reads and writes the outputs again."""
    third = FIRE.replace('bottom: "b" top: "cat"', 'bottom: "b" bottom: "data" top: "cat"')
    for outputs, reads_parts in ((4, True), (9, True), (10, False)):
        net = made(write, third + convolution("c", "cat", outputs))
        expected = one_by_one(net)
        net.forward()
        assert (len(read_by(net)["c"]) == 3) == reads_parts
        assert_close(values(net), expected)


@pytest.mark.own_device
@pytest.mark.parametrize("of", ["a", "cat", "pool"])
def test_a_blob_that_somebody_looks_at_has_its_values_in_each_pass(write, of):
    net = made(write, FIRE + READS_PARTS["pooling, then a convolution"])
    expected = one_by_one(net)[of]
    net.forward()
    view = net.blobs[of].data
    assert_close({of: view}, {of: expected})
    net.blobs["data"].tensor = net.blobs["data"].tensor * -2
    net.forward()
    assert read_by(net)["pool"] == (["a", "b"] if of == "pool" else ["cat"])
    assert read_by(net)["c"] == ["pool"]
    assert_close({of: view.copy()}, {of: one_by_one(net)[of]})


def test_a_look_later_shows_the_values_of_the_pass(write):
    net = made(write, FIRE + READ)
    expected = one_by_one(net)["cat"]
    net.forward()
    randomise(net, "other numbers")
    net.blobs["a"].data[...] = 0
    np.testing.assert_allclose(net.blobs["cat"].data, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (2, 6, 1, 1), (1, 6, 9, 7)])
def test_images_of_every_size_are_read(write, shape):
    """The memory of images of one pixel is what a look at a blob shows."""
    net = made(write, FIRE + convolution("c", "cat", 4, "kernel_size: 1"))
    net.forward()
    net.blobs["data"].reshape(*shape)
    randomise(net, "other images")
    expected = one_by_one(net)
    net.forward()
    net.blobs["a"].data[...] = 0
    del expected["a"]
    assert_close(values(net), expected)


@pytest.mark.parametrize("is_viewed", [False, True])
def test_changed_weights_are_taken(write, is_viewed):
    net = made(write, FIRE + READ)
    weight = net.params["c"][0]
    if is_viewed:
        _ = weight.data
    net.forward()
    before = net.blobs["c"].peek().copy()
    if is_viewed:
        weight.data[...] *= 2
    else:
        weight.tensor = weight.tensor * 2
    net.forward()
    assert np.abs(net.blobs["c"].peek() - before).max() > 0.1
    assert_close(values(net), one_by_one(net))


def test_partial_passes_begin_at_the_concatenation(write):
    net = made(write, FIRE + READ)
    expected = one_by_one(net)
    net.forward(end="cat")
    net.forward(start="c")
    assert_close(values(net), expected)


def test_a_backward_pass_has_the_gradients_of_all(write):
    text = FIRE + READ + layer("Reduction", "loss", "c", "loss", "loss_weight: 1")
    gradients = []
    for first in (True, False):
        net = made(write, text, more="force_backward: true")
        if first:
            net.forward()
        net.forward()
        net.backward()
        gradients.append({name: net.blobs[name].diff.copy() for name in ("a", "cat", "data")})
    assert_close(*gradients)
    assert np.abs(gradients[0]["a"]).max() > 0


def test_bottoms_that_do_not_fit_are_named(write):
    net = made(
        write, INPUT.replace("data", "other") + FIRE.replace('bottom: "b" top: "cat"', 'bottom: "other" top: "cat"') + READ
    )
    net.forward()
    net.blobs["data"].reshape(2, 6, 5, 5)
    with pytest.raises(LayerError, match=r'"cat".*\(2, 5, 5, 5\).*\(2, 6, 9, 7\)'):
        net._forward(0, len(net.layers) - 1)


@pytest.mark.parametrize("numerics", ["reproducible", "fast"])
def test_other_numerics_have_the_same_values(write, numerics):
    net = made(write, FIRE + READ)
    expected = one_by_one(net)
    caffe.set_numerics(numerics)
    try:
        net.forward()
        found = values(net)
    finally:
        caffe.set_numerics("fp32")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0.05, atol=0.05 * np.abs(array).max())
