"""Nets and solvers of older formats, text and binary, compared with the output of BVLC Caffe's upgrade tools."""

from pathlib import Path

import pytest
from google.protobuf import text_format

import caffe
from caffe.formats import prototxt, upgrade
from caffe.proto import caffe_pb2
from tests.conftest import GOLDEN, SHARED, needs_shared

HANDWRITTEN = GOLDEN / "upgrade" / "handwritten_v0.v0.prototxt"
RECORDED = sorted((SHARED / "golden" / "upgrade").glob("*.v?.prototxt"))
ZOO = sorted((SHARED / "zoo").rglob("*.prototxt"))


def read(path):
    return (caffe.read_solver if "solver" in Path(path).name else caffe.read_net)(str(path))


def upgraded_path(path: Path) -> Path:
    """Path of BVLC Caffe's own upgrade of a recorded file."""
    return path.with_name(path.name.rsplit(".", 2)[0] + ".upgraded.prototxt")


@pytest.mark.parametrize(
    "path",
    [HANDWRITTEN, *(pytest.param(path, marks=needs_shared) for path in RECORDED if upgraded_path(path).exists())],
    ids=lambda path: path.name,
)
def test_an_upgraded_file_equals_bvlc_caffes_upgrade(path):
    message = read(path)
    assert message == text_format.Parse(upgraded_path(path).read_text(), type(message)())


def test_a_v0_net_in_binary_is_upgraded_with_its_weights(tmp_path):
    old = text_format.Parse(HANDWRITTEN.read_text(), caffe_pb2.NetParameter())
    convolution = old.layers[2].layer
    convolution.blobs.add(num=8, channels=1, height=5, width=5, data=[0.5] * 200)
    (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
    new = prototxt.read_binary(str(tmp_path / "old.caffemodel"), caffe_pb2.NetParameter())
    upgrade.upgrade_net(new, "old.caffemodel")
    assert [layer.name for layer in new.layer[:4]] == ["input", "data", "conv1", "relu1"]
    assert new.layer[2].blobs[0] == convolution.blobs[0]
    del new.layer[2].blobs[:]
    assert new == read(HANDWRITTEN)


@pytest.mark.parametrize("version", ["V0", "V1"])
def test_weights_of_old_versions_load_into_a_net(write, tmp_path, version):
    text = 'input: "x" input_shape { dim: 2 dim: 3 } layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"'
    new = caffe.Net(write("net.prototxt", text + " inner_product_param { num_output: 4 } }"), caffe.TEST)
    old = caffe_pb2.NetParameter()
    layer = old.layers.add() if version == "V1" else old.layers.add().layer
    layer.name = "ip"
    layer.blobs.add(num=1, channels=1, height=4, width=3, data=range(12))
    layer.blobs.add(num=1, channels=1, height=1, width=4, data=range(4))
    (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
    assert new.copy_from(tmp_path / "old.caffemodel").copied == ["ip"]
    assert new.params["ip"][0].data.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert new.params["ip"][1].data.tolist() == [0, 1, 2, 3]


@needs_shared
def test_the_nets_inside_a_solver_are_upgraded():
    solver = read(SHARED / "golden/upgrade/lenet_consolidated_solver.v1.prototxt")
    assert not solver.net_param.layers
    types = [layer.type for layer in solver.net_param.layer]
    assert types == ["Data"] * 3 + ["Convolution", "Pooling"] * 2 + ["InnerProduct", "ReLU", "InnerProduct", "Accuracy"] + [
        "SoftmaxWithLoss"
    ]


@needs_shared
@pytest.mark.parametrize("path", ZOO, ids=lambda path: str(path.relative_to(SHARED / "zoo")))
def test_a_published_prototxt_round_trips(path, tmp_path):
    message = read(path)
    caffe.write_prototxt(tmp_path / path.name, message)
    assert read(tmp_path / path.name) == message


def net(write, text):
    return caffe.read_net(write("net.prototxt", text))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (
            'input: "a" input: "b" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4 ' + "input_dim: 5 " * 4,
            [[1, 2, 3, 4], [5] * 4],
        ),
        ('input: "a" input_shape { dim: 7 dim: 2 }', [[7, 2]]),
        ('input: "a" input: "b" input_shape { dim: 7 } input_shape { }', [[7], []]),
    ],
)
def test_net_inputs_become_a_first_input_layer(write, text, shapes):
    layers = net(write, text + ' layer { name: "r" type: "ReLU" bottom: "a" top: "r" }').layer
    assert [layer.type for layer in layers] == ["Input", "ReLU"]
    assert [list(shape.dim) for shape in layers[0].input_param.shape] == shapes


