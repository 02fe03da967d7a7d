"""Fit a linear classifier to features of a pretrained net; with strategy `auto`, choose the fine-tuning strategy by its accuracy.

Written to a folder: strategy.json (the strategy and the reasons for it), measured.csv (one row for each kind of features),
measured.png and .svg, and classifier.caffemodel: the classifier as the layer `linear`, or no layer if another strategy was
chosen. The accuracy is measured by cross-validation on the training images. If these are few, the classifier is fitted to several
views of each image, cropped and mirrored at random as in training.

`auto`: for few images, similar to those of the pretraining, a linear classifier of the top features; for few others, of the
middle features, which are less specific; for many images, or if the features are no better than the pixels, fine-tuning of all
layers; for many images with such features, training from scratch.
"""

import json
import math
import tempfile
import textwrap
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.inference.extraction import Run, entries, extract
from pipeline.nets import models, prototxt, strategies
from pipeline.nets.prototxt import Dataset
from pipeline.options.flags import read_flags
from pipeline.options.training import LinearOptions

FEW = 50
"""A dataset with fewer training images per class is small."""
MEASURED = 5000
"""Largest number of images for cross-validation; the classifier is fitted to all images."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of scikit-learn's C that are tried, for features of variance 1."""
VIEWS, VIEWED = 10, 2000
"""Largest number of views of an image, cropped and mirrored as in training, and of images for which there are several views."""
FOLDS = 5
BATCH = 32
"""Batch size."""
PIXELS = "pixels"
"""The image itself, as 8 × 8 means of each channel: the baseline of useful features."""


@dataclass(frozen=True)
class Measured:
    """Accuracy of a linear classifier of some features.

    features        top, middle, pixels, or a blob's name
    blob            its name in the net
    values          features per image
    accuracy        share of images classified correctly, each by a classifier that was not fitted to it
    standard_error  of the accuracy
    penalty         the best value of PENALTIES
    """

    features: str
    blob: str
    values: int
    accuracy: float
    standard_error: float
    penalty: float


@dataclass(frozen=True)
class Choice:
    """A fine-tuning strategy, the features for the strategy `features`, and the reasons."""

    strategy: str
    features_from: str
    reasons: tuple[str, ...]


