"""Evaluation: agrees with the net's own Accuracy layer and with scikit-learn's metrics; all tables are consistent."""

import json
import os
import random
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics

import caffe
from pipeline.dataset import database, mean, resize
from pipeline.inference import classify, evaluate
from pipeline.inference.evaluate import calibration, class_metrics, judge, summary, write
from pipeline.nets import prototxt
from tests import without_vector_code
from tests.conftest import ROOT, SHARED, needs_shared

EVALUATE = ("pipeline.inference.evaluate", "test.prototxt", "out/final.caffemodel", "evaluate")
EVALUATE += ("--list", "lists/val.txt", "--labels", "lists/labels.txt")


def test_evaluation_agrees_with_the_nets_own_accuracy(trained, command):
    done = command(*EVALUATE)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads((trained / "evaluate/summary.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(pd.read_csv(trained / "out/metrics.csv").test_accuracy.iloc[-1], abs=1e-6)
    predictions = pd.read_csv(trained / "evaluate/predictions.csv")
    confusion = pd.read_csv(trained / "evaluate/confusion.csv", index_col=0)
    assert (predictions.label == predictions.predicted).mean() == accuracy
    assert ((predictions["rank"] == 1) == (predictions.label == predictions.predicted)).all()
    assert np.trace(confusion) == (predictions.label == predictions.predicted).sum()
    assert set(pd.read_csv(trained / "evaluate/per_class.csv")["class"]) == {"cat", "dog", "owl"}


def test_another_database_than_the_nets_own_may_be_evaluated(trained, command):
    train = ["lists/train.txt" if word == "lists/val.txt" else word for word in EVALUATE]
    done = command(*train, "--database", "lmdb/train")
    assert done.returncode == 0, done.stderr
    listed = [line.rsplit(" ", 1)[0] for line in (trained / "lists/train.txt").read_text().splitlines()]
    assert list(pd.read_csv(trained / "evaluate/predictions.csv").path) == listed


def test_more_classes_than_the_net_has_outputs_are_refused(trained, fails):
    with (trained / "lists/labels.txt").open("a") as file:
        file.write("wolf\n")
    (trained / "lists/SHA256SUMS").unlink()
    fails(["test.prototxt", "3 outputs", "the dataset has 4 classes"], *EVALUATE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [lines[1], lines[0], lines[2]], ["val.txt:1: label", "the record has label"]),
        (lambda lines: [*lines, lines[0]], ["val.txt: 4 images", "there are 3 records"]),
    ],
)
def test_a_list_that_does_not_match_the_records_is_refused(trained, fails, change, said):
    lines = (trained / "lists/val.txt").read_text().splitlines()
    (trained / "lists/val.txt").write_text("\n".join(change(lines)) + "\n")
    (trained / "lists/SHA256SUMS").unlink()
    fails(said, *EVALUATE)


def test_weights_with_nan_are_named(trained, fails):
    weights = caffe.proto.caffe_pb2.NetParameter.FromString((trained / "out/final.caffemodel").read_bytes())
    next(layer for layer in weights.layer if layer.name == "scores").blobs[1].data[0] = np.nan
    (trained / "out/final.caffemodel").write_bytes(weights.SerializeToString())
    (trained / "out/SHA256SUMS").unlink()
    fails(["final.caffemodel: NaN or infinite scores for", "lower base_lr"], *EVALUATE)


