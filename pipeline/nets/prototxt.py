"""Write an experiment's train, test, deploy and solver prototxt from a template and a dataset, and how images become inputs."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.proto import caffe_pb2
from pipeline.command import run
from pipeline.dataset.augmentation import for_channels, parse_augmentation
from pipeline.dataset.resize import INTERPOLATIONS, Mode, Options
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.images import Size
from pipeline.nets import models, solver_defaults, solver_fields
from pipeline.nets.models import TEMPLATES, Built, Last, Template, siamese
from pipeline.nets.preprocessing import Preprocessing
from pipeline.nets.strategies import STRATEGIES, features, freeze, frozen, linear
from pipeline.nets.strategy_file import read_strategy


@dataclass(frozen=True)
class Dataset:
    """What a net needs to know of its data: where the two LMDBs and the mean are, and what the manifests say of them."""

    train: Path
    val: Path
    mean: Path
    shape: tuple[int, int, int]
    classes: int
    train_images: int
    val_images: int
    channels: str = "BGR"

    @classmethod
    def read(cls, train: Path, val: Path, mean: Path) -> Dataset:
        """From the databases and the manifests beside them (`train.manifest.json`)."""
        manifests = []
        for database in (train, val):
            path = database.with_name(f"{database.name}.manifest.json")
            if not path.exists():
                raise InputError(path, "no such manifest", do="build the database first")
            manifests.append(json.loads(path.read_text()))
        first, second = manifests
        if first["shape"] != second["shape"]:
            raise InputError(val, f"images of shape {second['shape']}", f"the training images have {first['shape']}")
        sizes = first["classes"], first["images"], second["images"]
        return cls(train, val, mean, tuple(first["shape"]), *sizes, first.get("channels", "BGR"))


@dataclass(frozen=True)
class Experiment:
    """What is trained: a template, the classifier's name and learning rate, and fields of the solver that are not the default.

    augmentation  how training images are changed on their way into the net
    infogain      the matrix of an InfogainLoss that weighs the classes, in the place of SoftmaxWithLoss
    strategy      what is learned, one of STRATEGIES
    features_from  for the strategy `features`: top, middle, or a blob's name
    freeze_to     the last layer that is not learned; empty leaves it to the strategy
    batch_norm    "learn": BatchNorm normalises a training batch by its own statistics, and learns those of the whole set, which
                  testing takes; "freeze": training and testing take those of the weights
    """

    name: str
    model: str
    last: str
    last_lr_mult: float
    batch_size: int
    gpu: bool
    solver: dict
    augmentation: caffe_pb2.AugmentationParameter | None = None
    infogain: Path | None = None
    strategy: str = "full"
    features_from: str = "top"
    freeze_to: str = ""
    batch_norm: str = "learn"


def nets(template: Template, dataset: Dataset, experiment: Experiment) -> dict[str, caffe_pb2.NetParameter]:
    """{"train", "test", "deploy"}: the three nets."""
    last = Last(experiment.last, dataset.classes, experiment.last_lr_mult)
    sizes = _sizes(template, dataset, experiment.batch_size)
    train = _data(template, dataset, "TRAIN", experiment.batch_size)
    if experiment.augmentation is not None:
        changes = for_channels(experiment.augmentation, dataset.channels)
        train["transform_param"]["augmentation_param"] = {field.name: value for field, value in changes.ListFields()}
    return {
        "train": _net(template, last, experiment, train, dataset),
        "test": _net(template, last, experiment, _data(template, dataset, "TEST", sizes.test_batch), dataset),
        "deploy": _net(template, last, experiment, None, dataset),
    }


def _sizes(template: Template, dataset: Dataset, batch_size: int) -> solver_defaults.Sizes:
    _, height, width = dataset.shape
    most = solver_defaults.most_tested(template.crop_size**2 or height * width)
    return solver_defaults.Sizes(dataset.train_images, dataset.val_images, batch_size, most)


def _data(template: Template, dataset: Dataset, phase: str, batch_size: int) -> dict:
    """The Data layer of one phase, as keyword arguments."""
    transform: dict = {}
    if template.scale != 1:
        transform["scale"] = template.scale
    if template.crop_size:
        transform["crop_size"] = template.crop_size
    if template.mirror and phase == "TRAIN":
        transform["mirror"] = True
    if template.mean_values:
        transform["mean_value"] = list(template.mean_values[:: -1 if dataset.channels == "RGB" else 1])
    elif template.mean:
        transform["mean_file"] = str(dataset.mean)
    source = dataset.train if phase == "TRAIN" else dataset.val
    return {
        "include": {"phase": getattr(caffe, phase)},
        "transform_param": transform,
        "data_param": {"source": str(source), "batch_size": batch_size, "backend": P.Data.LMDB},
    }


def data_layer(template: Template, dataset: Dataset, batch_size: int, source: Path) -> caffe_pb2.LayerParameter:
    """The layer that reads a database of the dataset as testing does."""
    fields = _data(template, dataset, "TEST", batch_size)
    fields["data_param"]["source"] = str(source)
    n = caffe.NetSpec()
    n.data, n.label = L.Data(ntop=2, **fields)
    return n.to_proto().layer[0]


def _net(template: Template, last: Last, experiment: Experiment, data: dict | None, dataset: Dataset) -> caffe_pb2.NetParameter:
    built = template.built(last, deploy=data is None or experiment.strategy == "features")
    if experiment.strategy == "features":
        built = linear(built, features(built, experiment.features_from), last.outputs)
    training = data is not None and data["include"]["phase"] == caffe.TRAIN
    for layer in built.layers:
        if layer.type == "BatchNorm":
            layer.batch_norm_param.use_global_stats = not training
        if training and experiment.batch_norm == "freeze":
            caffe.layer_type(layer.type, f'layer "{layer.name}"').freeze_statistics(layer)
    side = template.crop_size
    channels, height, width = dataset.shape
    shape = [channels // (2 if template.pairs else 1), side or height, side or width]
    if training:
        names = frozen(built, experiment.strategy, experiment.freeze_to)
        freeze(built.layers, names, [experiment.batch_size, *shape])
    n, layers, scores = caffe.NetSpec(), built.layers, built.heads[-1][0]
    if data is None:
        n.data = L.Input(shape={"dim": [1, *shape]})
        after = [] if template.pairs else [_layer("Softmax", "prob", scores)]
    elif template.pairs:
        n[siamese.PAIR], n[siamese.SAME] = L.Data(ntop=2, **data)
        layers, after = siamese.paired(layers, dataset.shape[0] // 2), siamese.compared(scores, training)
    else:
        n.data, n.label = L.Data(ntop=2, **data)
        after = _accuracies(scores, dataset.classes)[: 1 if training else None]
        after += _losses(built, experiment.infogain)
    net = n.to_proto()
    net.layer.extend([*layers, *after])
    net.name = experiment.model
    return net


def _layer(kind: str, name: str, *bottoms: str) -> caffe_pb2.LayerParameter:
    return caffe_pb2.LayerParameter(name=name, type=kind, bottom=bottoms, top=[name])


def _accuracies(scores: str, classes: int) -> list[caffe_pb2.LayerParameter]:
    """How often the label has the highest score, and where there are more than five classes how often one of the five highest."""
    layers = [_layer("Accuracy", "accuracy", scores, "label")]
    if classes > 5:
        layers.append(_layer("Accuracy", "accuracy_top5", scores, "label"))
        layers[-1].accuracy_param.top_k = 5
    return layers


def _losses(built: Built, infogain: Path | None) -> list[caffe_pb2.LayerParameter]:
    """The losses of the heads: first `loss`, of the head that counts, then those of the others, the third `loss3`."""
    layers = []
    for number, (scores, weight) in reversed(list(enumerate(built.heads, 1))):
        kind = "InfogainLoss" if infogain else "SoftmaxWithLoss"
        layer = _layer(kind, f"loss{number}" if layers else "loss", scores, "label")
        if weight != 1:
            layer.loss_weight.append(weight)
        if scores in built.loss_params:
            layer.loss_param.CopyFrom(built.loss_params[scores])
        if infogain:
            layer.infogain_loss_param.source = str(infogain)
        layers.append(layer)
    return layers


def write(dataset: Dataset, experiment: Experiment, folder: Path, mode: Mode, interpolation: str) -> None:
    """Write the four prototxt files and preprocessing.json to `folder`, whole.

    mode, interpolation  how the dataset's images were resized
    """
    template = models.template(experiment.model)
    if template.pairs and (dataset.shape[0] % 2 or dataset.classes != 2):
        raise InputError(
            f"experiments.{experiment.name}",
            f"images of {dataset.shape[0]} channels and {dataset.classes} classes",
            f"{experiment.model} takes pairs: two images' channels, and the classes different and same",
            "give a dataset such as published: mnist_pairs",
        )
    if unfit := models.unfit(template, experiment.model, dataset.shape):
        raise InputError(f"experiments.{experiment.name}", *unfit)
    snapshots = folder.parent / "train" / "snapshots" / experiment.name
    param, reasons = solver_defaults.solver(
        _sizes(template, dataset, experiment.batch_size),
        solver_defaults.Run(folder, snapshots, experiment.gpu, experiment.solver, experiment.strategy == "features"),
        f"experiments.{experiment.name}.solver",
    )
    made = nets(template, dataset, experiment)
    norms = [layer.batch_norm_param for layer in made["train"].layer if layer.type == "BatchNorm"]
    if "test_initialization" not in experiment.solver and not all(norm.use_global_stats for norm in norms):
        param.test_initialization = False
        reasons["test_initialization"] = "before training BatchNorm may have no statistics, and the scores would be no numbers"
    with written_whole(folder) as part:
        part.mkdir()
        # Errors of layers name the written file.
        said = f"Written from {experiment.model}, which is the one to edit."
        edited = {"name": said} if models.is_file(experiment.model) else {}
        for name, net in made.items():
            caffe.write_prototxt(part / f"{name}.prototxt", net, edited)
        channels, *size = dataset.shape
        resized = Options(Size(*size), mode, interpolation, channels == 3)
        how = Preprocessing(resized, made["test"].layer[0].transform_param, dataset.channels)
        how.write(part / "preprocessing.json")
        caffe.write_prototxt(part / "solver.prototxt", param, reasons)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go; replaced if it exists")
    parser.add_argument("--name", required=True, help="the experiment")
    parser.add_argument("--model", required=True, help=f"one of {', '.join(TEMPLATES)}, or a prototxt's path")
    parser.add_argument("--train", type=Path, required=True, help="training LMDB")
    parser.add_argument("--val", type=Path, required=True, help="validation LMDB")
    parser.add_argument("--mean", type=Path, required=True, help="mean.binaryproto")
    parser.add_argument("--last", default="", help="name of the last layer; by default the template's")
    parser.add_argument("--pretrained", action="store_true", help="training starts from weights, unless from scratch")
    parser.add_argument("--last-lr-mult", type=float, help="multiplies the last layer's learning rates; 10 if it is new, else 1")
    parser.add_argument("--batch-size", type=int, default=0, help="images in a training batch; by default the template's")
    parser.add_argument("--solver", type=solver_fields.parsed, default={}, help="solver fields, epochs and step_epochs as JSON")
    parser.add_argument(
        "--augmentation", type=parse_augmentation, help="how training images are changed: AugmentationParameter as JSON"
    )
    parser.add_argument("--infogain", type=Path, help="matrix of an InfogainLoss, to weigh the classes")
    parser.add_argument("--resize-mode", type=Mode, choices=list(Mode), default=Mode.SQUASH, help="how images were resized")
    parser.add_argument("--interpolation", choices=list(INTERPOLATIONS), default="linear", help="how they were sampled")
    parser.add_argument("--strategy", choices=STRATEGIES, default="full", help="what is learned")
    parser.add_argument("--features-from", default="top", metavar="BLOB", help="for features: top, middle, or a blob's name")
    parser.add_argument("--chosen", type=Path, help="strategy.json of pipeline.training.linear, in the place of these two")
    parser.add_argument("--freeze-to", default="", metavar="LAYER", help="the last layer that is not learned")
    parser.add_argument("--batch-norm", choices=["learn", "freeze"], default="learn", help="whose statistics training takes")
    parser.add_argument("--gpu", action="store_true", help="train on a GPU")
    a = parser.parse_args(argv)
    if a.batch_size < 0:
        raise InputError("--batch-size", str(a.batch_size), "a batch has one image at least", "give more, or 0 for the model's")
    template = models.template(a.model)
    strategy, features_from = read_strategy(a.chosen) if a.chosen else (a.strategy, a.features_from)
    pretrained = a.pretrained and strategy != "scratch"
    last = a.last or template.last
    new_among_others = pretrained and last != template.last
    experiment = Experiment(
        name=a.name,
        model=a.model,
        last=last,
        last_lr_mult=(10.0 if new_among_others else 1.0) if a.last_lr_mult is None else a.last_lr_mult,
        batch_size=a.batch_size or template.batch_size,
        gpu=a.gpu,
        solver=a.solver,
        augmentation=a.augmentation,
        infogain=a.infogain,
        strategy=strategy,
        features_from=features_from,
        freeze_to=a.freeze_to,
        batch_norm="learn" if strategy == "scratch" else a.batch_norm,
    )
    write(Dataset.read(a.train, a.val, a.mean), experiment, a.folder, a.resize_mode, a.interpolation)
    print(f"{a.folder}: {a.model} for {experiment.last}")


if __name__ == "__main__":
    run(main)
