"""roastery convert: ONNX in float16, of a chosen batch and size; PyTorch programs; what it prints, and refuses."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file

import caffe
from pipeline.errors import InputError
from pipeline.export import agreement, convert, export, onnx_graph, onnx_part, opencv, torch_program
from tests.pipeline.export.test_export import CASES, IMAGE, LABEL, SEVERAL, shape
from tests.pipeline.trained_nets import image, layer, net

SINGLE = {f"{kind} {more}".strip(): layer(kind, "y", "data", more=more) for kind, more in CASES}
TEXTS = {name: image(*IMAGE) + text for name, text in (SINGLE | SEVERAL).items()}
UNTRACED = set(torch_program.NOT_TRACED)


def is_traced(text: str) -> bool:
    return text != TEXTS["ROIAlign, a sample for each position"] and not any(
        f'type: "{kind}"' in text for kind in UNTRACED - {"Input"}
    )


SMALL = (
    'name: "small"\n'
    + image(1, 3, 8, 8)
    + layer("Convolution", "conv", "data", more="convolution_param { num_output: 4 kernel_size: 3 }")
    + layer("ReLU", "relu", "conv", top="conv")
    + layer("Pooling", "pool", "conv", more="pooling_param { pool: AVE global_pooling: true }")
    + layer("InnerProduct", "fc", "pool", more="inner_product_param { num_output: 3 }")
    + layer("Softmax", "prob", "fc")
)


@pytest.fixture
def small(write, tmp_path, monkeypatch):
    """net.prototxt and net.caffemodel in the working directory; gives the net."""
    made = net(write, SMALL)
    made.save(tmp_path / "net.caffemodel")
    monkeypatch.chdir(tmp_path)
    return made


def converted(*words: str) -> None:
    convert.main(["net.prototxt", "net.caffemodel", *words])


def test_the_differences_of_onnxruntime_and_of_opencv_are_printed(small, capsys):
    converted("out.onnx")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"out.onnx: ONNX, opset {onnx_graph.OPSET}, 0.0 MB")
    assert lines[1:3] == ["  inputs: data N×3×8×8", "  outputs: prob N×3"]
    assert "onnxruntime" in lines[3]
    assert float(lines[3].split(" by ")[1].split()[0]) < 1e-5
    assert lines[4].startswith("  OpenCV")


def test_opset_batch_and_size_are_as_asked_for(small, tmp_path):
    converted("out.onnx", "--opset", "20", "--batch", "5", "--size", "10x12")
    model = onnx.load("out.onnx")
    assert model.opset_import[0].version == 20
    assert shape(model.graph.input[0]) == [5, 3, 10, 12]
    assert shape(model.graph.output[0]) == [5, 3]
    converted("out.onnx", "--batch", "free")
    assert shape(onnx.load("out.onnx").graph.input[0]) == ["N", 3, 8, 8]


def test_a_float16_model_has_half_the_weights_and_float32_inputs_and_outputs(small):
    converted("half.onnx", "--fp16")
    model = onnx.load("half.onnx")
    types = {each.name: each.data_type for each in model.graph.initializer}
    assert {types[name] for name in ("conv.weight", "conv.bias", "fc.weight", "fc.bias")} == {TensorProto.FLOAT16}
    assert {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    inputs = agreement.random_inputs(small)
    (expected,) = agreement.compute(small, inputs, ["prob"])
    (found,) = onnxruntime.InferenceSession("half.onnx", providers=["CPUExecutionProvider"]).run(["prob"], inputs)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert (found != expected).any()


def test_weights_beyond_float16_are_refused(small, tmp_path):
    small.params["conv"][0].data[...] = 1e5
    small.save(tmp_path / "net.caffemodel")
    with pytest.raises(InputError, match=r'layer "conv": weight up to 100000, but float16 ends at 65504; leave out --fp16'):
        converted("half.onnx", "--fp16")
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_layer_type_is_exported_in_float16(write, tmp_path, text):
    made = net(write, text)
    form = onnx_graph.Form(half=True)
    assert export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, form) < agreement.HALF_LIMIT
    model = onnx.load(tmp_path / "model.onnx")
    assert {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("name", "kind", "field", "value"),
    [
        ("DetectionOutput", "DetectionOutput", "nms_threshold", 0.2),
        ("DetectionOutput", "DetectionOutput", "keep_top_k", 19),
        ("Proposal and ROIPooling", "Proposal", "nms_thresh", 0.3),
        ("YoloDetectionOutput, two maps", "YoloDetectionOutput", "nms_threshold", 0.3),
        ("Yolov3DetectionOutput", "Yolov3DetectionOutput", "confidence_threshold", 0.4),
        ("BoxOutput", "BoxOutput", "iou_thr", 0.2),
        ("BoxOutput, all kept", "BoxOutput", "field_xyr", 3),
        ("Proposal and ROIPooling", "ROIPooling", "spatial_scale", 0.1),
    ],
)
def test_a_model_that_chooses_other_rows_is_not_written(write, tmp_path, monkeypatch, name, kind, field, value):
    made = net(write, TEXTS[name])
    right = onnx_part.CONVERTERS[kind]

    def wrong(part, *bottoms):
        param = type(part.param)()
        param.CopyFrom(part.param)
        settings = caffe.layer_type(kind).settings_of(param)
        setattr(settings.nms_param if kind == "DetectionOutput" and field == "nms_threshold" else settings, field, value)
        part.param = param
        return right(part, *bottoms)

    monkeypatch.setitem(onnx_part.CONVERTERS, kind, wrong)
    with pytest.raises(InputError):
        export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02)
    assert not (tmp_path / "model.onnx").exists()


# ---- PyTorch


TRACED = {name: text for name, text in TEXTS.items() if is_traced(text)}


traces = pytest.mark.own_device
"""torch.export computes with tensors that are shapes alone, which no pretend device can follow; nets are converted on the CPU."""


@traces
@pytest.mark.parametrize("text", TRACED.values(), ids=TRACED)
def test_a_pytorch_program_computes_what_the_net_computes(write, tmp_path, text):
    made = net(write, text)
    assert torch_program.write_program(made, tmp_path / "model.pt2", {}, 0.02, None) < 1e-5


@traces
def test_a_setting_that_cannot_be_traced_is_named_and_nothing_is_written(write, tmp_path):
    made = net(write, TEXTS["ROIAlign, a sample for each position"])
    with pytest.raises(InputError, match=r'layer "y": no sampling_ratio, but how many values .*; convert it to .onnx'):
        torch_program.write_program(made, tmp_path / "model.pt2", {}, 0.02, None)
    assert not list(tmp_path.glob("*model*"))


def test_every_exported_layer_type_is_traced_or_has_a_reason():
    tested = {
        kind for kind in onnx_part.CONVERTERS if any(is_traced(text) and f'type: "{kind}"' in text for text in TEXTS.values())
    }
    assert tested | UNTRACED == set(caffe.layer_type_list())
    assert all(torch_program.NOT_TRACED.values())


@traces
def test_a_pytorch_program_needs_neither_caffe_nor_roastery_and_takes_any_batch(small, tmp_path):
    converted("out.pt2")
    np.save("images.npy", agreement.random_inputs(small, 4)["data"])
    code = (
        "import sys, torch, numpy as np\n"
        "(prob,) = torch.export.load('out.pt2').module()(torch.from_numpy(np.load('images.npy')))\n"
        "np.save('prob.npy', prob.detach().numpy())\n"
        "sys.exit('caffe' in sys.modules or 'pipeline' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (expected,) = agreement.compute(small, {"data": np.load("images.npy")}, ["prob"])
    np.testing.assert_allclose(np.load("prob.npy"), expected, rtol=1e-5, atol=1e-7)


@traces
def test_the_net_computes_as_before_after_an_export_to_pytorch(small):
    inputs = agreement.random_inputs(small)
    before = agreement.compute(small, inputs, ["prob"])
    torch_program.program(small)
    np.testing.assert_array_equal(agreement.compute(small, inputs, ["prob"]), before)
    assert small.params["conv"][0].data.shape == (4, 3, 3, 3)


@traces
def test_a_pytorch_program_with_another_output_is_not_written(small, tmp_path, monkeypatch):
    right = torch_program.program

    def wrong(made, batch):
        made.params["fc"][1].data[...] += [0, 1, 2]
        program = right(made, batch)
        made.params["fc"][1].data[...] -= [0, 1, 2]
        return program

    monkeypatch.setattr(torch_program, "program", wrong)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"out.pt2: its output differs from the net's own"):
        converted("out.pt2")
    assert sorted(tmp_path.iterdir()) == before


def test_an_export_that_fails_without_a_message_names_the_error(small, tmp_path, monkeypatch):
    def failing(*_words, **_settings):
        raise AssertionError

    monkeypatch.setattr(torch_program.torch.export, "export", failing)
    with pytest.raises(InputError, match=r"PyTorch cannot export it \(AssertionError\); convert it to .onnx"):
        converted("out.pt2")
    assert not (tmp_path / "out.pt2").exists()


@traces
def test_layers_whose_names_differ_in_a_dot_keep_their_own_weights(write, tmp_path):
    more = "inner_product_param { num_output: 2 }"
    text = image(1, 3) + layer("InnerProduct", "a.b", "data", more=more) + layer("InnerProduct", "a_b", "data", more=more)
    made = net(write, text)
    assert torch_program.write_program(made, tmp_path / "out.pt2", {}, 1.0, None) < 1e-5
    stored = torch_program.torch.export.load(tmp_path / "out.pt2").state_dict
    np.testing.assert_array_equal(stored["a_b_0"].numpy(), made.params["a.b"][0].data)
    np.testing.assert_array_equal(stored["a_b_0_"].numpy(), made.params["a_b"][0].data)


# ---- what is refused, and safetensors


def test_safetensors_are_written_by_the_suffix(small, capsys):
    converted("out.safetensors")
    assert sorted(load_file("out.safetensors")) == ["conv.bias", "conv.weight", "fc.bias", "fc.weight"]
    assert capsys.readouterr().out.startswith("out.safetensors: 4 tensors")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out.caffemodel"], 'suffix ".caffemodel", but it must be .onnx, .pt2 or .safetensors'),
        (["out.pt2", "--fp16"], "--fp16, but .pt2 has no such setting; leave out --fp16, or write .onnx"),
        (["out.pt2", "--opset", "20"], "--opset, but .pt2 has no such setting"),
        (["out.safetensors", "--batch", "2"], "--batch, but .safetensors has no such setting"),
        (["out.onnx", "--size", "1x1"], "no images of 1×1"),
    ],
)
def test_a_setting_that_the_format_or_the_net_does_not_have_is_refused(small, tmp_path, words, said):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        converted(*words)
    assert said in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_batch_size_that_the_net_fixes_cannot_be_free(write, tmp_path, suffix):
    made = net(write, image(*IMAGE) + layer("Reshape", "y", "data", more="reshape_param { shape { dim: 2 dim: 2 dim: -1 } }"))
    made.save(tmp_path / "net.caffemodel")
    files = [str(tmp_path / name) for name in ("net.prototxt", "net.caffemodel", f"out{suffix}")]
    with pytest.raises(InputError, match="the net fixes its batch size, but with --batch free it must take any"):
        convert.main([*files, "--batch", "free"])
    assert not (tmp_path / f"out{suffix}").exists()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_all_layers_that_cannot_be_exported_are_named_in_one_message(write, tmp_path, suffix):
    text = image(*IMAGE) + LABEL + layer("Accuracy", "a", "data", "label") + layer("EuclideanLoss", "e", "data", "data")
    net(write, text).save(tmp_path / "net.caffemodel")
    files = [str(tmp_path / name) for name in ("net.prototxt", "net.caffemodel", f"out{suffix}")]
    with pytest.raises(InputError) as error:
        convert.main(files)
    assert 'layer "a": type Accuracy (and 1 more: e)' in str(error.value)
    assert "remove it from the deploy prototxt" in str(error.value)
    assert not (tmp_path / f"out{suffix}").exists()


def test_a_detector_is_sent_to_onnx(write, tmp_path):
    made = net(write, TEXTS["DetectionOutput"])
    with pytest.raises(InputError) as error:
        torch_program.program(made)
    assert 'layer "rows": type DetectionOutput' in str(error.value)
    assert error.value.do.startswith("convert it to .onnx, or ")


def test_a_discarded_blob_becomes_the_output(write, tmp_path):
    made = net(write, SMALL + 'layer { name: "s" type: "Silence" bottom: "prob" }')
    made.save(tmp_path / "net.caffemodel")
    assert made.outputs == []
    files = [str(tmp_path / name) for name in ("net.prototxt", "net.caffemodel", "out.onnx")]
    convert.main(files)
    assert [each.name for each in onnx.load(files[2]).graph.output] == ["prob"]


# ---- OpenCV


def test_opencv_agrees_disagrees_or_cannot_run_a_model(small, tmp_path):
    converted("out.onnx")
    inputs, found = export.run_onnx(tmp_path / "out.onnx", small, 1.0)
    agrees, said = opencv.check(tmp_path / "out.onnx", inputs, found, agreement.LIMIT)
    assert agrees, said
    other = {name: values + 1 for name, values in found.items()}
    agrees, said = opencv.check(tmp_path / "out.onnx", inputs, other, agreement.LIMIT)
    assert not agrees
    assert "computes another result: it differs by" in said
    (tmp_path / "out.onnx").write_bytes(b"no model")
    agrees, said = opencv.check(tmp_path / "out.onnx", inputs, found, agreement.LIMIT)
    assert not agrees
    assert "cannot run it (" in said


def test_an_opencv_that_computes_nan_disagrees(small, tmp_path, monkeypatch):
    values = np.ones((1, 3), np.float32)
    monkeypatch.setattr(opencv, "_run", lambda *_: ([values, values * np.nan], ""))
    agrees, said = opencv.check(tmp_path / "out.onnx", {}, {"a": values, "b": values}, agreement.LIMIT)
    assert not agrees
    assert said.endswith("it differs by nan")


def test_an_opencv_that_crashes_is_reported_with_its_signal(small, tmp_path, monkeypatch):
    converted("out.onnx")
    inputs, found = export.run_onnx(tmp_path / "out.onnx", small, 1.0)
    monkeypatch.setattr(opencv, "_RUN", "import os, signal; os.kill(os.getpid(), signal.SIGFPE)")
    assert opencv.check(tmp_path / "out.onnx", inputs, found, agreement.LIMIT)[1].endswith("cannot run it (it crashed: SIGFPE)")
