"""Passes without gradients join layers: every blob has the values that the layers give one by one, and fewer operations run."""

import collections
import functools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import caffe
from caffe.engine import machine
from caffe.numerics import scope
from tests.caffe.layer_checks import reseed, rng

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 dim: 9 dim: 7 } } }'


def layer(kind, name, bottoms, top, more=""):
    bottoms = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top}" {more} }}\n'


def convolution(name, bottom, outputs, more="kernel_size: 3 pad: 1", top=None):
    return layer("Convolution", name, bottom, top or name, f"convolution_param {{ num_output: {outputs} {more} }}")


def normalised(of, relu="", scale="scale_param { bias_term: true }"):
    """BatchNorm, Scale and ReLU in place."""
    text = layer("BatchNorm", f"bn_{of}", of, of) + layer("Scale", f"scale_{of}", of, of, scale)
    return text + layer("ReLU", f"relu_{of}", of, of, relu)


RESIDUAL = (
    convolution("a", "data", 6)
    + normalised("a")
    + convolution("b", "a", 6, "kernel_size: 3 pad: 1 bias_term: false")
    + layer("BatchNorm", "bn_b", "b", "b")
    + layer("Scale", "scale_b", "b", "b")
    + "{sum}"
    + layer("ReLU", "relu", "sum", "sum")
    + layer("Pooling", "pool", "sum", "pool", "pooling_param { pool: AVE global_pooling: true }")
)
NETS = {
    "batch norm, scale and ReLU": (convolution("c", "data", 8) + normalised("c"), ["c"]),
    "without bias": (convolution("c", "data", 8, "kernel_size: 3 bias_term: false") + normalised("c"), ["c"]),
    "groups, stride, dilation": (
        convolution("c", "data", 8, "kernel_size: 3 group: 2 stride: 2 dilation: 2 pad: 2") + normalised("c"),
        ["c"],
    ),
    "depthwise": (convolution("c", "data", 6, "kernel_size: 3 group: 6 pad: 1 bias_term: false") + normalised("c"), ["c"]),
    "leaky ReLU": (convolution("c", "data", 8) + normalised("c", "relu_param { negative_slope: 0.1 }"), ["c"]),
    "ReLU up to 6": (convolution("c", "data", 8) + normalised("c", "relu_param { relu6: true }"), ["c"]),
    "leaky ReLU up to 6": (
        convolution("c", "data", 8) + normalised("c", "relu_param { relu6: true negative_slope: 0.1 }"),
        ["c", "c"],
    ),
    "ReLU only": (convolution("c", "data", 8) + layer("ReLU", "r", "c", "c"), ["c"]),
    "bias layer": (convolution("c", "data", 8) + layer("Bias", "b", "c", "c") + layer("ReLU", "r", "c", "c"), ["c"]),
    "PReLU stays": (
        convolution("c", "data", 8) + layer("BatchNorm", "n", "c", "c") + layer("PReLU", "p", "c", "c"),
        ["c", "c"],
    ),
    "scale along other axes stays": (
        convolution("c", "data", 8) + layer("Scale", "s", "c", "c", "scale_param { axis: 2 num_axes: 1 }"),
        ["c", "c"],
    ),
    "not in place": (convolution("c", "data", 8) + layer("ReLU", "r", "c", "r"), ["c", "r"]),
    "pads of each side stay": (
        convolution("c", "data", 8, "kernel_size: 3 pad_l: 1 pad_t: 2") + layer("ReLU", "r", "c", "c"),
        ["c", "c"],
    ),
    "affine layers before a convolution": (
        layer("BatchNorm", "n", "data", "n")
        + layer("Scale", "s", "n", "n", "scale_param { bias_term: true }")
        + layer("ReLU", "r", "n", "n")
        + convolution("c", "n", 8),
        ["n", "c"],
    ),
    "affine layers of vectors": (
        layer("InnerProduct", "ip", "data", "ip", "inner_product_param { num_output: 5 }")
        + layer("BatchNorm", "n", "ip", "n")
        + layer("Scale", "s", "n", "n", "scale_param { bias_term: true }"),
        ["ip", "n"],
    ),
    "residual": (RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "data b", "sum")), ["a", "b+sum", "pool"]),
    "residual, the other way": (RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "b data", "sum")), ["a", "b+sum", "pool"]),
    "residual in place": (
        RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "b data", "b")).replace('"sum"', '"b"'),
        ["a", "b+b", "pool"],
    ),
    "residual with a leaky ReLU": (
        RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "b data", "sum")).replace(
            'bottom: "sum" top: "sum" ', 'bottom: "sum" top: "sum" relu_param { negative_slope: 0.1 }'
        ),
        ["a", "b+sum", "pool"],
    ),
    "residual with a ReLU up to 6": (
        RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "b data", "sum")).replace(
            'bottom: "sum" top: "sum" ', 'bottom: "sum" top: "sum" relu_param { relu6: true }'
        ),
        ["a", "b+sum", "pool"],
    ),
    "weighted sum stays": (
        RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "data b", "sum", "eltwise_param { coeff: 1 coeff: -1 }")),
        ["a", "b", "sum", "sum", "pool"],
    ),
    "maximum stays": (
        RESIDUAL.replace("{sum}", layer("Eltwise", "sum", "data b", "sum", "eltwise_param { operation: MAX }")),
        ["a", "b", "sum", "sum", "pool"],
    ),
}


