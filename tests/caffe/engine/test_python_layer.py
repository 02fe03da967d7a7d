"""Python layers: forward and backward within a net, parameters, in-place use, as data sources, and errors."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import exercises


class SquaredDistance(caffe.Layer):
    """Half the mean over the batch of the squared distance of two bottoms: Caffe's EuclideanLoss."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise ValueError("two bottoms are wanted")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise ValueError("the bottoms must have as many values")
        self.difference = np.zeros(bottom[0].shape, np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2

    def backward(self, top, propagate_down, bottom):
        for index, sign in ((0, 1), (1, -1)):
            if propagate_down[index]:
                bottom[index].diff[...] = top[0].diff[0] * sign * self.difference / bottom[index].num


class Countdown(caffe.Layer):
    """A data source: both the value and the size of its batches decrease by one each time."""

    def setup(self, bottom, top):
        self.value = int(self.param_str)

    def reshape(self, bottom, top):
        top[0].reshape(max(1, self.value), 2)

    def forward(self, bottom, top):
        top[0].data[...] = self.value
        self.value -= 1

    def backward(self, top, propagate_down, bottom):
        raise AssertionError("a source has no gradient")

    def set_value(self, value):
        self.value = value


class Gain(caffe.Layer):
    """y = gain · x with a learned gain for each channel."""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].channels)
        self.blobs[0].data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data * self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += (top[0].diff * bottom[0].data).sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff * self.blobs[0].data


class Double(caffe.Layer):
    """y = 2 x, in place or not."""

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = 2 * bottom[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = 2 * top[0].diff


class Phase(caffe.Layer):
    """A scalar: the phase."""

    def reshape(self, bottom, top):
        top[0].reshape()

    def forward(self, bottom, top):
        top[0].data[()] = self.phase


class Recorder(caffe.Layer):
    """A layer without tops that records the sums of its bottom."""

    seen = ()

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        self.seen = (*self.seen, float(bottom[0].data.sum()))


def python(layer, bottoms="", tops="y", extra="", param_str=""):
    """A Python layer of this module as prototxt; `bottoms` and `tops` are names with spaces between."""
    blobs = "".join(f' bottom: "{name}"' for name in bottoms.split()) + "".join(f' top: "{name}"' for name in tops.split())
    return (
        f'layer {{ name: "{layer.lower()}" type: "Python"{blobs} {extra}'
        f' python_param {{ module: "{__name__}" layer: "{layer}" param_str: "{param_str}" }} }}\n'
    )


INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 3 } } }\n'
TARGET = 'layer { name: "t" type: "Input" top: "t" input_param { shape { dim: 4 dim: 3 } } }\n'
PRODUCT = (
    'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"'
    ' inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }\n'
)


def forward_backward(path):
    net = caffe.Net(path, caffe.TRAIN)
    net.forward()
    net.backward()
    return net


def values(seed):
    return np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


def test_a_euclidean_loss_in_python_equals_caffes(write):
    nets = []
    for loss in (
        python("SquaredDistance", "ip t", "loss", "loss_weight: 3"),
        'layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" loss_weight: 3 }',
    ):
        caffe.set_random_seed(1)
        net = caffe.Net(write("net.prototxt", INPUT + TARGET + PRODUCT + loss), caffe.TRAIN)
        net.blobs["x"].data[...], net.blobs["t"].data[...] = values(0), values(1)
        net.forward()
        net.backward()
        nets.append(net)
    ours, caffes = nets
    assert float(ours.blobs["loss"].data[0]) == pytest.approx(float(caffes.blobs["loss"].data), rel=1e-6)
    assert caffes.params["ip"][0].diff.any()
    for mine, theirs in zip(ours.params["ip"], caffes.params["ip"], strict=True):
        np.testing.assert_allclose(mine.diff, theirs.diff, rtol=1e-5)


