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
from pipeline.export import agreement, export, onnx_graph, onnx_layers, onnx_part, onnx_regions
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

OPSETS = (onnx_graph.OPSET, onnx_graph.LATEST)
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
    ("InnerDistance", "inner_distance_param { num_output: 5 }"),
    ("InnerDistance", 'inner_distance_param { num_output: 5 distance_type: "L1" }'),
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
    ("Convolution", "convolution_param { num_output: 3 kernel_size: 3 pad_l: 1 pad_r: 2 pad_t: 0 pad_b: 1 }"),
    ("BN", "bn_param { scale_filler { type: 'constant' value: 1 } bn_mode: INFERENCE }"),
    ("Normalize", "normalize_param { normalize_type: 'L1' }"),
    ("Normalize", "normalize_param { normalize_type: 'L2' }"),
    ("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 avg_include_pad: false }"),
    ("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad_l: 1 pad_r: 0 pad_t: 0 pad_b: 2 }"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad_l: 1 pad_r: 0 pad_t: 0 pad_b: 2 }"),
    ("SPP", "spp_param { pyramid_height: 3 }"),
    ("SPP", "spp_param { pyramid_height: 2 pool: AVE }"),
    ("SPP", "spp_param { pyramid_height: 1 }"),
    ("Im2col", "convolution_param { kernel_size: 3 pad: 1 stride: 2 dilation: 2 }"),
    ("ArgMax", "argmax_param { top_k: 3 }"),
    ("ArgMax", "argmax_param { top_k: 3 out_max_val: true }"),
    ("ArgMax", "argmax_param { axis: 1 top_k: 2 out_max_val: true }"),
    ("ArgMax", "argmax_param { axis: -1 top_k: 2 }"),
    ("Reverse", ""),
    ("Reverse", "reverse_param { axis: 2 }"),
    ("Norm", ""),
    ("Mean", "mean_param { operation: SUBTRACT value: 1 value: 2 input_scale: 2 output_scale: 0.5 }"),
    ("Division", "division_param { height: 3 width: 2 xcoord: 1 ycoord: 4 }"),
    ("Downsample", "downsample_param { top_height: 4 top_width: 3 }"),
    ("ContinuationIndicator", "continuation_indicator_param { time_step: 3 }"),
    ("ChannelNorm", ""),
    ("Resample", "resample_param { height: 11 width: 5 type: NEAREST }"),
    ("Resample", "resample_param { height: 3 width: 10 }"),
    ("Resample", "resample_param { height: 9 width: 4 type: CUBIC antialias: false }"),
    ("Unpooling", "unpooling_param { kernel_size: 2 stride: 2 }"),
    ("Unpooling", "unpooling_param { unpool: AVE kernel_size: 3 stride: 2 unpool_h: 14 unpool_w: 16 }"),
    ("Unpooling", "unpooling_param { unpool: TILE kernel_h: 2 kernel_w: 3 stride: 2 }"),
    ("MaskResize", "mask_resize_param { output_height: 3 output_width: 6 }"),
    ("MaskResize", "mask_resize_param { output_height: 18 output_width: 5 }"),
    ("DenseBlock", "denseblock_param { numTransition: 3 initChannel: 4 growthRate: 2 }"),
    ("DenseBlock", "denseblock_param { numTransition: 2 initChannel: 4 growthRate: 3 use_BC: true }"),
]
VARIANCES = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
PRIORS = f"prior_box_param {{ min_size: 4 max_size: 9 aspect_ratio: 2 flip: true clip: true {VARIANCES} }}"
"""4 boxes at each of 42 places of a map of 7 × 6."""