def made(write, text, phase=caffe.TEST, seed="fusion", more=""):
    """A net with random parameters, among them running statistics."""
    net = caffe.Net(write("net.prototxt", f"{more}\n{INPUT}\n{text}"), phase)
    randomise(net, seed)
    return net


def randomise(net, seed):
    """Set inputs and parameters without a NumPy view, after which nothing would be kept."""
    reseed(seed)
    for name in net.inputs:
        net.blobs[name].tensor = torch.from_numpy(rng.normal(size=net.blobs[name].shape).astype(np.float32)).to(net.device)
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            values = rng.normal(size=blob.shape)
            if net.layer_dict[name].type == "BatchNorm" and index:
                values = np.abs(values) + 0.5
            blob.tensor = torch.from_numpy(values.astype(np.float32)).to(net.device)


def one_by_one(net):
    """{blob: values} of the net's layers, computed one by one."""
    for index in range(len(net.layers)):
        net._forward(index, index)
    return {name: blob.peek().copy() for name, blob in net.blobs.items()}


def joined(net, in_training=False):
    """The calls of the last whole pass that joined layers; none if no pass did."""
    found = net._runner._executor._plan(0, len(net.layers) - 1).joined.get(in_training)
    return found.calls if found else []


def calls(net, in_training=False):
    """What the last whole pass computed: the tops of each operation."""
    return ["+".join(call.tops) for call in joined(net, in_training) if call.step.layer.type != "Split"]


def values(net):
    return {name: blob.peek().copy() for name, blob in net.blobs.items()}


