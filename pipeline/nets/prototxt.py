"""Write an experiment's train, test, deploy and solver prototxt from a template and a dataset, and preprocessing.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.dataset.augmentation import as_param, for_channels
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.records import Manifest, manifest_path, read_manifest
from pipeline.nets import models, solver_defaults
from pipeline.nets.models import Built, Last, Template, siamese
from pipeline.nets.preprocessing import Preprocessing
from pipeline.nets.strategies import features, freeze, frozen, linear
from pipeline.nets.strategy_file import read_strategy
from pipeline.options.dataset import ImageSize, ResizeOptions
from pipeline.options.flags import read_flags
from pipeline.options.training import PrototxtOptions


@dataclass(frozen=True)
class Dataset:
    """The paths of two LMDBs and their mean, and facts from the LMDBs' manifests.

    shape     channels, height and width of the images
    channels  channel order: BGR or RGB
    infogain  matrix of an InfogainLoss that weights the classes; None: SoftmaxWithLoss
    """

    train: Path
    val: Path
    mean: Path
    shape: tuple[int, int, int]
    classes: int
    train_images: int
    val_images: int
    channels: str = "BGR"
    infogain: Path | None = None

    @classmethod
    def read(cls, train: Path, val: Path, mean: Path, infogain: Path | None = None) -> Dataset:
        """Read the manifests beside the databases (`train.manifest.json`)."""
        manifests: list[Manifest] = []
        for database in (train, val):
            manifest = read_manifest(database)
            if manifest is None:
                raise InputError(manifest_path(database), "no such manifest", do="build the database first")
            manifests.append(manifest)
        first, second = manifests
        if first["shape"] != second["shape"]:
            raise InputError(val, f"images of shape {second['shape']}", f"the training images have {first['shape']}")
        depth, height, width = first["shape"]
        sizes = first["classes"], first["images"], second["images"]
        return cls(train, val, mean, (depth, height, width), *sizes, first.get("channels", "BGR"), infogain)


def nets(template: Template, dataset: Dataset, experiment: PrototxtOptions) -> dict[str, caffe_pb2.NetParameter]:
    """{"train", "test", "deploy"}: the three nets."""
    train = _data(template, dataset, caffe.TRAIN, experiment.batch_size)
    test = _data(template, dataset, caffe.TEST, _sizes(template, dataset, experiment).test_batch)
    if experiment.augmentation is not None:
        changes = for_channels(as_param(experiment.augmentation), dataset.channels)
        train["transform_param"]["augmentation_param"] = {field.name: value for field, value in changes.ListFields()}
    data = {"train": train, "test": test, "deploy": None}
    return {part: _net(template, dataset, experiment, fields) for part, fields in data.items()}


def _sizes(template: Template, dataset: Dataset, experiment: PrototxtOptions) -> solver_defaults.Sizes:
    _, height, width = dataset.shape
    most = solver_defaults.most_tested(template.crop_size**2 or height * width)
    return solver_defaults.Sizes(dataset.train_images, dataset.val_images, experiment.batch_size, most)


def _data(template: Template, dataset: Dataset, phase: int, batch_size: int) -> dict[str, Any]:
    """The Data layer of one phase, as keyword arguments."""
    training = phase == caffe.TRAIN
    fields = {"scale": template.scale, "crop_size": template.crop_size, "mirror": template.mirror and training}
    defaults = caffe_pb2.TransformationParameter()
    transform: dict[str, Any] = {name: value for name, value in fields.items() if value != getattr(defaults, name)}
    if template.mean_values:
        transform["mean_value"] = list(template.mean_values[:: -1 if dataset.channels == "RGB" else 1])
    elif template.mean:
        transform["mean_file"] = str(dataset.mean)
    source = str(dataset.train if training else dataset.val)
    return {
        "include": {"phase": phase},
        "transform_param": transform,
        "data_param": {"source": source, "batch_size": batch_size, "backend": P.Data.LMDB},
    }


def training_data_as_in_testing(template: Template, dataset: Dataset, batch_size: int) -> caffe_pb2.LayerParameter:
    """The layer that reads the training images as testing reads its own: in order, with the center crop."""
    n = caffe.NetSpec()
    n.data, n.label = L.Data(ntop=2, **_data(template, replace(dataset, val=dataset.train), caffe.TEST, batch_size))
    layer: caffe_pb2.LayerParameter = n.to_proto().layer[0]
    return layer


def _net(
    template: Template, dataset: Dataset, experiment: PrototxtOptions, data: dict[str, Any] | None
) -> caffe_pb2.NetParameter:
    """One of the three nets, by its Data layer; None: the deploy net."""
    last = Last(experiment.last, dataset.classes, _last_lr_mult(template, experiment))
    built = template.built(last, deploy=data is None or experiment.strategy == "features")
    if experiment.strategy == "features":
        built = linear(built, features(built, experiment.features_from), last.outputs)
    training = data is not None and data["include"]["phase"] == caffe.TRAIN
    for layer in built.layers:
        kind = caffe.layer_type(layer.type, f'layer "{layer.name}"')
        kind.choose_statistics(layer, stored=not training)
        if training and experiment.batch_norm == "freeze":
            kind.freeze_statistics(layer)
    side = template.crop_size
    channels, height, width = dataset.shape
    shape = [channels // (2 if template.pairs else 1), side or height, side or width]
    if training:
        names = frozen(built, experiment.strategy, experiment.freeze_to or "")
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
        after += _losses(built, dataset.infogain)
    net = n.to_proto()
    net.layer.extend([*layers, *after])
    net.name = experiment.model
    return net


def _layer(kind: str, name: str, *bottoms: str) -> caffe_pb2.LayerParameter:
    return caffe_pb2.LayerParameter(name=name, type=kind, bottom=bottoms, top=[name])


def _accuracies(scores: str, classes: int) -> list[caffe_pb2.LayerParameter]:
    """Accuracy layers: top-1, and for more than five classes top-5."""
    layers = [_layer("Accuracy", "accuracy", scores, "label")]
    if classes > 5:
        layers.append(_layer("Accuracy", "accuracy_top5", scores, "label"))
        layers[-1].accuracy_param.top_k = 5
    return layers


def _losses(built: Built, infogain: Path | None) -> list[caffe_pb2.LayerParameter]:
    """The losses of the heads: first `loss`, of the main head, then those of auxiliary heads, such as `loss2` and `loss1`."""
    layers: list[caffe_pb2.LayerParameter] = []
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


def write(dataset: Dataset, experiment: PrototxtOptions, folder: Path) -> None:
    """Write the four prototxt files and preprocessing.json to `folder`, whole."""
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
        _sizes(template, dataset, experiment),
        solver_defaults.Run(folder, snapshots, experiment, experiment.solver, experiment.strategy == "features"),
        f"experiments.{experiment.name}.solver",
    )
    made = nets(template, dataset, experiment)
    learning = any(caffe.layer_type(layer.type).updates_statistics(layer) for layer in made["train"].layer)
    if "test_initialization" not in experiment.solver and learning:
        param.test_initialization = False
        reasons["test_initialization"] = "before training BatchNorm may have no statistics, and the scores would be no numbers"
    with written_whole(folder) as part:
        part.mkdir()
        # Errors of layers name the written file.
        heading = f"Written from {experiment.model}, which is the one to edit."
        comments = {"name": heading} if models.is_file(experiment.model) else {}
        for name, net in made.items():
            caffe.write_prototxt(part / f"{name}.prototxt", net, comments)
        channels, height, width = dataset.shape
        resized = ResizeOptions(
            size=ImageSize(height=height, width=width),
            resize_mode=experiment.resize_mode,
            interpolation=experiment.interpolation,
            color="color" if channels == 3 else "gray",
        )
        transform = made["test"].layer[0].transform_param
        Preprocessing(resized, transform, dataset.channels).write(part / "preprocessing.json")
        caffe.write_prototxt(part / "solver.prototxt", param, reasons)


def resolve(options: PrototxtOptions, strategy_file: Path | None = None) -> PrototxtOptions:
    """The options with a strategy, last layer and batch size filled in."""
    template = models.template(options.model)
    strategy, features_from = read_strategy(strategy_file) if strategy_file else (options.strategy, options.features_from)
    return options.model_copy(
        update={
            "strategy": strategy,
            "features_from": features_from,
            "last": options.last or template.last,
            "batch_size": options.batch_size or template.batch_size,
            "batch_norm": "learn" if strategy == "scratch" else options.batch_norm,
        }
    )


def _last_lr_mult(template: Template, experiment: PrototxtOptions) -> float:
    """Multiplies the learning rates of the last layer: by default 10 if it is new in a net with weights, else 1."""
    if experiment.last_lr_mult is not None:
        return experiment.last_lr_mult
    is_new = experiment.pretrained and experiment.strategy != "scratch" and experiment.last != template.last
    return 10.0 if is_new else 1.0


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, PrototxtOptions)
    parser.add_argument("folder", type=Path, help="where the files go; replaced if it exists")
    parser.add_argument("--train", type=Path, required=True, help="training LMDB")
    parser.add_argument("--val", type=Path, required=True, help="validation LMDB")
    parser.add_argument("--mean", type=Path, required=True, help="mean.binaryproto")
    parser.add_argument("--infogain", type=Path, nargs="?", help="matrix of an InfogainLoss that weights the classes")
    parser.add_argument("--chosen", type=Path, nargs="?", help="strategy.json of training.linear; overrides --strategy")
    a = parser.parse_args(argv)
    experiment = resolve(read_flags(a, PrototxtOptions), a.chosen)
    write(Dataset.read(a.train, a.val, a.mean, a.infogain), experiment, a.folder)
    print(f"{a.folder}: {experiment.model} for {experiment.last}")


if __name__ == "__main__":
    run(main)
