"""Fit a linear classifier to what a pretrained net makes of the training images; and, for `auto`, choose by it what is learned.

Written to a folder: strategy.json (the strategy, what was measured, and why), measured.csv (one row for each kind of features),
measured.png and .svg, and classifier.caffemodel: the classifier as the layer `linear`, or no layer where another strategy was
chosen. What is measured is how well a classifier tells the training images apart that it has not seen, by cross-validation. It is
fitted to several views of each image, where there are few, cropped and mirrored at random as in training.

Few images like those of the pretraining want a classifier of the features at the top, few others one of those in the middle,
which are less special; many images, or features that say no more than the pixels do, want fine-tuning of all layers; and many
images with such features, training from scratch.
"""

from __future__ import annotations

import json
import math
import tempfile
import textwrap
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import written_whole
from pipeline.inference.extraction import Run, entries, extract
from pipeline.nets import models, prototxt, strategies
from pipeline.nets.prototxt import Dataset
from pipeline.options.flags import read_flags
from pipeline.options.training import LinearOptions

FEW = 50
"""Training images of a class below which a dataset is small."""
MEASURED = 5000
"""Most images that are measured by; a classifier is fitted to all."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values tried for scikit-learn's C, of features whose variance is 1."""
VIEWS, VIEWED = 10, 2000
"""Most views of an image, cropped and mirrored as in training, and least rows of features above which there are not more."""
FOLDS = 5
BATCH = 32
"""Images that go through the net at once."""
PIXELS = "pixels"
"""The image itself, as 8 × 8 means of each channel: what features must beat to be worth anything."""


@dataclass(frozen=True)
class Measured:
    """How well a linear classifier of some features does.

    features        top, middle, pixels, or a blob's name
    blob            what the net calls it
    values          how many it has for each image
    accuracy        share of the images that are told right, each by a classifier that has not seen it
    standard_error  of the accuracy
    penalty         the value of PENALTIES that gave the best
    """

    features: str
    blob: str
    values: int
    accuracy: float
    standard_error: float
    penalty: float


@dataclass(frozen=True)
class Choice:
    """What is to be learned: a strategy, the features for the strategy `features`, and why."""

    strategy: str
    features_from: str
    reasons: tuple[str, ...]


class Classifier:
    """Multinomial logistic regression, scikit-learn's, of features brought to mean 0 and variance 1.

    weights  classes × values, and
    bias     classes: for the features as they are
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, classes: int, penalty: float, balanced: bool):
        mean, deviation = values.mean(0), values.std(0)
        deviation[deviation == 0] = 1
        model = LogisticRegression(C=penalty, max_iter=500, class_weight="balanced" if balanced else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough
            model.fit((values - mean) / deviation, labels)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # one row, of the second against the first
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        self.weights = np.zeros((classes, values.shape[1]), np.float32)
        self.weights[model.classes_] = coefficients / deviation
        self.bias = np.full(classes, -1e4, np.float32)  # a class without images is never the one
        self.bias[model.classes_] = intercepts - coefficients @ (mean / deviation)

    def predict(self, values: np.ndarray) -> np.ndarray:
        """The number of each row's class."""
        return (values @ self.weights.T + self.bias).argmax(1)


def measure(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, balanced: bool) -> tuple[float, float, float]:
    """(accuracy, its standard error, penalty) of the best penalty, by cross-validation; images of one group count as one."""
    fewest = np.unique(labels, return_counts=True)[1].min()
    folds = StratifiedGroupKFold(int(min(max(fewest, 2), FOLDS)), shuffle=True, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of one image is in one fold only
        parts = list(folds.split(values, labels, groups))
    found = []
    for penalty in PENALTIES:
        right = 0
        for train, test in parts:
            classifier = Classifier(values[train], labels[train], labels.max() + 1, penalty, balanced)
            right += int((classifier.predict(values[test]) == labels[test]).sum())
        found.append((right / len(labels), penalty))
    accuracy, penalty = max(found, key=lambda one: one[0])  # the first of equals: the strongest penalty
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(np.unique(groups))), penalty