def test_metrics_equal_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(300, 7)).astype(np.float32) * 2, rng.integers(0, 7, 300)
    table = judge(scores, labels)
    confusion = metrics.confusion_matrix(table.label, table.predicted)
    classes = class_metrics(confusion)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(table.label, table.predicted)
    for column, expected in (("precision", precision), ("accuracy", recall), ("f1", f1), ("images", support)):
        np.testing.assert_allclose(classes[column], expected)
    made = summary(table, classes, calibration(table))
    assert made["accuracy"] == metrics.accuracy_score(labels, scores.argmax(1))
    assert made["macro_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, scores.argmax(1)))
    assert made["log_loss"] == pytest.approx(metrics.log_loss(labels, softmax(scores, 1)))
    assert list(made["top_k"]) == ["2", "3", "5"]
    for k, share in made["top_k"].items():
        assert share == metrics.top_k_accuracy_score(labels, scores, k=int(k))


def test_of_equal_scores_the_first_class_ranks_first_and_is_predicted():
    table = judge(np.array([[1.0, 1, 1], [0, 2, 2]]), np.array([2, 1]))
    assert table["rank"].tolist() == [3, 1]
    assert table.predicted.tolist() == [0, 1]
    assert table.loss.tolist() == pytest.approx([np.log(3), np.log(2 + np.exp(-2))])


def test_the_calibration_error_is_the_mean_gap_between_probability_and_accuracy():
    rows = [(0, 0, 0.95), (0, 0, 1.0), (0, 1, 0.96), (1, 0, 0.35), (1, 1, 0.3)]
    table = pd.DataFrame(rows, columns=["label", "predicted", "probability"]).assign(rank=1, loss=0.0)
    bins = calibration(table)
    assert bins.images.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 3]
    assert bins.accuracy[[3, 9]].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert bins.mean_probability[9] == pytest.approx(0.97)
    expected = (2 * abs(0.325 - 1 / 2) + 3 * abs(0.97 - 2 / 3)) / 5
    assert summary(table, class_metrics(np.eye(2)), bins)["calibration_error"] == pytest.approx(expected)


def test_a_class_without_validation_images_still_has_a_row(tmp_path):
    table = judge(np.array([[3.0, 1], [1, 2]]), np.array([0, 0]))
    table.insert(0, "path", ["a", "b"])
    assert write(table, ["cat", "dog"], tmp_path / "out")["accuracy"] == 0.5
    lines = (tmp_path / "out/per_class.csv").read_text().splitlines()
    assert lines == ["class,images,accuracy,precision,f1", "cat,2,0.5,1.0,0.6666666666666666", "dog,0,,0.0,0.0"]
    confusion = pd.read_csv(tmp_path / "out/confusion.csv", index_col=0)
    np.testing.assert_array_equal(confusion, [[1, 1], [0, 0]])


def test_classes_that_share_a_name_stay_separate(tmp_path):
    table = judge(np.array([[3.0, 1], [1, 2]]), np.array([0, 0]))
    table.insert(0, "path", ["a", "b"])
    assert write(table, ["crane", "crane"], tmp_path / "out")["accuracy"] == 0.5
    assert [line.split(",")[1] for line in (tmp_path / "out/per_class.csv").read_text().splitlines()] == ["images", "2", "0"]


def test_large_scores_do_not_overflow():
    table = judge(np.array([[1000.0, 1000.0], [-1000.0, 0.0]]), np.array([1, 0]))
    np.testing.assert_allclose(table.probability, [0.5, 1])
    np.testing.assert_allclose(table.loss, [np.log(2), 1000])


