"""roastery doctor NET: the format, fork, layers, shapes, cost, weights and images of a net, on one screen."""

from pathlib import Path

import pytest

import caffe
from pipeline import doctor
from pipeline.errors import InputError
from pipeline.export import examination
from pipeline.nets.known import FORKS, NETS, forks_of, known_net
from tests.conftest import SHARED, needs_shared
from tests.pipeline.export.test_export import python_proposals
from tests.pipeline.trained_nets import image, layer, net

SMALL = (
    'name: "small"\n'
    + image(2, 3, 8, 8)
    + layer("Convolution", "conv", "data", more="convolution_param { num_output: 4 kernel_size: 3 pad: 1 }")
    + layer("InnerProduct", "fc", "conv", more="inner_product_param { num_output: 5 }")
)
INPUT = 'name: "old" input: "data" input_dim: 1 input_dim: 1 input_dim: 4 input_dim: 4 '
V1 = INPUT + 'layers { name: "r" type: RELU bottom: "data" top: "r" }'
V0 = V1.replace('name: "r" type: RELU', 'layer { name: "r" type: "relu" }')


def report(net_file, weights) -> dict[str, str]:
    """{heading: text} of the report."""
    return dict(examination.examine(Path(net_file), weights))


@pytest.mark.parametrize(("text", "version"), [(SMALL, "current"), (V1, "V1"), (V0, "V0")])
def test_the_version_of_the_format_is_told(write, text, version):
    path = write("net.prototxt", text)
    assert examination.format_of(Path(path)) == version
    assert f"; {examination.FORMATS[version]}" in report(path, None)["net"]


def test_a_prototxt_is_read_as_nets_are_with_a_byte_order_mark_and_in_latin_1(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert "; current" in report(path, None)["net"]
    path.write_bytes(b"# caf\xe9\n" + SMALL.encode())
    assert "; current" in report(path, None)["net"]


def test_the_built_in_proposal_layer_of_python_is_exported_as_convert_exports_it(write):
    said = report(write("net.prototxt", python_proposals("'RPN_MIN_SIZE': 1")), None)
    assert said["export"].startswith("ONNX (.onnx): yes; PyTorch (.pt2): not rois (Proposal), as its boxes are suppressed")


def test_layers_shapes_and_cost_are_those_of_the_net(write):
    said = report(write("net.prototxt", SMALL), None)
    assert said["layers"] == "all run: Input, Convolution, InnerProduct"
    assert said["input"] == "data 2×3×8×8"
    assert said["output"] == "fc 2×5"
    # 4 outputs of 27 products at 64 places, and 5 of 256; 192 + 256 + 5 values of 4 bytes; 112 + 1285 parameters.
    assert said["cost"] == "8.19 thousand multiply-adds and 1.81 kB of blobs per image, of 2; 1.4 thousand parameters, 5.59 kB"
    assert said["export"] == "ONNX (.onnx): yes; PyTorch (.pt2): yes; batch size: any"
    assert said["fork"] == "none: only layers of BVLC Caffe"
    assert said["images"].startswith("not known")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (layer("Deconvolution", "y", "data", more="convolution_param { num_output: 2 kernel_size: 2 stride: 2 }"), 192 * 8),
        (
            image(3, 1, 4, name="x")
            + image(3, 1, name="c")
            + layer("LSTM", "y", "x", "c", more="recurrent_param { num_output: 2 }"),
            3 * (8 * 4 + 8 * 2),
        ),
        (layer("ReLU", "y", "data"), 0),
        (
            layer("DenseBlock", "y", "data", more="denseblock_param { numTransition: 2 initChannel: 3 growthRate: 2 }"),
            64 * 2 * 9 * (3 + 5),
        ),
        (
            layer(
                "DenseBlock", "y", "data", more="denseblock_param { numTransition: 1 initChannel: 3 growthRate: 2 use_BC: true }"
            ),
            64 * (8 * 3 + 2 * 9 * 8),
        ),
        (layer("DepthwiseConvolution", "y", "data", more="convolution_param { num_output: 3 kernel_size: 3 pad: 1 }"), 64 * 27),
    ],
)
def test_operations_are_counted(write, text, count):
    assert examination.operations(net(write, image(1, 3, 8, 8) + text)) == count


def test_layers_of_forks_are_named_with_the_fork(write):
    text = image(1, 4, 3, 3) + layer("ShuffleChannel", "s", "data", more="shuffle_channel_param { group: 2 }")
    text += layer("Permute", "p", "s", more="permute_param { order: 0 order: 2 }")
    assert report(write("net.prototxt", text), None)["fork"] == (
        "SSD (weiliu89/caffe, branch ssd): Permute; ShuffleNet or SENet: ShuffleChannel"
    )


def test_every_layer_type_of_the_table_of_forks_exists_and_no_fork_layer_is_taken_for_bvlcs():
    assert {name for added in FORKS.values() for name in added} <= set(caffe.layer_type_list())
    forks = [name for name in caffe.layer_type_list() if ".forks." in caffe.layer_type(name).__module__]
    assert {name for names in forks_of(forks).values() for name in names} == set(forks)


