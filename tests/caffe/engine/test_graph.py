"""NetGraph: versions, producers, readers and ancestors of blobs, also for prototxts that are not built."""

import pytest
from google.protobuf import text_format

import caffe
from caffe.engine.graph import Value
from caffe.proto import caffe_pb2
from tests.conftest import SHARED, needs_shared

BRANCHES = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" }
layer { name: "side" type: "Power" bottom: "conv" top: "side" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "slice" type: "Slice" bottom: "conv" top: "a" top: "b" }
layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "side" bottom: "b" top: "sum" }
"""


@pytest.fixture
def graph():
    return caffe.NetGraph(text_format.Parse(BRANCHES, caffe_pb2.NetParameter()).layer)


def names(layers):
    return [layer.name for layer in layers]


def test_an_in_place_layer_makes_a_new_version_of_its_blob(graph):
    assert graph.tops[0] == [Value("conv", 0, 0)]
    assert graph.bottoms[2] == graph.bottoms[1] == graph.tops[0]
    assert graph.bottoms[3] == graph.tops[2] == [Value("conv", 2, 0)]
    assert graph.last["conv"] == Value("conv", 3, 0)


def test_a_blob_without_a_producer_has_no_value(graph):
    assert graph.bottoms[0] == [None]
    assert "data" not in graph.last


def test_readers_are_listed_by_layer_and_bottom_index(graph):
    assert graph.readers[Value("conv", 0, 0)] == [(1, 0), (2, 0)]
    assert graph.readers[Value("b", 4, 1)] == [(5, 0), (5, 2)]
    assert graph.readers[Value("sum", 5, 0)] == []


def test_outputs_are_the_unread_last_versions(graph):
    assert graph.outputs() == [Value("a", 4, 0), Value("sum", 5, 0)]


def test_ancestors_of_a_blob_version_exclude_later_in_place_layers(graph):
    assert names(graph.leading_to("side")) == ["conv", "side"]
    assert names(graph.leading_to("conv")) == ["conv", "relu", "drop"]
    assert names(graph.leading_to(Value("conv", 2, 0))) == ["conv", "relu"]
    assert names(graph.leading_to("sum")) == ["conv", "side", "relu", "drop", "slice", "sum"]
    assert graph.leading_to("data") == []


def test_tracing_back_follows_first_bottoms(graph):
    assert names(graph.layers[value.layer] for value in graph.back_from(graph.last["sum"])) == names(
        graph.layers[index] for index in (5, 4, 3, 2, 0)
    )


def test_read_after_gives_the_values_still_needed_after_a_layer(graph):
    assert graph.read_after(0) == {Value("conv", 0, 0)}
    assert graph.read_after(2) == {Value("conv", 2, 0), Value("side", 1, 0)}
    assert graph.read_after(5) == set()


@needs_shared
@pytest.mark.parametrize("path", ["bvlc/models/bvlc_googlenet/train_val.prototxt", "resnet50/deploy.prototxt"])
def test_the_graph_of_a_published_net_is_consistent(path):
    net = caffe.read_net(SHARED / "zoo" / path)
    graph = caffe.NetGraph(layer for layer in net.layer if layer.bottom)
    for index, (bottoms, layer) in enumerate(zip(graph.bottoms, graph.layers, strict=True)):
        for slot, (value, name) in enumerate(zip(bottoms, layer.bottom, strict=True)):
            if value:
                assert graph.layers[value.layer].top[value.top] == name == value.blob
                assert value.layer < index
                assert (index, slot) in graph.readers[value]
            else:
                assert name in ("data", "label")


BUILT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 2 dim: 2 } } }
layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }
layer { name: "drop" type: "Dropout" bottom: "relu" top: "relu" }
layer { name: "side" type: "Power" bottom: "relu" top: "side" }
layer { name: "sum" type: "Eltwise" bottom: "relu" bottom: "data" bottom: "data" top: "sum" }
"""


def test_in_the_graph_of_a_built_net_splits_give_each_value_one_reader(write):
    net = caffe.Net(write("net.prototxt", BUILT), caffe.TEST)
    assert sum(layer.type == "Split" for layer in net.layers) == 2
    assert all(len(readers) < 2 for readers in net.graph.readers.values())
    assert sorted(value.blob for value in net.graph.outputs()) == net.outputs == ["side", "sum"]