@exercises("Python")
def test_a_python_source_sets_the_batch_size(write):
    net = caffe.Net(write("net.prototxt", python("Countdown", tops="x", param_str="3") + PRODUCT), caffe.TEST)
    assert net.blobs["x"].shape == (3, 2)
    for value in (3, 2, 1):
        assert net.forward(blobs=["x"])["x"].tolist() == [[value] * 2] * value
        assert net.blobs["ip"].shape == (value, 3)


def test_restoring_a_solver_seeks_a_python_source_to_its_position(write, tmp_path):
    class Records(Countdown):
        batch_size = 5

        def seek(self, position):
            self.value = position

    globals()["Records"] = Records
    write("net.prototxt", python("Records", tops="x", param_str="3") + PRODUCT)
    text = f'net: "{tmp_path}/net.prototxt" snapshot_prefix: "{tmp_path}/run" lr_policy: "fixed" iter_size: 2'
    solver = caffe.get_solver(write("solver.prototxt", text))
    solver.iter = 4
    solver.snapshot()
    solver.restore(tmp_path / "run_iter_4.solverstate")
    assert solver.net.layers[0].value == 4 * 2 * 5


def test_closing_a_net_closes_its_python_source(write):
    class Open(Countdown):
        closed = 0

        def close(self):
            self.closed += 1

    globals()["Open"] = Open
    net = caffe.Net(write("net.prototxt", python("Open", tops="x", param_str="3") + PRODUCT), caffe.TEST)
    assert net.layers[0].closed == 0
    net.close()
    assert net.layers[0].closed == 1


def test_a_learned_parameter_is_trained_saved_and_loaded(write, tmp_path):
    text = INPUT + TARGET + python("Gain", "x") + python("SquaredDistance", "y t", "loss", "loss_weight: 1")
    path = write("net.prototxt", text)
    solver = caffe.get_solver(
        write("solver.prototxt", f'net: "{path}" base_lr: 0.2 lr_policy: "fixed" solver_mode: CPU max_iter: 200')
    )
    gains = np.array([3, -2, 0.5], np.float32)
    solver.net.blobs["x"].data[...], solver.net.blobs["t"].data[...] = values(0), values(0) * gains
    solver.step(200)
    np.testing.assert_allclose(solver.net.params["gain"][0].data, gains, atol=1e-3)
    solver.net.save(tmp_path / "a.caffemodel")
    net = caffe.Net(path, caffe.TEST, weights=str(tmp_path / "a.caffemodel"))
    np.testing.assert_array_equal(net.params["gain"][0].data, solver.net.params["gain"][0].data)


def test_parameter_gradients_of_a_python_layer_accumulate_until_cleared(write):
    net = caffe.Net(write("net.prototxt", "force_backward: true " + INPUT + python("Gain", "x")), caffe.TRAIN)
    net.blobs["x"].data[...] = values(0)
    net.forward()
    net.blobs["y"].diff[...] = 1
    for times in (1, 2):
        net.backward()
        np.testing.assert_allclose(net.params["gain"][0].diff, times * values(0).sum(0), rtol=1e-5)


def test_backward_is_called_even_for_a_gradient_of_zero(write):
    class Counter(Double):
        calls = 0

        def backward(self, top, propagate_down, bottom):
            Counter.calls += 1
            assert not top[0].diff.any()

    globals()["Counter"] = Counter
    forward_backward(write("net.prototxt", "force_backward: true " + INPUT + python("Counter", "x")))
    assert Counter.calls == 1


@pytest.mark.parametrize("bottom_lr", [0, 1])
def test_backward_is_called_only_if_a_layer_below_learns(write, bottom_lr):
    wanted = []

    class Asked(Double):
        def backward(self, top, propagate_down, bottom):
            wanted.append(propagate_down)
            super().backward(top, propagate_down, bottom)

    globals()["Asked"] = Asked
    product = PRODUCT.replace('top: "ip"', f'top: "ip" param {{ lr_mult: {bottom_lr} }} param {{ lr_mult: {bottom_lr} }}')
    text = INPUT + TARGET + product + python("Asked", "ip") + python("SquaredDistance", "y t", "loss", "loss_weight: 1")
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    net.blobs["x"].data[...] = 1
    net.forward()
    net.backward()
    assert wanted == [[True]] * bottom_lr
    assert net.params["ip"][0].diff.any() == bool(bottom_lr)


