"""Drawing nets: the content of the graph, and its output with and without Graphviz."""

import shutil

import pytest
from google.protobuf import text_format

import caffe
from caffe import draw
from caffe.proto import caffe_pb2
from tests.conftest import SHARED, needs_shared

NET = """
name: "a \\"net\\""
layer { name: "data" type: "Data" top: "data" top: "label" data_param { batch_size: 32 } include { phase: TRAIN } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 3 }
  convolution_param { num_output: 20 kernel_size: 5 kernel_size: 3 stride: 2 group: 4 } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_h: 2 kernel_w: 4 } }
layer { name: "relu" type: "ReLU" bottom: "pool" top: "pool" }
layer { name: "<ip>" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" exclude { phase: TRAIN } }
"""


@pytest.fixture
def net():
    return text_format.Parse(NET, caffe_pb2.NetParameter())


def test_layers_and_blobs_are_nodes_and_edges_are_labelled_with_outputs(net):
    graph = draw.get_pydot_graph(net, "LR")
    assert graph.nodes["conv_Convolution"]["label"] == (
        "conv(Convolution)\\nkernel size: 5×3\\nstride: 2\\npad: 0\\ndilation: 1\\ngroup: 4"
    )
    assert graph.nodes["pool_Pooling"]["label"] == "pool(AVE Pooling)\\nkernel size: 2×4\\nstride: 1\\npad: 0"
    assert graph.nodes["relu_ReLU"]["fillcolor"] == draw.NEURON_LAYER_STYLE["fillcolor"]
    assert graph.nodes["ip_blob"] == {**draw.BLOB_STYLE, "label": "ip"}
    labels = {(source, target): label["label"] for source, target, label in graph.edges}
    assert labels["data_Data", "data_blob"] == "Batch 32"
    assert labels["conv_Convolution", "conv_blob"] == "20"
    assert labels["<ip>_InnerProduct", "ip_blob"] == "10"
    assert labels["pool_blob", "<ip>_InnerProduct"] == ""
    assert not any(label["label"] for _, _, label in draw.get_pydot_graph(net, "LR", label_edges=False).edges)


@pytest.mark.parametrize(("phase", "layers"), [(None, {"data", "acc"}), (caffe.TRAIN, {"data"}), (caffe.TEST, {"acc"})])
def test_a_phase_excludes_layers_of_the_other_phase(net, phase, layers):
    nodes = draw.get_pydot_graph(net, "LR", phase=phase).nodes
    assert {name for name, node in (("data", "data_Data"), ("acc", "acc_Accuracy")) if node in nodes} == layers


def test_a_top_to_bottom_graph_has_one_line_labels_and_optional_lr_mult(net):
    label = draw.get_pydot_graph(net, "TB", display_lrm=True).nodes["conv_Convolution"]["label"]
    assert "\\n" not in label
    assert label.endswith("group: 4 lr_mult: 3")


def test_a_graph_has_the_create_and_write_methods_of_pydot(net, tmp_path):
    graph = draw.get_pydot_graph(net, "LR")
    graph.write(tmp_path / "net")
    graph.write_dot(str(tmp_path / "net.dot"))
    for path in (tmp_path / "net", tmp_path / "net.dot"):
        assert path.read_bytes() == graph.create_dot() == draw.draw_net(net, "LR", "dot")
    assert not hasattr(graph, "write_")
    assert not hasattr(graph, "absent")


def test_names_are_quoted_for_graphviz(net):
    text = draw.draw_net(net, "LR", "dot").decode()
    assert text.startswith('digraph "a \\"net\\"" {\nrankdir=LR;\n')
    assert '"<ip>_InnerProduct" [shape="record"' in text
    assert 'label="\\<ip\\>(InnerProduct)"' in text
    assert text.count(" -> ") == sum(len(layer.bottom) + len(layer.top) for layer in net.layer)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program(script) makes `script` the program dot, the only one on PATH."""

    def make(script: str) -> None:
        path = tmp_path / "bin" / "dot"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))

    return make


def test_other_formats_are_made_by_graphviz(net, program, tmp_path):
    program('while read -r line; do [ "$line" = "}" ] && echo "drawn as $1"; done')
    draw.draw_net_to_file(net, str(tmp_path / "net.svg"))
    assert (tmp_path / "net.svg").read_text() == "drawn as -Tsvg\n"


def test_a_failing_graphviz_is_an_error_and_leaves_no_file(net, program, tmp_path):
    program("echo no such format >&2; exit 1")
    with pytest.raises(caffe.Error) as error:
        draw.draw_net_to_file(net, str(tmp_path / "net.xyz"))
    assert error.value.found == "dot cannot make xyz: no such format"
    assert not (tmp_path / "net.xyz").exists()


def test_without_graphviz_the_error_says_what_to_install(net, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(caffe.Error) as error:
        draw.draw_net(net, "LR")
    assert "install Graphviz" in error.value.do
    draw.draw_net_to_file(net, str(tmp_path / "net.dot"))
    assert (tmp_path / "net.dot").read_bytes() == draw.draw_net(net, "LR", "dot")
    with pytest.raises(caffe.Error, match="no suffix"):
        draw.draw_net_to_file(net, str(tmp_path / "net"))


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_svg_and_png(net):
    assert draw.draw_net(net, "LR", "svg").count(b'class="edge"') == 13
    assert draw.draw_net(net, "LR")[:4] == b"\x89PNG"


def test_layer_types_of_one_colour_belong_to_one_group():
    groups = {}
    for name in caffe.layer_type_list():
        groups.setdefault(draw.choose_color_by_layertype(name), set()).add(caffe.layer_type(name).drawn_as)
    del groups[draw.LAYER_STYLE_DEFAULT["fillcolor"]]
    assert sorted(map(sorted, groups.values())) == [["convolution"], ["inner product"], ["pooling"]]


@needs_shared
def test_every_published_net_can_be_drawn():
    for path in sorted((SHARED / "zoo/bvlc").rglob("*.prototxt")):
        if "solver" not in path.name:
            net = caffe.read_net(str(path))
            nodes = draw.get_pydot_graph(net, "LR").nodes
            assert {f"{layer.name}_{layer.type}" for layer in net.layer} <= set(nodes)
