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
    needs_bfloat16,
    normalised,
    one_by_one,
    randomise,
    values,
)
from tests.caffe.engine.test_fusion import fast as fast  # the fixture

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
    "a convolution with a leaky ReLU": convolution("c", "cat", 4) + normalised("c", "relu_param { negative_slope: 0.1 }"),
    "a convolution with a ReLU up to 6": convolution("c", "cat", 4) + normalised("c", "relu_param { relu6: true }"),
    "a convolution with a PReLU": convolution("c", "cat", 4) + layer("PReLU", "p", "c", "c"),
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
    assert read_by(net)["pool" if "then" in reader else "c"] == ["cat", "a", "b"]
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
        assert (len(read_by(net)["c"]) == 4) == reads_parts
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
    assert read_by(net)["pool"] == (["cat", "a", "b"] if of == "pool" else ["cat"])
    assert read_by(net)["c"] == ["pool"]
    assert_close({of: view.copy()}, {of: one_by_one(net)[of]})


def test_a_look_later_shows_the_values_of_the_pass(write):
    net = made(write, FIRE + READ)
    expected = one_by_one(net)["cat"]
    net.forward()
    assert is_pending(net, "cat") == (net.device.type == "cpu")
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


def is_pending(net, name):
    """Whether a blob's values are to be computed when somebody looks at it."""
    return net.blobs[name].data_side._later is not None


@pytest.mark.own_device
@pytest.mark.parametrize("then", [{"start": "cat"}, {"start": "c"}, {"end": "relu_b"}, {"start": "b", "end": "cat"}])
def test_partial_passes_after_a_whole_one_have_its_values(write, then):
    net = made(write, FIRE + READ)
    expected = one_by_one(net)
    net._forward(0, len(net.layers) - 1)
    assert is_pending(net, "cat")
    net.forward(**then)
    assert_close(values(net), expected)


@pytest.mark.own_device
def test_a_backward_pass_has_the_gradients_of_all(write):
    text = FIRE + READ + layer("Reduction", "loss", "c", "loss", "loss_weight: 1")
    with_graph, joining = made(write, text, more="force_backward: true"), made(write, text)
    for net in (with_graph, joining):
        net.forward()
    assert is_pending(joining, "cat")
    for net in (with_graph, joining):
        net.backward()
    for name in ("a", "cat"):
        assert_close({name: joining.blobs[name].diff}, {name: with_graph.blobs[name].diff.copy()})
    for name in ("a", "b", "c"):
        found, expected = (net.params[name][0].diff for net in (joining, with_graph))
        assert_close({name: found}, {name: expected})
        assert np.abs(found).max() > 0


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


ONCE = {
    "views": convolution("b", "data", 4)
    + layer("Split", "split", "b", 'x" top: "y')
    + layer("Concat", "cat", "x y", "cat")
    + convolution("c", "cat", 4),
    "one channel": FIRE.replace("num_output: 5", "num_output: 1") + READ,
}


def assert_put_together_once(net, tolerance):
    with Operations() as operations:
        net._forward(0, len(net.layers) - 1)
    assert operations.counts["cat"] == 1
    found = values(net)
    for name, array in one_by_one(net).items():
        np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance * np.abs(array).max(), err_msg=name)


@pytest.mark.own_device
@pytest.mark.parametrize("case", ONCE)
def test_channels_that_cannot_be_left_apart_are_put_together_once(write, case):
    assert_put_together_once(made(write, ONCE[case]), 1e-5)


@needs_bfloat16
@pytest.mark.own_device
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("reader", ["a convolution", "pooling, then a convolution"])
def test_channels_in_bfloat16_are_put_together_once(write, reader):
    assert_put_together_once(made(write, FIRE + READS_PARTS[reader]), 0.05)


def test_a_view_of_an_input_is_not_read_later(write):
    """What the user writes into the input would show in the concatenation of the pass before."""
    text = (
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 2 dim: 12 dim: 3 } } }'
        + layer("Permute", "p", "d", "p", "permute_param { order: 0 order: 2 order: 1 }")
        + layer("Reshape", "r", "p", "r", "reshape_param { shape { dim: 0 dim: 0 dim: 3 dim: 4 } }")
        + convolution("e", "r", 3)
        + layer("Concat", "cat", "r e", "cat")
        + convolution("c", "cat", 4)
    )
    net = made(write, text)
    view = net.blobs["d"].data
    net.forward()
    expected = net.blobs["cat"].peek().copy() if net.device.type != "cpu" else None
    view[...] += 5
    found = net.blobs["cat"].data.copy()
    view[...] -= 5
    net.forward()
    np.testing.assert_allclose(found, net.blobs["cat"].data if expected is None else expected, rtol=1e-5, atol=1e-5)