def detector(classes: int = 3, own_boxes: bool = False, more: str = "", refinement: int = 0) -> str:
    """SSD's head on `data`; with RefineDet's objectness of the priors, and with offsets that move them (refinement: 1, 2)."""
    boxes = 4 * 4 * (classes if own_boxes else 1)

    def head(name: str, outputs: int) -> str:
        convolution = f"convolution_param {{ num_output: {outputs} kernel_size: 3 pad: 1 }}"
        return (
            layer("Convolution", name, "data", more=convolution)
            + layer("Permute", f"{name}_perm", name, more="permute_param { order: 0 order: 2 order: 3 order: 1 }")
            + layer("Flatten", f"{name}_flat", f"{name}_perm")
        )

    return (
        head("loc", boxes)
        + head("conf", 4 * classes)
        + layer("Reshape", "conf_rows", "conf_flat", more=f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}")
        + layer("Softmax", "conf_soft", "conf_rows", more="softmax_param { axis: 2 }")
        + layer("Flatten", "conf_out", "conf_soft")
        + image(1, 3, 30, 30, name="picture")
        + layer("PriorBox", "priors", "data", "picture", more=PRIORS)
        + (head("objects", 8) + layer("Sigmoid", "objects_out", "objects_flat") if refinement else "")
        + (head("moves", 16) if refinement > 1 else "")
        + layer(
            "DetectionOutput",
            "rows",
            "loc_flat",
            "conf_out",
            "priors",
            *("objects_out", "moves_flat")[:refinement],
            more=(f"detection_output_param {{ num_classes: {classes} share_location: {str(not own_boxes).lower()} {more} }}"),
        )
    )


def python_proposals(settings: str, tops: str = "") -> str:
    """A deploy net's part of py-faster-rcnn."""
    param = f"{{'feat_stride': 16, 'scales': [2, 4], 'RPN_POST_NMS_TOP_N': 9, {settings}}}"
    return (
        image(1, 12, 5, 6, name="scores")
        + image(1, 24, 5, 6, name="offsets")
        + image(1, 3, name="im_info")
        + layer("Sigmoid", "likely", "scores")
        + layer("Power", "small", "offsets", more="power_param { scale: 0.3 }")
        + layer(
            "Python",
            "rois",
            "likely",
            "small",
            "im_info",
            more=f'{tops} python_param {{ module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{param}" }}',
        )
    )


def proposals(sizes: str, more: str = "", tops: str = "") -> str:
    return (
        image(2, 12, 5, 6, name="scores")
        + image(2, 24, 5, 6, name="offsets")
        + image(*map(int, sizes.split()), name="sizes")
        + layer("Power", "small", "offsets", more="power_param { scale: 0.3 }")
        + layer(
            "Proposal",
            "rois",
            "scores",
            "small",
            "sizes",
            more=(
                f"{tops} proposal_param {{ feat_stride: 16 base_size: 16 min_size: 8 ratio: 0.5 ratio: 1 ratio: 2 scale: 2 "
                f"scale: 4 pre_nms_topn: 60 post_nms_topn: 9 nms_thresh: 0.6 {more} }}"
            ),
        )
    )


def regions_pooled(kind: str, more: str, *bottoms: str) -> str:
    """Seven regions of `data` (and of further bottoms), pooled."""
    return image(7, 5, name="rois") + layer(kind, "y", "data", "rois", *bottoms, more=more)