def assert_close(found, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-5 * max(1, np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("name", NETS)
def test_joined_layers_give_every_blob_its_values(write, name):
    text, expected_calls = NETS[name]
    net = made(write, text)
    expected = one_by_one(net)
    net._forward(0, len(net.layers) - 1)
    assert calls(net) == expected_calls
    assert_close(values(net), expected)


@pytest.mark.parametrize("name", NETS)
def test_looked_at_blobs_have_their_values_too(write, name):
    net = made(write, NETS[name][0])
    expected = one_by_one(net)
    net.forward()
    views = {name: blob.data for name, blob in net.blobs.items()}
    assert_close(views, expected)
    net.blobs["data"].data[...] *= -2
    net.forward()
    assert_close(views, {name: array.copy() for name, array in values(net).items()})
    assert_close(views, one_by_one(net))


def residual(write):
    return made(write, NETS["residual"][0])


def test_a_top_that_is_computed_later_is_that_of_the_pass(write):
    net = residual(write)
    expected = one_by_one(net)["b"]
    net.forward()
    randomise(net, "other numbers")
    np.testing.assert_allclose(net.blobs["b"].data, expected, rtol=1e-5, atol=1e-4)
    net.forward()
    assert calls(net) == ["a", "b", "sum", "sum", "pool"], "somebody looks at b"


def test_a_view_of_the_bottom_cannot_change_a_top_that_is_computed_later(write):
    net = residual(write)
    _ = net.blobs["a"].data
    expected = one_by_one(net)["b"]
    net.forward()
    net.blobs["a"].data[...] = 0
    np.testing.assert_allclose(net.blobs["b"].data, expected, rtol=1e-5, atol=1e-4)


def test_images_of_one_pixel_keep_their_values(write):
    net = made(write, NETS["residual"][0].replace("kernel_size: 3 pad: 1", "kernel_size: 1"))
    net.blobs["data"].reshape(2, 6, 1, 1)
    randomise(net, "one pixel")
    expected = one_by_one(net)
    net.forward()
    net.blobs["a"].data[...] = 0
    np.testing.assert_allclose(net.blobs["b"].data, expected["b"], rtol=1e-5, atol=1e-4)
    assert_close(values(net), {"sum": expected["sum"], "pool": expected["pool"]})


@pytest.mark.parametrize("is_viewed", [False, True])
@pytest.mark.parametrize("change", ["NumPy", "tensor", "copy_from"])
def test_changed_parameters_are_taken(write, change, is_viewed):
    net, other = residual(write), residual(write)
    randomise(other, "changed")
    if is_viewed:
        [blob.data for blobs in net.params.values() for blob in blobs]
    net.forward()
    if change == "copy_from":
        net.copy_from(other)
    for name, blobs in net.params.items():
        for blob, new in zip(blobs, other.params[name], strict=True):
            if change == "NumPy":
                blob.data[...] = new.peek()
            elif change == "tensor":
                blob.tensor = new.tensor
    net.forward()
    assert_close(values(net), one_by_one(net))


def test_a_training_is_tested_with_the_weights_that_it_has(write):
    solver = solver_of(write, normalised("c"), "test_iter: 1 test_interval: 3")
    test_net = solver.test_nets[0]
    with torch.no_grad():
        for _ in range(3):
            solver.step(3)
            test_net.forward_loss()
            found = test_net.blobs["ip"].peek().copy()
            assert any(call.joined for call in joined(test_net))
            first = test_net._layer_index("data") + 1
            for index in range(first, len(test_net.layers)):
                test_net._forward(index, index)
            np.testing.assert_allclose(found, test_net.blobs["ip"].peek(), rtol=1e-4, atol=1e-5)


def solver_of(write, after, more="", last="c"):
    """A solver of a convolution, the layers `after` it, and a classifier of the blob `last`, on random images."""
    filled = 'weight_filler { type: "xavier" }'
    shapes = "shape { dim: 4 dim: 3 dim: 8 dim: 8 } shape { dim: 4 }"
    fillers = 'data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 }'
    text = (
        f'layer {{ name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {{ {shapes} {fillers} }} }}'
        + convolution("c", "data", 6, f"kernel_size: 3 {filled}")
        + after
        + layer("InnerProduct", "ip", last, "ip", f"inner_product_param {{ num_output: 3 {filled} }}")
        + layer("SoftmaxWithLoss", "loss", "ip label", "loss")
    )
    net = write("net.prototxt", text)
    rates = 'base_lr: 0.1 momentum: 0.9 weight_decay: 0.01 lr_policy: "fixed" max_iter: 9 random_seed: 2'
    return caffe.get_solver(write("solver.prototxt", f'net: "{net}" {rates} display: 0 snapshot_after_train: false {more}'))


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.own_device
def test_folded_weights_are_computed_once(write):
    net = residual(write)
    net.forward()
    net.forward()
    with Operations() as operations:
        net._forward(0, len(net.layers) - 1)
    assert operations.counts["_convolution_pointwise"] == 2
    assert not operations.counts["_reorder_convolution_weight"]
    assert not {"mul", "add", "addcmul", "relu", "relu_", "native_batch_norm"} & set(operations.counts)


def test_reproducible_numerics_join_nothing(write):
    net = residual(write)
    expected = one_by_one(net)
    caffe.set_numerics("reproducible")
    try:
        net._forward(0, len(net.layers) - 1)
        assert not joined(net)
    finally:
        caffe.set_numerics("fp32")
    assert_close(values(net), expected)


# ---- training


AFTER = {
    "scale and bias": normalised("c"),
    "scale": normalised("c", scale=""),
    "stored statistics": normalised("c").replace('top: "c" ', 'top: "c" batch_norm_param { use_global_stats: true } ', 1),
    "a scale that is frozen": normalised("c", scale="param { lr_mult: 0 } param { lr_mult: 0 } scale_param { bias_term: true }"),
}


def assert_same_parameters(net, other):
    for name, blobs in other.params.items():
        for index, blob in enumerate(blobs):
            np.testing.assert_allclose(net.params[name][index].data, blob.data, rtol=1e-4, atol=1e-5, err_msg=f"{name}[{index}]")


@pytest.mark.parametrize("name", AFTER)
def test_a_training_with_joined_layers_learns_the_same(write, name):
    nets = []
    for one_by_one in (False, True):
        solver = solver_of(write, AFTER[name])  # seeds the generator of the images
        if one_by_one:
            solver.net.after_forward(lambda index: None)
        solver.step(4)
        nets.append(solver.net)
    together, alone = nets
    assert sum(call.joined is not None for call in joined(together, in_training=True)) == 1
    assert_same_parameters(together, alone)
    assert np.abs(alone.params["c"][0].data).max() > 0


def test_a_scale_that_is_not_of_channels_stays(write):
    after = layer("BatchNorm", "n", "c", "c") + layer("Scale", "s", "c", "c", "scale_param { axis: 2 num_axes: 1 }")
    solver = solver_of(write, after)
    solver.step(1)
    assert not any(call.joined for call in joined(solver.net, in_training=True))


def summed(after, bottoms):
    """A convolution `a`, the layers `after` it, and a sum of `bottoms` that others read."""
    filled = 'kernel_size: 1 weight_filler { type: "gaussian" std: 0.3 }'
    read = layer("ReLU", "r", "sum", "sum") + convolution("d", "sum", 2, f"{filled}")
    return convolution("a", "c", 6, filled) + after + layer("Eltwise", "sum", bottoms, "sum") + read


NORMALISED = layer("BatchNorm", "n", "a", "a") + layer("Scale", "s", "a", "a", "scale_param { bias_term: true }")
SUMS = {
    "scaled": summed(NORMALISED, "c a"),
    "scaled, first": summed(NORMALISED, "a c"),
    "not scaled": summed(layer("BatchNorm", "n", "a", "a"), "c a"),
    "normalised out of place": summed(layer("BatchNorm", "n", "a", "b"), "c b"),
    "stored statistics": summed(layer("BatchNorm", "n", "a", "a", "batch_norm_param { use_global_stats: true }"), "c a"),
    "after a layer without tops": 'layer { name: "off" type: "Silence" bottom: "c" }' + summed(NORMALISED, "c a"),
}


@pytest.mark.own_device
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_in_training_takes_the_memory_of_what_it_adds(write, name):
    def run(watched):
        solver = solver_of(write, SUMS[name])
        if watched:
            solver.net.after_forward(lambda index: None)
        solver.step(3)
        return solver.net

    together, alone = run(watched=False), run(watched=True)
    top = "b" if "out of place" in name else "a"
    assert f"{top}+sum" in calls(together, in_training=True)
    assert_close(values(together), values(alone))  # after the update, which has changed the Scale
    assert_same_parameters(together, alone)


@pytest.mark.own_device
def test_what_a_sum_adds_is_kept_once_it_was_looked_at(write):
    solver = solver_of(write, SUMS["scaled"])
    solver.step(1)
    view = solver.net.blobs["a"].data
    before = view.copy()
    solver.step(1)
    assert "a+sum" not in calls(solver.net, in_training=True)
    other = solver_of(write, SUMS["scaled"])
    other.step(2)
    assert not np.array_equal(view, before)
    np.testing.assert_allclose(view, other.net.blobs["a"].data, rtol=1e-4, atol=1e-5)


VECTORS = (
    layer("InnerProduct", "a", "data", "a", "inner_product_param { num_output: 6 weight_filler { type: 'xavier' } }")
    + layer("BatchNorm", "n", "a", "b")
    + layer("Eltwise", "sum", "b data", "c")
)


@pytest.mark.parametrize("change", ["a", "data"])
def test_values_that_a_sum_adds_are_those_of_the_pass(write, change):
    """A look at row-major values shows memory that is written later: by the user, or by the next batch."""
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 6 } } }'
    loss = layer("EuclideanLoss", "loss", "c data", "loss")
    net = write("net.prototxt", data + VECTORS + loss)
    found = []
    for watched in (False, True):
        caffe.set_random_seed(3)
        solver = caffe.get_solver(write("solver.prototxt", f'net: "{net}" base_lr: 0.1 lr_policy: "fixed"'))
        if watched:
            solver.net.after_forward(lambda index: None)
        reseed("sum")
        solver.net.blobs["data"].data[...] = rng.normal(size=(4, 6))
        solver.step(1)
        solver.net.blobs[change].data[...] = 0
        found.append(solver.net.blobs["b"].data.copy())
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_a_view_of_what_a_sum_adds_that_is_made_within_the_pass_follows(write, monkeypatch):
    solver = solver_of(write, SUMS["scaled"])
    views = []
    loss = solver.net.layers[-1]
    forward = loss.forward

    def looking(*bottoms):
        views.append(solver.net.blobs["a"].data)
        return forward(*bottoms)

    monkeypatch.setattr(loss, "forward", looking)
    solver.step(3)
    assert views[0].any()
    np.testing.assert_array_equal(views[0], solver.net.blobs["a"].data)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_bottoms_of_a_sum_that_do_not_fit_are_named(write, phase):
    other = 'layer { name: "o" type: "Input" top: "o" input_param { shape { dim: 2 dim: 6 dim: 9 dim: 7 } } }'
    net = made(write, other + convolution("a", "data", 6) + NORMALISED + layer("Eltwise", "sum", "o a", "sum"), phase)
    net.blobs["o"].reshape(2, 6, 9, 1)
    with pytest.raises(caffe.Error, match=r'layer "sum": bottoms of shapes \(2, 6, 9, .\), \(2, 6, 9, .\)'):
        net.forward_loss() if phase == caffe.TRAIN else net._forward(0, len(net.layers) - 1)


