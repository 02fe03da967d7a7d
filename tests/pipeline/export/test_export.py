"""Exports: onnxruntime computes what the net computes, for every template and every layer type; metadata; and refusals."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors import safe_open

import caffe
from pipeline.dataset.mean import to_blob
from pipeline.errors import InputError
from pipeline.export import agreement, export, onnx_graph, onnx_layers
from pipeline.nets.models import TEMPLATES
from tests.conftest import SHARED, needs_shared
from tests.pipeline.trained_nets import digits, image, layer, net, of_template, remove_fillers, set_random_weights

SIDES = {"lenet": 28, "cifar10_quick": 32, "cifar10_full": 32, "alexnet": 67, "caffenet": 67, "squeezenet": 67, "googlenet": 64}
"""Sides of images that keep the nets small; 32 for the others."""

LAST_WINDOWS = {**dict.fromkeys((name for name in TEMPLATES if name.startswith("resnet")), 1), "googlenet": 2}
"""Window sides of the last pooling for these small images; it is 7 for images of 224 × 224."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_is_exported(tmp_path, name):
    side = SIDES.get(name, 32)
    definition = of_template(name, 5, 1, 1 if name == "lenet" else 3, side, side)
    for one in definition.layer:
        if name in LAST_WINDOWS and one.pooling_param.kernel_size == 7:
            one.pooling_param.kernel_size = LAST_WINDOWS[name]
        thin(one)
    trained = set_random_weights(caffe.Net(definition, caffe.TEST))
    assert export.write_onnx(trained, tmp_path / "model.onnx", {}) < 1e-5
    model = onnx.load(tmp_path / "model.onnx")
    assert [(one.name, shape(one)) for one in model.graph.input] == [("data", ["N", 1 if name == "lenet" else 3, side, side])]
    assert [one.name for one in model.graph.output] == ["prob"]
    assert shape(model.graph.output[0])[:2] == ["N", 5]
    assert f"{TEMPLATES[name].last}.weight" in {one.name for one in model.graph.initializer}
    assert model.opset_import[0].version == onnx_graph.OPSET


def thin(one) -> None:
    """Keep a quarter of a layer's outputs where they can be divided: the same layer types in less time."""
    for field in ("convolution_param", "inner_product_param"):
        if one.HasField(field) and getattr(one, field).num_output % 4 == 0:
            getattr(one, field).num_output //= 4
    if one.HasField("convolution_param") and one.convolution_param.group > 2:
        one.convolution_param.group //= 4


@pytest.mark.long
@needs_shared
@pytest.mark.parametrize("path", ["resnet50", "bvlc/models/bvlc_googlenet", "inception_v3", "densenet121"])
def test_published_nets_are_exported(tmp_path, path):
    definition = remove_fillers(caffe.read_net(SHARED / "zoo" / path / "deploy.prototxt"))
    definition.layer[0].input_param.shape[0].dim[0] = 1
    assert export.write_onnx(set_random_weights(caffe.Net(definition, caffe.TEST)), tmp_path / "model.onnx", {}) < 1e-5