def test_layers_of_detectors_and_of_flownet_are_told_by_their_forks():
    forks = forks_of(["Yolov3DetectionOutput", "Resample", "DeformableConvolution", "BoxOutput", "ROIWarping", "TripletLoss"])
    assert [(name.split()[0], types) for name, types in forks.items()] == [
        ("MS-CNN", ["BoxOutput"]),
        ("Deformable", ["DeformableConvolution"]),
        ("MNC", ["ROIWarping"]),
        ("FlowNet", ["Resample"]),
        ("another", ["TripletLoss"]),
        ("YOLO", ["Yolov3DetectionOutput"]),
    ]


def test_missing_layer_types_are_listed_with_what_to_do_and_fail(write, capsys):
    path = write("net.prototxt", SMALL + layer("Telescope", "t", "fc") + layer("Telescope", "u", "fc"))
    with pytest.raises(InputError, match="1 layer type missing: Telescope"):
        doctor.main([str(path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "missing t (Telescope), u (Telescope): no layer type of that name; write it as a Python layer" in printed
    said = report(write("net.prototxt", SMALL + layer("Sofmax", "prob", "fc")), None)["missing"]
    assert said.startswith('prob (Sofmax; did you mean "Softmax"')


def test_a_layer_that_cannot_be_exported_is_named_with_the_reason(write):
    text = SMALL + image(2, name="label") + layer("SoftmaxWithLoss", "loss", "fc", "label")
    said = report(write("net.prototxt", text), None)["export"]
    assert "ONNX (.onnx): not loss (SoftmaxWithLoss), as an exported model has no targets to compare with" in said


def test_a_net_that_cannot_be_built_says_why(write):
    path = write("net.prototxt", image(1, 3, 8, 8) + layer("Convolution", "conv", "data"))
    said = report(path, None)
    assert said["layers"] == "all types are there, but the net cannot be built"
    assert 'layer "conv": no kernel_size' in said["problem"]


def test_weights_are_told_to_be_the_nets_or_not(write, tmp_path, capsys):
    made = net(write, SMALL)
    made.save(tmp_path / "net.caffemodel")
    made.save_hdf5(tmp_path / "net.caffemodel.h5")
    path = tmp_path / "net.prototxt"
    assert report(path, tmp_path / "net.caffemodel")["weights"].endswith("net.caffemodel: current format, 2 layers copied")
    assert report(path, tmp_path / "net.caffemodel.h5")["weights"].endswith("HDF5, 2 layers copied")
    other = write("other.prototxt", SMALL.replace('"fc"', '"fc8"'))
    with pytest.raises(InputError, match="has no weights of fc8; give the weights of this net"):
        doctor.main([str(other), str(tmp_path / "net.caffemodel")])
    assert "not in the net: fc; missing in the file: fc8" in " ".join(capsys.readouterr().out.split())


def test_the_report_fits_on_a_screen(write, tmp_path, capsys):
    net(write, SMALL).save(tmp_path / "net.caffemodel")
    doctor.main([str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert lines[-1].strip().endswith("net.onnx")


# ---- known nets


@needs_shared
@pytest.mark.parametrize(
    ("path", "name", "formula"),
    [
        ("bvlc/models/bvlc_googlenet/deploy.prototxt", "GoogLeNet (BVLC)", "pixel - (104, 117, 123)"),
        ("bvlc/models/bvlc_alexnet/deploy.prototxt", "AlexNet or CaffeNet (BVLC)", "pixel - (104, 117, 123)"),
        ("mobilenet/deploy.prototxt", "MobileNet (shicai)", "(pixel - (103.94, 116.78, 123.68)) · 0.017"),
        ("mobilenet_v2/deploy.prototxt", "MobileNet v2 (shicai)", "(pixel - (103.94, 116.78, 123.68)) · 0.017"),
        ("vgg16/deploy.prototxt", "VGG (Simonyan and Zisserman)", "pixel - (103.939, 116.779, 123.68)"),
        ("squeezenet_v1.1/deploy.prototxt", "SqueezeNet", "pixel - (104, 117, 123)"),
        ("resnet50/deploy.prototxt", "ResNet (He et al.)", "pixel"),
        ("v1_format/mnist__lenet.prototxt", "LeNet (BVLC)", "pixel · 0.00390625"),
    ],
)
def test_published_nets_are_told_by_their_layers(path, name, formula):
    known = known_net(caffe.read_net(SHARED / "zoo" / path))
    assert known is not None
    assert (known.name, known.formula()) == (name, formula)


@pytest.mark.parametrize("known", NETS, ids=lambda known: known.name)
def test_a_net_of_the_table_is_told_before_any_later_one(write, known):
    outputs, kernel, stride = known.first or (8, 3, 1)
    settings = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} }}"
    text = image(1, 3, 64, 64) + layer("Convolution", "first", "data", more=settings)
    text += "".join(layer("ReLU", name, "first") for name in known.evidence)
    assert known_net(caffe.read_net(write("net.prototxt", text))) is known