def deformable(offsets: int, geometry: str, settings: str, masked: bool = False) -> str:
    """A deformable convolution of `data` at offsets of about a pixel, and with factors if it is modulated."""
    more = f"convolution_param {{ num_output: {offsets} {geometry} }}"
    text = layer("Convolution", "moves", "data", more=more)
    if not masked:
        settings = f"deformable_convolution_param {{ {geometry} {settings} }}"
        return text + layer("DeformableConvolution", "y", "data", "moves", more=settings)
    text += layer("Convolution", "heights", "data", more=more.replace(str(offsets), str(offsets // 2), 1))
    text += layer("Sigmoid", "masks", "heights")
    settings = f"modulated_deformable_convolution_param {{ {geometry} {settings} }}"
    return text + layer("ModulatedDeformableConvolution", "y", "data", "moves", "masks", more=settings)


def yolo(version: str, maps: int, channels: int, settings: str) -> str:
    """YOLO's output for one map of half the size of `data`, or for two."""
    text = layer("Pooling", "half", "data", more="pooling_param { kernel_size: 2 stride: 2 }")
    names = ["coarse", "fine"][:maps]
    for name, bottom in zip(names, ("half", "data"), strict=False):
        text += layer("Convolution", name, bottom, more=f"convolution_param {{ num_output: {channels} kernel_size: 1 }}")
    field = "yolo" if version == "Yolo" else "yolov3"
    return text + layer(f"{version}DetectionOutput", "rows", *names, more=f"{field}_detection_output_param {{ {settings} }}")


ANCHORS = "num_box: 2 biases: 1.5 biases: 2 biases: 4 biases: 2.5"
"""Of YOLOv2, in cells."""
ANCHORS_OF_TWO = "num_box: 2 mask: 2 mask: 1 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16" + "".join(
    f" biases: {side}" for side in (20, 30, 60, 40, 80, 90)
)
"""Of YOLOv3, in pixels, for two maps."""


def fields(settings: str, tops: str = "") -> str:
    """BoxOutput for two maps of 3 classes and offsets of about one."""
    text = "".join(
        layer("Convolution", name, "data", more=f"convolution_param {{ num_output: 7 kernel_size: 3 stride: {stride} pad: 1 }}")
        for name, stride in (("fine", 1), ("coarse", 2))
    )
    settings = f"field_w: 20 field_h: 30 field_w: 50 field_h: 40 downsample_rate: 8 downsample_rate: 16 {settings}"
    return text + layer("BoxOutput", "rois", "fine", "coarse", more=f"{tops} box_output_param {{ {settings} }}")


STEPS = image(5, 2, 6, name="x") + image(5, 2, name="cont")
RECURRENT = "recurrent_param { num_output: 3 }"
EXPOSED = "recurrent_param { num_output: 3 expose_hidden: true }"
SEVERAL = {
    "DetectionOutput": detector(more="nms_param { nms_threshold: 0.45 top_k: 50 } keep_top_k: 20 code_type: CENTER_SIZE"),
    "DetectionOutput, all kept": detector(more="nms_param { nms_threshold: 0.3 } confidence_threshold: 0.3 clip: true"),
    "DetectionOutput, a box for each class": detector(
        own_boxes=True, more="nms_param { nms_threshold: 0.5 top_k: 30 } keep_top_k: 40 code_type: CORNER_SIZE"
    ),
    "DetectionOutput, corners": detector(
        more="nms_param { nms_threshold: 0.5 } code_type: CORNER background_label_id: 1 variance_encoded_in_target: true"
    ),
    "DetectionOutput, nothing found": detector(more="nms_param { nms_threshold: 0.5 } confidence_threshold: 1.5"),
    "YoloDetectionOutput": yolo("Yolo", 1, 16, f"num_classes: 3 {ANCHORS} confidence_threshold: 0.2"),
    "YoloDetectionOutput, two maps": yolo("Yolo", 2, 14, f"num_classes: 2 {ANCHORS} nms_threshold: 0.2"),
    "YoloDetectionOutput, only the best": yolo("Yolo", 1, 14, f"num_classes: 2 {ANCHORS} nms_threshold: 0"),
    "YoloDetectionOutput, nothing found": yolo("Yolo", 1, 14, f"num_classes: 2 {ANCHORS} confidence_threshold: 1"),
    "Yolov3DetectionOutput": yolo("Yolov3", 2, 16, f"num_classes: 3 {ANCHORS_OF_TWO} confidence_threshold: 0.3"),
    "Yolov3DetectionOutput, Gaussian": yolo("Yolov3", 2, 22, f"num_classes: 2 {ANCHORS_OF_TWO} gaussian_box: true"),
    "Yolov3DetectionOutput, nothing suppressed": yolo(
        "Yolov3", 2, 14, f"num_classes: 2 {ANCHORS_OF_TWO} nms_threshold: 1.1 confidence_threshold: 0.25"
    ),
    "BoxOutput": fields("fg_thr: 0.2 iou_thr: 0.4 max_nms_num: 30 max_post_nms_num: 8 min_size: 12", 'top: "best"'),
    "BoxOutput, all kept": fields("fg_thr: -5 iou_thr: 0.6 field_whr: 1.5 field_xyr: 4"),
    "BoxOutput, nothing found": fields("fg_thr: 50", 'top: "best"'),
    "BoxOutput and ROIAlign": fields("iou_thr: 0.4 max_post_nms_num: 5")
    + layer("ROIAlign", "y", "data", "rois", more="roi_align_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.125 }")
    + layer("InnerProduct", "fc", "y", more="inner_product_param { num_output: 8 }")
    + layer("DecodeBBox", "boxes", "fc", "rois"),
    "Proposal": proposals("2 3"),
    "Proposal, one size": proposals("1 4", tops='top: "best"'),
    "ProposalLayer of Python": python_proposals("'RPN_MIN_SIZE': 0", tops='top: "best"'),
    "ProposalLayer of Python and ROIPooling": python_proposals("'RPN_MIN_SIZE': 1")
    + layer("ROIPooling", "y", "scores", "rois", more="roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 }"),
    "ROIPooling": image(7, 5, name="rois")
    + layer("ROIPooling", "y", "data", "rois", more="roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 }"),
    "Proposal and ROIPooling": proposals("2 3")
    + layer("ROIPooling", "y", "scores", "rois", more="roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.0625 }")
    + layer("InnerProduct", "fc", "y", more="inner_product_param { num_output: 3 }"),
    "PSROIPooling": image(7, 5, 1, 1, name="rois")
    + layer("PSROIPooling", "y", "data", "rois", more="psroi_pooling_param { output_dim: 1 group_size: 2 spatial_scale: 0.25 }"),
    "ROIPooling, enlarged": regions_pooled("ROIPooling", "roi_pooling_param { pooled_h: 3 pooled_w: 2 pad_ratio: 0.3 }"),
    "ROIAlign": regions_pooled("ROIAlign", "roi_align_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 sampling_ratio: 2 }"),
    "ROIAlign, a sample for each position": regions_pooled("ROIAlign", "roi_align_param { pooled_h: 2 pooled_w: 2 }"),
    "ROIAlign at corners": regions_pooled(
        "ROIAlign", "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 pad_ratio: 0.4 }"
    ),
    "ROIWarping": regions_pooled("ROIWarping", "roi_warping_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 }"),
    "DeformablePSROIPooling": image(7, 4, 3, 3, name="moves")
    + regions_pooled(
        "DeformablePSROIPooling",
        "deformable_psroi_pooling_param { output_dim: 4 group_size: 1 pooled_size: 4 part_size: 3 sample_per_part: 2 "
        "spatial_scale: 0.25 trans_std: 0.3 }",
        "moves",
    ),
    "DeformablePSROIPooling without offsets": regions_pooled(
        "DeformablePSROIPooling",
        "deformable_psroi_pooling_param { output_dim: 1 group_size: 2 sample_per_part: 3 spatial_scale: 0.25 no_trans: true }",
    ),
    "DeformableConvolution": deformable(36, "kernel_size: 3 pad: 1", "num_output: 6 deformable_group: 2 group: 2"),
    "DeformableConvolution, strided": deformable(
        12, "kernel_h: 3 kernel_w: 2 stride: 2 dilation: 2", "num_output: 2 bias_term: false"
    ),
    "ModulatedDeformableConvolution": deformable(36, "kernel_size: 3 pad: 1", "num_output: 4 deformable_group: 2", masked=True),
    "DecodeBBox": image(7, 8, name="moves")
    + image(7, 5, name="rois")
    + layer(
        *("DecodeBBox", "y", "moves", "rois"),
        more="bbox_reg_param { "
        + " ".join(f"bbox_mean: {mean} bbox_std: {std}" for mean, std in zip((0, 0.1, 0.2, 0), (0.1, 0.1, 0.2, 0.2), strict=True))
        + " }",
    ),
    "PriorBox alone": image(1, 3, 30, 40, name="picture")
    + layer("PriorBox", "y", "data", "picture", more="prior_box_param { min_size: 3 min_size: 5 step: 8 offset: 0.4 }"),
    "Upsample by positions": layer("Pooling", "p", "data", more='top: "at" pooling_param { kernel_size: 2 stride: 2 }')
    + layer("Upsample", "y", "p", "at", more="upsample_param { upsample_h: 7 upsample_w: 6 }"),
    "Pooling STOCHASTIC": layer("ReLU", "r", "data")
    + layer("Pooling", "y", "r", more="pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 pad: 1 }"),
    "Pooling's positions": layer("Pooling", "p", "data", more='top: "at" pooling_param { kernel_size: 3 stride: 2 pad: 1 }'),
    "LSTM": STEPS + layer("LSTM", "y", "x", "cont", more=RECURRENT),
    "LSTM with a static input": STEPS + image(2, 4, name="s") + layer("LSTM", "y", "x", "cont", "s", more=RECURRENT),
    "LSTM with its state": STEPS
    + image(1, 2, 3, name="h")
    + image(1, 2, 3, name="c")
    + layer("LSTM", "y", "x", "cont", "h", "c", more='top: "h2" top: "c2" ' + EXPOSED),
    "LSTM of one step": image(1, 2, 6, name="x") + image(1, 2, name="cont") + layer("LSTM", "y", "x", "cont", more=RECURRENT),
    "RNN": STEPS + layer("RNN", "y", "x", "cont", more=RECURRENT),
    "RNN with its state": STEPS + image(1, 2, 3, name="h") + layer("RNN", "y", "x", "cont", "h", more='top: "h2" ' + EXPOSED),
    "Lstm": STEPS + layer("Lstm", "y", "x", "cont", more="lstm_param { num_output: 3 }"),
    "Lstm without marks": image(5, 2, 6, name="x") + layer("Lstm", "y", "x", more="lstm_param { num_output: 3 }"),
    "Lstm, flat": image(6, 4, name="x") + layer("Lstm", "y", "x", more="lstm_param { num_output: 3 batch_size: 2 }"),
    "LSTMUnit": image(1, 2, 3, name="c")
    + image(1, 2, 12, name="g")
    + image(1, 2, name="cont")
    + layer("LSTMUnit", "c2", "c", "g", "cont", more='top: "h2"'),
    "ContinuationIndicator without a bottom": image(4, 2, 6, name="x")
    + layer("ContinuationIndicator", "cont", more="continuation_indicator_param { time_step: 4 batch_size: 2 }")
    + layer("LSTM", "y", "x", "cont", more=RECURRENT),
    "CTCGreedyDecoder": image(9, 3, 4, name="scores") + layer("CTCGreedyDecoder", "y", "scores"),
    "CTCGreedyDecoder, repeated": image(9, 3, 4, name="scores")
    + layer("CTCGreedyDecoder", "y", "scores", more="ctc_decoder_param { blank_index: 3 ctc_merge_repeated: false }"),
    "BatchReindex": image(5, name="numbers") + layer("BatchReindex", "y", "data", "numbers"),
    "Filter": image(2, name="chosen")
    + image(2, 3, name="more")
    + layer("Filter", "y", "data", "more", "chosen", more='top: "z"'),
    "Parameter": layer("Parameter", "p", more="parameter_param { shape { dim: 4 } }") + layer("Bias", "y", "data", "p"),
    "MaskPooling": image(2, 1, 7, 6, name="masks") + layer("MaskPooling", "y", "data", "masks"),
    "ChannelScale": image(2, 1, 7, 6, name="factors") + layer("ChannelScale", "y", "data", "factors"),
    "InnerDistance of given centres": image(5, 4, 7, 6, name="centres") + layer("InnerDistance", "y", "data", "centres"),
    "BilinearInterpolation": image(2, 1, 10, 3, name="like") + layer("BilinearInterpolation", "y", "data", "like"),
    "Reorg": image(2, 8, 4, 6, name="maps") + layer("Reorg", "y", "maps", more="reorg_param { stride: 2 }"),
    "Reorg, reversed": image(2, 8, 4, 6, name="maps")
    + layer("Reorg", "y", "maps", more="reorg_param { stride: 2 reverse: true }"),
    "Convolution3D": image(2, 3, 4, 6, 6, name="x")
    + layer(
        "Convolution3D",
        "y",
        "x",
        more=("convolution3d_param { num_output: 2 kernel_size: 3 kernel_depth: 2 pad: 1 temporal_pad: 1 stride: 2 }"),
    ),
    "Deconvolution3D": image(2, 3, 4, 5, 5, name="x")
    + layer(
        "Deconvolution3D",
        "y",
        "x",
        more=("convolution3d_param { num_output: 2 kernel_size: 4 kernel_depth: 3 pad: 1 temporal_pad: 1 stride: 2 }"),
    ),
    "Pooling3D": image(2, 3, 4, 6, 6, name="x")
    + layer("Pooling3D", "y", "x", more="pooling3d_param { pool: MAX kernel_size: 3 kernel_depth: 2 stride: 2 }"),
    "Pooling3D AVE": image(2, 3, 4, 6, 6, name="x")
    + layer("Pooling3D", "y", "x", more="pooling3d_param { pool: AVE kernel_size: 3 kernel_depth: 2 stride: 2 pad: 1 }"),
    "Correlation": image(*IMAGE, name="other")
    + layer(
        "Correlation",
        "y",
        "data",
        "other",
        more=("correlation_param { kernel_size: 3 max_displacement: 2 stride_2: 2 stride_1: 2 pad: 4 }"),
    ),
    "Correlation, subtracting": image(*IMAGE, name="other")
    + layer(
        "Correlation",
        "y",
        "data",
        "other",
        more=("correlation_param { kernel_size: 1 max_displacement: 1 correlation_type: SUBTRACT }"),
    ),
    "FlowWarp": image(2, 2, 7, 6, name="flow") + layer("FlowWarp", "y", "data", "flow"),
    "Division into several": layer(
        "Division", "a", "data", more=('top: "b" division_param { height: 3 width: 2 xcoord: 1 ycoord: 4 xcoord: 0 ycoord: 0 }')
    ),
    "Combination": image(2, 4, 2, 3, name="eye")
    + image(2, 4, 9, 8, name="face")
    + layer(
        "Combination",
        "y",
        *("data", "eye", "eye", "face"),
        more="combination_param { xcoord: 1 ycoord: 0 xcoord: 0 ycoord: 5 xcoord: 7 ycoord: 0 xcoord: 6 ycoord: 2 }",
    ),
    "Resample like another map": image(2, 1, 4, 9, name="like") + layer("Resample", "y", "data", "like"),
    "Unpooling by positions": layer("Pooling", "p", "data", more='top: "at" pooling_param { kernel_size: 2 stride: 2 }')
    + layer("Unpooling", "y", "p", "at", more="unpooling_param { kernel_size: 2 stride: 2 unpool_h: 7 unpool_w: 6 }"),
    "Unpooling by positions that are given": image(2, 4, 7, 6, name="at")
    + layer("Unpooling", "y", "data", "at", more="unpooling_param { kernel_size: 2 stride: 2 }"),
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
    for opset in OPSETS:
        assert export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, onnx_graph.Form(opset)) < 1e-5
    assert [one.name for one in onnx.load(tmp_path / "model.onnx").graph.output] == ["y"]


@pytest.mark.parametrize("text", SEVERAL.values(), ids=SEVERAL)
def test_several_layers_are_exported_together(write, tmp_path, text):
    made = net(write, image(*IMAGE) + text)
    limited = any(f'"{kind}"' in text for kind in onnx_regions.ROI_OPERATORS)
    for opset in [opset for opset in OPSETS if opset <= onnx_regions.LAST_ROI_OPSET or not limited]:
        assert export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, onnx_graph.Form(opset)) < 1e-5
    assert [one.name for one in onnx.load(tmp_path / "model.onnx").graph.output] == made.outputs


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("refinement", "settings"),
    [
        (0, "nms_param { nms_threshold: 1.5 } keep_top_k: 50"),
        (1, "nms_param { nms_threshold: 0.4 } objectness_score: 0.5"),
        (2, "nms_param { nms_threshold: 0.4 } objectness_score: 0.4 code_type: CENTER_SIZE"),
        (2, "nms_param { nms_threshold: 0.4 } code_type: CORNER_SIZE variance_encoded_in_target: true"),
    ],
)
def test_a_refined_detector_and_one_that_suppresses_nothing_are_exported(write, tmp_path, refinement, settings, half):
    made = net(write, image(*IMAGE) + detector(more=settings, refinement=refinement))
    limit = agreement.HALF_LIMIT if half else 1e-5
    assert export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, onnx_graph.Form(half=half)) < limit