@needs_shared
def test_a_lenet_of_2014_classifies_digits_in_onnxruntime_as_in_caffe(tmp_path):
    files = [SHARED / "zoo/v1_format/mnist__lenet.prototxt", SHARED / "weights/lenet_iter_10000.caffemodel"]
    export.main(["onnx", *map(str, files), str(tmp_path / "lenet.onnx")])
    images, labels = digits(500)
    session = onnxruntime.InferenceSession(tmp_path / "lenet.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["prob"], {"data": images})
    (expected,) = agreement.compute(caffe.Net(*map(str, files), caffe.TEST), {"data": images}, ["prob"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert (found.argmax(1) == labels).mean() > 0.98


def shape(value: onnx.ValueInfoProto) -> list:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


# ---- layer by layer

IMAGE = (2, 4, 7, 6)
CASES = [
    ("Convolution", "convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 pad_h: 1 stride: 2 group: 2 dilation: 2 }"),
    ("Convolution", "convolution_param { num_output: 6 kernel_size: 3 kernel_size: 1 pad: 0 pad: 2 bias_term: false }"),
    ("DepthwiseConvolution", "convolution_param { num_output: 8 kernel_size: 3 }"),
    ("ConvolutionDepthwise", "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }"),
    ("Deconvolution", "convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 2 }"),
    ("Deconvolution", "convolution_param { num_output: 3 kernel_size: 3 dilation: 2 bias_term: false }"),
    ("InnerProduct", "inner_product_param { num_output: 5 }"),
    ("InnerProduct", "inner_product_param { num_output: 5 transpose: true bias_term: false }"),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"),
    ("InnerProduct", "inner_product_param { num_output: 5 axis: -1 transpose: true }"),
    ("BatchNorm", "batch_norm_param { eps: 0.01 }"),
    ("BatchNorm", "batch_norm_param { scale_bias: true eps: 1e-7 }"),
    ("BN", ""),
    ("Scale", "scale_param { bias_term: true }"),
    ("Scale", "scale_param { axis: 2 num_axes: -1 }"),
    ("Scale", "scale_param { num_axes: 0 }"),
    ("Bias", "bias_param { axis: 1 num_axes: 2 }"),
    ("PReLU", ""),
    ("PReLU", "prelu_param { channel_shared: true }"),
    ("Normalize", "norm_param { across_spatial: false }"),
    ("Normalize", "norm_param { channel_shared: true }"),
    ("LRN", "lrn_param { local_size: 3 alpha: 0.01 k: 2 }"),
    ("LRN", "lrn_param { local_size: 3 alpha: 0.01 beta: 0.6 norm_region: WITHIN_CHANNEL }"),
    ("MVN", ""),
    ("MVN", "mvn_param { across_channels: true normalize_variance: false }"),
    ("Interp", "interp_param { height: 11 width: 5 }"),
    ("Interp", "interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -2 }"),
    ("Upsample", "upsample_param { scale: 3 }"),
    ("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
    ("Pooling", "pooling_param { global_pooling: true }"),
    ("Pooling", "pooling_param { kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0 }"),
    ("ReLU", ""),
    ("ReLU", "relu_param { negative_slope: 0.1 }"),
    ("ReLU6", ""),
    ("ReLU6", "relu_param { negative_slope: 0.1 }"),
    ("ELU", "elu_param { alpha: 0.5 }"),
    ("Sigmoid", ""),
    ("TanH", ""),
    ("Swish", ""),
    ("Swish", "swish_param { beta: 0.3 }"),
    ("BNLL", ""),
    ("AbsVal", ""),
    ("Clip", "clip_param { min: -1 max: 2 }"),
    ("Threshold", "threshold_param { threshold: 0.5 }"),
    ("Exp", "exp_param { base: 2 scale: 0.1 shift: 0.5 }"),
    ("Exp", "exp_param { scale: 0.05 }"),
    ("Power", "power_param { scale: 0.5 shift: 3 power: 2 }"),
    ("Power", "power_param { scale: 0 shift: 3 power: 2 }"),
    ("Softmax", ""),
    ("Softmax", "softmax_param { axis: -1 }"),
    ("Flatten", ""),
    ("Flatten", "flatten_param { axis: -3 end_axis: 2 }"),
    ("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 } }"),
    ("Reshape", "reshape_param { axis: 1 num_axes: 1 shape { dim: 2 dim: 2 } }"),
    ("Reshape", "reshape_param { axis: -1 num_axes: 0 shape { dim: 1 } }"),
    ("Permute", "permute_param { order: 0 order: 3 order: 1 }"),
    ("Transpose", "transpose_param { dim: 0 dim: 3 dim: 1 dim: 2 }"),
    ("GradientReversal", ""),
    ("GradientScaler", ""),
    ("ShuffleChannel", "shuffle_channel_param { group: 2 }"),
    ("Tile", "tile_param { axis: -1 tiles: 3 }"),
    ("Reduction", "reduction_param { axis: 1 operation: ASUM coeff: 0.5 }"),
    ("Reduction", "reduction_param { axis: -1 operation: SUMSQ }"),
    ("Reduction", "reduction_param { axis: 2 operation: MEAN }"),
    ("Reduction", "reduction_param { axis: 3 }"),
    ("ArgMax", ""),
    ("ArgMax", "argmax_param { axis: 1 }"),
    ("Concat", ""),
    ("Slice", ""),
]
SEVERAL = {
    "Eltwise": image(*IMAGE, name="other")
    + layer("Eltwise", "y", "data", "other", "data", more="eltwise_param { coeff: 1 coeff: -2 coeff: 0.5 }"),
    "Eltwise PROD": image(*IMAGE, name="other")
    + layer("Eltwise", "y", "data", "other", more="eltwise_param { operation: PROD }"),
    "Eltwise MAX": image(*IMAGE, name="other") + layer("Eltwise", "y", "data", "other", more="eltwise_param { operation: MAX }"),
    "Scale by a bottom": layer("Pooling", "pool", "data", more="pooling_param { pool: AVE global_pooling: true }")
    + layer("Flatten", "flat", "pool")
    + layer("Scale", "y", "data", "flat", more="scale_param { axis: 0 bias_term: true }"),
    "Bias by a bottom": image(*IMAGE, name="other") + layer("Bias", "y", "data", "other", more="bias_param { axis: 0 }"),
    "Axpy": image(2, 4, name="a") + image(*IMAGE, name="other") + layer("Axpy", "y", "a", "data", "other"),
    "Axpy of maps": image(2, 4, 1, 1, name="a") + image(*IMAGE, name="other") + layer("Axpy", "y", "a", "data", "other"),
    "Concat": image(2, 1, 7, 6, name="other") + layer("Concat", "y", "data", "other", more="concat_param { axis: -3 }"),
    "Slice": layer("Slice", "a", "data", more='top: "b" top: "c" slice_param { axis: 1 slice_point: 1 slice_point: 3 }'),
    "Slice evenly": layer("Slice", "a", "data", more='top: "b" slice_param { slice_dim: 3 }'),
    "Crop": image(2, 4, 3, 2, name="other")
    + layer("Crop", "y", "data", "other", more="crop_param { axis: 2 offset: 1 offset: 3 }"),
    "Crop with one offset": image(2, 4, 3, 2, name="other")
    + layer("Crop", "y", "data", "other", more="crop_param { offset: 2 }"),
    "Log": layer("Sigmoid", "x", "data") + layer("Log", "y", "x", more="log_param { base: 2 scale: 3 shift: 1 }"),
    "Log, natural": layer("Sigmoid", "x", "data") + layer("Log", "y", "x"),
    "Embed": layer("ArgMax", "x", "data", more="argmax_param { axis: 1 }")
    + layer("Embed", "y", "x", more="embed_param { num_output: 3 input_dim: 4 }"),
    "Split": layer("Split", "a", "data", more='top: "b"') + layer("ReLU", "x", "a") + layer("AbsVal", "y", "b"),
    "Silence": layer("ReLU", "a", "data") + layer("TanH", "y", "data") + 'layer { name: "s" type: "Silence" bottom: "a" }',
    "Dropout at the end": layer("ReLU", "x", "data") + layer("Dropout", "y", "x"),
    "layers in place": layer("Scale", "x", "data")
    + layer("ReLU", "r", "x", top="x")
    + layer("Dropout", "d", "x", top="x")
    + layer("TanH", "y", "x", top="x"),
    "a layer in place of the input": layer("ReLU", "r", "data", top="data") + layer("TanH", "y", "data"),
}


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_a_layer_is_exported(write, tmp_path, kind, more):
    made = net(write, image(*IMAGE) + layer(kind, "y", "data", more=more))
    assert export.write_onnx(made, tmp_path / "model.onnx", {}, scale=0.02) < 1e-5
    assert [one.name for one in onnx.load(tmp_path / "model.onnx").graph.output] == ["y"]


@pytest.mark.parametrize("text", SEVERAL.values(), ids=SEVERAL)
def test_several_layers_are_exported_together(write, tmp_path, text):
    made = net(write, image(*IMAGE) + text)
    assert export.write_onnx(made, tmp_path / "model.onnx", {}, scale=0.02) < 1e-5
    assert [one.name for one in onnx.load(tmp_path / "model.onnx").graph.output] == made.outputs


def test_every_exported_layer_type_is_tested():
    kinds = {kind for kind, _ in CASES} | {word for text in SEVERAL.values() for word in text.split('"')}
    assert set(onnx_layers.CONVERTERS) <= kinds


def test_every_layer_type_has_a_converter_or_a_reason_for_none():
    assert set(onnx_layers.CONVERTERS) | set(onnx_layers.NOT_EXPORTED) == set(caffe.layer_type_list())
    assert set(onnx_layers.CONVERTERS).isdisjoint(onnx_layers.NOT_EXPORTED)


def test_pooling_windows_equal_those_of_caffe(write, tmp_path):
    """Windows that reach past the bottom, past its padding, or are left out, for both ways of rounding."""
    computed = 0
    for pool in ("MAX", "AVE"):
        for kernel, stride, pad in [(2, 2, 0), (3, 2, 0), (3, 2, 1), (5, 3, 2), (3, 3, 1), (4, 3, 3), (3, 1, 1), (5, 4, 1)]:
            for height, width in [(7, 8), (9, 10), (12, 11)]:
                for rounding in ("", "round_mode: FLOOR"):
                    more = f"pooling_param {{ pool: {pool} kernel_size: {kernel} stride: {stride} pad: {pad} {rounding} }}"
                    made = net(write, image(1, 2, height, width) + layer("Pooling", "y", "data", more=more))
                    assert export.write_onnx(made, tmp_path / "model.onnx", {}) < 1e-5, more
                    computed += 1
    assert computed == 96


# ---- what cannot be exported, and the files' metadata


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (layer("SPP", "spp", "data", more="spp_param { pyramid_height: 2 }"), 'layer "spp": type SPP, but the published'),
        (layer("Pooling", "p", "data", more="pooling_param { pool: STOCHASTIC kernel_size: 2 }"), 'layer "p": STOCHASTIC'),
        (layer("Pooling", "p", "data", more='top: "at" pooling_param { kernel_size: 2 }'), 'layer "p": two tops'),
        (
            layer("BatchNorm", "n", "data", more="batch_norm_param { use_global_stats: false }"),
            'layer "n": statistics of the batch',
        ),
        (layer("ArgMax", "best", "data", more="argmax_param { top_k: 2 }"), 'layer "best": top_k'),
    ],
)
def test_a_layer_without_an_onnx_counterpart_is_named_and_nothing_is_written(write, tmp_path, text, said):
    made = net(write, image(*IMAGE) + text)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        export.write_onnx(made, tmp_path / "model.onnx", {})
    assert said in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_with_a_different_output_is_not_written(write, tmp_path, monkeypatch):
    made = net(write, image(*IMAGE) + layer("ReLU", "relu", "data") + layer("Softmax", "prob", "relu"))
    monkeypatch.setitem(onnx_layers.CONVERTERS, "ReLU", lambda part, x: part.add("Abs", x))
    with pytest.raises(InputError, match=r"model.onnx: its output differs from the net's own"):
        export.write_onnx(made, tmp_path / "model.onnx", {})
    assert not list(tmp_path.glob("*model*"))


def test_scores_are_compared_where_probabilities_hide_a_difference(write, tmp_path, monkeypatch):
    head = layer("InnerProduct", "fc", "data", more="inner_product_param { num_output: 2 }") + layer("Power", "scores", "fc")
    made = net(write, image(*IMAGE) + head + layer("Softmax", "prob", "scores"))
    made.params["fc"][1].data[...] = [0, 1e4]  # so that one class is certain
    monkeypatch.setitem(onnx_layers.CONVERTERS, "Power", lambda part, x: part.add("Mul", x, part.number("more", 1.01)))
    with pytest.raises(InputError, match="differs from the net's own"):
        export.write_onnx(made, tmp_path / "model.onnx", {})


def test_a_net_whose_output_is_nan_is_not_exported(write, tmp_path):
    made = net(write, image(*IMAGE) + layer("InnerProduct", "fc", "data", more="inner_product_param { num_output: 2 }"))
    made.params["fc"][1].data[...] = np.nan
    with pytest.raises(InputError, match=r"model.onnx: the net's output for random images is not finite; check the weights"):
        export.write_onnx(made, tmp_path / "model.onnx", {})


def test_a_batch_size_fixed_by_the_net_is_fixed_in_the_model(write, tmp_path):
    fixed = layer("Reshape", "y", "data", more="reshape_param { shape { dim: 2 dim: 2 dim: -1 } }")
    export.write_onnx(net(write, image(*IMAGE) + fixed), tmp_path / "model.onnx", {})
    assert shape(onnx.load(tmp_path / "model.onnx").graph.input[0]) == [*IMAGE]


DEPLOY = image(1, 3, 6, 6) + "".join(
    [
        layer("Convolution", "a/conv", "data", more="convolution_param { num_output: 4 kernel_size: 3 bias_term: false }"),
        layer("BatchNorm", "a/bn", "a/conv", top="a/conv"),
        layer("Scale", "a/scale", "a/conv", top="a/conv", more="scale_param { bias_term: true }"),
        layer("InnerProduct", "fc", "a/conv", more="inner_product_param { num_output: 2 }"),
        layer("Softmax", "prob", "fc"),
    ]
)


@pytest.fixture
def experiment(write, tmp_path):
    """deploy.prototxt, final.caffemodel, labels.txt, preprocessing.json and mean.binaryproto; gives the net."""
    made = net(write, 'name: "few"\n' + DEPLOY)
    (tmp_path / "net.prototxt").rename(tmp_path / "deploy.prototxt")
    made.save(tmp_path / "final.caffemodel")
    write("labels.txt", "Katze\nZürich\n")
    (tmp_path / "mean.binaryproto").write_bytes(to_blob(np.full((3, 6, 6), [[[1]], [[2]], [[3.5]]])).SerializeToString())
    resized = {"height": 6, "width": 6, "mode": "squash", "interpolation": "linear", "color": "BGR"}
    write(
        "preprocessing.json",
        json.dumps({"resize": resized, "transform_param": {"mean_file": str(tmp_path / "mean.binaryproto")}}),
    )
    return made


def arguments(kind: str, folder) -> list[str]:
    files = [str(folder / name) for name in ("deploy.prototxt", "final.caffemodel", f"model.{kind}")]
    return [kind, *files, "--labels", str(folder / "labels.txt"), "--preprocessing", str(folder / "preprocessing.json")]


def test_a_models_metadata_has_preprocessing_mean_and_class_names(experiment, tmp_path, capsys):
    export.main(arguments("onnx", tmp_path))
    assert "largest difference from the net" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"]) == ["Katze", "Zürich"]
    assert json.loads(said["mean"]) == [1, 2, 3.5]
    assert json.loads(said["preprocessing"])["resize"]["color"] == "BGR"
    inputs = agreement.random_inputs(experiment, 3)
    (expected,) = agreement.compute(experiment, inputs, ["prob"])
    np.testing.assert_allclose(session.run(["prob"], inputs)[0], expected, rtol=1e-4, atol=1e-6)


def test_safetensors_have_the_same_bytes_each_time(experiment, tmp_path):
    export.main(arguments("safetensors", tmp_path))
    first = (tmp_path / "model.safetensors").read_bytes()
    for _ in range(8):
        export.main(arguments("safetensors", tmp_path))
        assert (tmp_path / "model.safetensors").read_bytes() == first


def test_safetensors_hold_the_parameters_by_layer_and_name(experiment, tmp_path):
    export.main(arguments("safetensors", tmp_path))
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        metadata = file.metadata()
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    names = ["a/conv.weight", "a/bn.running_mean", "a/bn.running_var", "a/scale.weight", "a/scale.bias", "fc.weight", "fc.bias"]
    assert sorted(found) == sorted(names)
    values = {name: [blob.data for blob in blobs] for name, blobs in experiment.params.items()}
    for layer_name in ("a/conv", "a/scale", "fc"):
        for name, blob in zip(("weight", "bias"), values[layer_name], strict=False):
            np.testing.assert_array_equal(found[f"{layer_name}.{name}"], blob)
    np.testing.assert_allclose(found["a/bn.running_mean"] * 2, values["a/bn"][0])
    np.testing.assert_allclose(found["a/bn.running_var"] * 2, values["a/bn"][1])
    assert metadata["net"] == "few"
    assert json.loads(metadata["layer_types"])["a/bn"] == "BatchNorm"
    assert json.loads(metadata["classes"]) == ["Katze", "Zürich"]


def test_weights_of_another_net_are_refused_and_nothing_is_written(experiment, tmp_path, fails):
    text = (tmp_path / "deploy.prototxt").read_text()
    (tmp_path / "other.prototxt").write_text(text.replace('"fc"', '"fc8"'))
    fails(
        ["final.caffemodel: no weights of layer fc8"],
        "pipeline.export.export",
        "onnx",
        "other.prototxt",
        "final.caffemodel",
        "model.onnx",
    )
