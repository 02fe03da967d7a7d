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
from pipeline import models, solver_fields
from pipeline.augmentation import parsed
from pipeline.command import run
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.images import Size
from pipeline.models import TEMPLATES, Last, Template
from pipeline.preprocessing import Preprocessing
from pipeline.resize import INTERPOLATIONS, Mode, Options
from pipeline.strategies import STRATEGIES, chosen, features, freeze, frozen, linear

TEST_BATCH = 256
"""Most images in a test batch; the batch is the largest divisor of the validation set's size up to this."""


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
        return cls(train, val, mean, tuple(first["shape"]), first["classes"], first["images"], second["images"])


@dataclass(frozen=True)
class Experiment:
    """What is trained: a template, the classifier's name and learning rate, and fields of the solver that are not the default.

    augmentation  how training images are changed on their way into the net
    infogain      the matrix of an InfogainLoss that weighs the classes, in the place of SoftmaxWithLoss
    strategy      what is learned, one of STRATEGIES
    features_from  for the strategy `features`: top, middle, or a blob's name
    freeze_to     the last layer that is not learned; empty leaves it to the strategy
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


def nets(template: Template, dataset: Dataset, experiment: Experiment) -> dict[str, caffe_pb2.NetParameter]:
    """{"train", "test", "deploy"}: the three nets."""
    last = Last(experiment.last, dataset.classes, experiment.last_lr_mult)
    train = _data(template, dataset, "TRAIN", experiment.batch_size)
    if experiment.augmentation is not None:
        train["transform_param"]["augmentation_param"] = {
            field.name: value for field, value in experiment.augmentation.ListFields()
        }
    return {
        "train": _net(template, last, experiment, train),
        "test": _net(template, last, experiment, _data(template, dataset, "TEST", test_batch(dataset.val_images))),
        "deploy": _net(template, last, experiment, None, dataset),
    }


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
        transform["mean_value"] = list(template.mean_values)
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


def _net(
    template: Template, last: Last, experiment: Experiment, data: dict | None, dataset: Dataset | None = None
) -> caffe_pb2.NetParameter:
    built = template.built(last, deploy=data is None or experiment.strategy == "features")
    if experiment.strategy == "features":
        built = linear(built, features(built, experiment.features_from), last.outputs)
    if data is not None and data["include"]["phase"] == caffe.TRAIN:
        freeze(built.layers, frozen(built.layers, experiment.strategy, experiment.freeze_to, built.classifiers))
    n = caffe.NetSpec()
    if data is None:
        side = template.crop_size
        channels, height, width = dataset.shape
        n.data = L.Input(shape={"dim": [1, channels, side or height, side or width]})
        after = [_layer("Softmax", "prob", built.heads[-1][0])]
    else:
        n.data, n.label = L.Data(ntop=2, **data)
        scores = built.heads[-1][0]
        after = [_layer("Accuracy", "accuracy", scores, "label")] if data["include"]["phase"] == caffe.TEST else []
        after += [_loss(experiment, number, head) for number, head in enumerate(reversed(built.heads))]
    net = n.to_proto()
    net.layer.extend([*built.layers, *after])
    net.name = experiment.model
    return net


def _layer(kind: str, name: str, *bottoms: str) -> caffe_pb2.LayerParameter:
    return caffe_pb2.LayerParameter(name=name, type=kind, bottom=bottoms, top=[name])


def _loss(experiment: Experiment, number: int, head: tuple[str, float]) -> caffe_pb2.LayerParameter:
    """The loss of a head, the first of which counts and is called `loss`."""
    scores, weight = head
    kind = "InfogainLoss" if experiment.infogain else "SoftmaxWithLoss"
    layer = _layer(kind, f"loss{number or ''}", scores, "label")
    if weight != 1:
        layer.loss_weight.append(weight)
    if experiment.infogain:
        layer.infogain_loss_param.source = str(experiment.infogain)
    return layer


def test_batch(images: int) -> int:
    """Images in a test batch, so that test_iter whole batches are the validation set, each image once."""
    return max(size for size in range(1, min(images, TEST_BATCH) + 1) if images % size == 0)


def solver(dataset: Dataset, experiment: Experiment, folder: Path) -> tuple[caffe_pb2.SolverParameter, dict[str, str]]:
    """The solver, and {field: why it has this value} for what was worked out from the dataset."""
    batch = test_batch(dataset.val_images)
    epoch = max(1, dataset.train_images // experiment.batch_size)
    values = {
        "train_net": str(folder / "train.prototxt"),
        "test_net": [str(folder / "test.prototxt")],
        "test_iter": [dataset.val_images // batch],
        "test_interval": epoch,
        "base_lr": 0.01,
        "lr_policy": "fixed",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "display": max(1, epoch // 4),
        "max_iter": 20 * epoch,
        "snapshot_prefix": str(folder.parent / "train" / "snapshots" / experiment.name),
        "random_seed": 1,
        "solver_mode": "GPU" if experiment.gpu else "CPU",
    }
    reasons = {
        "test_iter": f"{dataset.val_images} validation images in batches of {batch}, each image once",
        "test_interval": f"an epoch: {dataset.train_images} training images in batches of {experiment.batch_size}",
        "display": "four times an epoch",
        "max_iter": "20 epochs",
    }
    values.update(experiment.solver)
    if experiment.strategy == "features":
        values["max_iter"] = 0
        reasons["max_iter"] = "nothing: the classifier is fitted by logistic regression"
    param = caffe_pb2.SolverParameter()
    if problems := solver_fields.problems(experiment.solver):
        raise InputError("", "\n".join(f"experiments.{experiment.name}.solver.{problem}" for problem in problems))
    for field, value in values.items():
        solver_fields.assign(param, field, value)
    ours = {field for field in reasons if values[field] != experiment.solver.get(field)}
    return param, {field: reason for field, reason in reasons.items() if field in ours}


def write(dataset: Dataset, experiment: Experiment, folder: Path, mode: Mode, interpolation: str) -> None:
    """Write the four prototxt files and preprocessing.json to `folder`, whole.

    mode, interpolation  how the dataset's images were resized
    """
    template = models.template(experiment.model)
    if template.crop_size > min(dataset.shape[1:]):
        raise InputError(
            f"experiments.{experiment.name}",
            f"{experiment.model} crops {template.crop_size}×{template.crop_size}",
            f"the images are {dataset.shape[1]}×{dataset.shape[2]}",
            "give the dataset a larger size",
        )
    param, reasons = solver(dataset, experiment, folder)
    with written_whole(folder) as part:
        part.mkdir()
        made = nets(template, dataset, experiment)
        for name, net in made.items():
            caffe.write_prototxt(part / f"{name}.prototxt", net)
        channels, *size = dataset.shape
        resized = Options(Size(*size), mode, interpolation, channels == 3)
        Preprocessing(resized, made["test"].layer[0].transform_param).write(part / "preprocessing.json")
        path = part / "solver.prototxt"
        caffe.write_prototxt(path, param)
        lines = []
        for line in path.read_text().splitlines():
            reason = reasons.get(line.split(":")[0])
            lines += [f"# {reason}", line] if reason else [line]
        path.write_text("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go; replaced if it exists")
    parser.add_argument("--name", required=True, help="the experiment")
    parser.add_argument("--model", required=True, help=f"one of {', '.join(TEMPLATES)}, or a prototxt's path")
    parser.add_argument("--train", type=Path, required=True, help="training LMDB")
    parser.add_argument("--val", type=Path, required=True, help="validation LMDB")
    parser.add_argument("--mean", type=Path, required=True, help="mean.binaryproto")
    parser.add_argument("--last", default="", help="name of the last layer; by default the template's")
    parser.add_argument("--last-lr-mult", type=float, default=1.0, help="multiplies the last layer's learning rates")
    parser.add_argument("--batch-size", type=int, default=0, help="images in a training batch; by default the template's")
    parser.add_argument("--solver", type=json.loads, default={}, help="solver fields as JSON")
    parser.add_argument("--augmentation", type=parsed, help="how training images are changed: AugmentationParameter as JSON")
    parser.add_argument("--infogain", type=Path, help="matrix of an InfogainLoss, to weigh the classes")
    parser.add_argument("--resize-mode", type=Mode, choices=list(Mode), default=Mode.SQUASH, help="how images were resized")
    parser.add_argument("--interpolation", choices=list(INTERPOLATIONS), default="linear", help="how they were sampled")
    parser.add_argument("--strategy", choices=STRATEGIES, default="full", help="what is learned")
    parser.add_argument("--features-from", default="top", metavar="BLOB", help="for features: top, middle, or a blob's name")
    parser.add_argument("--chosen", type=Path, help="strategy.json of pipeline.linear, in the place of these two")
    parser.add_argument("--freeze-to", default="", metavar="LAYER", help="the last layer that is not learned")
    parser.add_argument("--gpu", action="store_true", help="train on a GPU")
    a = parser.parse_args(argv)
    if not models.is_file(a.model) and a.model not in TEMPLATES:
        hint = caffe.nearest(a.model, TEMPLATES)
        raise InputError(f"experiments.{a.name}.model", f'"{a.model}"', f"there are {', '.join(TEMPLATES)}", hint)
    template = models.template(a.model)
    strategy, features_from = chosen(a.chosen) if a.chosen else (a.strategy, a.features_from)
    experiment = Experiment(
        name=a.name,
        model=a.model,
        last=a.last or template.last,
        last_lr_mult=a.last_lr_mult,
        batch_size=a.batch_size or template.batch_size,
        gpu=a.gpu,
        solver=a.solver,
        augmentation=a.augmentation,
        infogain=a.infogain,
        strategy=strategy,
        features_from=features_from,
        freeze_to=a.freeze_to,
    )
    write(Dataset.read(a.train, a.val, a.mean), experiment, a.folder, a.resize_mode, a.interpolation)
    print(f"{a.folder}: {a.model} for {experiment.last}")


if __name__ == "__main__":
    run(main)
