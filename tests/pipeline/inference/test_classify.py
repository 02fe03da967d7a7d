"""Classifying image files: agrees with the evaluation of the same images' records, and with the crops of Caffe's oversample."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.dataset.mean import to_blob
from pipeline.errors import InputError
from pipeline.formats.images import Resized
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.dataset import ImageSize, ResizeOptions
from tests.pipeline.conftest import NET

CLASSIFY = ("pipeline.inference.classify", "deploy.prototxt", "out/final.caffemodel", "look", "--labels", "lists/labels.txt")


@pytest.fixture
def files(trained):
    """The trained deploy net, and the validation images as PNG files in look/."""
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    layers = NET.format(part="val", accuracy="").split("layer {")
    body = "".join(f"layer {{{layer}" for layer in layers[2:-1])
    prob = 'layer { name: "prob" type: "Softmax" bottom: "scores" top: "prob" }'
    (trained / "deploy.prototxt").write_text(data + body + prob)
    transform = caffe_pb2.TransformationParameter(scale=0.004)
    Preprocessing(ResizeOptions(size=ImageSize(height=8, width=8)), transform).write(trained / "preprocessing.json")
    images = Resized(trained / "resize")
    for line in (trained / "lists/val.txt").read_text().splitlines():
        path = trained / "look" / line.rpartition(" ")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path.with_suffix(".png")), images[line.rpartition(" ")[0]])
    return trained


def test_files_are_classified_like_their_records(command, files):
    done = command(*CLASSIFY, "--csv", "guesses.csv")
    assert done.returncode == 0, done.stderr
    evaluate = ("pipeline.inference.evaluate", "test.prototxt", "out/final.caffemodel", "evaluate", "--list", "lists/val.txt")
    assert command(*evaluate, "--labels", "lists/labels.txt").returncode == 0
    guesses = pd.read_csv(files / "guesses.csv")
    assert (guesses.groupby("path")["rank"].apply(list).apply(lambda ranks: ranks == [1, 2, 3])).all()
    assert guesses.groupby("path").probability.sum().to_numpy() == pytest.approx(1, abs=1e-5)
    best = guesses[guesses["rank"] == 1].set_index("path")
    predictions = pd.read_csv(files / "evaluate/predictions.csv")
    assert len(best) == len(predictions) == 3
    for row in predictions.itertuples():
        guess = best.loc[f"look/{row.path.removesuffix('.jpg')}.png"]
        assert guess["class"] == row.predicted
        assert guess.probability == pytest.approx(row.probability, abs=1e-5)
        assert f"look/{row.path.removesuffix('.jpg')}.png: {row.predicted} " in done.stdout


def test_an_unreadable_file_is_listed_with_its_reason_and_the_others_are_classified(command, files):
    (files / "look/page.jpg").write_text("<html></html>")
    (files / "look/note.txt").write_text("not looked at")
    done = command(*CLASSIFY, "--csv", "guesses.csv", "--top", 1, "--oversample")
    assert done.returncode == 0, done.stderr
    guesses = pd.read_csv(files / "guesses.csv")
    assert len(guesses) == 4
    assert guesses[guesses["rank"] == 0][["path", "class"]].to_numpy().tolist() == [["look/page.jpg", "not_an_image"]]
    assert "look/page.jpg: not_an_image" in done.stdout


def rename_layers(net) -> None:
    """Rename the layers of a net, so that no weights match."""
    net.write_text(net.read_text().replace('name: "', 'name: "x_'))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "lists/labels.txt").write_text("a\nb\n"), ["3 outputs", "there are 2 class names"]),
        (lambda folder: shutil.copy(folder / "test.prototxt", folder / "deploy.prototxt"), ["no input", "give deploy.prototxt"]),
        (lambda folder: rename_layers(folder / "deploy.prototxt"), ["final.caffemodel: no weights of layers"]),
        (lambda folder: (folder / "preprocessing.json").unlink(), ["preprocessing.json: no such file"]),
        (lambda folder: (folder / "preprocessing.json").write_text("{}"), ["not a preprocessing.json"]),
        (lambda folder: [path.unlink() for path in (folder / "look").rglob("*.png")], ["look: no images"]),
    ],
)
def test_missing_or_mismatched_files_are_named(fails, files, change, said):
    change(files)
    (files / "lists/SHA256SUMS").unlink()
    fails(said, *CLASSIFY, "--csv", "guesses.csv")


def test_an_error_if_no_image_can_be_read(fails, files):
    for number, path in enumerate(sorted((files / "look").rglob("*.png"))):
        path.write_bytes(b"" if number else b"no image")
    fails(["not_an_image, nor 2 more", "give one that can be read"], *CLASSIFY, "--csv", "guesses.csv")


def test_preprocessing_round_trips_through_its_file(tmp_path):
    made = Preprocessing(
        ResizeOptions(size=ImageSize(height=20, width=30), resize_mode="crop", interpolation="area", color="gray"),
        caffe_pb2.TransformationParameter(crop_size=9, mean_value=[3.5], scale=0.5),
    )
    made.write(tmp_path / "preprocessing.json")
    assert preprocessing.read(tmp_path / "preprocessing.json") == made
    assert json.loads((tmp_path / "preprocessing.json").read_text())["resize"]["color"] == "gray"


def test_the_mean_file_is_found_from_another_folder(tmp_path, monkeypatch):
    home, nets = tmp_path / "project", tmp_path / "project/results/experiments/e/prototxt"
    nets.mkdir(parents=True)
    (home / "results/mean.binaryproto").write_bytes(to_blob(np.ones((3, 8, 8))).SerializeToString())
    made = Preprocessing(
        ResizeOptions(size=ImageSize(height=8, width=8)), caffe_pb2.TransformationParameter(mean_file="results/mean.binaryproto")
    )
    made.write(nets / "preprocessing.json")
    monkeypatch.chdir(tmp_path)
    seen = preprocessing.read(Path("project/results/experiments/e/prototxt/preprocessing.json"))
    assert (seen.inputs(np.full((3, 8, 8), 3, np.uint8)) == 2).all()
    shutil.copy(nets / "preprocessing.json", "preprocessing.json")
    with pytest.raises(InputError) as error:
        preprocessing.read(Path("preprocessing.json"))
    assert "put the mean beside this file" in error.value.do
    shutil.copy(home / "results/mean.binaryproto", "mean.binaryproto")
    assert preprocessing.read(Path("preprocessing.json")).transform.mean_file == "mean.binaryproto"


def test_the_ten_crops_equal_those_of_caffe():
    image = np.random.default_rng(0).integers(0, 256, (3, 20, 24), dtype=np.uint8)
    made = Preprocessing(
        ResizeOptions(size=ImageSize(height=20, width=24)),
        caffe_pb2.TransformationParameter(crop_size=15, mean_value=[1, 2, 3], scale=0.5),
    )
    values = ((image - np.array([1, 2, 3], np.float32)[:, None, None]) * np.float32(0.5)).transpose(1, 2, 0)
    theirs = caffe.io.oversample([values], (15, 15)).transpose(0, 3, 1, 2)
    ours = made.inputs(image, oversample=True)
    assert sorted(crop.tobytes() for crop in ours) == sorted(np.ascontiguousarray(crop).tobytes() for crop in theirs)
    middle = made.inputs(image)
    assert middle.shape == (1, 3, 15, 15)
    np.testing.assert_array_equal(middle[0], values[2:17, 4:19].transpose(2, 0, 1))
