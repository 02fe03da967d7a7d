"""Small nets modelled on published nets of forks: they are read, run, trained, and detect."""

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from caffe.transforms.boxes import overlaps


@pytest.fixture(autouse=True)
def _seed():
    caffe.set_random_seed(2)


def convolution(name, bottom, outputs, kernel=3, stride=1, more="", kind="Convolution"):
    return f"""
layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {more}
  convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} stride: {stride}
    weight_filler {{ type: "msra" }} }} }}
"""


def block(number, bottom, channels, outputs, stride=1):
    """MobileNet's: a depthwise and a pointwise convolution, each normalised, ReLU6 in place."""
    text = ""
    for name, source, count, kernel, kind in (
        (f"conv{number}/dw", bottom, channels, 3, "DepthwiseConvolution"),
        (f"conv{number}", f"conv{number}/dw", outputs, 1, "Convolution"),
    ):
        text += convolution(name, source, count, kernel, stride if kernel == 3 else 1, kind=kind)
        text += f"""
layer {{ name: "{name}/bn" type: "BatchNorm" bottom: "{name}" top: "{name}" batch_norm_param {{ scale_bias: true }} }}
layer {{ name: "{name}/relu" type: "ReLU6" bottom: "{name}" top: "{name}" }}
"""
    return text


def head(source, size, boxes=2, classes=2):
    """SSD's: offsets and scores of the boxes at each position, position by position."""
    text = ""
    for what, each in (("loc", 4), ("conf", classes)):
        name = f"{source}_mbox_{what}"
        text += convolution(name, source, boxes * each)
        text += f"""
layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm"
  permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" flatten_param {{ axis: 1 }} }}
"""
    return (
        text
        + f"""
layer {{ name: "{source}_mbox_priorbox" type: "PriorBox" bottom: "{source}" bottom: "data" top: "{source}_mbox_priorbox"
  prior_box_param {{ min_size: {size} max_size: {2 * size} clip: false
    variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 offset: 0.5 }} }}
"""
    )


def concat_heads(sources):
    text = ""
    for what, axis in (("loc_flat", 1), ("conf_flat", 1), ("priorbox", 2)):
        bottoms = " ".join(f'bottom: "{source}_mbox_{what}"' for source in sources)
        name = f"mbox_{what.removesuffix('_flat')}"
        text += f'layer {{ name: "{name}" type: "Concat" {bottoms} top: "{name}" concat_param {{ axis: {axis} }} }}\n'
    return text


BODY = (
    convolution("conv0", "data", 8, 3, 2)
    + block(1, "conv0", 8, 16, 2)
    + block(2, "conv1", 16, 16)
    + block(3, "conv2", 16, 32, 2)
    + """
layer { name: "norm" type: "Normalize" bottom: "conv2" top: "norm"
  norm_param { across_spatial: false channel_shared: false scale_filler { type: "constant" value: 5 } } }
"""
    + head("norm", 10)
    + head("conv3", 20)
    + concat_heads(["norm", "conv3"])
)
LOSS = """
layer { name: "mbox_loss" type: "MultiBoxLoss" bottom: "mbox_loc" bottom: "mbox_conf" bottom: "mbox_priorbox" bottom: "label"
  top: "mbox_loss" include { phase: TRAIN } propagate_down: true propagate_down: true propagate_down: false propagate_down: false
  loss_param { normalization: VALID }
  multibox_loss_param { loc_loss_type: SMOOTH_L1 conf_loss_type: SOFTMAX loc_weight: 1 num_classes: 2 share_location: true
    match_type: PER_PREDICTION overlap_threshold: 0.5 use_prior_for_matching: true background_label_id: 0 use_difficult_gt: true
    neg_pos_ratio: 3 neg_overlap: 0.5 code_type: CENTER_SIZE ignore_cross_boundary_bbox: false mining_type: MAX_NEGATIVE } }
"""
DETECT = """
layer { name: "mbox_conf_reshape" type: "Reshape" bottom: "mbox_conf" top: "mbox_conf_reshape"
  reshape_param { shape { dim: 0 dim: -1 dim: 2 } } include { phase: TEST } }
layer { name: "mbox_conf_softmax" type: "Softmax" bottom: "mbox_conf_reshape" top: "mbox_conf_softmax"
  softmax_param { axis: 2 } include { phase: TEST } }
layer { name: "mbox_conf_flatten" type: "Flatten" bottom: "mbox_conf_softmax" top: "mbox_conf_flatten"
  flatten_param { axis: 1 } include { phase: TEST } }
layer { name: "detection_out" type: "DetectionOutput" bottom: "mbox_loc" bottom: "mbox_conf_flatten" bottom: "mbox_priorbox"
  top: "detection_out" include { phase: TEST }
  detection_output_param { num_classes: 2 share_location: true background_label_id: 0 nms_param { nms_threshold: 0.45 top_k: 100 }
    code_type: CENTER_SIZE keep_top_k: 10 confidence_threshold: 0.25 } }
"""