@pytest.mark.parametrize(("scale", "least", "most"), [(1, 9, 9), (6, 1, 8), (90, 0, 0)])
def test_an_exported_proposal_layer_of_python_leaves_out_small_regions(write, tmp_path, scale, least, most):
    made = net(write, image(*IMAGE) + python_proposals("'RPN_MIN_SIZE': 12", tops='top: "best"'))
    export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(3)
    values = {name: rng.standard_normal(made.blobs[name].shape, np.float32) for name in made.inputs}
    values["im_info"] = np.array([[80, 96, scale]], np.float32)
    for name, value in values.items():
        made.blobs[name].data[...] = value
    made.forward()
    found = session.run(["rois", "best"], values)
    for name, value in zip(("rois", "best"), found, strict=True):
        assert value.shape == made.blobs[name].shape
        np.testing.assert_allclose(value, made.blobs[name].data, rtol=1e-4, atol=1e-3)
    assert least <= len(found[0]) <= most


def test_a_proposal_layer_of_python_is_checked_with_the_size_of_an_image(write):
    made = net(write, python_proposals("'RPN_MIN_SIZE': 1"))
    np.testing.assert_array_equal(agreement.random_inputs(made)["im_info"], [[80, 96, 1]])


def test_every_exported_layer_type_is_tested():
    kinds = {kind for kind, _ in CASES} | {word for text in SEVERAL.values() for word in text.split('"')}
    assert set(onnx_part.CONVERTERS) <= kinds


