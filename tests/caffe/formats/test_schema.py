"""The schema: fields of forks are matched by name in text, and weights load whatever field numbers a fork uses."""

import numpy as np
import pytest
from google.protobuf import text_format

import caffe
from caffe.proto import caffe_pb2

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""
WEIGHTS = np.arange(6, dtype=np.float32)
BIAS = np.array([7, 8], np.float32)
BASE = range(1, 149)
"""Field numbers of LayerParameter that BVLC Caffe uses."""


def varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number, content):
    """A field of bytes or an integer in protobuf's wire format."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(values, shape=None, legacy=()):
    axes = b"".join(field(number, axis) for number, axis in enumerate(legacy, 1))
    dims = field(7, field(1, b"".join(map(varint, shape)))) if shape is not None else b""
    return axes + dims + field(5, values.tobytes())


def caffemodel(tmp_path, *layers, number=100):
    path = tmp_path / "fork.caffemodel"
    path.write_bytes(field(1, b"fork") + b"".join(field(number, layer) for layer in layers))
    return str(path)


def load_weights(write, path, text=NET):
    return [blob.data.copy() for blob in caffe.Net(write("net.prototxt", text), caffe.TEST, weights=path).params["ip"]]


def test_fork_fields_have_numbers_that_bvlc_caffe_does_not_use():
    fields = {
        message: [f for f in getattr(caffe_pb2, message).DESCRIPTOR.fields if f.number > 20000]
        for message in ("LayerParameter", "SolverParameter", "TransformationParameter", "PoolingParameter", "BatchNormParameter")
    }
    assert all(fields.values())
    assert {f.number for f in caffe_pb2.LayerParameter.DESCRIPTOR.fields} <= {*BASE, *range(20001, 21000)}
    assert "ceil_mode" in [f.name for f in fields["PoolingParameter"]]


@pytest.mark.parametrize(
    "foreign",
    [
        field(149, b"\xff\xff\xff"),  # not a valid message
        field(149, 3),
        field(141, b"text where bias_param is a message"),
        field(102, 1),
        field(20001, b"\x08"),
        field(20005, b"a fork that came to our numbers"),
    ],
    ids=["damaged", "a number", "text", "an enum", "our field, damaged", "our field, text"],
)
def test_weights_load_whatever_a_fork_stores_in_other_fields(tmp_path, write, foreign):
    layer = field(1, b"ip") + field(2, b"InnerProduct") + foreign + field(7, blob(WEIGHTS, (2, 3))) + field(7, blob(BIAS, (2,)))
    weights, bias = load_weights(write, caffemodel(tmp_path, layer))
    np.testing.assert_array_equal(weights, WEIGHTS.reshape(2, 3))
    np.testing.assert_array_equal(bias, BIAS)


def test_v1_weights_with_four_axes_load(tmp_path, write):
    blobs = field(6, blob(WEIGHTS, legacy=(1, 1, 2, 3))) + field(6, blob(BIAS, legacy=(1, 1, 1, 2)))
    layer = field(4, b"ip") + field(5, 14) + blobs + field(149, b"\xff")
    weights, bias = load_weights(write, caffemodel(tmp_path, layer, number=2))
    np.testing.assert_array_equal(weights, WEIGHTS.reshape(2, 3))
    np.testing.assert_array_equal(bias, BIAS)


def test_v0_weights_load_by_the_inner_layers_name(tmp_path, write):
    inner = field(1, b"ip") + field(2, b"innerproduct")
    inner += field(50, blob(WEIGHTS, legacy=(1, 1, 2, 3))) + field(50, blob(BIAS, legacy=(1, 1, 1, 2)))
    weights, _ = load_weights(write, caffemodel(tmp_path, field(1, inner), number=2))
    np.testing.assert_array_equal(weights, WEIGHTS.reshape(2, 3))


@pytest.mark.parametrize(
    "stored",
    [
        blob(WEIGHTS, legacy=(2, 3, 1, 1)),  # Caffe pads missing axes at the front
        blob(WEIGHTS, (1, 1, 2, 3)),  # a current shape must match exactly
        blob(WEIGHTS, (3, 2)),
        blob(WEIGHTS[:5], (2, 3)),
    ],
    ids=["legacy axes padded at the end", "leading ones in a shape", "transposed", "too few values"],
)
def test_weights_of_another_shape_are_refused(tmp_path, write, stored):
    layer = field(1, b"ip") + field(7, stored) + field(7, blob(BIAS, (2,)))
    with pytest.raises(caffe.WeightsError) as error:
        load_weights(write, caffemodel(tmp_path, layer))
    assert "parameter 0" in error.value.found


@pytest.mark.parametrize(("kind", "dtype"), [(0, "<f8"), (1, "<f4"), (2, "<f2")])
def test_raw_values_of_nvidias_files_are_read(tmp_path, write, kind, dtype):
    def raw(values, shape):
        return field(7, blob(values[:0], shape) + field(10, kind) + field(12, values.astype(dtype).tobytes()))

    weights, bias = load_weights(write, caffemodel(tmp_path, field(1, b"ip") + raw(WEIGHTS, (2, 3)) + raw(BIAS, (2,))))
    np.testing.assert_array_equal(weights, WEIGHTS.reshape(2, 3))
    np.testing.assert_array_equal(bias, BIAS)


def test_raw_values_of_another_type_are_an_error(tmp_path, write):
    layer = field(1, b"ip") + field(7, field(7, field(1, b"\x02\x03")) + field(10, 4) + field(12, bytes(24)))
    with pytest.raises(caffe.FileError) as error:
        load_weights(write, caffemodel(tmp_path, layer))
    assert error.value.found == "raw values of an unknown type"


SOLVER = """
train_net: "train.prototxt" test_net: "test.prototxt" test_iter: 619 test_interval: 10000 base_lr: 0.001 max_iter: 120000
lr_policy: "multistep" gamma: 0.1 momentum: 0.9 stepvalue: 80000 stepvalue: 100000 solver_mode: GPU type: "SGD"
eval_type: "detection" ap_version: "11point" show_per_class_result: true plateau_winsize: 10000 plateau_winsize: 20000
"""


def test_ssds_solver_is_read(write):
    solver = caffe.read_solver(write("solver.prototxt", SOLVER))
    assert (solver.eval_type, solver.ap_version, solver.show_per_class_result) == ("detection", "11point", True)
    assert list(solver.plateau_winsize) == [10000, 20000]


def test_prototxt_of_forks_round_trips(write):
    layer = text_format.Parse(
        """
        name: "mbox_loss" type: "MultiBoxLoss"
        multibox_loss_param { loc_loss_type: SMOOTH_L1 conf_loss_type: SOFTMAX num_classes: 21 match_type: PER_PREDICTION
          overlap_threshold: 0.5 code_type: CENTER_SIZE mining_type: MAX_NEGATIVE neg_pos_ratio: 3 neg_overlap: 0.5 }
        transform_param { resize_param { prob: 1 resize_mode: WARP height: 300 width: 300 interp_mode: LINEAR interp_mode: AREA }
          emit_constraint { emit_type: CENTER } distort_param { brightness_prob: 0.5 } expand_param { max_expand_ratio: 4 } }
        annotated_data_param { batch_sampler { sampler { min_scale: 0.3 } sample_constraint { min_jaccard_overlap: 0.1 }
          max_sample: 1 max_trials: 50 } label_map_file: "labelmap.prototxt" }
        detection_output_param { num_classes: 21 nms_param { nms_threshold: 0.45 top_k: 400 } code_type: CENTER_SIZE
          save_output_param { output_format: "VOC" } keep_top_k: 200 confidence_threshold: 0.01 }
        """,
        caffe_pb2.LayerParameter(),
    )
    net = caffe_pb2.NetParameter(layer=[layer])
    path = write("net.prototxt", "")
    caffe.write_prototxt(path, net)
    assert caffe.read_net(path) == net


def test_a_misspelt_fork_field_is_answered_with_the_nearest_name(write):
    with pytest.raises(caffe.ParseError) as error:
        caffe.read_net(write("net.prototxt", 'layer { type: "Permute" permute_params { order: 0 } }'))
    assert '"permute_param"' in error.value.do


def test_net_spec_writes_layers_of_forks():
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(input_param={"shape": {"dim": [1, 3, 32, 32]}})
    n.norm = caffe.layers.Normalize(n.data, across_spatial=False, scale_filler={"type": "constant", "value": 20})
    n.perm = caffe.layers.Permute(n.norm, order=[0, 2, 3, 1])
    n.prior = caffe.layers.PriorBox(n.norm, n.data, min_size=30.0, aspect_ratio=[2, 3], variance=[0.1, 0.1, 0.2, 0.2])
    n.up = caffe.layers.Interp(n.norm, zoom_factor=2)
    net = n.to_proto()
    assert net.layer[1].norm_param.scale_filler.value == 20
    assert list(net.layer[2].permute_param.order) == [0, 2, 3, 1]
    shapes = {name: blob.shape for name, blob in caffe.Net(net, caffe.TEST).blobs.items()}
    assert (shapes["perm"], shapes["prior"], shapes["up"]) == ((1, 32, 32, 3), (1, 2, 32 * 32 * 5 * 4), (1, 3, 63, 63))