def photograph(rng):
    """A noisy image with one bright object, and the object's corners in relative coordinates."""
    image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    width, height = rng.integers(14, 34, 2)
    left, top = rng.integers(0, 64 - width), rng.integers(0, 64 - height)
    image[top : top + height, left : left + width] = rng.integers(180, 255, 3)
    return image, np.array([left, top, left + width, top + height]) / 64


def test_an_ssd_learns_to_detect_objects(tmp_path, write):
    rng = np.random.default_rng(0)
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 26) as database, database.begin(write=True) as transaction:
        for index in range(64):
            image, corners = photograph(rng)
            datum = caffe_pb2.AnnotatedDatum(type=caffe_pb2.AnnotatedDatum.BBOX)
            datum.datum.encoded, datum.datum.data = True, cv2.imencode(".png", image)[1].tobytes()
            box = datum.annotation_group.add(group_label=1).annotation.add().bbox
            box.xmin, box.ymin, box.xmax, box.ymax = corners
            transaction.put(b"%08d" % index, datum.SerializeToString())
    source = f"""
layer {{ name: "data" type: "AnnotatedData" top: "data" top: "label" include {{ phase: TRAIN }}
  transform_param {{ scale: 0.01 mean_value: 128 mirror: true resize_param {{ prob: 1 resize_mode: WARP height: 64 width: 64 }}
    emit_constraint {{ emit_type: CENTER }} }}
  data_param {{ source: "{tmp_path}/db" batch_size: 16 backend: LMDB }}
  annotated_data_param {{ batch_sampler {{ max_sample: 1 max_trials: 1 }}
    batch_sampler {{ sampler {{ min_scale: 0.7 }} sample_constraint {{ min_object_coverage: 1 }}
      max_sample: 1 max_trials: 20 }} }} }}
layer {{ name: "data" type: "Input" top: "data" include {{ phase: TEST }}
  input_param {{ shape {{ dim: 4 dim: 3 dim: 64 dim: 64 }} }} }}
"""
    net = write("ssd.prototxt", 'name: "MobileNet-SSD"' + source + BODY + LOSS + DETECT)
    solver = caffe.get_solver(
        write(
            "solver.prototxt",
            f'train_net: "{net}" base_lr: 0.005 lr_policy: "fixed" max_iter: 200 type: "Adam" momentum: 0.9 solver_mode: CPU'
            ' random_seed: 3 snapshot_after_train: false eval_type: "detection" ap_version: "11point"',
        )
    )
    losses = []
    for _ in range(200):
        solver.step(1)
        losses.append(float(solver.net.blobs["mbox_loss"].data))
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    solver.net.save(str(tmp_path / "ssd.caffemodel"))
    solver.net.close()
    test = caffe.Net(net, str(tmp_path / "ssd.caffemodel"), caffe.TEST)
    found = 0
    for _ in range(4):
        images, truths = zip(*(photograph(rng) for _ in range(4)), strict=True)
        test.blobs["data"].data[...] = (np.stack(images).transpose(0, 3, 1, 2) - 128.0) * 0.01
        rows = test.forward()["detection_out"][0, 0]
        for number, truth in enumerate(truths):
            own = rows[(rows[:, 0] == number) & (rows[:, 1] == 1)]
            best = own[own[:, 2].argmax(), 3:] if len(own) else np.zeros(4)
            found += overlaps(best[None].astype(np.float32), truth[None].astype(np.float32))[0, 0] > 0.5
    assert found >= 8  # of 16 new images; without learning, none