NET = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "x" batch_size: 4 backend: LMDB }
  transform_param { crop_size: 30 mirror: true mean_file: "x" } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 5 stride: 2
  weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "scores" type: "InnerProduct" bottom: "conv" top: "scores" inner_product_param { num_output: 3
  weight_filler { type: "gaussian" std: 0.002 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }
"""


@needs_shared
@pytest.mark.parametrize(
    ("mode", "interpolation", "encode", "channels"),
    [
        ("crop", "linear", "raw", "BGR"),
        ("fit", "area", "png", "BGR"),
        ("crop", "area", "raw", "RGB"),
        ("squash", "linear", "png", "RGB"),
    ],
)
def test_records_and_image_files_give_the_same_predictions(tmp_path, monkeypatch, mode, interpolation, encode, channels):
    monkeypatch.chdir(tmp_path)
    names, lines = ["bonsai", "ketch", "watch"], []
    for label, name in enumerate(names):
        for photograph in sorted((SHARED / "data/caltech101-subset" / name).rglob("*.jpg"))[:4]:
            (tmp_path / "photos/00000").mkdir(parents=True, exist_ok=True)
            shutil.copy(photograph, tmp_path / f"photos/00000/{name}_{photograph.name}")
            lines.append(f"00000/{name}_{photograph.name} {label}")
    random.Random(0).shuffle(lines)
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "net.prototxt").write_text(NET)
    sizes = ["--height", "36", "--width", "44"]
    resize.main(["photos/00000", "resize/00000", *sizes, "--resize-mode", mode, "--interpolation", interpolation])
    for part in ("train", "val"):
        files = ["--labels", "labels.txt", "--manifest", f"lmdb/{part}.manifest.json"]
        database.main(["list.txt", "resize", f"lmdb/{part}", *files, "--encode", encode, "--channels", channels])
    mean.main(["lmdb/train", "mean.binaryproto", "--values", "mean.json"])
    given = ["--train", "lmdb/train", "--val", "lmdb/val", "--mean", "mean.binaryproto"]
    how = ["--resize-mode", mode, "--interpolation", interpolation]
    prototxt.main(["nets", "--name", "e", "--model", "net.prototxt", *given, *how])
    caffe.set_random_seed(3)
    caffe.Net("nets/train.prototxt", caffe.TRAIN).save("final.caffemodel")
    common = ["final.caffemodel", "--labels", "labels.txt"]
    evaluate.main(["nets/test.prototxt", *common, "records", "--list", "list.txt"])
    evaluate.main(["nets/test.prototxt", *common, "files", "--list", "list.txt", "--files", "photos"])
    classify.main(["nets/deploy.prototxt", *common, "photos", "--csv", "guesses.csv"])
    records, files = (pd.read_csv(tmp_path / f"{made}/predictions.csv") for made in ("records", "files"))
    assert records.probability.std() > 0.01
    assert records.predicted.nunique() > 1
    pd.testing.assert_frame_equal(records, files, atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "nets/preprocessing.json").read_text())["resize"]["color"] == channels
    guesses = pd.read_csv(tmp_path / "guesses.csv").query("rank == 1").set_index("path").loc["photos/" + records.path]
    assert guesses["class"].tolist() == records.predicted.tolist()
    np.testing.assert_allclose(guesses.probability, records.probability, atol=1e-5)
    read = [json.loads((tmp_path / f"{made}/summary.json").read_text()) for made in ("records", "files")]
    assert read[0].pop("top_k") == read[1].pop("top_k")
    assert read[0] == pytest.approx(read[1], abs=1e-5)


def test_image_files_without_preprocessing_json_are_refused(trained, fails, picture):
    (trained / "look/00000").mkdir(parents=True)
    cv2.imwrite(str(trained / "look/00000/a.png"), picture())
    fails(["preprocessing.json: no such file", "run that first"], *EVALUATE, "--files", "look")


EVALUATION = """
import sys
from pathlib import Path
import numpy as np
from pipeline.inference import evaluate
draw = np.random.default_rng(1)
scores = draw.normal(0, 3, (5000, 37)).astype(np.float32)
table = evaluate.judge(scores, draw.integers(0, 37, 5000))
table.insert(0, "path", "image.png")
evaluate.write(table, [f"class{number}" for number in range(37)], Path(sys.argv[1]))
np.save(sys.argv[1] + "/unrounded.npy", table[["probability", "loss"]])
"""


def test_vector_code_changes_no_byte_of_the_metrics(tmp_path):
    for name, environment in (("native", {}), ("scalar", without_vector_code.environment())):
        words = [sys.executable, "-c", EVALUATION, str(tmp_path / name)]
        subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, check=True)
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("native", "scalar")]
    assert len(written[0]) == 7
    assert written[0] == written[1]
