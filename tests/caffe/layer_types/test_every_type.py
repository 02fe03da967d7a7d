"""Every layer type has a test, and its declared facts agree with its parameters and with what it computes."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from tests.caffe import layer_checks
from tests.caffe.engine import test_gradients
from tests.caffe.layer_types import test_data_layers, test_recordings

MODULES = (
    *(f"layer_types.{path.stem}" for path in sorted(Path(__file__).parent.glob("test_*.py"))),
    *("engine.test_python_layer", "test_pycaffe"),
)
TYPES = caffe.layer_type_list()
ALSO = "annotated_data_param", "extended_image_data_param", "normalize_param", "relu6_param"
"""Fields that types have besides their settings, in forks."""


def test_every_layer_type_has_a_test():
    """A recording, a case of test_gradients, or a test decorated with `exercises`."""
    for module in MODULES:
        importlib.import_module(f"tests.caffe.{module}")
    recorded = {str(name) for path in test_recordings.LAYERS for name in np.load(path)["layer_types"]}
    for path in test_data_layers.BATCHES:
        recorded |= set(str(np.load(path)["prototxt"]).split('"'))
    assert set(TYPES) - recorded - set(test_gradients.CASES) - layer_checks.EXERCISED == set()
    assert set(TYPES) >= layer_checks.EXERCISED | set(test_gradients.CASES)


def test_a_test_that_computes_another_type_than_declared_fails(write):
    @layer_checks.exercises("ReLU6")
    def mislabelled_test(write):
        layer_checks.make_net(write, 'type: "ReLU"', [(1, 2)]).forward()

    with pytest.raises(AssertionError):
        mislabelled_test(write=write)


@pytest.mark.parametrize("name", TYPES)
def test_the_declared_facts_of_a_type_are_consistent(name):
    kind = caffe.layer_type(name)
    fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
    settings = fields[kind.settings_field].message_type.fields_by_name if kind.settings_field else {}
    own = {field for field in fields if field.removesuffix("_param").replace("_", "") == name.lower()}
    own -= {caffe.layer_type(other).settings_field for other in TYPES if other.lower() == name.lower()} - {kind.settings_field}
    assert own <= {kind.settings_field, *ALSO}
    param = caffe_pb2.LayerParameter(name="layer", type=name, bottom=["x"])
    assert kind.has_statistics(param) <= (kind.normalizes_batch and kind.statistics_setting in settings)
    assert kind.is_linear <= {"num_output", "bias_term", "axis"}.issubset(settings)
    assert kind.is_classifier <= (kind.is_linear and not kind.is_transposed)
    assert kind.is_affine <= ("axis" in settings)
    assert bool(kind.reads) <= kind.is_source
    assert kind.drawn_as in ("", "convolution", "pooling", "inner product", "arrangement", "loss")


@pytest.mark.parametrize("name", [name for name in TYPES if caffe.layer_type(name).has_statistics(caffe_pb2.LayerParameter())])
def test_frozen_statistics_are_not_updated(name):
    kind, param = caffe.layer_type(name), caffe_pb2.LayerParameter(name="layer", type=name)
    assert kind.updates_statistics(param)
    kind.freeze_statistics(param)
    assert not kind.updates_statistics(param)
    assert kind.settings_of(param) == getattr(param, kind.settings_field)


@pytest.mark.parametrize(
    ("name", "parameters", "bottoms"),
    [(name, *case) for name, cases in test_gradients.CASES.items() if caffe.layer_type(name).is_elementwise for case in cases],
)
def test_an_elementwise_layer_commutes_with_permutation(name, parameters, bottoms, write):
    tops = []
    order = np.random.default_rng(0).permutation(np.prod(bottoms[0]))
    values = [np.random.default_rng(number).uniform(0.1, 0.9, np.prod(shape)) for number, shape in enumerate(bottoms)]
    for arranged in (values, [one[order] for one in values]):
        net = layer_checks.make_net(write, f'type: "{name}" {parameters}', bottoms, caffe.TEST)
        for number, one in enumerate(arranged):
            net.blobs[f"x{number}"].data[...] = one.reshape(bottoms[number])
        tops.append(net.forward()["y0"].copy().ravel())
    np.testing.assert_allclose(tops[0][order], tops[1], rtol=1e-6)