def test_images_of_another_number_of_channels_are_told(write):
    net = made(write, convolution("a", "data", 6))
    net.blobs["data"].reshape(2, 1, 9, 7)
    with pytest.raises(caffe.Error, match="to have 6 channels, but got 1"):
        net._forward(0, len(net.layers) - 1)


# ---- backward after a pass without a graph


def gradients(net, **ranges):
    net.clear_param_diffs()
    net.backward(**ranges)
    found = {(name, i): blob.diff.copy() for name, blobs in net.params.items() for i, blob in enumerate(blobs)}
    assert any(gradient.any() for gradient in found.values())
    return found


LOSS = layer("Reduction", "loss", "pool", "loss", "loss_weight: 2 reduction_param { operation: SUMSQ }")


def with_loss(write, more=""):
    return made(write, NETS["residual"][0] + LOSS, more=more)


def with_graph(write):
    return with_loss(write, "force_backward: true")


def test_the_first_backward_pass_has_the_gradients_of_a_net_with_a_graph(write):
    net, other = with_loss(write), with_graph(write)
    for _ in range(2):
        expected = (other.forward(), gradients(other))[1]
        before = (net.forward(), values(net))[1]
        found = gradients(net)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            np.testing.assert_allclose(found[key], gradient, rtol=1e-5, atol=1e-5, err_msg=str(key))
        for name, array in values(net).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        randomise(net, "next")
        randomise(other, "next")


