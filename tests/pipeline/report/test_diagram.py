"""Diagrams of nets: a box for each layer, with in-place layers and shapes, and no edges from labels."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

import caffe
from pipeline.nets import models
from pipeline.nets.models import Last
from pipeline.report.diagram import Box, boxes, drawn, main, of_phase, shapes_of
from tests.conftest import SHARED, needs_shared

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  data_param { source: "nowhere" batch_size: 64 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "nowhere" batch_size: 1 backend: LMDB } }
layer { name: "conv <1>" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 stride: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "side" type: "InnerProduct" bottom: "conv" top: "side" inner_product_param { num_output: 5 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "loss1" type: "SoftmaxWithLoss" bottom: "side" bottom: "label" top: "loss1" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" include { phase: TEST } }
"""


def test_each_layer_has_a_box_with_its_shape_and_in_place_layers(write):
    net = of_phase(caffe.read_net(write("net.prototxt", NET)), caffe.TRAIN)
    made = boxes(net, shapes_of(net, (3, 9, 9), caffe.TRAIN))
    assert made == [
        Box("data", "Data", "", "3×9×9", []),
        Box("conv <1>", "Convolution", "3×3 /2", "4×4×4", [0], ["ReLU", "Dropout"]),
        Box("pool", "Pooling", "global", "4×1×1", [1]),
        Box("side", "InnerProduct", "", "5", [1]),
        Box("fc", "InnerProduct", "", "5", [2]),
        Box("loss1", "SoftmaxWithLoss", "", "", [3]),
        Box("loss", "SoftmaxWithLoss", "", "", [4]),
    ]


def test_the_diagram_is_an_svg_with_searchable_text(write, tmp_path):
    main([write("net.prototxt", NET), str(tmp_path / "net.svg"), "--image", "3", "9", "9", "--phase", "test"])
    root = ElementTree.parse(tmp_path / "net.svg").getroot()
    said = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"conv <1>", "Convolution 3×3 /2", "ReLU · Dropout", "4×4×4", "accuracy"} <= set(said)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 7


def test_a_net_with_a_data_layer_needs_the_shape_of_the_images(write, fails):
    write("net.prototxt", NET)
    fails(["net.prototxt: no Input layer", "--image"], "pipeline.report.diagram", "net.prototxt", "net.svg")


@pytest.mark.parametrize(("model", "widest"), [("lenet", 200), ("resnet50", 520), ("mobilenet_v2", 400), ("squeezenet", 400)])
def test_templates_are_drawn_narrow_enough_for_a_phone(model, widest, tmp_path):
    built = models.template(model).built(Last("last", 10), deploy=True)
    net = caffe.NetSpec()
    side = models.template(model).crop_size or 28
    net.data = caffe.layers.Input(shape={"dim": [1, 3, side, side]})
    whole = net.to_proto()
    whole.layer.extend(built.layers)
    caffe.write_prototxt(tmp_path / "net.prototxt", whole)
    root = ElementTree.fromstring(drawn(tmp_path / "net.prototxt"))
    assert int(root.get("width")) <= widest


@needs_shared
def test_googlenet_and_its_three_heads_are_drawn():
    path = Path(SHARED / "zoo/bvlc/models/bvlc_googlenet/train_val.prototxt")
    root = ElementTree.fromstring(drawn(path, (3, 224, 224)))
    said = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss1/classifier", "inception_5b/output", "1024×7×7"} <= set(said)
    assert int(root.get("width")) < 900
