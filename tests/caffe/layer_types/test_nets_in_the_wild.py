"""Small nets in the form of public ones, from their own data layers to their losses: MS-CNN, YOLO, NormFace, OpenPose."""

import cv2
import numpy as np
import pytest

import caffe
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from tests.caffe.layer_types.test_poses import people, record, write_records


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(6)


def losses(write, net, steps, rate=0.01):
    """The loss of each of some steps of training."""
    write("net.prototxt", net)
    text = f'net: "net.prototxt" base_lr: {rate} momentum: 0.9 lr_policy: "fixed" solver_mode: CPU snapshot_prefix: "run"'
    solver = caffe.get_solver(write("solver.prototxt", text))
    found = []
    for _ in range(steps):
        solver.step(1)
        found.append(sum(float(solver.net.blobs[name].data.ravel()[0]) for name in solver.net.blobs if name.startswith("loss")))
    return solver.net, np.array(found)


def filled(outputs, kernel, stride=1, pad=0):
    return (
        f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {pad}"
        ' weight_filler { type: "xavier" } }'
    )


MSCNN = f"""
layer {{ name: "data" type: "ImageGtData" top: "data" top: "label" top: "gt_boxes" transform_param {{ mean_value: 100 }}
  image_gt_data_param {{ source: "list.txt" batch_size: 2 downsample_rate: 8 field_w: 24 field_h: 24 output_gt_boxes: true
    scale: 0.02 }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" {filled(8, 8, 8)} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "fcn" type: "Convolution" bottom: "conv" top: "fcn" {filled(6, 3, 1, 1)} }}
layer {{ name: "loss_fcn" type: "DetectionLoss" bottom: "fcn" bottom: "label" top: "loss_fcn" loss_weight: 0.5
  detection_loss_param {{ cls_num: 2 field_h: 24 field_w: 24 downsample_rate: 8 sample_mode: "bootstrap" bg_multiple: 2
    pos_neg_weighted: true }} }}
layer {{ name: "acc" type: "DetectionAccuracy" bottom: "fcn" bottom: "label" top: "acc" top: "boxiou"
  detection_accuracy_param {{ cls_num: 2 field_h: 24 field_w: 24 downsample_rate: 8 }} }}
layer {{ name: "proposals" type: "BoxOutput" bottom: "fcn" top: "proposals" propagate_down: 0
  box_output_param {{ fg_thr: -5 iou_thr: 0.65 field_h: 24 field_w: 24 downsample_rate: 8 max_nms_num: 100 min_size: 4 }} }}
layer {{ name: "info" type: "ProposalTarget" bottom: "proposals" bottom: "gt_boxes" top: "rois" top: "labels" top: "targets"
  top: "inside" top: "outside" top: "matched" propagate_down: 0 propagate_down: 0
  proposal_target_param {{ cls_num: 2 batch_size: 16 num_img_per_batch: 2 img_width: 96 img_height: 64 bg_thr_lw: 0 }}
  bbox_reg_param {{ bbox_mean: 0 bbox_mean: 0 bbox_mean: 0 bbox_mean: 0
    bbox_std: 0.1 bbox_std: 0.1 bbox_std: 0.2 bbox_std: 0.2 }} }}
layer {{ name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool"
  roi_pooling_param {{ pooled_w: 2 pooled_h: 2 spatial_scale: 0.125 pad_ratio: 0.25 }} }}
layer {{ name: "cls" type: "InnerProduct" bottom: "pool" top: "cls"
  inner_product_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "bbox" type: "InnerProduct" bottom: "pool" top: "bbox"
  inner_product_param {{ num_output: 8 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss_cls" type: "SoftmaxWithLoss" bottom: "cls" bottom: "labels" top: "loss_cls" propagate_down: 1
  propagate_down: 0 }}
layer {{ name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox" bottom: "targets" bottom: "inside" bottom: "outside"
  top: "loss_bbox" loss_weight: 0.05 }}
layer {{ name: "iou" type: "BboxAccuracy" bottom: "bbox" bottom: "rois" bottom: "matched" top: "iou" top: "iou_before"
  bbox_reg_param {{ bbox_mean: 0 bbox_mean: 0 bbox_mean: 0 bbox_mean: 0
    bbox_std: 0.1 bbox_std: 0.1 bbox_std: 0.2 bbox_std: 0.2 }} }}
"""


def test_mscnn_learns_to_find_bright_squares(write):
    lines = []
    for number in range(4):
        pixels = np.full((64, 96, 3), 100, np.uint8)
        x, y = 8 + 16 * number, 12 + 8 * (number % 2)
        pixels[y : y + 24, x : x + 24] = 240
        cv2.imwrite(f"{number}.png", pixels)
        lines += [f"# {number}", f"{number}.png", "3 64 96", "1", f"1 0 {x} {y} {x + 24} {y + 24}", "0"]
    write("list.txt", "\n".join(lines) + "\n")
    net, found = losses(write, MSCNN, 40)
    assert np.isfinite(found).all()
    assert found[-8:].mean() < 0.6 * found[:4].mean()
    assert net.blobs["acc"].data.ravel()[0] > 0.8
    assert 0 < net.blobs["boxiou"].data.item() <= 1
    assert net.blobs["iou_before"].data.item() <= 1