def test_after_partial_passes_an_edit_between_them_counts(write):
    net, other = with_loss(write), with_graph(write)
    expected = None
    for each in (other, net):
        each.forward(end="relu_a")
        each.blobs["a"].data[...] = np.abs(each.blobs["a"].data) + 1
        each.forward(start="b")
        found = gradients(each, end="b")
        expected = expected or found
    for key, gradient in expected.items():
        np.testing.assert_allclose(found[key], gradient, rtol=1e-5, atol=1e-5, err_msg=str(key))


def test_data_are_not_read_again_for_a_backward_pass(write):
    text = (
        'layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } '
        'data_filler { type: "gaussian" } } }'
        + convolution("c", "data", 4, 'kernel_size: 3 weight_filler { type: "xavier" }')
        + layer("ReLU", "r", "c", "c")
        + 'layer { name: "more" type: "DummyData" top: "more" dummy_data_param { shape { dim: 2 dim: 4 dim: 3 dim: 3 } '
        'data_filler { type: "gaussian" } } }' + layer("Eltwise", "sum", "c more", "sum", "loss_weight: 1")
    )
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    net.forward()
    before = values(net)
    gradients(net)
    after = values(net)
    for name in ("data", "more", "c", "sum"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_nets_make_a_graph_at_once_where_a_gradient_is_wanted(write):
    def makes_graphs(text, phase=caffe.TEST, more=""):
        return made(write, text, phase, more=more)._runner._executor._makes_graphs

    text = NETS["residual"][0]
    by_chance = layer("BatchNorm", "n", "pool", "n", "batch_norm_param { use_global_stats: false }")
    assert not makes_graphs(text + LOSS)
    assert makes_graphs(text + LOSS, more="force_backward: true")
    assert makes_graphs(text + LOSS, caffe.TRAIN)
    assert makes_graphs(text + LOSS + by_chance)
    assert not makes_graphs(text, caffe.TRAIN), "no layer needs a gradient"
    net = residual(write)
    net.forward()
    before = values(net)
    net.backward()
    assert not any(blob.diff.any() for blobs in net.params.values() for blob in blobs)
    assert_close(values(net), before)


def test_layers_that_share_running_sums_add_to_them_one_after_the_other(write):
    shared = (
        " ".join(f'param {{ name: "s{i}" lr_mult: 0 }}' for i in range(3)) + " batch_norm_param { moving_average_fraction: 0.5 }"
    )
    text = layer("Power", "twice", "data", "twice", "power_param { scale: 2 shift: 1 }")
    text += layer("BatchNorm", "a", "data", "a", shared) + layer("BatchNorm", "b", "twice", "b", shared)
    net = caffe.Net(write("net.prototxt", f"{INPUT}\n{text}"), caffe.TRAIN)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=net.blobs["data"].shape)
    means = net.blobs["data"].data.mean((0, 2, 3))
    for _ in range(2):
        net.forward()
    once = 0.5 * means + 2 * means + 1
    np.testing.assert_allclose(net.params["a"][0].data, 0.25 * once + once, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.params["a"][2].data, 0.25 * 1.5 + 1.5)