SEGNET = """
name: "SegNet-like" input: "data" input_dim: 2 input_dim: 3 input_dim: 15 input_dim: 18
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 dim: 1 dim: 15 dim: 18 } } }
%s
layer { name: "conv1_bn" type: "BN" bottom: "conv1" top: "conv1"
  bn_param { scale_filler { type: "constant" value: 1 } shift_filler { type: "constant" value: 0.001 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" top: "pool1_mask" pooling_param { kernel_size: 2 stride: 2 } }
%s
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" top: "pool2_mask" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up2" type: "Upsample" bottom: "pool2" bottom: "pool2_mask" top: "up2" upsample_param { scale: 2 pad_out_w: true } }
layer { name: "up1" type: "Upsample" bottom: "up2" bottom: "pool1_mask" top: "up1"
  upsample_param { upsample_h: 15 upsample_w: 18 } }
%s
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv3" bottom: "label" top: "loss" loss_param { normalize: true } }
""" % (convolution("conv1", "data", 8), convolution("conv2", "pool1", 8), convolution("conv3", "up1", 2))  # noqa: UP031


def test_a_segnet_learns_to_segment(write):
    net = write("segnet.prototxt", SEGNET)
    text = (
        f'net: "{net}" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 100 solver_mode: CPU snapshot_after_train: false'
    )
    solver = caffe.get_solver(write("solver.prototxt", text))
    rng = np.random.default_rng(1)
    data = solver.net.blobs["data"].data[...] = rng.normal(size=(2, 3, 15, 18)).cumsum(2).cumsum(3)
    solver.net.blobs["label"].data[...] = data[:, :1] > 0
    solver.step(1)
    first = float(solver.net.blobs["loss"].data)
    solver.step(99)
    assert solver.net.blobs["loss"].data < 0.4 * first


FASTER = (
    """
name: "Faster R-CNN-like" input: "data" input_shape { dim: 1 dim: 3 dim: 48 dim: 64 } input: "rois" input_shape { dim: 6 dim: 5 }
input: "labels" input_shape { dim: 6 } input: "bbox_targets" input_shape { dim: 6 dim: 12 }
input: "bbox_inside_weights" input_shape { dim: 6 dim: 12 } input: "bbox_outside_weights" input_shape { dim: 6 dim: 12 }
"""
    + convolution("conv1", "data", 8, 3, 2)
    + """
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "roi_pool5" type: "ROIPooling" bottom: "conv1" bottom: "rois" top: "pool5"
  roi_pooling_param { pooled_w: 4 pooled_h: 3 spatial_scale: 0.5 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "pool5" top: "cls_score"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "pool5" top: "bbox_pred"
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "loss_cls" type: "SoftmaxWithLoss" bottom: "cls_score" bottom: "labels" top: "loss_cls"
  propagate_down: 1 propagate_down: 0 loss_weight: 1 loss_param { ignore_label: -1 normalize: true } }
layer { name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox_pred" bottom: "bbox_targets" bottom: "bbox_inside_weights"
  bottom: "bbox_outside_weights" top: "loss_bbox" loss_weight: 1 smooth_l1_loss_param { sigma: 3 } }
"""
    + convolution("rfcn_cls", "conv1", 3 * 9, 1)
    + """
layer { name: "psroipooled" type: "PSROIPooling" bottom: "rfcn_cls" bottom: "rois" top: "psroipooled"
  psroi_pooling_param { spatial_scale: 0.5 output_dim: 3 group_size: 3 } }
layer { name: "ave" type: "Pooling" bottom: "psroipooled" top: "ave" pooling_param { pool: AVE kernel_size: 3 stride: 3 } }
layer { name: "loss_rfcn" type: "SoftmaxFocalLoss" bottom: "ave" bottom: "labels" top: "loss_rfcn" loss_weight: 0.5
  loss_param { ignore_label: -1 } focal_loss_param { alpha: 0.5 gamma: 2 } }
"""
)