YOLO = f"""
layer {{ name: "data" type: "BoxData" top: "data" top: "label" transform_param {{ mean_value: 100 scale: 0.02 }}
  data_param {{ source: "boxes" batch_size: 4 backend: LMDB side: 3 }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" {filled(8, 8, 4)} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param {{ num_output: 108 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "reg" type: "Reshape" bottom: "ip" top: "reg" reshape_param {{ axis: 1 shape {{ dim: 108 }} }} }}
layer {{ name: "loss_det" type: "DetectionLoss" bottom: "reg" bottom: "label" top: "loss_det" loss_weight: 1
  detection_loss_param {{ side: 3 num_class: 2 num_object: 2 sqrt: true constriant: true }} }}
"""


def test_yolo_learns_from_its_own_database(write):
    with DatabaseWriter("boxes", "lmdb") as put:
        for number in range(4):
            pixels = np.full((36, 36, 3), 100, np.uint8)
            x, y = 4 + 12 * (number % 2), 6 + 10 * (number // 2)
            pixels[y : y + 12, x : x + 12] = 240
            box = [number % 2, 0, (x + 6) / 36, (y + 6) / 36, 12 / 36, 12 / 36]
            datum = caffe_pb2.Datum(encoded=True, data=cv2.imencode(".png", pixels)[1].tobytes(), float_data=box)
            put(f"{number:08}".encode(), datum.SerializeToString())
    _, found = losses(write, YOLO, 60, 0.003)
    assert np.isfinite(found).all()
    assert found[-10:].mean() < 0.5 * found[:5].mean()


NORMFACE = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 6 dim: 5 } shape { dim: 6 } data_filler { type: "constant" value: 1 } data_filler { value: 0 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "Normalize" bottom: "ip" top: "norm" normalize_param { normalize_type: "L2" } }
layer { name: "agents" type: "Parameter" top: "agents"
  parameter_param { shape { dim: 3 dim: 4 } blob_filler { type: "gaussian_unitball" } } }
layer { name: "agents_norm" type: "Normalize" bottom: "agents" top: "agents_norm" normalize_param { normalize_type: "L2" } }
layer { name: "distance" type: "InnerDistance" bottom: "norm" bottom: "agents_norm" top: "distance" }
layer { name: "loss" type: "GeneralContrastiveLoss" bottom: "distance" bottom: "label" top: "loss" top: "means"
  general_contrastive_loss_param { positive_margin: 0 negative_margin: 1 } }
"""


def test_normface_brings_faces_to_their_agents(write):
    net, found = losses(write, NORMFACE, 30, 0.05)
    agents = net.params["agents"][0]
    assert agents.shape == (3, 4)
    assert found[-1] < 0.3 * found[0]
    assert net.blobs["means"].data[0] < 0.2
    fresh = caffe.Net("net.prototxt", caffe.TRAIN)
    np.testing.assert_allclose(np.linalg.norm(fresh.params["agents"][0].data, axis=1), 1, rtol=1e-5)


OPENPOSE = f"""
layer {{ name: "data" type: "CPMData" top: "data" top: "label" data_param {{ source: "records" batch_size: 2 backend: LMDB }}
  cpm_transform_param {{ stride: 8 crop_size_x: 64 crop_size_y: 64 target_dist: 0.5 num_parts: 56 np_in_lmdb: 17 }} }}
layer {{ name: "slice" type: "Slice" bottom: "label" top: "vec_weight" top: "heat_weight" top: "vec_temp" top: "heat_temp"
  slice_param {{ slice_point: 38 slice_point: 57 slice_point: 95 axis: 1 }} }}
layer {{ name: "label_heat" type: "Eltwise" bottom: "heat_weight" bottom: "heat_temp" top: "label_heat"
  eltwise_param {{ operation: PROD }} }}
layer {{ name: "silence" type: "Silence" bottom: "vec_weight" bottom: "vec_temp" }}
layer {{ name: "image" type: "Slice" bottom: "data" top: "image" top: "rest" slice_param {{ slice_point: 3 axis: 1 }} }}
layer {{ name: "rest" type: "Silence" bottom: "rest" }}
layer {{ name: "conv" type: "Convolution" bottom: "image" top: "conv" {filled(19, 8, 8)} }}
layer {{ name: "weighted" type: "Eltwise" bottom: "conv" bottom: "heat_weight" top: "weighted"
  eltwise_param {{ operation: PROD }} }}
layer {{ name: "loss" type: "EuclideanLoss" bottom: "weighted" bottom: "label_heat" top: "loss" }}
"""


def test_openpose_trains_on_its_database(write):
    image = np.random.default_rng(1).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    write_records(*(record(people(1 + number), image) for number in range(2)))
    _, found = losses(write, OPENPOSE, 25, 0.001)
    assert np.isfinite(found).all()
    assert found[-5:].mean() < 0.7 * found[:3].mean()
