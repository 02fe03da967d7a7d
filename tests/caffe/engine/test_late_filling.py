"""Large random parameters are drawn when they are first looked at, and get the numbers that they would have got at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import caffe
from caffe.engine import fillers, mode
from caffe.engine.parameter import Parameter
from caffe.proto import caffe_pb2

FILLERS = [
    {"type": "uniform", "min": -2, "max": 3},
    {"type": "gaussian", "mean": 1, "std": 0.5},
    {"type": "xavier"},
    {"type": "msra", "variance_norm": caffe_pb2.FillerParameter.AVERAGE},
]
NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 300 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a"
  inner_product_param { num_output: 301 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b"
  inner_product_param { num_output: 302 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "b" top: "drop" }
"""


@pytest.fixture
def drawn(monkeypatch):
    """The shapes of the tensors that have been filled late."""
    shapes = []
    fill = fillers.Distribution.fill

    def noted(self, tensor, generator):
        shapes.append(tuple(tensor.shape))
        fill(self, tensor, generator)

    monkeypatch.setattr(fillers.Distribution, "fill", noted)
    return shapes


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FILLERS), st.sampled_from([1, 2, 3]), st.integers(0, 5), st.integers(0, 9))
def test_numbers_and_those_after_them_are_the_same(fields, pieces, more, skipped):
    filler, shape = caffe_pb2.FillerParameter(**fields), (pieces, fillers.AT_ONCE + more)
    caffe.set_random_seed(5)
    mode.generator.raw(skipped)
    at_once = torch.empty(shape)
    fillers.fill(at_once, filler, "")
    after = mode.generator.random(3)

    caffe.set_random_seed(5)
    mode.generator.raw(skipped)
    fill = fillers.later(shape, filler)
    np.testing.assert_array_equal(mode.generator.random(3), after)
    found = torch.empty(shape)
    fill(found)
    assert torch.equal(found, at_once)


def test_small_sparse_and_other_fillers_fill_at_once():
    large = (2, fillers.AT_ONCE)
    assert fillers.later((2, 3), caffe_pb2.FillerParameter(type="xavier")) is None
    assert fillers.later(large, caffe_pb2.FillerParameter(type="gaussian", sparse=3)) is None
    assert fillers.later(large, caffe_pb2.FillerParameter(type="constant", value=3)) is None


@pytest.mark.parametrize(
    "look",
    [
        lambda blob: blob.data,
        lambda blob: blob.tensor,
        lambda blob: blob.leaf,
        lambda blob: blob.diff,
        lambda blob: blob.peek(),
        lambda blob: blob.reshape(2, 2),
    ],
)
def test_a_look_fills_once(look, drawn):
    blob = Parameter((3, 4))
    blob.fill_later(lambda tensor: (drawn.append(()), tensor.fill_(7)))
    assert not drawn
    look(blob)
    assert (blob.data == 7).all()
    blob.data[0, 0] = 1
    look(blob)
    assert blob.data[0, 0] == 1
    assert len(drawn) == 1


def test_assigned_values_stay_and_wrong_ones_change_nothing(drawn):
    blob = Parameter((3, 4))
    blob.fill_later(lambda tensor: tensor.fill_(7))
    with pytest.raises(RuntimeError):
        blob.tensor = torch.zeros(5, 4)
    assert (blob.data == 7).all()
    other = Parameter((3, 4))
    other.fill_later(lambda tensor: tensor.fill_(7))
    other.tensor = torch.ones(3, 4)
    assert (other.data == 1).all()


def test_weights_from_a_file_are_not_drawn_before_and_what_is_drawn_after_is_the_same(write, tmp_path, drawn):
    path, weights = write("net.prototxt", NET), str(tmp_path / "net.caffemodel")
    caffe.set_random_seed(1)
    net = caffe.Net(path, caffe.TRAIN)
    caffe.set_random_seed(1)
    net.save(weights)
    assert len(drawn) == 2

    drawn.clear()
    loaded = caffe.Net(path, weights, caffe.TRAIN)
    x = np.random.default_rng(0).random((2, 300), np.float32)
    found = loaded.forward(x=x)["drop"].copy()
    assert not drawn
    caffe.set_random_seed(1)
    other = caffe.Net(path, caffe.TRAIN)
    np.testing.assert_array_equal(other.forward(x=x)["drop"], found)
    assert len(drawn) == 2
