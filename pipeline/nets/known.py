"""Published nets, told by their layers: how their images are prepared, and which forks of Caffe their layer types come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import caffe
from caffe.proto import caffe_pb2


@dataclass(frozen=True)
class KnownNet:
    """A published net, and how an image becomes its input: (pixel - mean) · scale, resized to its input.

    name      as people call it
    evidence  names of layers that all must exist
    mean      of each channel, in the order of `channels`, subtracted from pixels of 0 to 255; () where it is a file
    channels  BGR, RGB, gray or L
    note      what else is to be known
    page      a page about it, in docs/
    first     settings that the first convolution must have: outputs, kernel, stride; for nets with common names
    size      height and width of images, where the prototxt's are placeholders
    """

    name: str
    evidence: tuple[str, ...]
    mean: tuple[float, ...] = ()
    scale: float = 1.0
    channels: str = "BGR"
    note: str = ""
    page: str = ""
    first: tuple[int, int, int] | None = None
    size: tuple[int, int] | None = None

    def why(self) -> str:
        """What the net was told by."""
        named = f"it has layers called {' and '.join(self.evidence)}"
        if not self.first:
            return named
        outputs, kernel, stride = self.first
        return f"{named}, and its first convolution has {outputs} outputs, kernel {kernel}, stride {stride}"

    def formula(self) -> str:
        """What is done to pixels of 0 to 255."""
        means = ", ".join(f"{value:g}" for value in self.mean)
        shift = f"pixel - {means if len(self.mean) < 2 else f'({means})'}" if any(self.mean) else "pixel"
        if self.scale == 1:
            return shift
        return f"({shift}) · {self.scale:g}" if any(self.mean) else f"{shift} · {self.scale:g}"


IMAGENET = (104.0, 117.0, 123.0)
VGG_MEAN = (103.939, 116.779, 123.68)
OPENPOSE = {"COCO or MPI": "Mconv7_stage6_L2", "MPI, 4 stages": "Mconv7_stage4_L2", "BODY_25": "Mconv7_stage3_L2"}
"""{model: a layer that no model before it has}."""
NETS = (
    *(
        KnownNet(
            f"OpenPose's {model}",
            ("conv4_4_CPM", last),
            (128.0,),
            1 / 256,
            note="any size that is a multiple of 8, usually 368 rows; the input of the prototxt is a placeholder",
            page="openpose.md",
            size=(368, 368),
        )
        for model, last in OPENPOSE.items()
    ),
    KnownNet(
        "MobileNet-SSD (chuanqi305)",
        ("conv11_mbox_loc", "conv17_2_mbox_conf"),
        (127.5,),
        0.007843,
        note="detection_out has image, class, score, and the corners as fractions of the image",
        page="mobilenet_ssd.md",
    ),
    KnownNet(
        "res10 SSD face detector",
        ("data_bn", "conv1_h", "mbox_conf_flatten"),
        (104.0, 177.0, 123.0),
        note="detection_out has image, class (1: a face), score, and the corners as fractions of the image",
        page="face_detector.md",
    ),
    KnownNet(
        "age or gender classifier (Levi and Hassner)",
        ("conv3", "fc6", "fc7", "fc8"),
        (78.4263377603, 87.7689143744, 114.895847746),
        note="a crop around one face",
        page="age_gender.md",
        first=(96, 7, 4),
    ),
    KnownNet(
        "colorization (Zhang et al.)",
        ("conv8_3", "class8_ab"),
        (50.0,),
        channels="L",
        note="the lightness of Lab, 0 to 100, is the input; the output is a and b",
        page="colorization.md",
    ),
    KnownNet("SSD on VGG (Liu et al.)", ("conv4_3_norm", "mbox_priorbox"), IMAGENET),
    KnownNet(
        "Faster R-CNN (Ren et al.)",
        ("rpn_cls_score", "rpn_bbox_pred"),
        (102.9801, 115.9465, 122.7717),
        note="im_info is height, width and scale of the resized image, whose short side has 600 pixels",
    ),
    KnownNet("FCN (Long et al.)", ("score_fr", "upscore"), (104.00699, 116.66877, 122.67892), note="any size"),
    KnownNet("FCN-8s (Long et al.)", ("score_fr", "upscore8"), (104.00699, 116.66877, 122.67892), note="any size"),
    KnownNet("SegNet (Badrinarayanan et al.)", ("conv1_1_D", "upsample1"), note="pixels of 0 to 255 as they are"),
    KnownNet("DeepLab (Chen et al.)", ("fc8_interp", "fc6"), (104.008, 116.669, 122.675)),
    KnownNet("GoogLeNet (BVLC)", ("inception_3a/1x1", "inception_5b/1x1"), IMAGENET),
    KnownNet("ResNet (He et al.)", ("res2a_branch2a", "fc1000"), note="subtract ResNet_mean.binaryproto, a mean of 224 × 224"),
    KnownNet("MobileNet (shicai)", ("conv2_1/dw", "fc7"), (103.94, 116.78, 123.68), 0.017),
    KnownNet("MobileNet v2 (shicai)", ("conv2_1/dwise", "fc7"), (103.94, 116.78, 123.68), 0.017),
    KnownNet("DenseNet (shicai)", ("conv2_1/x1", "fc6"), (103.94, 116.78, 123.68), 0.017),
    KnownNet("SqueezeNet", ("fire2/squeeze1x1", "fire9/expand3x3"), IMAGENET),
    KnownNet("VGG (Simonyan and Zisserman)", ("conv5_3", "fc6", "fc7"), VGG_MEAN),
    KnownNet(
        "AlexNet or CaffeNet (BVLC)",
        ("conv5", "fc6", "fc7"),
        IMAGENET,
        note="the exact mean is imagenet_mean.binaryproto",
        first=(96, 11, 4),
    ),
    KnownNet("LeNet (BVLC)", ("conv2", "ip1", "ip2"), (), 1 / 256, "gray", "white digits on black", first=(20, 5, 1)),
    KnownNet("cifar10 (BVLC)", ("conv3", "pool3"), note="subtract mean.binaryproto of the training images", first=(32, 5, 1)),
)
"""In the order in which they are tried: a net that contains another's layers comes first."""


