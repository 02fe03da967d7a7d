"""Evaluation: agrees with the net's own Accuracy layer, and is the same numbers in every table."""

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluate import softmax, write

EVALUATE = ("pipeline.evaluate", "test.prototxt", "out/final.caffemodel", "evaluate")
EVALUATE += ("--list", "lists/val.txt", "--labels", "lists/labels.txt")


def test_evaluation_agrees_with_the_nets_own_accuracy(trained, command):
    done = command(*EVALUATE)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((trained / "evaluate/summary.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(pd.read_csv(trained / "out/metrics.csv").test_accuracy.iloc[-1], abs=1e-6)
    predictions = pd.read_csv(trained / "evaluate/predictions.csv")
    confusion = pd.read_csv(trained / "evaluate/confusion.csv", index_col=0)
    assert (predictions.label == predictions.predicted).mean() == accuracy
    assert np.trace(confusion) == (predictions.label == predictions.predicted).sum()
    assert set(pd.read_csv(trained / "evaluate/per_class.csv")["class"]) == {"cat", "dog", "owl"}


def test_more_classes_than_the_net_has_outputs_are_refused(trained, fails):
    with (trained / "lists/labels.txt").open("a") as file:
        file.write("wolf\n")
    fails(["test.prototxt", "3 outputs", "the dataset has 4 classes"], *EVALUATE)


def test_a_class_without_validation_images_has_a_row_all_the_same(tmp_path):
    table = pd.DataFrame({"path": ["a", "b"], "label": ["cat", "cat"], "predicted": ["cat", "dog"], "probability": [0.9, 0.6]})
    assert write(table, ["cat", "dog"], tmp_path / "out") == 0.5
    assert (tmp_path / "out/per_class.csv").read_text().splitlines() == ["class,images,accuracy", "cat,2,0.5", "dog,0,"]
    confusion = pd.read_csv(tmp_path / "out/confusion.csv", index_col=0)
    np.testing.assert_array_equal(confusion, [[1, 1], [0, 0]])


def test_large_scores_make_probabilities_all_the_same():
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]])), [[0.5, 0.5], [0, 1]])
