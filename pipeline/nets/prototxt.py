"""Write an experiment's train, test, deploy and solver prototxt from a template and a dataset, and how images become inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from pipeline.nets import models, solver_defaults
from pipeline.nets.models import Built, Last, Template, siamese
from pipeline.nets.models.adapted import Adapted
from pipeline.nets.preprocessing import Preprocessing
from pipeline.nets.strategies import features, freeze, frozen, linear
from pipeline.nets.strategy_file import read_strategy
from pipeline.options.dataset import ImageSize, ResizeOptions
from pipeline.options.flags import read_flags
from pipeline.options.training import PrototxtOptions


@dataclass(frozen=True)
class Dataset:
    """What a net needs to know of its data: where the two LMDBs and the mean are, and what the manifests say of them.

    infogain  matrix of an InfogainLoss that weights the classes, instead of SoftmaxWithLoss
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
        return cls(train, val, mean, tuple(first["shape"]), *sizes, first.get("channels", "BGR"), infogain)


def nets(template: Template | Adapted, dataset: Dataset, experiment: PrototxtOptions) -> dict[str, caffe_pb2.NetParameter]:
    """{"train", "test", "deploy"}: the three nets."""
    last = Last(experiment.last, dataset.classes, experiment.last_lr_mult)
    sizes = _sizes(template, dataset, experiment.batch_size)
    train = _data(template, dataset, "TRAIN", experiment.batch_size)
    if experiment.augmentation is not None:
        changes = for_channels(as_param(experiment.augmentation), dataset.channels)
        train["transform_param"]["augmentation_param"] = {field.name: value for field, value in changes.ListFields()}
    return {
        "train": _net(template, last, experiment, train, dataset),
        "test": _net(template, last, experiment, _data(template, dataset, "TEST", sizes.test_batch), dataset),
        "deploy": _net(template, last, experiment, None, dataset),
    }


def _sizes(template: Template | Adapted, dataset: Dataset, batch_size: int) -> solver_defaults.Sizes:
    _, height, width = dataset.shape
    most = solver_defaults.most_tested(template.crop_size**2 or height * width)
    return solver_defaults.Sizes(dataset.train_images, dataset.val_images, batch_size, most)


def _data(template: Template | Adapted, dataset: Dataset, phase: str, batch_size: int) -> dict[str, Any]:
    """The Data layer of one phase, as keyword arguments."""
    transform: dict[str, Any] = {}
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


def data_layer(template: Template | Adapted, dataset: Dataset, batch_size: int, source: Path) -> caffe_pb2.LayerParameter:
    """The layer that reads a database of the dataset as testing does."""
    fields = _data(template, dataset, "TEST", batch_size)
    fields["data_param"]["source"] = str(source)
    n = caffe.NetSpec()
    n.data, n.label = L.Data(ntop=2, **fields)
    layer: caffe_pb2.LayerParameter = n.to_proto().layer[0]
    return layer


def _net(
    template: Template | Adapted, last: Last, experiment: PrototxtOptions, data: dict[str, Any] | None, dataset: Dataset
) -> caffe_pb2.NetParameter:
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
    """How often the label has the highest score, and where there are more than five classes how often one of the five highest."""
    layers = [_layer("Accuracy", "accuracy", scores, "label")]
    if classes > 5:
        layers.append(_layer("Accuracy", "accuracy_top5", scores, "label"))
        layers[-1].accuracy_param.top_k = 5
    return layers


def _losses(built: Built, infogain: Path | None) -> list[caffe_pb2.LayerParameter]:
    """The losses of the heads: first `loss`, of the head that counts, then those of the others, the third `loss3`."""
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
        _sizes(template, dataset, experiment.batch_size),
        solver_defaults.Run(folder, snapshots, experiment.gpu, experiment.solver, experiment.strategy == "features"),
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
        said = f"Written from {experiment.model}, which is the one to edit."
        edited = {"name": said} if models.is_file(experiment.model) else {}
        for name, net in made.items():
            caffe.write_prototxt(part / f"{name}.prototxt", net, edited)
        channels, *size = dataset.shape
        resized = ResizeOptions(
            size=ImageSize(height=size[0], width=size[1]),
            resize_mode=experiment.resize_mode,
            interpolation=experiment.interpolation,
            color="color" if channels == 3 else "gray",
        )
        how = Preprocessing(resized, made["test"].layer[0].transform_param, dataset.channels)
        how.write(part / "preprocessing.json")
        caffe.write_prototxt(part / "solver.prototxt", param, reasons)


def resolve(options: PrototxtOptions, strategy_file: Path | None = None) -> PrototxtOptions:
    """The options with a strategy, a last layer, its learning rate and a batch size where they were left to the step."""
    template = models.template(options.model)
    strategy, features_from = read_strategy(strategy_file) if strategy_file else (options.strategy, options.features_from)
    last = options.last or template.last
    is_new = options.pretrained and strategy != "scratch" and last != template.last
    return options.model_copy(
        update={
            "strategy": strategy,
            "features_from": features_from,
            "last": last,
            "last_lr_mult": (10.0 if is_new else 1.0) if options.last_lr_mult is None else options.last_lr_mult,
            "batch_size": options.batch_size or template.batch_size,
            "batch_norm": "learn" if strategy == "scratch" else options.batch_norm,
        }
    )


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, PrototxtOptions)
    parser.add_argument("folder", type=Path, help="where the files go; replaced if it exists")
    parser.add_argument("--train", type=Path, required=True, help="training LMDB")
    parser.add_argument("--val", type=Path, required=True, help="validation LMDB")
    parser.add_argument("--mean", type=Path, required=True, help="mean.binaryproto")
    parser.add_argument("--infogain", type=Path, nargs="?", help="matrix of an InfogainLoss, to weight the classes")
    parser.add_argument("--chosen", type=Path, nargs="?", help="strategy.json of training.linear; overrides --strategy")
    a = parser.parse_args(argv)
    experiment = resolve(read_flags(a, PrototxtOptions), a.chosen)
    write(Dataset.read(a.train, a.val, a.mean, a.infogain), experiment, a.folder)
    print(f"{a.folder}: {experiment.model} for {experiment.last}")


if __name__ == "__main__":
    run(main)