def test_region_based_detectors_have_gradients_for_all_parameters(write):
    net = caffe.Net(write("faster.prototxt", FASTER), caffe.TRAIN)
    rng = np.random.default_rng(4)
    net.blobs["data"].data[...] = rng.normal(size=(1, 3, 48, 64))
    net.blobs["rois"].data[...] = [[0, 3, 4, 40, 30], [0, 0, 0, 63, 47], [0, 20, 8, 28, 40], *[[0, 5, 5, 6, 6]] * 3]
    net.blobs["labels"].data[...] = [1, 2, 0, -1, 0, 1]
    for name in ("bbox_targets", "bbox_inside_weights", "bbox_outside_weights"):
        net.blobs[name].data[...] = rng.uniform(size=(6, 12))
    weights = {"loss_cls": 1, "loss_bbox": 1, "loss_rfcn": 0.5}
    first = net.forward()
    assert set(first) == set(weights)
    first = sum(weight * float(first[name]) for name, weight in weights.items())
    net.backward()
    for layer, blobs in net.params.items():
        for blob in blobs:
            assert blob.diff.any(), layer
            blob.data[...] -= 1e-3 * blob.diff
    assert sum(weight * float(net.forward()[name]) for name, weight in weights.items()) < first
    # Another number of regions and another size of image.
    for name, shape in (("data", (1, 3, 60, 40)), ("rois", (2, 5)), ("labels", (2,))):
        net.blobs[name].reshape(*shape)
    for name in ("bbox_targets", "bbox_inside_weights", "bbox_outside_weights"):
        net.blobs[name].reshape(2, 12)
    net.blobs["labels"].data[...] = [0, 1]
    net.reshape()
    net.forward()
    assert net.blobs["pool5"].shape == (2, 8, 3, 4)


PSPNET = (
    'name: "PSPNet-like" input: "data" input_dim: 1 input_dim: 3 input_dim: 33 input_dim: 41'
    + convolution("conv1", "data", 8, 3, 2)
    + """
layer { name: "conv1/bn" type: "BN" bottom: "conv1" top: "conv1" param { lr_mult: 1 } param { lr_mult: 1 }
  bn_param { slope_filler { type: "constant" value: 1 } bias_filler { type: "constant" value: 0 } frozen: true momentum: 0.95 } }
layer { name: "pool" type: "Pooling" bottom: "conv1" top: "pool"
  pooling_param { pool: AVE kernel_size: 9 stride: 9 ceil_mode: false } }
layer { name: "interp" type: "Interp" bottom: "pool" top: "interp" interp_param { height: 17 width: 21 pad_beg: 0 pad_end: 0 } }
layer { name: "concat" type: "Concat" bottom: "conv1" bottom: "interp" top: "concat" }
"""
    + convolution("conv6", "concat", 5, 1)
    + 'layer { name: "conv6_interp" type: "Interp" bottom: "conv6" top: "conv6_interp" interp_param { zoom_factor: 2 } }\n'
    + convolution("gconv", "concat", 16, 1, more="", kind="Convolution")
    + """
layer { name: "shuffle" type: "ShuffleChannel" bottom: "gconv" top: "shuffle" shuffle_channel_param { group: 4 } }
layer { name: "squeeze" type: "Pooling" bottom: "shuffle" top: "squeeze" pooling_param { pool: AVE global_pooling: true } }
layer { name: "gate" type: "Sigmoid" bottom: "squeeze" top: "gate" }
layer { name: "axpy" type: "Axpy" bottom: "gate" bottom: "shuffle" bottom: "concat" top: "axpy" }
layer { name: "crop" type: "Slice" bottom: "axpy" top: "even" top: "odd" slice_param { axis: 1 } }
layer { name: "reorg" type: "Reorg" bottom: "even" top: "reorg" reorg_param { stride: 1 } }
"""
)


def test_a_scene_parsing_net_of_fork_layers_scores_each_pixel(write):
    net = caffe.Net(write("pspnet.prototxt", PSPNET), caffe.TEST)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(size=(1, 3, 33, 41))
    tops = net.forward()
    assert {name: values.shape for name, values in tops.items()} == {
        "conv6_interp": (1, 5, 33, 41),
        "odd": (1, 8, 17, 21),
        "reorg": (1, 8, 17, 21),
    }
    assert net.blobs["pool"].shape == (1, 8, 1, 2)
    np.testing.assert_allclose(tops["conv6_interp"][:, :, ::2, ::2], net.blobs["conv6"].data, rtol=1e-4, atol=1e-5)
