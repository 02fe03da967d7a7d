"""Fields of forks that only hint are logged once and change nothing; of those that are not read, errors name the fork."""

import re

import pytest

import caffe
from caffe.formats import forks
from caffe.proto import caffe_pb2

NET = """name: "n" %s
layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 3 } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" %s inner_product_param { num_output: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "ip" top: "bn" %s }
layer { name: "loss" type: "EuclideanLoss" bottom: "bn" bottom: "x" top: "loss" }
"""
HINTED = NET % (
    "default_forward_type: FLOAT16 default_backward_math: FLOAT global_grad_scale: 100 bn_stats_batch_size: 32",
    'forward_type: FLOAT engine: "MKLDNN" quantization_param { bw_layer_in: 8 scale_in: 1.5 } visualise: true',
    "forward_type: FLOAT batch_norm_param { engine: MKL2017 }",
)
EVERY = [
    "NetParameter.default_forward_type",
    "NetParameter.default_backward_math",
    "NetParameter.global_grad_scale",
    "NetParameter.bn_stats_batch_size",
    "LayerParameter.forward_type",
    "LayerParameter.engine",
    "LayerParameter.quantization_param",
    "LayerParameter.visualise",
    "BatchNormParameter.engine",
]


def hints(run, path):
    with caffe.log_to_file(path, stderr=False):
        run()
    return re.findall(r"\] (\S+): (\w+\.\w+) has no effect; in (\S+) .*?fork", path.read_text())


def test_hints_of_a_net_are_logged_once_each(tmp_path, write):
    logged = hints(lambda: caffe.Net(write("net.prototxt", HINTED), caffe.TEST), tmp_path / "log")
    assert sorted(field for _, field, _ in logged) == sorted(EVERY)
    assert {where for where, _, _ in logged} == {"n"}
    assert {field: fork for _, field, fork in logged}["LayerParameter.engine"] == "Intel's"


def test_a_net_with_hints_computes_what_it_does_without(write):
    nets = [caffe.Net(write(f"{name}.prototxt", text), caffe.TRAIN) for name, text in (("a", HINTED), ("b", NET % ("", "", "")))]
    nets[1].params["ip"][0].data[...] = nets[0].params["ip"][0].data[...] = [[1, 2, 3]] * 3
    assert nets[0].forward()["loss"] == nets[1].forward()["loss"]


def test_a_net_without_hints_logs_none(tmp_path, write):
    assert hints(lambda: caffe.Net(write("net.prototxt", NET % ("", "", "")), caffe.TEST), tmp_path / "log") == []


def test_hints_of_a_solver_are_logged_apart_from_its_nets(tmp_path, write):
    write("net.prototxt", HINTED)
    text = (
        f'net: "{tmp_path}/net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1 solver_mode: CPU richness: 9 group_id: [0, 1]'
    )
    logged = hints(lambda: caffe.get_solver(write("solver.prototxt", text)), tmp_path / "log")
    assert [field for where, field, _ in logged if where != "n"] == ["SolverParameter.richness", "SolverParameter.group_id"]
    assert len(logged) == 2 + len(EVERY)


def test_every_hint_is_a_field():
    for name in forks.HINTS:
        message, field = name.split(".")
        assert field in getattr(caffe_pb2, message).DESCRIPTOR.fields_by_name, name


def test_no_field_that_is_read_is_listed_as_a_forks():
    for owner, names in ((owner, names) for fields in forks._UNSUPPORTED.values() for owner, names in fields.items()):
        of_v1 = owner == "V1LayerParameter.LayerType"
        known = caffe_pb2.V1LayerParameter.LayerType.keys() if of_v1 else getattr(caffe_pb2, owner).DESCRIPTOR.fields_by_name
        assert not set(known) & set(names.split()), f"remove them from {owner}: they are read now"


@pytest.mark.parametrize(
    ("text", "found", "fork"),
    [
        ("layer { picpac_param { } }", 'LayerParameter has no field "picpac_param"', "aaalgo/picpac has"),
        ("layer { transform_param { erase_ratio: 1 } }", 'TransformationParameter has no field "erase_ratio"',
         "happynear/caffe-windows has"),
        ("layer { image_gt_data_param { min_whaspect: 1 } }", 'ImageGtDataParameter has no field "min_whaspect"',
         "zhaoweicai/mscnn has"),
        ("layers { type: VIDEO_WITH_VOXEL_TRUTH_DATA }", "V1LayerParameter.LayerType has no value VIDEO_WITH_VOXEL_TRUTH_DATA",
         "facebookarchive/C3D has"),
    ],
)  # fmt: skip
def test_the_error_for_a_field_that_is_not_read_names_the_fork(write, text, found, fork):
    with pytest.raises(caffe.ParseError) as error:
        caffe.read_net(write("net.prototxt", text))
    assert (error.value.found, error.value.expected) == (found, fork)


@pytest.mark.parametrize("text", ["device_id: [2, 3]", "device_id: [ 2 ]", "# device_id: [7, 8]\ndevice_id: [2,\n3]"])
def test_of_a_list_of_devices_the_first_is_used(tmp_path, write, text):
    path = write("solver.prototxt", f"{text} base_lr: 0.5\nno_such_field: 1")
    with caffe.log_to_file(tmp_path / "log", stderr=False), pytest.raises(caffe.ParseError) as error:
        caffe.read_solver(path)
    assert error.value.where == f"{path}:{2 + text.count(chr(10))}"  # lines are counted as in the file
    solver = caffe.read_solver(write("solver.prototxt", f"{text} base_lr: 0.5"))
    assert (solver.device_id, solver.base_lr) == (2, 0.5)
    assert "one device is used; caffe train -gpu 0,1 uses several" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [("CROP", "Crop"), ("BN", "BN"), ("IMAGE_SEG_DATA", "ImageSegData"), ("PRELU", "PReLU"), ("RELU6", "ReLU6")],
)  # fmt: skip
def test_later_types_of_v1_nets_are_upgraded(write, old, new):
    net = caffe.read_net(write("net.prototxt", f'layers {{ name: "l" type: {old} }}'))
    assert net.layer[0].type == new


def test_a_v1_layers_own_parameters_of_forks_are_kept(write):
    text = "layers { type: BN bn_param { bn_mode: INFERENCE scale_filler { value: 2 } } }"
    net = caffe.read_net(write("net.prototxt", text))
    assert net.layer[0].bn_param.bn_mode == caffe_pb2.BNParameter.INFERENCE
    assert net.layer[0].bn_param.scale_filler.value == 2