def known_net(net: caffe_pb2.NetParameter) -> KnownNet | None:
    """The published net that these layers are of, or None."""
    names = {layer.name for layer in net.layer}
    first = next((layer.convolution_param for layer in net.layer if layer.type == "Convolution"), None)
    for known in NETS:
        if names.issuperset(known.evidence) and (not known.first or (first and _settings(first) == known.first)):
            return known
    return None


def _settings(p: caffe_pb2.ConvolutionParameter) -> tuple[int, int, int]:
    """Outputs, kernel and stride, of square windows."""
    return p.num_output, next(iter(p.kernel_size), p.kernel_h), next(iter(p.stride), p.stride_h or 1)


FORKS = {
    "SSD (weiliu89/caffe, branch ssd)": (
        *("AnnotatedData", "DetectionEvaluate", "DetectionOutput", "MultiBoxLoss", "Normalize", "Permute", "PriorBox"),
    ),
    "DetectNet (NVIDIA/caffe)": ("DetectNetTransformation",),
    "Fast and Faster R-CNN (rbgirshick/caffe-fast-rcnn)": ("ROIPooling", "SmoothL1Loss"),
    "PVANET or R-FCN": ("Proposal", "PSROIPooling", "BoxAnnotatorOHEM", "SoftmaxWithLossOHEM", "SmoothL1LossOHEM"),
    "Deformable ConvNets": ("DeformableConvolution", "ModulatedDeformableConvolution", "DeformablePSROIPooling"),
    "MNC (daijifeng001/caffe-mnc)": ("ROIWarping", "MaskResize", "MaskPooling"),
    "MS-CNN or Cascade R-CNN (zhaoweicai)": (
        *("BboxAccuracy", "BoxOutput", "DecodeBBox", "DetectionAccuracy", "ImageGtData", "ProposalTarget"),
    ),
    "DeepLab or PSPNet": ("Interp", "ImageSegData"),
    "SegNet (alexgkendall/caffe-segnet)": ("BN", "Upsample", "DenseImageData"),
    "MobileNet's depthwise convolution": ("DepthwiseConvolution", "ConvolutionDepthwise", "ReLU6"),
    "ShuffleNet or SENet": ("ShuffleChannel", "Axpy"),
    "CRF-RNN (torrvision)": ("MultiStageMeanfield",),
    "HED": ("ImageLabelmapData",),
    "DeconvNet (HyeonwooNoh)": ("Unpooling",),
    "DenseNet (Tongcheng)": ("DenseBlock",),
    "YOLO (eric612/MobileNet-YOLO, yeahkun/caffe-yolo)": (
        *("Reorg", "RegionLoss", "Yolov3", "YoloDetectionOutput", "Yolov3DetectionOutput", "DetectionLoss", "EvalDetection"),
    ),
    "FlowNet (lmb-freiburg)": (
        *("Correlation", "FlowWarp", "Downsample", "Mean", "L1Loss", "CustomData", "FloData", "ImgReader", "FLOWriter"),
        *("DataAugmentation", "GenerateAugmentationParameters", "FlowAugmentation", "Resample", "ChannelNorm"),
    ),
    "C3D (facebook/C3D)": ("Convolution3D", "Deconvolution3D", "Pooling3D", "VideoData"),
    "heatmap regression (tpfister/caffe-heatmap)": ("DataHeatmap", "EuclideanLossHeatmap"),
    "ArcFace or L-Softmax": ("CosinAddm", "CombinedMargin", "LargeMarginInnerProduct"),
    "JÂA-Net (ZhiwenShao)": ("AlignDataTransform", "AUMaskBasedLand", "Combination", "Division", "EuclideanLoss2"),
    "OpenPose (caffe_train)": ("CPMData",),
    "binarization (ctensmeyer/caffe)": ("DocData", "PR", "WeightedFmeasureLoss"),
    "autocolorize (gustavla)": (
        *("BgrToMunsell", "ExtendedImageData", "SoftmaxKLDLoss", "SparseHistogramExtractor", "SparseHypercolumnExtractor"),
        *("StripDecimals", "UniformToHistogram"),
    ),
    "NormFace (happynear/caffe-windows)": ("ChannelScale", "GeneralContrastiveLoss", "InnerDistance"),
    "PiCANet (Liu et al. 2018)": ("AttPooling", "PwAttend"),
    "text recognition (CTPN, caffe_ocr, warp-ctc)": (
        *("Lstm", "Reverse", "Transpose", "CtcLoss", "WarpCTCLoss", "CTCGreedyDecoder", "ContinuationIndicator"),
    ),
}
"""{fork: layer types that it added}."""


def forks_of(types: Iterable[str]) -> dict[str, list[str]]:
    """{fork: which of these types it added}; types of no named fork are under "another"."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(types)):
        forks = [fork for fork, added in FORKS.items() if name in added]
        if not forks and ".forks." in caffe.layer_type(name).__module__:
            forks = ["another"]
        for fork in forks:
            found.setdefault(fork, []).append(name)
    return found