# ---- numerics: fast


needs_bfloat16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no kernels for bfloat16")


@pytest.fixture
def fast(monkeypatch):
    """Let convolutions multiply bfloat16, whatever the processor."""
    monkeypatch.setattr(machine, "_multiplies_bfloat16", lambda device: True)
    caffe.set_numerics("fast")
    yield
    caffe.set_numerics("fp32")


@needs_bfloat16
@pytest.mark.own_device
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "name", ["batch norm, scale and ReLU", "groups, stride, dilation", "residual", "affine layers of vectors"]
)
def test_fast_multiplies_bfloat16_and_shows_float32(write, name):
    net = made(write, NETS[name][0])
    caffe.set_numerics("fp32")
    expected = one_by_one(net)
    caffe.set_numerics("fast")
    for found in (one_by_one(net), (net._forward(0, len(net.layers) - 1), values(net))[1]):
        for blob, array in expected.items():
            assert found[blob].dtype == np.float32
            np.testing.assert_allclose(found[blob], array, atol=0.03 * np.abs(array).max(), rtol=0, err_msg=blob)
    assert any(np.abs(found[blob] - array).max() > 1e-5 for blob, array in expected.items()), "nothing was rounded"


BETWEEN = {
    "ReLU": layer("ReLU", "r", "c", "last"),
    "leaky ReLU": layer("ReLU", "r", "c", "last", "relu_param { negative_slope: 0.1 }"),
    "ReLU up to 6": layer("ReLU6", "r", "c", "last"),
    "maxima": layer("Pooling", "p", "c", "last", "pooling_param { kernel_size: 3 stride: 2 }"),
    "means": layer("Pooling", "p", "c", "last", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }"),
    "responses": layer("LRN", "n", "c", "last", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 }"),
    "batch norm": layer("BatchNorm", "n", "c", "last"),
    "batch norm and scale": layer("BatchNorm", "n", "c", "last")
    + layer("Scale", "s", "last", "last", "scale_param { bias_term: true }"),
    "residual": convolution("d", "c", 6) + layer("Eltwise", "e", "c d", "last"),
    "branches": convolution("d", "c", 4) + layer("Concat", "e", "c d", "last"),
    "shuffled slices": 'layer { name: "s" type: "Slice" bottom: "c" top: "left" top: "right" }\n'
    + layer("Concat", "e", "right left", "both")
    + layer("ShuffleChannel", "m", "both", "last", "shuffle_channel_param { group: 2 }"),
    "vectors": layer("Flatten", "f", "c", "f")
    + layer("Reshape", "r", "f", "last", "reshape_param { shape { dim: 0 dim: 8 dim: -1 } }"),
}
"""Layers of which `last` is the top, between two products that pass bfloat16 to each other."""