def choose(images: int, classes: int, measured: dict[str, Measured]) -> Choice:
    """What is learned with so many training images, by the accuracy of `top`, `middle` and `pixels`."""
    top, middle, pixels = (measured[name] for name in ("top", "middle", PIXELS))
    few = images < FEW * classes
    similar = top.accuracy + top.standard_error >= middle.accuracy
    useful = max(top.accuracy, middle.accuracy) > pixels.accuracy + pixels.standard_error
    size = f"{images / classes:.0f} training images a class, which is {'few' if few else 'many'} ({FEW} are the bound)"
    likeness = (
        f"{top.accuracy:.1%} told right by the features of the top, {middle.accuracy:.1%} by those of the middle:"
        f" the images are {'like' if similar else 'unlike'} those that the net was pretrained on"
    )
    use = (
        f"{pixels.accuracy:.1%} told right by the pixels alone: the features {'say more' if useful else 'say no more than that'}"
    )
    if useful and few:
        strategy, features = "features", "top" if similar else "middle"
        what = f"a linear classifier of the features of the {features}"
    elif useful or few:
        strategy, features, what = "full", "", "fine-tuning of all layers"
    else:
        strategy, features, what = "scratch", "", "training from scratch"
    return Choice(strategy, features, (size, likeness, use, f"so {what}"))


@dataclass(frozen=True)
class Job:
    """What is fitted to what.

    weights  of the pretrained net
    dataset  its training database, and its mean
    """

    options: LinearOptions
    weights: Path
    dataset: Dataset