def test_chained_python_layers_work_in_place_and_after_a_reshape(write):
    text = "force_backward: true " + INPUT + python("Double", "x", "y") + python("Double", "y", "y").replace("double", "again")
    net = caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    net.blobs["x"].reshape(2, 5, 1)
    net.blobs["x"].data[...] = 3
    assert net.forward()["y"].tolist() == np.full((2, 5, 1), 12.0).tolist()
    net.blobs["y"].diff[...] = 5
    assert net.backward()["x"].tolist() == np.full((2, 5, 1), 20.0).tolist()


@pytest.mark.parametrize("top", ["y", "ip"])
def test_an_in_place_layer_may_follow_a_python_layer(write, top):
    """Gradients through Double (in place where its top is "ip"), ReLU in place and Double again."""
    relu = f'layer {{ name: "relu" type: "ReLU" bottom: "{top}" top: "{top}" }}\n'
    text = "force_backward: true " + INPUT + PRODUCT + python("Double", "ip", top) + relu
    net = caffe.Net(write("net.prototxt", text + python("Double", top, "z").replace("double", "again")), caffe.TRAIN)
    net.blobs["x"].data[...] = values(0)
    net.params["ip"][0].data[...] = np.eye(3)
    np.testing.assert_allclose(net.forward()["z"], 4 * np.maximum(values(0), 0), rtol=1e-6)
    net.blobs["z"].diff[...] = 1
    np.testing.assert_allclose(net.backward()["x"], 4.0 * (values(0) > 0), rtol=1e-6)


def test_a_python_layer_sees_the_previous_values_of_its_top(write):
    class Steps(Double):
        def forward(self, bottom, top):
            top[0].data[...] += 1

    globals()["Steps"] = Steps
    net = caffe.Net(write("net.prototxt", INPUT + python("Steps", "x")), caffe.TEST)
    first = net.forward()["y"].copy()
    second = net.forward()["y"].copy()
    assert (first[0, 0], second[0, 0]) == (1, 2)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_a_layer_knows_its_phase(write, phase):
    assert caffe.Net(write("net.prototxt", python("Phase")), phase).forward()["y"] == phase


@pytest.mark.parametrize(("phase", "name"), [(caffe.TRAIN, "TRAIN"), (caffe.TEST, "TEST")])
def test_a_phase_is_an_integer_whose_str_is_its_name(write, phase, name):
    layer = caffe.Net(write("net.prototxt", python("Phase")), phase).layers[0].written
    assert str(layer.phase) == name
    assert [caffe.TRAIN, caffe.TEST][layer.phase] == phase


def test_a_layer_without_tops_is_run(write):
    net = caffe.Net(write("net.prototxt", INPUT + python("Recorder", "x", "")), caffe.TEST)
    net.blobs["x"].data[...] = 1
    net.forward()
    assert net.layers[1].seen == (12.0,)


def test_attributes_of_a_python_layer_are_reachable_through_the_net(write):
    net = caffe.Net(write("net.prototxt", python("Countdown", tops="x", param_str="3")), caffe.TEST)
    layer = net.layers[0]
    layer.set_value(7)
    assert (layer.type, layer.param_str, layer.phase, layer.value, layer.written.value) == ("Python", "3", caffe.TEST, 7, 7)
    layer.value = 2
    assert net.forward()["x"].shape == (2, 2)