def types_of_passes(net):
    """{blob: type in which a pass has it}, of the passes that follow."""
    types, executor = {}, net._runner._executor
    show = executor._show

    def noted(plan, values):
        types.update((name, value.dtype) for name, value in values.items() if isinstance(value, torch.Tensor))
        show(plan, values)

    executor._show = noted
    return types


@needs_bfloat16
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", BETWEEN)
def test_products_pass_bfloat16_to_each_other_in_fast(write, name):
    nets, views, types = [], [], {}
    for numerics in ("fp32", "fast"):
        caffe.set_numerics(numerics)
        solver = solver_of(write, BETWEEN[name], last="last")
        types[numerics] = types_of_passes(solver.net)
        solver.step(1)
        views.append({blob: solver.net.blobs[blob].data for blob in solver.net.blobs})
        solver.step(1)
        nets.append(solver.net)
    assert set(types["fp32"].values()) == {torch.float32}
    assert types["fast"]["last"] is torch.bfloat16
    assert types["fast"]["loss"] is torch.float32
    for blob, mine in views[0].items():
        other = views[1][blob]
        assert other.dtype == np.float32
        np.testing.assert_allclose(other, mine, atol=0.03 * np.abs(mine).max(), rtol=0, err_msg=blob)
    for layer_name, blobs in nets[0].params.items():
        for blob, other in zip(blobs, nets[1].params[layer_name], strict=True):
            np.testing.assert_allclose(
                other.diff, blob.diff, atol=0.05 * max(0.01, np.abs(blob.diff).max()), rtol=0, err_msg=layer_name
            )


