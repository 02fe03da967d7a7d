"""Evaluate a trained net on its validation set: accuracy, accuracy by class, confusion matrix, prediction of every image.

Written to a folder: summary.json (accuracy, images), per_class.csv (class, images, accuracy), confusion.csv (rows: the class an
image has; columns: the class predicted), predictions.csv (path, label, predicted, probability).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

import caffe
from pipeline.command import run
from pipeline.database import read_image_list, read_labels
from pipeline.errors import InputError
from pipeline.features import Run, extract
from pipeline.files import written_whole


def scores_blob(net_file: Path) -> str:
    """The blob of class scores: what the loss reads first; for a loss of another kind, what the accuracy does."""
    layers = caffe.read_net(net_file).layer
    for kinds in (("SoftmaxWithLoss", "InfogainLoss"), ("Accuracy",)):
        for layer in layers:
            if layer.type in kinds:
                return layer.bottom[0]
    raise InputError(
        net_file, "no SoftmaxWithLoss or InfogainLoss layer", "the scores are what it reads", "give the test net of a classifier"
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities from scores, images × classes."""
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def predictions(job: Run, source: Path, names: list[str]) -> pd.DataFrame:
    """One row an image of the list `source`: path, label, predicted (class names), probability (of the predicted class)."""
    entries = read_image_list(source, len(names))
    scores = scores_blob(job.net)
    probabilities = softmax(extract(job, [scores], len(entries))[scores])
    if probabilities.shape[1] != len(names):
        raise InputError(job.net, f"{probabilities.shape[1]} outputs", f"the dataset has {len(names)} classes")
    paths, labels = zip(*entries, strict=True)
    best = probabilities.argmax(1)
    return pd.DataFrame(
        {
            "path": paths,
            "label": [names[label] for label in labels],
            "predicted": [names[label] for label in best],
            "probability": probabilities.max(1).round(6),
        }
    )


def write(table: pd.DataFrame, names: list[str], folder: Path) -> float:
    """Write the four files to `folder`, whole; return the accuracy."""
    right = table.label == table.predicted
    accuracy = float(right.mean())
    with written_whole(folder) as part:
        part.mkdir()
        table.to_csv(part / "predictions.csv", index=False)
        by_class = right.groupby(table.label).agg(["size", "mean"]).reindex(names)
        by_class.columns = ["images", "accuracy"]
        by_class["images"] = by_class.images.fillna(0).astype(int)
        by_class.to_csv(part / "per_class.csv", index_label="class")
        confusion = pd.crosstab(table.label, table.predicted).reindex(index=names, columns=names, fill_value=0)
        confusion.to_csv(part / "confusion.csv", index_label="class")
        (part / "summary.json").write_text(json.dumps({"accuracy": accuracy, "images": len(table)}) + "\n")
    return accuracy


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", type=Path, help="the test prototxt")
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, help="where the results go; replaced if it exists")
    parser.add_argument("--list", type=Path, required=True, help="the image list that the net's database was built from")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--gpu", action="store_true")
    a = parser.parse_args(argv)
    names = read_labels(a.labels)
    accuracy = write(predictions(Run(a.net, a.weights, a.gpu), a.list, names), names, a.folder)
    print(f"{a.folder}: accuracy {accuracy:.4f}")


if __name__ == "__main__":
    run(main)