def inputs_of_linear(job: Job) -> tuple[list[tuple[str, int]], dict[str, tuple[str, np.ndarray]]]:
    """(path, label) of each view of the training images, and {features: (blob, views × values)} as the strategy needs them."""
    template = models.template(job.options.model)
    built = template.built(models.Last(template.last, job.dataset.classes), deploy=True)
    wanted = ("top", "middle") if job.options.strategy == strategies.AUTO else (job.options.features_from,)
    blobs = {name: strategies.features(built, name) for name in wanted}
    net = caffe_pb2.NetParameter(name=job.options.model)
    net.layer.append(prototxt.data_layer(template, job.dataset, BATCH, job.dataset.train))
    read = {}
    for name, blob in blobs.items():
        *below, classifier = strategies.linear(built, blob, job.dataset.classes).layers
        known = {layer.name for layer in net.layer}
        net.layer.extend(layer for layer in below if layer.name not in known)
        read[name] = classifier.bottom[0]
    if job.options.strategy == strategies.AUTO:
        net.layer.append(_means_of_pixels(template.crop_size or min(job.dataset.shape[1:])))
        read[PIXELS] = PIXELS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.prototxt"
        caffe.write_prototxt(path, net)
        run = Run(path, job.weights, job.options.gpu)
        images = list(entries(run))
        different = len({path for path, _ in images})
        if different < 2 * job.dataset.classes:
            found = f"{different} training images of {job.dataset.classes} classes"
            raise InputError(job.dataset.train, found, "two of each are needed", "give more, or another strategy")
        if template.crop_size or template.mirror:
            views = min(VIEWS, max(1, VIEWED // len(images)))
            net.layer[0].transform_param.mirror = template.mirror and views > 1
            caffe.write_prototxt(path, net)
            run, images = replace(run, views=views), images * views
        values = extract(run, list(dict.fromkeys(read.values())), len(images))
    return images, {name: (blobs.get(name, "data"), values[blob]) for name, blob in read.items()}


def _means_of_pixels(side: int) -> caffe_pb2.LayerParameter:
    """A layer that gives 8 × 8 means of each channel."""
    layer = caffe_pb2.LayerParameter(name=PIXELS, type="Pooling", bottom=["data"], top=[PIXELS])
    layer.pooling_param.pool = caffe.params.Pooling.AVE
    layer.pooling_param.kernel_size = layer.pooling_param.stride = math.ceil(side / 8)
    return layer


def write(job: Job, folder: Path) -> Choice:
    """Write the files to `folder`, whole; return what is to be learned."""
    images, found = inputs_of_linear(job)
    paths, labels = (np.array(column) for column in zip(*images, strict=True))
    groups = np.unique(paths, return_inverse=True)[1]  # that an image's other views are told right is no proof
    some = slice(MEASURED)
    measured = {
        name: Measured(name, blob, values.shape[1], *measure(values[some], labels[some], groups[some], job.options.balanced))
        for name, (blob, values) in found.items()
    }
    if job.options.strategy == strategies.AUTO:
        choice = choose(len(set(paths)), job.dataset.classes, measured)
    else:
        choice = Choice("features", job.options.features_from, ("as the config says",))
    net = caffe_pb2.NetParameter(name=strategies.LINEAR)
    if choice.strategy == "features":
        values, penalty = found[choice.features_from][1], measured[choice.features_from].penalty
        net.layer.append(_layer(Classifier(values, labels, job.dataset.classes, penalty, job.options.balanced)))
    with written_whole(folder) as part:
        part.mkdir()
        (part / "classifier.caffemodel").write_bytes(net.SerializeToString(deterministic=True))
        table = pd.DataFrame([asdict(one) for one in measured.values()]).round({"accuracy": 4, "standard_error": 4})
        table.to_csv(part / "measured.csv", index=False)
        made = {"strategy": choice.strategy, "features_from": choice.features_from, "reasons": choice.reasons}
        (part / "strategy.json").write_text(json.dumps(made, indent=1) + "\n")
        with plt.rc_context(STYLE):
            save(drawn(measured, choice), part / "measured")
    return choice


def _layer(classifier: Classifier) -> caffe_pb2.LayerParameter:
    """The classifier as a layer with its parameters."""
    layer = caffe_pb2.LayerParameter(name=strategies.LINEAR, type="InnerProduct")
    for values in (classifier.weights, classifier.bias):
        layer.blobs.append(caffe.io.array_to_blobproto(values))
    return layer


def drawn(measured: dict[str, Measured], choice: Choice) -> plt.Figure:
    """A bar for each kind of features, with its standard error, and the reasons for the choice below."""
    figure, axis = plt.subplots(figsize=(6.4, 1.9 + 0.5 * len(measured)), layout="constrained")
    names = [f"{one.features}: {one.blob}" if one.blob != one.features else one.blob for one in measured.values()]
    accuracies, errors = (np.array([getattr(one, key) for one in measured.values()]) for key in ("accuracy", "standard_error"))
    colours = [COLOURS[1] if one.features == choice.features_from else COLOURS[0] for one in measured.values()]
    axis.barh(range(len(names)), 100 * accuracies, xerr=100 * errors, color=colours, height=0.6, error_kw={"alpha": 0.6})
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 100)
    axis.set_xlabel("told right by a linear classifier, % (cross-validation)")
    lines = [textwrap.fill(reason, 78) for reason in choice.reasons]
    figure.suptitle("\n".join(lines), fontsize=10, ha="left", x=0.02)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, LinearOptions)
    parser.add_argument("folder", type=Path, help="where the results go; replaced if it exists")
    parser.add_argument("--weights", type=Path, required=True, help="weights of the pretrained net")
    parser.add_argument("--train", type=Path, required=True, help="training LMDB")
    parser.add_argument("--val", type=Path, required=True, help="validation LMDB, of which nothing but its shape is read")
    parser.add_argument("--mean", type=Path, required=True, help="mean.binaryproto")
    a = parser.parse_args(argv)
    job = Job(read_flags(a, LinearOptions), a.weights, Dataset.read(a.train, a.val, a.mean))
    choice = write(job, a.folder)
    print(f"{a.folder}: {choice.strategy} {choice.features_from}".rstrip())
    for reason in choice.reasons:
        print(f"  {reason}")


if __name__ == "__main__":
    run(main)
