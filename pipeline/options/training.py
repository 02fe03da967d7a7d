"""Options of the steps that write, train, evaluate and export nets, and of the report's."""

from typing import Any, Literal

from pydantic import Field

from pipeline.options.base import Device, FilePath, Options, PathText
from pipeline.options.dataset import Augmentation, Sampling, Seed


class Model(Options):
    """The net."""

    model: PathText
    """`lenet`, `mnist_siamese`, `cifar10_quick`, `cifar10_full`, `alexnet`, `caffenet`, `googlenet`, `vgg16`, `vgg19`,
    `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, `squeezenet` (1.1), `mobilenet` or `mobilenet_v2`, each the
    published net with the layer names of its published weights; or the path of your own prototxt, see below"""


class FeatureSource(Options):
    """The blob that a linear classifier is fitted to."""

    features_from: str = "top"
    """for `features`: `top`, the input of the net's own classifier; `middle`; or a blob's name. Of feature maps that no fully
    connected layer reads, the mean of each is taken"""


class NetKeys(Model):
    """Keys of an experiment that its prototxt files are made of."""

    strategy: Literal["full", "last_layer", "half", "features", "scratch", "auto"] = "full"
    """what is trained: `full`, the whole net; `last_layer`, only the classifier; `half`, the second half of the layers, and
    auxiliary heads; `features`, a linear classifier of a blob's values, by logistic regression; `scratch`, the whole net without
    weights; or `auto`, one of these by measurement, see below"""
    freeze_to: str | None = None
    """instead of a strategy: freeze this layer and all layers that lead to it; layers beside them, such as GoogLeNet's auxiliary
    heads, are trained"""
    batch_norm: Literal["learn", "freeze"] = "learn"
    """`learn`: training batches are normalised by their own mean and variance, whose running averages are used in testing;
    `freeze`: both use those of the weights. Freeze for batches of 16 images or fewer, whose statistics are unreliable; scale and
    bias of a `BN` layer are frozen, too"""
    last_lr_mult: float | None = Field(None, ge=0, le=1000)
    """learning-rate multiplier of the last layer; by default 10 for a renamed layer of a net with weights, else 1"""
    batch_size: int = Field(0, ge=0)
    """images per training batch; 0: the model's"""
    solver: dict[str, Any] = Field(
        {},
        json_schema_extra={
            "properties": {
                "type": {"enum": ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"]},
                "lr_policy": {"enum": ["fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid"]},
                "regularization_type": {"enum": ["L1", "L2"]},
                "base_lr": {"minimum": 0},
                "max_iter": {"minimum": 0},
                "test_interval": {"minimum": 1},
                "iter_size": {"minimum": 1},
            }
        },
    )
    """fields of Caffe's SolverParameter, such as `base_lr`, `max_iter`, `lr_policy`, `type`; and `epochs`, `step_epochs`; see
    below for the defaults"""


class PrototxtOptions(NetKeys, FeatureSource, Sampling, Device):
    """Options of nets.prototxt."""

    name: str
    """the experiment"""
    last: str = ""
    """name of the last layer; by default the template's"""
    pretrained: bool = False
    """training starts from weights, unless from scratch"""
    augmentation: Augmentation | None = None


class SegmentationOptions(Device):
    """Options of nets.segmentation."""

    model: str
    """`fcn32s`, `fcn16s`, `fcn8s` or `fcn_alexnet`"""
    classes: int = Field(ge=1)
    """classes of pixels, including the background"""
    weights: FilePath
    """a .caffemodel to start from"""
    mean: list[float] = Field([])
    """value to subtract from each channel, in BGR order"""
    solver: dict[str, Any] = Field({})
    """solver fields, `epochs` and `step_epochs`"""


class LinearOptions(FeatureSource, Model, Device):
    """Options of training.linear."""

    strategy: Literal["features", "auto"] = "features"
    """fit one classifier, or choose a strategy by several"""
    balanced: bool = False
    """weight classes equally"""


class WeightsKeys(Options):
    """Keys of an experiment for the weights that it starts from."""

    skip_layers: list[str] = Field([])
    """layers that are not copied from the weights, such as a first layer for colour images if these are gray"""


class InitialWeights(WeightsKeys):
    """How weights are copied."""

    same_classes: bool = False
    """the weights were trained on the same classes; copying the last layer is intended"""


class EarlyStopping(Options):
    """When training stops early."""

    early_stopping: int = Field(0, ge=0)
    """stop training after so many tests without a better accuracy; 0: never"""


class TrainOptions(EarlyStopping, InitialWeights):
    """Options of training.train."""

    tolerate_divergence: bool = False
    """finish with the best (else initial) weights if the loss becomes NaN; recorded in best.json"""


class DownloadWeightsOptions(Options):
    """Options of training.initial_weights."""

    url: str
    """address of a .caffemodel or .caffemodel.h5"""
    sha256: str
    """SHA-256 that the file must have, 64 hexadecimal digits"""


class FeatureKeys(Options):
    """Keys of an experiment for the features that are extracted."""

    features: list[str] = Field([])
    """blobs whose values are written for the validation set, with neighbours and a map in the report"""
    feature_formats: list[Literal["hdf5", "leveldb", "lmdb", "npy", "parquet"]] = Field(["lmdb", "npy", "parquet"], min_length=1)
    """formats in which features are written: `hdf5`, `leveldb`, `lmdb`, `npy`, `parquet`"""


class FeatureOptions(FeatureKeys, Device):
    """Options of inference.features."""


class Oversample(Options):
    """How images are cropped for classification."""

    oversample: bool = False
    """ten crops of each image: corners, center, and mirrored"""


class ClassifyOptions(Device):
    """Options of inference.classify."""

    classify: Oversample = Oversample()


class Shown(Options):
    """How many images the pictures of a trained net show."""

    count: int = Field(2, ge=0, le=20)
    """number of images shown in the pictures of the trained net, from filters to probabilities: the first validation images of
    different classes; 0: no such pictures"""


class VisualizeOptions(Device):
    """Options of report.visualize."""

    pictures: Shown = Shown()


class NetSize(Options):
    """Input size of a fully convolutional net, in pixels."""

    height: int = Field(ge=1, le=8192)
    """pixels"""
    width: int = Field(ge=1, le=8192)
    """pixels"""


class ConvolutionalOptions(Options):
    """Options of `export.surgery convolutional`."""

    convolutional: NetSize


class AverageOptions(Options):
    """Options of `export.surgery average`."""

    average: int | None = Field(None, ge=2)
    """average the weights of so many of the training's last snapshots, or of all if there are fewer, but at least two; needs
    `solver.snapshot`"""


class AugmentationExamplesOptions(Seed):
    """Options of report.augmentation_examples."""

    augmentation: Augmentation | None = None


class EvaluationOptions(Options):
    """Options of report.evaluation."""

    suffix: str = ""
    """suffix of the file names, e.g. `_train`: confusion_train.png"""


class NeighbourOptions(Options):
    """Options of report.neighbours."""

    blob: str
    """the blob whose features are compared"""


class ComparisonOptions(Options):
    """Options of report.comparison."""

    names: list[str]
    """the experiments"""
    datasets: list[str]
    """dataset of each experiment"""
    sweeps: dict[str, Any] = Field({})
    """the config's sweeps"""
