"""Deploy prototxts with the layers of published nets under their names, written here and with fewer channels; random weights."""

import math
from pathlib import Path

import cv2
import numpy as np

import caffe
from caffe.proto import caffe_pb2
from tests.pipeline.trained_nets import image, layer, set_random_weights

THIN = 8
"""Divisor of the published nets' numbers of channels, where they do not matter to what follows."""


def convolution(name: str, bottom: str, outputs: int, kernel: int, more: str = "", top: str = "", relu: bool = True) -> str:
    pad = "" if "pad" in more or kernel == 1 else f"pad: {kernel // 2}"
    settings = f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} {pad} {more} }}"
    text = layer("Convolution", name, bottom, top=top, more=settings)
    return text + (layer("ReLU", f"relu_{name}", top or name, top=top or name) if relu else "")


def pool(name: str, bottom: str, kernel: int = 2, stride: int = 2) -> str:
    return layer("Pooling", name, bottom, more=f"pooling_param {{ pool: MAX kernel_size: {kernel} stride: {stride} }}")


def write(folder: Path, text: str, prototxt: str, weights: str, left_out: tuple[str, ...] = ()) -> None:
    """Write a net's prototxt, and random weights of all layers but some."""
    (folder / prototxt).write_text(text)
    net = set_random_weights(caffe.Net(str(folder / prototxt), caffe.TEST))
    for name, blobs in net.params.items():
        if net.layer_dict[name].type == "Convolution":  # so that deep layers depend on the image
            blobs[0].data[...] *= math.sqrt(2)
            blobs[1].data[...] *= 0.1
    spread_scores(net, 1 if net.name == "MobileNet-SSD" else 120)
    for name, blobs in net.params.items():
        if name.endswith("_mbox_loc"):  # boxes near their priors, as after training
            blobs[0].data[...] *= 0.002
        if name in ("fc8", "conv8_313"):  # no class is certain
            blobs[0].data[...] *= 0.05 if name == "fc8" else 0.02
    net.save(str(folder / weights))
    if left_out:
        message = caffe_pb2.NetParameter()
        message.ParseFromString((folder / weights).read_bytes())
        kept = [each for each in message.layer if each.name not in left_out]
        del message.layer[:]
        message.layer.extend(kept)
        (folder / weights).write_bytes(message.SerializeToString())


# ---- detectors


def spread_scores(net: caffe.Net, largest: float) -> None:
    """Let few places of an image be of another class than the background, as after training.

    largest  largest value of the net's input
    """
    heads = [name for name in net.params if name.endswith("_mbox_conf")]
    if heads:
        patches = np.random.default_rng(0).uniform(-largest, largest, (12, 12, 3))
        net.blobs["data"].data[...] = cv2.resize(patches, (300, 300), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
        net.forward(end=heads[-1])
    for name in heads:
        scores, (weights, bias) = net.blobs[name].data[0], net.params[name]
        priors = net.params[name.replace("_conf", "_loc")][1].count // 4
        scale = 1 / scores.std()
        weights.data[...] *= scale
        bias.data[...] *= scale
        scores = scale * scores.reshape(priors, -1, scores[0].size)
        lead = scores[:, 1:].max(1) - scores[:, 0]
        bias.data[:: scores.shape[1]] += lead.max() + 3


def head(name: str, source: str, priors: int, classes: int, settings: str) -> str:
    """SSD's predictions from one map."""
    text = ""
    for kind, outputs in (("loc", 4 * priors), ("conf", classes * priors)):
        stem = f"{name}_mbox_{kind}"
        text += convolution(stem, source, outputs, 3, relu=False)
        text += layer("Permute", f"{stem}_perm", stem, more="permute_param { order: 0 order: 2 order: 3 order: 1 }")
        text += layer("Flatten", f"{stem}_flat", f"{stem}_perm", more="flatten_param { axis: 1 }")
    variances = "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"
    return text + layer("PriorBox", f"{name}_mbox_priorbox", source, "data", more=f"prior_box_param {{ {settings} {variances} }}")


def detection(heads: list[str], classes: int, settings: str) -> str:
    """SSD's end: the heads together, and DetectionOutput."""
    text = ""
    for kind, axis in (("loc", 1), ("conf", 1), ("priorbox", 2)):
        suffix = "" if kind == "priorbox" else "_flat"
        bottoms = [f"{name}_mbox_{kind}{suffix}" for name in heads]
        text += layer("Concat", f"mbox_{kind}", *bottoms, more=f"concat_param {{ axis: {axis} }}")
    shape = f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {classes} }} }}"
    text += layer("Reshape", "mbox_conf_reshape", "mbox_conf", more=shape)
    text += layer("Softmax", "mbox_conf_softmax", "mbox_conf_reshape", more="softmax_param { axis: 2 }")
    text += layer("Flatten", "mbox_conf_flatten", "mbox_conf_softmax", more="flatten_param { axis: 1 }")
    settings += f" num_classes: {classes} share_location: true background_label_id: 0 code_type: CENTER_SIZE"
    bottoms = ("mbox_loc", "mbox_conf_flatten", "mbox_priorbox")
    return text + layer("DetectionOutput", "detection_out", *bottoms, more=f"detection_output_param {{ {settings} }}")