def test_every_layer_type_has_a_converter_or_a_reason_for_none():
    assert set(onnx_part.CONVERTERS) | set(onnx_layers.NOT_EXPORTED) == set(caffe.layer_type_list())
    assert set(onnx_part.CONVERTERS).isdisjoint(onnx_layers.NOT_EXPORTED)


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


@pytest.mark.parametrize("name", [name for name in SEVERAL if name.startswith(("Yolo", "BoxOutput"))])
def test_a_batch_has_the_detections_of_all_its_images(write, tmp_path, name):
    made = net(write, image(*IMAGE) + SEVERAL[name])
    assert export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, onnx_graph.Form(batch=3)) < 1e-5
    _, found = export.run_onnx(tmp_path / "model.onnx", made, 0.02)
    rows = found[made.outputs[0]].reshape(-1, 7 if "Yolo" in name else made.blobs[made.outputs[0]].shape[1])
    assert set(rows[:, 0]) == ({0} if name == "BoxOutput, nothing found" else {0, 1, 2})


def test_rows_of_equal_scores_may_be_exchanged_and_others_may_not(write, tmp_path):
    made = net(write, image(*IMAGE) + yolo("Yolov3", 2, 14, f"num_classes: 2 {ANCHORS_OF_TWO} nms_threshold: 0.9"))
    for name in ("coarse", "fine"):  # the second anchor's scores are all equal
        made.params[name][0].data[11:] = made.params[name][1].data[11:] = 0
    deciding = onnx_graph.model_and_values(made, {}, onnx_graph.Form(batch=2))[1]
    export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02, onnx_graph.Form(batch=2))
    bottoms, _ = deciding["rows"]
    inputs, found = export.run_onnx(tmp_path / "model.onnx", made, 0.02, bottoms)
    scores = found["rows"][0, 0, :, 2]
    (equal, *_), (different, *_) = np.flatnonzero(np.diff(scores) == 0), np.flatnonzero(np.diff(scores) < -1e-3)
    right = found["rows"].copy()
    found["rows"][0, 0, [equal, equal + 1]] = right[0, 0, [equal + 1, equal]]
    assert (found["rows"] != right).any()
    assert agreement.compare("model", made, inputs, inputs | found, deciding) < 1e-5
    found["rows"][0, 0, [different, different + 1]] = found["rows"][0, 0, [different + 1, different]]
    with pytest.raises(InputError, match="differs from the net's own"):
        agreement.compare("model", made, inputs, inputs | found, deciding)