@needs_bfloat16
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    "after",
    [
        layer("Power", "p", "c", "last", "power_param { power: 2 }"),
        layer("Pooling", "p", "c", "last", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        layer("LRN", "p", "c", "last", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }"),
        layer("Eltwise", "p", "c c", "last", "eltwise_param { coeff: 2 coeff: 3 }"),
        convolution("p", "c", 6, "kernel_size: 3 group: 6 weight_filler { type: 'xavier' }", top="last"),
    ],
    ids=["power", "random pooling", "responses of pixels", "weighted sum", "thin groups"],
)
def test_other_layers_take_float32_in_fast(write, after):
    solver = solver_of(write, after, last="last")
    types = types_of_passes(solver.net)
    solver.step(1)
    assert types["c"] is torch.bfloat16
    assert types["last"] is torch.float32


@needs_bfloat16
@pytest.mark.own_device
@pytest.mark.usefixtures("fast")
def test_the_maximum_of_no_pixels_is_the_lowest_float32_in_fast(write):
    net = made(write, convolution("c", "data", 6) + layer("Pooling", "p", "c", "p", "pooling_param { kernel_size: 1 stride: 5 }"))
    net._forward(0, len(net.layers) - 1)
    assert net.blobs["p"].data.min() == np.finfo(np.float32).min


def test_a_subclass_of_a_layer_that_takes_bfloat16_gets_float32():
    class Mine(caffe.layer_type("ReLU")):
        """Of a user, who may expect float32."""

    assert caffe.layer_type("ReLU").takes_bfloat16
    assert not Mine.takes_bfloat16


@needs_bfloat16
@pytest.mark.own_device
@pytest.mark.usefixtures("fast")
def test_a_look_at_the_weights_does_not_change_what_fast_multiplies(write):
    net = made(write, convolution("a", "data", 6))
    net.forward()
    before = net.blobs["a"].data.copy()
    assert net.params["a"][0].data.any()
    net.forward()
    np.testing.assert_allclose(net.blobs["a"].data, before, rtol=1e-4, atol=1e-4)


@needs_bfloat16
@pytest.mark.own_device
@pytest.mark.usefixtures("fast")
def test_fast_trains_float32_weights(write):
    nets = []
    for numerics in ("fp32", "fast"):
        caffe.set_numerics(numerics)
        solver = solver_of(write, normalised("c"))
        solver.step(2)
        nets.append(solver.net)
    for name, blobs in nets[0].params.items():
        for index, blob in enumerate(blobs):
            other = nets[1].params[name][index]
            assert other.gradient_or_zeros().dtype == torch.float32
            np.testing.assert_allclose(other.data, blob.data, atol=0.05 * max(0.1, np.abs(blob.data).max()), rtol=0, err_msg=name)


@pytest.mark.own_device
def test_a_processor_without_bfloat16_computes_in_float32_and_says_so(write, monkeypatch):
    said = []
    monkeypatch.setattr(machine.events, "fast_in_float32", lambda: said.append(True))
    monkeypatch.setattr(machine, "_multiplies_bfloat16", functools.cache(machine._multiplies_bfloat16.__wrapped__))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    monkeypatch.setattr(scope, "_ON_CPU", ())  # a setting that such a processor does not follow
    net = made(write, NETS["residual"][0])
    net.forward()
    expected = values(net)
    caffe.set_numerics("fast")
    try:
        for _ in range(2):
            net._forward(0, len(net.layers) - 1)
    finally:
        caffe.set_numerics("fp32")
    for name, array in values(net).items():
        np.testing.assert_array_equal(array, expected[name])
    assert said == [True]