def mobilenet_ssd(folder: Path) -> None:
    """deploy.prototxt and mobilenet_iter_73000.caffemodel: MobileNet-SSD for the 20 classes of PASCAL VOC."""
    text = 'name: "MobileNet-SSD"\n' + image(1, 3, 300, 300) + convolution("conv0", "data", 32 // THIN, 3, "stride: 2 pad: 1")
    bottom, channels = "conv0", 32 // THIN
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for number, (stride, width) in enumerate(zip(strides, widths, strict=True), 1):
        text += convolution(f"conv{number}/dw", bottom, channels, 3, f"group: {channels} stride: {stride} pad: 1")
        text += convolution(f"conv{number}", f"conv{number}/dw", width // THIN, 1)
        bottom, channels = f"conv{number}", width // THIN
    for number, width in enumerate((512, 256, 256, 128), 14):
        text += convolution(f"conv{number}_1", bottom, width // 2 // THIN, 1)
        text += convolution(f"conv{number}_2", f"conv{number}_1", width // THIN, 3, "stride: 2 pad: 1")
        bottom = f"conv{number}_2"
    sizes = (60, 105, 150, 195, 240, 285, 300)
    heads = ["conv11", "conv13", "conv14_2", "conv15_2", "conv16_2", "conv17_2"]
    for number, name in enumerate(heads):
        largest = f"max_size: {sizes[number + 1]} aspect_ratio: 3" if number else ""
        settings = f"min_size: {sizes[number]} {largest} aspect_ratio: 2 flip: true clip: false offset: 0.5"
        text += head(name, name, 6 if number else 3, 21, settings)
    text += detection(heads, 21, "nms_param { nms_threshold: 0.45 top_k: 100 } keep_top_k: 100 confidence_threshold: 0.02")
    write(folder, text, "deploy.prototxt", "mobilenet_iter_73000.caffemodel")


def face_detector(folder: Path) -> None:
    """deploy.prototxt and res10_300x300_ssd_iter_140000.caffemodel: OpenCV's SSD of faces on a small ResNet."""
    text = 'name: "res10"\n' + image(1, 3, 300, 300)
    text += layer("BatchNorm", "data_bn", "data") + layer(
        "Scale", "data_scale", "data_bn", top="data_bn", more="scale_param { bias_term: true }"
    )
    text += convolution("conv1_h", "data_bn", 8, 7, "stride: 2 pad: 3") + pool("conv1_pool", "conv1_h", 3)
    bottom = "conv1_pool"
    for number, (width, stride) in enumerate(((8, 1), (16, 2), (32, 2), (32, 2)), 1):
        name = f"layer_{number}"
        text += convolution(f"{name}_conv1_h", bottom, width, 3, f"stride: {stride} pad: 1")
        text += convolution(f"{name}_conv2_h", f"{name}_conv1_h", width, 3, relu=False)
        text += convolution(f"{name}_conv_expand_h", bottom, width, 1, f"stride: {stride}", relu=False)
        text += layer("Eltwise", f"{name}_sum", f"{name}_conv2_h", f"{name}_conv_expand_h")
        bottom = f"{name}_sum"
    text += layer("Normalize", "conv4_3_norm", "layer_3_sum", more="norm_param { across_spatial: false channel_shared: false }")
    for number in (6, 7):
        text += convolution(f"conv{number}_1_h", bottom, 8, 1)
        text += convolution(f"conv{number}_2_h", f"conv{number}_1_h", 16, 3, "stride: 2 pad: 1")
        bottom = f"conv{number}_2_h"
    sizes = (30, 60, 111, 162, 213)
    heads = {"conv4_3_norm": "conv4_3_norm", "fc7": "layer_4_sum", "conv6_2": "conv6_2_h", "conv7_2": "conv7_2_h"}
    for number, (name, source) in enumerate(heads.items()):
        settings = f"min_size: {sizes[number]} max_size: {sizes[number + 1]} aspect_ratio: 2 flip: true clip: false offset: 0.5"
        text += head(name, source, 4, 2, settings)
    text += detection(
        list(heads), 2, "nms_param { nms_threshold: 0.45 top_k: 400 } keep_top_k: 200 confidence_threshold: 0.2 clip: 1"
    )
    write(folder, text, "deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel")


# ---- others


def openpose(folder: Path) -> None:
    """pose_deploy_linevec.prototxt and pose_iter_440000.caffemodel: OpenPose's COCO model, whose input is a placeholder."""
    text = 'name: "OpenPose"\ninput: "image"\ninput_dim: 1\ninput_dim: 3\ninput_dim: 1\ninput_dim: 1\n'
    bottom = "image"
    for block, (count, width) in enumerate(((2, 64), (2, 128), (4, 256), (2, 512)), 1):
        for number in range(1, count + 1):
            text += convolution(f"conv{block}_{number}", bottom, width // THIN, 3)
            bottom = f"conv{block}_{number}"
        if block < 4:
            text += pool(f"pool{block}_stage1", bottom)
            bottom = f"pool{block}_stage1"
    text += convolution("conv4_3_CPM", bottom, 256 // THIN, 3) + convolution("conv4_4_CPM", "conv4_3_CPM", 128 // THIN, 3)
    inputs = ["conv4_4_CPM"]
    for stage in range(1, 7):
        ends = []
        for branch, outputs in (("L1", 38), ("L2", 19)):
            bottom = inputs[-1] if stage == 1 else f"concat_stage{stage}"
            count = 5 if stage == 1 else 7
            for number in range(1, count + 1):
                name = f"conv5_{number}_CPM_{branch}" if stage == 1 else f"Mconv{number}_stage{stage}_{branch}"
                kernel = 1 if number >= count - 1 else 3 if stage == 1 else 7
                text += convolution(name, bottom, outputs if number == count else 128 // THIN, kernel, relu=number < count)
                bottom = name
            ends.append(bottom)
        if stage < 6:
            text += layer("Concat", f"concat_stage{stage + 1}", *ends, "conv4_4_CPM", more="concat_param { axis: 1 }")
    text += layer("Concat", "net_output", ends[1], ends[0], more="concat_param { axis: 1 }")
    write(folder, text, "pose_deploy_linevec.prototxt", "pose_iter_440000.caffemodel")


def age_gender(folder: Path) -> None:
    """deploy_age.prototxt, age_net.caffemodel, deploy_gender.prototxt and gender_net.caffemodel, of Levi and Hassner."""
    for what, classes in (("age", 8), ("gender", 2)):
        text = 'name: "CaffeNet"\ninput: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: 227\ninput_dim: 227\n'
        text += convolution("conv1", "data", 96, 7, "stride: 4 pad: 0") + pool("pool1", "conv1", 3)
        text += layer("LRN", "norm1", "pool1", more="lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
        text += convolution("conv2", "norm1", 256 // THIN, 5) + pool("pool2", "conv2", 3)
        text += layer("LRN", "norm2", "pool2", more="lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")
        text += convolution("conv3", "norm2", 384 // THIN, 3) + pool("pool5", "conv3", 3)
        bottom = "pool5"
        for name, outputs in (("fc6", 512 // THIN), ("fc7", 512 // THIN), ("fc8", classes)):
            text += layer("InnerProduct", name, bottom, more=f"inner_product_param {{ num_output: {outputs} }}")
            if name != "fc8":
                text += layer("ReLU", f"relu_{name}", name, top=name) + layer("Dropout", f"drop_{name}", name, top=name)
            bottom = name
        text += layer("Softmax", "prob", "fc8")
        write(folder, text, f"deploy_{what}.prototxt", f"{what}_net.caffemodel")


def colorization(folder: Path) -> None:
    """colorization_deploy_v2.prototxt, colorization_release_v2.caffemodel without class8_ab, and pts_in_hull.npy."""
    text = 'name: "LtoAB"\n' + image(1, 1, 224, 224, name="data_l")
    bottom = "data_l"
    blocks = ((64, 2, 1), (128, 2, 1), (256, 3, 1), (512, 3, 1), (512, 3, 2), (512, 3, 2), (512, 3, 1))
    for block, (width, count, dilation) in enumerate(blocks, 1):
        for number in range(1, count + 1):
            stride = 2 if number == count and block < 4 else 1
            more = f"stride: {stride} pad: {dilation} dilation: {dilation}"
            text += convolution(f"conv{block}_{number}", bottom, width // THIN, 3, more)
            bottom = f"conv{block}_{number}"
        text += layer("BatchNorm", f"conv{block}_{count}norm", bottom)
        bottom = f"conv{block}_{count}norm"
    text += layer("Deconvolution", "conv8_1", bottom, more="convolution_param { num_output: 32 kernel_size: 4 pad: 1 stride: 2 }")
    text += layer("ReLU", "relu8_1", "conv8_1", top="conv8_1")
    text += convolution("conv8_2", "conv8_1", 32, 3) + convolution("conv8_3", "conv8_2", 32, 3)
    text += convolution("conv8_313", "conv8_3", 313, 1, relu=False)
    filler = "scale_param { bias_term: false filler { type: 'constant' value: 2.606 } }"
    text += layer("Scale", "conv8_313_rh", "conv8_313", more=filler)
    text += layer("Softmax", "class8_313_rh", "conv8_313_rh") + convolution("class8_ab", "class8_313_rh", 2, 1, relu=False)
    text += 'layer { name: "Silence" type: "Silence" bottom: "class8_ab" }\n'
    files = "colorization_deploy_v2.prototxt", "colorization_release_v2.caffemodel"
    write(folder, text, *files, left_out=("class8_ab", "conv8_313_rh"))
    np.save(folder / "pts_in_hull.npy", np.random.default_rng(0).uniform(-110, 110, (313, 2)))