class Classifier:
    """scikit-learn's multinomial logistic regression of standardised features (mean 0, variance 1).

    weights  classes × values, and
    bias     classes: for the original features
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, classes: int, penalty: float, balanced: bool):
        mean, deviation = values.mean(0), values.std(0)
        deviation[deviation == 0] = 1
        model = LogisticRegression(C=penalty, max_iter=500, class_weight="balanced" if balanced else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy changes little near the optimum
            model.fit((values - mean) / deviation, labels)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # one row: the logit of the second class
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        self.weights = np.zeros((classes, values.shape[1]), np.float32)
        self.weights[model.classes_] = coefficients / deviation
        self.bias = np.full(classes, -1e4, np.float32)  # a class without images is never predicted
        self.bias[model.classes_] = intercepts - coefficients @ (mean / deviation)

    def predict(self, values: np.ndarray) -> np.ndarray:
        """The predicted class of each row, as its number."""
        predicted: np.ndarray = (values @ self.weights.T + self.bias).argmax(1)
        return predicted


def measure(values: np.ndarray, labels: np.ndarray, groups: np.ndarray, balanced: bool) -> tuple[float, float, float]:
    """(accuracy, its standard error, penalty) of the best penalty, by cross-validation; groups of rows are not divided."""
    fewest = np.unique(labels, return_counts=True)[1].min()
    folds = StratifiedGroupKFold(int(min(max(fewest, 2), FOLDS)), shuffle=True, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer images than folds
        parts = list(folds.split(values, labels, groups))
    accuracies = []
    for penalty in PENALTIES:
        correct = 0
        for train, test in parts:
            classifier = Classifier(values[train], labels[train], labels.max() + 1, penalty, balanced)
            correct += int((classifier.predict(values[test]) == labels[test]).sum())
        accuracies.append((correct / len(labels), penalty))
    accuracy, penalty = max(accuracies, key=lambda pair: pair[0])  # the first of equals: the strongest penalty
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / len(np.unique(groups))), penalty


def choose(images: int, classes: int, measured: dict[str, Measured]) -> Choice:
    """The strategy for so many training images, by the accuracies of `top`, `middle` and `pixels`."""
    top, middle, pixels = (measured[name] for name in ("top", "middle", PIXELS))
    few = images < FEW * classes
    similar = top.accuracy + top.standard_error >= middle.accuracy
    useful = max(top.accuracy, middle.accuracy) > pixels.accuracy + pixels.standard_error
    size = f"{images / classes:.0f} training images per class: {'few' if few else 'many'} (the threshold is {FEW})"
    similarity = (
        f"{top.accuracy:.1%} classified correctly from the top features, {middle.accuracy:.1%} from the middle features:"
        f" the images are {'similar' if similar else 'dissimilar'} to those of the pretraining"
    )
    use = f"{pixels.accuracy:.1%} from the pixels alone: the features are {'' if useful else 'no '}better"
    if useful and few:
        strategy, features = "features", "top" if similar else "middle"
        what = f"a linear classifier of the {features} features"
    elif useful or few:
        strategy, features, what = "full", "", "fine-tuning of all layers"
    else:
        strategy, features, what = "scratch", "", "training from scratch"
    return Choice(strategy, features, (size, similarity, use, f"so {what}"))


@dataclass(frozen=True)
class Job:
    """What to fit, to which data.

    weights  pretrained weights of the net
    dataset  its training database, and its mean
    """

    options: LinearOptions
    weights: Path
    dataset: Dataset


def extract_features(job: Job) -> tuple[list[tuple[str, int]], dict[str, tuple[str, np.ndarray]]]:
    """(path, label) of each view of the training images, and {features: (blob, views × values)} for the strategy."""
    template = models.template(job.options.model)
    built = template.built(models.Last(template.last, job.dataset.classes), deploy=True)
    kinds = ("top", "middle") if job.options.strategy == strategies.AUTO else (job.options.features_from,)
    blobs = {name: strategies.features(built, name) for name in kinds}
    net = caffe_pb2.NetParameter(name=job.options.model)
    net.layer.append(prototxt.training_data_as_in_testing(template, job.dataset, BATCH))
    tops = {}
    for name, blob in blobs.items():
        *below, classifier = strategies.linear(built, blob, job.dataset.classes).layers
        known = {layer.name for layer in net.layer}
        net.layer.extend(layer for layer in below if layer.name not in known)
        tops[name] = classifier.bottom[0]
    if job.options.strategy == strategies.AUTO:
        size = math.ceil((template.crop_size or min(job.dataset.shape[1:])) / 8)
        means = {"pool": caffe.params.Pooling.AVE, "kernel_size": size, "stride": size}
        net.layer.add(name=PIXELS, type="Pooling", bottom=["data"], top=[PIXELS], pooling_param=means)
        tops[PIXELS] = PIXELS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.prototxt"
        caffe.write_prototxt(path, net)
        run = Run(path, job.weights, job.options)
        images = list(entries(run))
        distinct = len({path for path, _ in images})
        if distinct < 2 * job.dataset.classes:
            found = f"{distinct} training images of {job.dataset.classes} classes"
            raise InputError(job.dataset.train, found, "each class needs two", "add images, or use another strategy")
        if template.crop_size or template.mirror:
            views = min(VIEWS, max(1, VIEWED // len(images)))
            net.layer[0].transform_param.mirror = template.mirror and views > 1
            caffe.write_prototxt(path, net)
            run, images = replace(run, views=views), images * views
        values = extract(run, list(dict.fromkeys(tops.values())), len(images))
    return images, {name: (blobs.get(name, "data"), values[blob]) for name, blob in tops.items()}


def write(job: Job, folder: Path) -> Choice:
    """Write the files to `folder`, whole; return the choice."""
    images, features = extract_features(job)
    paths, labels = (np.array(column) for column in zip(*images, strict=True))
    groups = np.unique(paths, return_inverse=True)[1]  # an image's views stay in one fold
    first = slice(MEASURED)
    measured = {
        name: Measured(name, blob, values.shape[1], *measure(values[first], labels[first], groups[first], job.options.balanced))
        for name, (blob, values) in features.items()
    }
    if job.options.strategy == strategies.AUTO:
        choice = choose(len(set(paths)), job.dataset.classes, measured)
    else:
        choice = Choice("features", job.options.features_from, ("set in the config",))
    net = caffe_pb2.NetParameter(name=strategies.LINEAR)
    if choice.strategy == "features":
        values, penalty = features[choice.features_from][1], measured[choice.features_from].penalty
        classifier = Classifier(values, labels, job.dataset.classes, penalty, job.options.balanced)
        blobs = [caffe.io.array_to_blobproto(array) for array in (classifier.weights, classifier.bias)]
        net.layer.add(name=strategies.LINEAR, type="InnerProduct", blobs=blobs)
    with written_whole(folder) as part:
        part.mkdir()
        (part / "classifier.caffemodel").write_bytes(net.SerializeToString(deterministic=True))
        table = pd.DataFrame([asdict(row) for row in measured.values()]).round({"accuracy": 4, "standard_error": 4})
        table.to_csv(part / "measured.csv", index=False)
        content = {"strategy": choice.strategy, "features_from": choice.features_from, "reasons": choice.reasons}
        (part / "strategy.json").write_text(json.dumps(content, indent=1) + "\n")
        digests.seal(part)  # without the picture, which depends on fonts
        with plt.rc_context(STYLE):
            save(draw(measured, choice), part / "measured")
    return choice


def draw(measured: dict[str, Measured], choice: Choice) -> Figure:
    """A bar for each kind of features, with its standard error, and the reasons for the choice below."""
    figure, axis = plt.subplots(figsize=(6.4, 1.9 + 0.5 * len(measured)), layout="constrained")
    bars = list(measured.values())
    names = [f"{bar.features}: {bar.blob}" if bar.blob != bar.features else bar.blob for bar in bars]
    accuracies, errors = (np.array([getattr(bar, key) for bar in bars]) for key in ("accuracy", "standard_error"))
    colours = [COLOURS[1] if bar.features == choice.features_from else COLOURS[0] for bar in bars]
    axis.barh(range(len(names)), 100 * accuracies, xerr=100 * errors, color=colours, height=0.6, error_kw={"alpha": 0.6})
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy of a linear classifier, % (cross-validation)")
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