@pytest.mark.parametrize("method", ["setup", "reshape", "forward", "backward"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ZeroDivisionError])
def test_an_exception_of_a_python_layer_keeps_its_traceback_and_names_the_layer(write, method, kind):
    def fail(self, *_):
        raise kind("mine")

    globals()["Failing"] = type("Failing", (Double,), {method: fail})
    path = write("net.prototxt", "force_backward: true\n" + INPUT + python("Failing", "x"))
    with pytest.raises(kind) as error:
        forward_backward(path)
    assert error.traceback[-1].name == "fail"
    (note,) = error.value.__notes__
    assert note.endswith(f'net.prototxt:3: layer "failing": in Failing.{method}')


def test_a_missing_method_is_named(write):
    globals()["Bare"] = type("Bare", (caffe.Layer,), {})
    with pytest.raises(NotImplementedError, match="Bare has no reshape"):
        caffe.Net(write("net.prototxt", INPUT + python("Bare", "x")), caffe.TEST)


def test_a_missing_class_or_module_is_an_error_with_the_nearest_name(write, monkeypatch, tmp_path):
    with pytest.raises(caffe.LayerError) as error:
        caffe.Net(write("net.prototxt", INPUT + python("Doubl", "x")), caffe.TEST)
    assert 'did you mean "Double"' in error.value.do
    with pytest.raises(caffe.LayerError) as error:
        caffe.Net(write("net.prototxt", INPUT + python("Double", "x").replace(__name__, "absent_module")), caffe.TEST)
    assert error.value.found == 'no module "absent_module"'
    assert "PYTHONPATH" in error.value.do
    Path(tmp_path / "needs_another.py").write_text("import absent_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError) as missing:
        caffe.Net(write("net.prototxt", INPUT + python("Double", "x").replace(__name__, "needs_another")), caffe.TEST)
    assert 'layer "double": in module needs_another' in missing.value.__notes__[0]


def test_a_class_that_is_not_a_layer_is_refused(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "not_layers", types.SimpleNamespace(Double=dict))
    with pytest.raises(caffe.LayerError) as error:
        caffe.Net(write("net.prototxt", INPUT + python("Double", "x").replace(__name__, "not_layers")), caffe.TEST)
    assert error.value.expected == "it must be a class derived from caffe.Layer"


OF_PYTHON_2 = {
    'print "hello"': r"convert it by `2to3 -w .*of_2_0\.py` \(of Python 3\.12 or earlier\)",
    "import cPickle": "write `import pickle`",
    "self.d = {}.has_key(1)": "write `key in d`",
    "[k for k in xrange(3)]": "xrange is Python 2's: write range",
    "[0, 1][4 / 4]": "/ of integers gave an integer: write //",
    "range(4 / 2)": "/ of integers gave an integer: write //",
    "import yaml; yaml.load('a: 1')": r"write `yaml\.safe_load",
    f"if True:\n{' ' * 16}pass\n\t\tpass": r"by `expand -t 8 .*of_2_7\.py > new\.py",
    "import nothing_of_the_sort": "",
    "1 / 0": "",
}


@pytest.mark.parametrize("line", OF_PYTHON_2)
def test_a_layer_of_python_2_is_told_what_to_write_today(write, tmp_path, monkeypatch, line):
    said = OF_PYTHON_2[line]
    name = f"of_2_{list(OF_PYTHON_2).index(line)}"
    (tmp_path / f"{name}.py").write_text(
        f"import caffe\nclass L(caffe.Layer):\n    def setup(self, bottom, top):\n        {line}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = f"""input: "x" input_shape {{ dim: 1 }}
    layer {{ name: "p" type: "Python" bottom: "x" top: "y" python_param {{ module: "{name}" layer: "L" }} }}"""
    with pytest.raises((SyntaxError, ImportError, AttributeError, NameError, TypeError, ZeroDivisionError)) as error:
        caffe.Net(write("net.prototxt", text), caffe.TEST)
    notes = error.value.__notes__
    assert 'layer "p": in ' in notes[0]
    assert re.search(said, notes[1]) if said else len(notes) == 1, notes