POOLED = [name for name, text in SEVERAL.items() if "dim: 7 dim: 5" in text and "DecodeBBox" not in text]
"""Those with seven regions as an input."""
REGIONS = [
    *([0, -30, -20, 10, 12], [1, 12, 9, 60, 70], [1, -40, -40, 80, 90]),  # cut by an edge, by the other, around the map
    *([0, 40, 50, 60, 70], [1, -60, -50, -40, -30]),  # outside
    *([0, 6, 7, 6, 7], [1, 6, 15, 14, 15], [0, 14, 12, 10, 8]),  # of a pixel, of a line, turned round
    *([0, 2.5, 1.5, 9.5, 20.5], [1, -2, -2, 22, 26], [0, 0, 0, 23, 27]),  # between pixels, and at the edges
]


@pytest.mark.parametrize("name", POOLED)
def test_regions_at_and_beyond_the_edges_are_pooled_as_in_caffe(write, tmp_path, name):
    made = net(write, image(*IMAGE) + SEVERAL[name].replace("dim: 7", f"dim: {len(REGIONS)}"))
    export.write_onnx(made, tmp_path / "model.onnx", {}, 0.02)
    regions = np.array(REGIONS, np.float32)
    inputs = agreement.random_inputs(made, scale=0.02)
    inputs["rois"] = regions.reshape(inputs["rois"].shape)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = agreement.compute(made, inputs, ["y"])
    np.testing.assert_allclose(session.run(["y"], inputs)[0], expected, rtol=1e-4, atol=1e-5)


