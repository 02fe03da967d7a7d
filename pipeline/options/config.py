"""The config: datasets and experiments, composed of the steps' options; and the options model of each step."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, WithJsonSchema

from pipeline.options import dataset, training
from pipeline.options.base import PATH, Device, FilePath, Numerics, Options, schema_of

FILLED_PATH = PATH.replace("{}", "")
"""Paths of weights: a sweep replaces keys in braces before anything reads them."""


class Database(Options):
    """A pair of databases."""

    train: FilePath
    val: FilePath


class Source(dataset.Patience, dataset.Limits, dataset.Published, dataset.Source):
    """Where images come from: one of list, folder, published, database and dataset."""

    kinds: ClassVar[tuple[str, ...]] = (*dataset.Source.kinds, "published", "database", "dataset")
    published: Literal["mnist", "mnist_pairs", "cifar10", "cifar100"] | None = None
    """instead of a list: `mnist`, `mnist_pairs` (two images per record), `cifar10` or `cifar100`, with the records of Caffe's own
    converters"""
    seed: int = Field(1, ge=0, json_schema_extra={"default": None})  # only a sample has a seed: no default is filled in
    """seed of that sample, by default 1"""
    database: Database | None = None
    """instead of a list: `{train: PATH, val: PATH}`, an LMDB or LevelDB each; records are checked and copied"""
    dataset: str | None = None
    """instead of a list: another dataset, whose downloaded and resized images are divided and listed anew"""


class Split(dataset.Split):
    """How images are divided and balanced."""

    balance: Literal["none", "repeat", "weights"] = "none"
    """`repeat` lists every class as often as the largest one, in shuffled order; `weights` trains with InfogainLoss, so that
    classes are weighted equally"""


class Augmentation(dataset.Augmentation, dataset.Copies):
    """Random changes of training images."""


class Dataset(dataset.ListKeys, dataset.Encode, dataset.ResizeOptions, dataset.Channels, dataset.ShardSize):
    """A dataset."""

    source: Source
    split: Split = Split()
    augmentation: Augmentation | None = None


class Weights(Options):
    """Weights that an experiment starts from."""

    experiment: str | None = None
    """start from the weights that another experiment is evaluated by (see `best`); by default from scratch"""
    best: bool | None = None
    """with `weights.experiment`: `true` for the weights of its best test, `false` for its last ones"""
    file: Annotated[str | None, WithJsonSchema({"type": "string", "pattern": FILLED_PATH})] = None
    """start from a `.caffemodel` or `.caffemodel.h5`; `weights: FILE` is short for it"""
    url: str | None = None
    """download the weights once; needs `sha256`"""
    sha256: str | None = None
    """SHA-256 that the downloaded file must have"""


_WEIGHTS = schema_of(Weights) | {"type": ["string", "object"]}


class Classify(training.Oversample):
    """Images to classify."""

    images: FilePath
    """an image or a folder of images to list the five most probable classes of"""


class Pictures(training.Shown):
    """What the pictures of a trained net show."""

    images: FilePath | None = None
    """an image or a folder of images to show instead"""


class Export(training.AverageOptions):
    """Files that a trained net is exported to."""

    onnx: bool = False
    """write the deploy net as `export/model.onnx`, for any batch size, verified by onnxruntime. Its metadata has `preprocessing`,
    `mean` (per channel, in the order of `channels`) and `classes`"""
    safetensors: bool = False
    """write the weights as `export/model.safetensors` (`LAYER.weight`, `LAYER.bias`, `LAYER.running_mean` …), with the same
    metadata"""
    merged: bool = False
    """write the net with BatchNorm and Scale merged into the preceding convolutions"""
    convolutional: training.NetSize | None = None
    """`{height: 454, width: 454}`: write the fully convolutional net, which gives a map of classes for an image of that size"""
    crop: FilePath | None = None
    """a smaller net's prototxt, which gets the weights of the layers it keeps"""


class Experiment(training.FeatureKeys, training.EarlyStopping, training.WeightsKeys, training.FeatureSource, training.NetKeys):
    """An experiment."""

    dataset: str
    """one of `datasets`"""
    numerics: Numerics | None = None
    """`reproducible`, `fp32` or `fast` for this experiment, by default the config's"""
    weights: Annotated[Any, WithJsonSchema({"if": {"type": "array"}, "then": {"items": _WEIGHTS}, "else": _WEIGHTS})] = Field({})
    """the weights to start from, or a list of them, see below"""
    rename_last: bool = False
    """name the last layer `NAME_DATASET`, so that it is trained from scratch"""
    best: bool | None = None
    """evaluate, show, export and extract features with the weights of the best test instead of the last; by default `true` with
    `early_stopping`, else `false`"""
    classify: Classify | None = None
    pictures: Pictures = Pictures()
    evaluate: list[Literal["val", "train", "test"]] = Field(["val"])
    """sets to evaluate the trained net on: `val` (always), `train`, `test`. Test images are those whose split is `test`, with
    `split: {by: column}`; they are used for neither training nor model selection"""
    export: Export = Export()


_NAME: dict[str, Any] = {"type": "string", "maxLength": 128}


class Config(Options):
    """What a config may say."""

    compute: Literal["cpu", "gpu"] = "cpu"
    """where nets are trained and run: `cpu` or `gpu`"""
    numerics: Numerics = "fp32"
    """how nets compute: `reproducible`, the same weights and scores to the byte on every machine, several times slower; `fp32`,
    full single precision, the same on one machine; or `fast`, whatever the hardware does fastest"""
    datasets: dict[str, Dataset] = Field(
        json_schema_extra={"propertyNames": _NAME | {"pattern": "^[A-Za-z0-9_][A-Za-z0-9_-]*$(?!\n)"}}
    )
    experiments: dict[str, Experiment] = Field(
        {}, json_schema_extra={"propertyNames": _NAME | {"pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$(?!\n)"}}
    )


STEPS: dict[str, type[Options]] = {
    "sources.shards": dataset.ShardOptions,
    "sources.published": dataset.FetchCollectionOptions,
    "sources.databases": dataset.ReuseOptions,
    "dataset.download": dataset.DownloadOptions,
    "dataset.resize": dataset.ResizeOptions,
    "dataset.label": dataset.LabelOptions,
    "dataset.database": dataset.DatabaseOptions,
    "nets.prototxt": training.PrototxtOptions,
    "training.linear": training.LinearOptions,
    "training.initial_weights": training.DownloadWeightsOptions,
    "training.train": training.TrainOptions,
    "inference.features": training.FeatureOptions,
    "inference.evaluate": Device,
    "inference.classify": training.ClassifyOptions,
    "export.convolutional": training.ConvolutionalOptions,
    "export.average": training.AverageOptions,
    "report.augmentation_examples": training.AugmentationExamplesOptions,
    "report.comparison": training.ComparisonOptions,
    "report.evaluation": training.EvaluationOptions,
    "report.neighbours": training.NeighbourOptions,
    "report.visualize": training.VisualizeOptions,
}
"""The options that rules give each step."""
