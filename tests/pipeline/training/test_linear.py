"""The linear classifier on a net's features, and the strategy that it chooses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import caffe
from caffe.formats.datum import parse_datum, pixels_of
from caffe.formats.db import LMDBFile
from pipeline.inference.extraction import Run, extract
from pipeline.nets.prototxt import Dataset
from pipeline.options.training import LinearOptions
from pipeline.training.linear import FEW, VIEWS, Classifier, Job, Measured, choose, extract_features, measure


def features(classes, images=60, values=7, seed=0):
    """Features of images whose classes can mostly, but not completely, be separated; one of the values is constant."""
    drawn = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    made = drawn.normal(size=(images, values)) * 5 + 40 + 4 * np.eye(classes, values)[labels]
    made[:, -1] = 3
    return made.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_layer_gives_the_probabilities_of_scikit_learn(classes):
    values, labels = features(classes)
    layer = Classifier(values, labels, classes, 0.1, balanced=False)
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(values, labels)
    np.testing.assert_allclose(softmax(values @ layer.weights.T + layer.bias, 1), peer.predict_proba(values), atol=1e-4)


def test_a_class_without_images_is_never_predicted():
    values, labels = features(2)
    labels[labels == 1] = 2
    assert set(Classifier(values, labels, 4, 0.1, balanced=False).predict(values)) == {0, 2}


def test_a_rare_class_is_predicted_more_often_if_classes_are_balanced():
    values, labels = features(2, images=200)
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:5]])
    taken = [
        (Classifier(values[few], labels[few], 2, 0.1, balanced=balanced).predict(values) == 1).sum() for balanced in (False, True)
    ]
    assert taken[0] < taken[1]


def test_copies_of_an_image_do_not_inflate_the_accuracy():
    drawn = np.random.default_rng(0)
    values, labels = np.repeat(drawn.normal(size=(40, 30)), 5, 0), np.repeat(drawn.permutation(np.arange(40) % 2), 5)
    assert measure(values, labels, np.arange(200), False)[0] > 0.95
    assert measure(values, labels, np.repeat(np.arange(40), 5), False)[0] < 0.75


@pytest.mark.parametrize(
    ("per_class", "top", "middle", "pixels", "strategy", "features"),
    [
        (FEW - 1, 0.9, 0.7, 0.3, "features", "top"),
        (FEW - 1, 0.6, 0.8, 0.3, "features", "middle"),
        (FEW - 1, 0.6, 0.6, 0.6, "full", ""),
        (FEW, 0.9, 0.7, 0.3, "full", ""),
        (FEW, 0.6, 0.8, 0.3, "full", ""),
        (FEW, 0.6, 0.6, 0.6, "scratch", ""),
    ],
)
def test_the_strategy_depends_on_the_number_of_images_and_the_accuracies(per_class, top, middle, pixels, strategy, features):
    accuracies = {"top": top, "middle": middle, "pixels": pixels}
    measured = {name: Measured(name, name, 9, accuracy, 0.02, 0.1) for name, accuracy in accuracies.items()}
    choice = choose(4 * per_class, 4, measured)
    assert (choice.strategy, choice.features_from) == (strategy, features)
    assert f"{per_class} training images per class" in choice.reasons[0]


OF_NET = ("--train", "lmdb/train", "--val", "lmdb/val", "--mean", "mean.binaryproto", "--model", "./train.prototxt")


def test_the_classifier_on_the_top_features_is_written_and_works_in_the_net(trained, command):
    done = command("pipeline.training.linear", "linear", *OF_NET, "--weights", "out/final.caffemodel")
    assert done.returncode == 0, done.stderr
    measured = pd.read_csv(trained / "linear/measured.csv")
    assert measured[["features", "blob", "values"]].to_numpy().tolist() == [["top", "hidden", 6]]
    done = command("pipeline.nets.prototxt", "prototxt", *OF_NET, "--name", "e", "--chosen", "linear/strategy.json")
    assert done.returncode == 0, done.stderr
    net = caffe.Net(str(trained / "prototxt/deploy.prototxt"), caffe.TEST)
    assert list(net.params) == ["hidden", "linear"]
    assert net.copy_from(trained / "linear/classifier.caffemodel").copied == ["linear"]
    assert "max_iter: 0" in (trained / "prototxt/solver.prototxt").read_text()
    learned = {
        layer.name: [spec.lr_mult for spec in layer.param] for layer in caffe.read_net(trained / "prototxt/train.prototxt").layer
    }
    assert (learned["hidden"], learned["linear"]) == ([0, 0], [])


def test_the_first_view_is_that_of_testing_and_the_others_are_random(trained, monkeypatch):
    monkeypatch.chdir(trained)
    net = caffe.read_net("test.prototxt")
    net.layer[0].transform_param.crop_size = 6
    del net.layer[1:]
    caffe.write_prototxt("plain.prototxt", net)
    net.layer[0].transform_param.mirror = True
    caffe.write_prototxt("views.prototxt", net)
    plain = extract(Run(Path("plain.prototxt"), Path("out/final.caffemodel")), ["data"], 3)["data"]
    views = extract(Run(Path("views.prototxt"), Path("out/final.caffemodel"), views=8), ["data"], 24)["data"].reshape(
        8, *plain.shape
    )
    np.testing.assert_array_equal(views[0], plain)
    whole = [np.array(pixels_of(parse_datum(value), None, "")) for _, value in LMDBFile("lmdb/val").items()]
    for image, seen in zip(whole, views.swapaxes(0, 1), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 6, 6))[0].reshape(-1, 3, 6, 6) * np.float32(0.004)
        possible = {window.tobytes() for window in (*windows, *windows[..., ::-1])}
        assert {view.tobytes() for view in seen} <= possible
        assert len({view.tobytes() for view in seen}) > 4


@pytest.mark.parametrize(("mirror", "views"), [("true", VIEWS), ("false", 1)])
def test_few_images_get_several_views_if_views_differ(trained, monkeypatch, mirror, views):
    monkeypatch.chdir(trained)
    net = trained / "train.prototxt"
    net.write_text(net.read_text().replace("scale: 0.004", f"scale: 0.004 mirror: {mirror}"))
    dataset = Dataset.read(Path("lmdb/train"), Path("lmdb/val"), Path("mean.binaryproto"))
    images, found = extract_features(Job(LinearOptions(model=str(net)), Path("out/final.caffemodel"), dataset))
    assert images == images[:6] * views
    blob, values = found["top"]
    assert (blob, values.shape) == ("hidden", (6 * views, 6))
    assert len(np.unique(values.round(4), axis=0)) == 6 * min(views, 2)


def test_auto_measures_top_middle_and_pixels_and_gives_its_reasons(trained, command):
    done = command("pipeline.training.linear", "linear", *OF_NET, "--weights", "out/final.caffemodel", "--strategy", "auto")
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(trained / "linear/measured.csv").features) == ["top", "middle", "pixels"]
    made = json.loads((trained / "linear/strategy.json").read_text())
    assert made["strategy"] in ("full", "features")
    assert done.stdout.splitlines()[1:] == [f"  {reason}" for reason in made["reasons"]]
    for kind in ("png", "svg"):
        assert (trained / f"linear/measured.{kind}").stat().st_size > 1000


def test_weights_of_another_net_are_refused(trained, command, fails):
    net = (trained / "train.prototxt").read_text().replace('"hidden"', '"other"')
    (trained / "train.prototxt").write_text(net)
    fails(["no weights of layer other"], "pipeline.training.linear", "linear", *OF_NET, "--weights", "out/final.caffemodel")


def test_an_unknown_model_is_named(small, fails):
    said = ['model: "caffenett", but there are lenet, ', 'did you mean "caffenet"?']
    fails(said, "pipeline.training.linear", "linear", *OF_NET, "--model", "caffenett", "--weights", "w.caffemodel")