# ---- what cannot be exported, and the files' metadata

LABEL = image(2, 1, 7, 6, name="label")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LABEL + layer("SoftmaxWithLoss", "l", "data", "label"), 'layer "l": type SoftmaxWithLoss, but an exported'),
        (
            LABEL + layer("Accuracy", "a", "data", "label") + layer("EuclideanLoss", "e", "data", "data"),
            'layer "a": type Accuracy (and 1 more: e)',
        ),
        (
            image(7, 5, name="rois")
            + layer("ROIPooling", "r", "data", "rois", more="roi_pooling_param { pooled_h: 3 pooled_w: 2 }"),
            'layer "r": opset 26, but onnxruntime has MaxRoiPool up to opset 21; give --opset 21',
        ),
        (detector(more="nms_param { nms_threshold: 0.6 eta: 0.9 }"), 'layer "rows": eta 0.9'),
        (fields('nms_type: "IOMU"'), 'layer "rois": nms_type "IOMU"'),
        (
            regions_pooled("ROIAlign", "roi_align_param { pooled_h: 3 pooled_w: 2 }"),
            'layer "y": opset 26, but onnxruntime has RoiAlign up to opset 21; give --opset 21',
        ),
        (
            image(*IMAGE, name="first")
            + image(2, 3, 7, 6, name="picture")
            + layer(
                "MultiStageMeanfield", "c", "data", "first", "picture", more="multi_stage_meanfield_param { num_iterations: 2 }"
            ),
            'layer "c": type MultiStageMeanfield, but it filters on a lattice',
        ),
        (
            layer("BatchNorm", "n", "data", more="batch_norm_param { use_global_stats: false }"),
            'layer "n": statistics of the batch',
        ),
        (
            image(4, 1, 3, name="s") + image(1, 2, name="t") + layer("CTCGreedyDecoder", "d", "s", "t"),
            'layer "d": labels as a second bottom',
        ),
    ],
)
def test_a_layer_without_an_onnx_counterpart_is_named_and_nothing_is_written(write, tmp_path, text, said):
    made = net(write, image(*IMAGE) + text)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        export.write_onnx(made, tmp_path / "model.onnx", {}, form=onnx_graph.Form(onnx_graph.LATEST))
    assert said in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_with_a_different_output_is_not_written(write, tmp_path, monkeypatch):
    made = net(write, image(*IMAGE) + layer("ReLU", "relu", "data") + layer("Softmax", "prob", "relu"))
    monkeypatch.setitem(onnx_part.CONVERTERS, "ReLU", lambda part, x: part.add("Abs", x))
    with pytest.raises(InputError, match=r"model.onnx: its output differs from the net's own"):
        export.write_onnx(made, tmp_path / "model.onnx", {})
    assert not list(tmp_path.glob("*model*"))


def test_scores_are_compared_where_probabilities_hide_a_difference(write, tmp_path, monkeypatch):
    head = layer("InnerProduct", "fc", "data", more="inner_product_param { num_output: 2 }") + layer("Power", "scores", "fc")
    made = net(write, image(*IMAGE) + head + layer("Softmax", "prob", "scores"))
    made.params["fc"][1].data[...] = [0, 1e4]  # so that one class is certain
    monkeypatch.setitem(onnx_part.CONVERTERS, "Power", lambda part, x: part.add("Mul", x, part.number("more", 1.01)))
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
