"""Evaluate a trained net on its validation set, on other records, or on image files.

Written to a folder:
  summary.json     accuracy, images; top_k accuracies; macro_accuracy (mean of the classes' accuracies); mean_probability (of the
                   predicted classes), calibration_error and log_loss
  per_class.csv    class, images, accuracy (its recall), precision, f1; empty if undefined (0 / 0)
  confusion.csv    the confusion matrix; rows: true class; columns: predicted class
  calibration.csv  images by the probability of the predicted class, in ten bins: low, high, images, mean_probability, accuracy
  predictions.csv  path, label, predicted, probability, rank (of the label, from 1), loss (-ln of its probability)
The (expected) calibration error is the mean, over images, of |mean probability - accuracy| of the image's bin.
Like the net's own numbers, probabilities and means do not depend on the processor: NumPy's exponential and its sums do.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import caffe
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats import digests
from pipeline.formats.lists import read_image_list, read_labels
from pipeline.inference import extraction
from pipeline.inference.extraction import Run, batches
from pipeline.options.base import Device
from pipeline.options.flags import read_flags

TOP = (2, 3, 5, 10)
"""Values of k for top-k accuracies, if there are more than k classes."""
BINS = 10
"""Bins of the calibration."""


def scores_blob(net_file: Path) -> str:
    """The blob of class scores: the first bottom of the loss; for another kind of loss, of the Accuracy layer."""
    layers = [(layer, caffe.layer_type(layer.type)) for layer in caffe.read_net(net_file).layer]
    losses = [layer for layer, kind in layers if kind.is_loss and kind.applies_softmax]
    for layer in (*losses, *(layer for layer, kind in layers if kind.compares_labels and not kind.is_loss)):
        return str(layer.bottom[0])
    found, do = "no SoftmaxWithLoss or InfogainLoss layer", "give the test net of a classifier"
    raise InputError(net_file, found, "its bottom has the class scores", do)


def judge(scores: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A row per image: label, predicted (class numbers), probability (of the predicted class), rank and loss (of the label).

    scores  images × classes
    """
    images = np.arange(len(scores))
    probabilities, logarithms = caffe.softmax(scores)
    target = scores[images, labels][:, None]
    before = (scores > target) | ((scores == target) & (np.arange(scores.shape[1]) < labels[:, None]))  # ties: the first
    return pd.DataFrame(
        {
            "label": labels,
            "predicted": scores.argmax(1),
            "probability": probabilities.max(1),
            "rank": before.sum(1) + 1,
            "loss": 0 - logarithms[images, labels],  # not -x: 0 is written without a sign
        }
    )


def predictions(job: Run, source: Path, names: list[str]) -> pd.DataFrame:
    """`judge` for every image of the list `source`, with the column path. Raises InputError if list, records and net differ."""
    entries = read_image_list(source, len(names))
    records = extraction.count(job)
    if records < len(entries):
        raise InputError(source, f"{len(entries)} images", f"there are {records} records", "give the list of these records")
    scores, top = scores_blob(job.net), extraction.data_layer(job.net, caffe.read_net(job.net)).top
    labels, parts, start = np.array([number for _, number in entries]), [], 0
    for batch in batches(job, [scores, *top[1:]], len(entries)):
        values = batch[scores].reshape(len(batch[scores]), -1)
        here = labels[start : start + len(values)]
        stored = batch[top[1]].ravel() if len(top) > 1 else here
        if values.shape[1] != len(names):
            raise InputError(job.net, f"{values.shape[1]} outputs", f"the dataset has {len(names)} classes")
        if not np.isfinite(values).all():
            path = entries[start + np.isfinite(values).all(1).argmin()][0]
            raise InputError(job.weights, f"NaN or infinite scores for {path}", do="train again with a lower base_lr")
        if len(differing := np.flatnonzero(stored != here)):
            first = differing[0]
            where, expected = f"{source}:{start + first + 1}", f"the record has label {int(stored[first])}"
            raise InputError(where, f"label {here[first]}", expected, "give the list that the records were made from")
        parts.append(judge(values, here))
        start += len(values)
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "path", [path for path, _ in entries])
    return table


def class_metrics(confusion: np.ndarray) -> pd.DataFrame:
    """images, accuracy, precision and f1 of each class, from a confusion matrix; NaN if undefined (0 / 0)."""
    correct, images, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        metrics = {"accuracy": correct / images, "precision": correct / predicted, "f1": 2 * correct / (images + predicted)}
    return pd.DataFrame({"images": images, **metrics})


def mean(values: Iterable[float]) -> float:
    """The mean, of a sum that is rounded once; NaN if there are no values."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """low, high, images, mean_probability and accuracy of BINS bins of the predicted classes' probabilities."""
    number = np.minimum((table.probability * BINS).astype(int), BINS - 1)
    correct = table.label == table.predicted
    bins = pd.DataFrame({"low": np.arange(BINS) / BINS, "high": np.arange(1, BINS + 1) / BINS})
    bins["images"] = number.value_counts().reindex(bins.index, fill_value=0)
    bins["mean_probability"] = table.probability.groupby(number).agg(mean)
    bins["accuracy"] = correct.groupby(number).mean()
    return bins


def summary(table: pd.DataFrame, classes: pd.DataFrame, bins: pd.DataFrame) -> dict[str, Any]:
    """The content of summary.json."""
    gap = (bins.mean_probability - bins.accuracy).abs() * bins.images / len(table)
    return {
        "accuracy": float((table.label == table.predicted).mean()),
        "images": len(table),
        "top_k": {str(k): float((table["rank"] <= k).mean()) for k in TOP if k < len(classes)},
        "macro_accuracy": mean(classes.accuracy.dropna()),
        "mean_probability": mean(table.probability),
        "calibration_error": math.fsum(gap.dropna()),
        "log_loss": mean(table.loss),
    }


def write(table: pd.DataFrame, names: list[str], folder: Path) -> dict[str, Any]:
    """Write the files to `folder`, whole; return the summary."""
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (table.label, table.predicted), 1)
    classes, bins = class_metrics(confusion), calibration(table)
    content = summary(table, classes, bins)
    named = table.assign(**{column: [names[number] for number in table[column]] for column in ("label", "predicted")})
    with written_whole(folder) as part:
        part.mkdir()
        named.round({"probability": 6, "loss": 6}).to_csv(part / "predictions.csv", index=False)
        classes.set_axis(names).to_csv(part / "per_class.csv", index_label="class")
        pd.DataFrame(confusion, names, names).to_csv(part / "confusion.csv", index_label="class")
        bins.to_csv(part / "calibration.csv", index=False)
        (part / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
        digests.seal(part)
    return content


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, Device)
    parser.add_argument("net", type=Path, help="the test prototxt")
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the results go; replaced if it exists")
    parser.add_argument("--list", type=Path, required=True, help="the image list that the records were made from")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--database", type=Path, help="records instead of the net's own")
    source.add_argument("--files", type=Path, metavar="ROOT", help="the list's image files below ROOT instead of records")
    parser.add_argument("--preprocessing", type=Path, help="how files are resized; by default preprocessing.json beside the net")
    a = parser.parse_args(argv)
    names, listed = read_labels(a.labels), None
    if a.files:
        how = a.preprocessing or a.net.with_name("preprocessing.json")
        listed = extraction.open_list(a.list, a.files, how)
    job = Run(a.net, a.weights, read_flags(a, Device), a.database, listed)
    made = write(predictions(job, a.list, names), names, a.folder)
    print(f"{a.folder}: accuracy {made['accuracy']:.4f}")


if __name__ == "__main__":
    run(main)