def test_net_inputs_without_shapes_add_no_layer(write):
    assert net(write, 'input: "a" layer { name: "s" type: "Silence" bottom: "a" }').layer[0].type == "Silence"


def test_too_few_input_dims_are_an_error(write):
    with pytest.raises(caffe.FileError) as error:
        net(write, 'input: "a" input: "b" ' + "input_dim: 1 " * 7)
    assert error.value.found == "7 input_dim for 2 inputs"


def test_every_v1_type_has_a_registered_name_and_none_is_empty():
    named = {name: upgrade.v1_type(value) for name, value in caffe_pb2.V1LayerParameter.LayerType.items()}
    assert named.pop("NONE") == ""
    assert set(named.values()) <= set(caffe.layer_type_list())
    assert len(set(named.values())) == len(named)


def test_only_v1_data_layers_move_their_fields_to_transform_param(write):
    fields = 'data_param { source: "s" scale: 0.5 mean_file: "m" crop_size: 9 mirror: true }'
    v1 = net(write, "layers { type: DATA " + fields + " }").layer[0]
    assert (v1.transform_param.scale, v1.transform_param.mean_file) == (0.5, "m")
    assert (v1.transform_param.crop_size, v1.transform_param.mirror) == (9, True)
    assert v1.data_param == caffe_pb2.DataParameter(source="s")
    today = net(write, 'layer { type: "Data" ' + fields + " }").layer[0]
    assert not today.HasField("transform_param")


def test_learning_settings_of_a_v1_layer_become_param(write):
    text = 'layers { name: "c" type: CONVOLUTION param: "w" blob_share_mode: PERMISSIVE blobs_lr: 1 blobs_lr: 2 weight_decay: 3 }'
    first, second = net(write, text).layer[0].param
    assert (first.name, first.share_mode, first.lr_mult, first.decay_mult) == ("w", caffe_pb2.ParamSpec.PERMISSIVE, 1, 3)
    assert second == caffe_pb2.ParamSpec(lr_mult=2)


@pytest.mark.parametrize(("settings", "rates"), [(3, [0, 0, 0]), (2, [5, 5])])
def test_three_param_entries_of_a_batch_norm_are_zeroed(write, settings, rates):
    layer = net(write, 'layer { type: "BatchNorm" ' + "param { lr_mult: 5 decay_mult: 5 } " * settings + "}").layer[0]
    assert [spec.lr_mult for spec in layer.param] == [spec.decay_mult for spec in layer.param] == rates


@pytest.mark.parametrize(("number", "name"), list(enumerate(["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])))
def test_solver_type_becomes_the_name_of_the_type(write, number, name):
    solver = caffe.read_solver(write("solver.prototxt", f"solver_type: {number}"))
    assert solver == caffe_pb2.SolverParameter(type=name)


V0 = 'layers {{ layer {{ name: "d" type: "data" }} top: "d" }}\nlayers {{ layer {{ {} }} {} }}\nlayers {{ layer {{ {} }} {} }}'


@pytest.mark.parametrize(
    ("text", "where", "found", "do"),
    [
        ('layers { layer { name: "c" type: "conf" } }', 'layer "c"', 'unknown V0 type "conf"', '"conv"'),
        (
            V0.format('name: "p" type: "padding" pad: 1', 'bottom: "d" top: "p"', 'name: "r" type: "relu"', 'bottom: "p"'),
            'layer "r"',
            'a padding layer below type "relu"',
            "",
        ),
        (
            'layers { layer { name: "c" type: "conv" } bottom: "x" }',
            'layer "c"',
            'bottom "x" is produced by no layer before it',
            "",
        ),
        ('layers { type: DATA } layer { type: "Data" }', "net.prototxt", "both layer and layers", "rename layers"),
    ],
)
def test_an_old_net_that_cannot_be_upgraded_says_why(write, text, where, found, do):
    with pytest.raises(caffe.FileError) as error:
        net(write, text)
    assert where in error.value.where
    assert error.value.found == found
    assert do in error.value.do


def test_an_unused_field_of_a_v0_layer_is_logged_and_dropped(write, tmp_path):
    with caffe.log_to_file(tmp_path / "log"):
        layer = net(write, 'layers { layer { name: "r" type: "relu" num_output: 3 } bottom: "x" } input: "x"').layer[0]
    assert layer == caffe_pb2.LayerParameter(name="r", type="ReLU", bottom=["x"])
    assert "Unknown parameter num_output for layer type relu" in (tmp_path / "log").read_text()


def test_layer_lines_leave_out_layers_that_an_upgrade_removes(write):
    text = V0.format('name: "p" type: "padding" pad: 1', 'bottom: "d" top: "p"', 'name: "c" type: "conv"', 'bottom: "p"')
    assert prototxt.layer_lines(write("v0.prototxt", text)) == [1, 3]
    assert prototxt.layer_lines(write("net.prototxt", '# layer {\nname: "layer {"\nlayer\n{ x { } }\n layer: { }')) == [3, 5]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "latin-1"])
def test_comments_may_be_in_any_ascii_compatible_encoding(tmp_path, encoding):
    comment = {"gbk": "# 数据层", "latin-1": "# réseau"}.get(encoding, "# données, 数据层")
    path = tmp_path / "net.prototxt"
    path.write_bytes(f'{comment}\nlayer {{ name: "r" type: "ReLU" }} {comment}'.encode(encoding))
    assert prototxt.read_net(str(path)).layer[0] == caffe_pb2.LayerParameter(name="r", type="ReLU")
    assert prototxt.layer_lines(str(path)) == [2]


@pytest.mark.parametrize(
    ("content", "found", "do"),
    [
        ('name: "a"'.encode("utf-16"), "text in UTF-16", "save it as UTF-8"),
        (
            caffe_pb2.NetParameter(layer=[caffe_pb2.LayerParameter(blobs=[{"data": [0, 1]}])]).SerializeToString(),
            "not a text file",
            "",
        ),
    ],
)
def test_utf_16_and_binary_files_are_refused_as_prototxt(tmp_path, content, found, do):
    path = tmp_path / "net.prototxt"
    path.write_bytes(content)
    with pytest.raises(caffe.FileError) as error:
        prototxt.read_net(str(path))
    assert error.value.found == found
    assert do in error.value.do


@pytest.mark.parametrize(
    ("text", "found", "do"),
    [
        ("layer { type: CONVOLUTION }", "CONVOLUTION without quotes", 'write "Convolution"'),
        ("layer { name: conv1 }", "conv1 without quotes", 'write "conv1"'),
        ("layer { name: “conv1” }", "Expected string but found: '“'", ""),
        ('layers { type: "InnerProduct" }', 'no value "InnerProduct"', 'write layer { type: "InnerProduct" }'),
        ("layers { type: CONVOLUTIN }", "no value CONVOLUTIN", 'did you mean "CONVOLUTION" or "DECONVOLUTION"?'),
        ('layer { pooling_param { pool: "MAX" } }', 'PoolMethod has no value "MAX"', "write MAX without quotes"),
        ("layer { pooling_param { pool: SUM } }", "PoolMethod has no value SUM", "there are MAX, AVE, STOCHASTIC"),
        ("layer { weight_filer { } }", 'LayerParameter has no field "weight_filer"', ""),
        ("layer { convolution_param { weight_filer { } } }", 'has no field "weight_filer"', 'did you mean "weight_filler"?'),
        ('layer { name: "a"', "layer of line 3 is not closed", "add the missing }"),
        ('layer { name: "a" } }', "a } that closes nothing", "remove it"),
        ("layer { blobs_lr: 1 }", "no field", "write param { lr_mult: … }"),
        ("layer { num_output: 4 }", "no field", "it belongs in convolution_param or embed_param or inner_product_param"),
        ("base_lr: 0.1", "NetParameter has no field", "not the solver's"),
        ('layer { name: "d" data_param { batch size: 64 } }', 'no field "batch size"', 'did you mean "batch_size"?'),
    ],
)
def test_a_syntax_error_is_reported_with_its_line_and_a_correction(write, text, found, do):
    with pytest.raises(caffe.ParseError) as error:
        net(write, "\n\n" + text)
    assert error.value.where.endswith("net.prototxt:3")
    assert found in error.value.found
    assert do in error.value.do


OPEN = """name: "LeNet"
layers {
  name: "ip1"
  type: INNER_PRODUCT
  inner_product_param {
    num_output: 500
    weight_filler { type: "xavier" }
%s
"""


@pytest.mark.parametrize(
    ("rest", "line", "found"),
    [
        ("  blobs_lr: 1\n}", 8, "inner_product_param of line 5 is not closed"),
        ('layers { name: "relu1" }', 8, "inner_product_param of line 5 and layers of line 2 are not closed"),
        ('}\nlayers { name: "relu1" }', 9, "inner_product_param of line 5 is not closed"),  # by the column of the }
        ("  }\n\nlayers { name: 'a }' }  # }", 10, "layers of line 2 is not closed"),
        ("    bias_filler { type: 'constant'\n  }\n  bottom: 'a'\n}", 10, "bias_filler of line 8 is not closed"),
        ("  } # }", 8, "layers of line 2 is not closed"),
    ],
)
def test_a_brace_that_is_not_closed_is_named_with_its_line(write, rest, line, found):
    with pytest.raises(caffe.ParseError) as error:
        net(write, OPEN % rest)
    assert error.value.where.endswith(f"net.prototxt:{line}")
    assert error.value.found.startswith(found)
    assert "add the missing }" in error.value.do


def test_a_field_in_the_wrong_message_of_a_balanced_file_is_not_blamed_on_a_brace(write):
    with pytest.raises(caffe.ParseError) as error:
        net(write, "layer {\n  data_param {\n    transform_param { scale: 2 }\n  }\n}")
    assert (error.value.found, error.value.expected) == ('DataParameter has no field "transform_param"', "layer has")
    assert error.value.do == "close data_param of line 2 before it"


@pytest.mark.parametrize(
    ("text", "said", "do"),
    [
        ("base_lr: 0.1\nmax iter: 100", 'no field "max iter"', 'did you mean "max_iter"?'),
        ("base_lr: 0.1 solver mode: 1", 'no field "solver mode"', 'did you mean "solver_mode"?'),
        ("solver_mode: GPU snapshot after train: true", 'no field "snapshot after train"', '"snapshot_after_train"'),
        ('snapshot prefix: "x"', 'no field "snapshot prefix"', 'did you mean "snapshot_prefix"?'),  # of which snapshot is a field
        ("test-interval: 3", 'no field "test-interval"', 'did you mean "test_interval"?'),
        ('layer { name: "a" }', 'no field "layer"', "not the net's"),
    ],
)
def test_a_solvers_field_in_two_words_is_answered_with_the_one(write, text, said, do):
    with pytest.raises(caffe.ParseError) as error:
        prototxt.read_solver(write("solver.prototxt", text))
    assert said in error.value.found
    assert do in error.value.do
