"""Every published config, from its data to the report: the real nets, on little data, for two iterations."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

import caffe
from tests import standins, workflows
from tests.conftest import ROOT

pytestmark = pytest.mark.long


@pytest.fixture
def recipe(tmp_path):
    """recipe("mnist") runs config/mnist.yaml, shortened to two iterations of two images; gives the experiment's results.

    recipe("mnist", {"sample": 9}) also changes keys of the dataset's source. Everything else is as in the file.
    """

    def run(name: str, source: dict | None = None) -> Path:
        config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
        (dataset,), ((title, recipe),) = config["datasets"].values(), config["experiments"].items()
        recipe["batch_size"] = 2
        recipe["solver"] |= {"max_iter": 2, "snapshot_after_train": False}
        if "stepvalue" in recipe["solver"]:
            recipe["solver"]["stepvalue"] = [1]
        dataset["source"] |= source or {}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "config").symlink_to(ROOT / "config")
        code, output = workflows.snakemake(tmp_path)
        assert code == 0, output
        results = tmp_path / "results"
        assert (results / "report/comparison.csv").exists()
        return results / "experiments" / title

    yield run
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    for weights in tmp_path.glob("*.caffemodel"):
        weights.unlink()


def check_training(experiment: Path) -> dict[str, str]:
    """Check that the last files exist and that all but statistics is learned; returns {layer: where it starts from}."""
    for file in ("train/metrics.csv", "evaluate/summary.json", "report/curves.png", "report/confusion.png"):
        assert (experiment / file).exists(), file
    layers = pd.read_csv(experiment / "train/layers.csv")
    assert layers[(layers.start != "left out") & ~layers.layer.str.startswith("bn")].learned.all()
    return dict(zip(layers.layer, layers.start, strict=True))


def outputs_of(experiment: Path, layer: str) -> int:
    """Number of outputs of a layer in the final weights."""
    net = caffe.Net(str(experiment / "prototxt/deploy.prototxt"), str(experiment / "train/final.caffemodel"), caffe.TEST)
    return net.params[layer][0].shape[0]


def test_dog_breeds(recipe, tmp_path):
    images = {
        f"breed_{number:03d}": 3 if number < 10 else 2 for number in range(100)
    }  # validation takes a fifth: one of three, none of two
    standins.class_folders(tmp_path / "dogs", images)
    standins.random_weights("resnet50", tmp_path / "ResNet-50-model.caffemodel")
    experiment = recipe("dog_breeds")
    layers = check_training(experiment)
    assert layers.pop("fc1000_dogs") == "filled"
    assert layers.pop("fc1000") == "left out"
    assert set(layers.values()) == {"copied"}
    assert sum(name.startswith(("conv1", "res")) for name in layers) == 53
    assert outputs_of(experiment, "fc1000_dogs") == 100
    assert 'lr_policy: "multistep"' in (experiment / "prototxt/solver.prototxt").read_text()
    assert (experiment / "features/pool5.npy").exists()


def test_flickr_style(recipe, tmp_path):
    standins.class_folders(tmp_path / "served", {str(label): 4 for label in range(20)})
    for gone in (tmp_path / "served").glob("*/2.png"):
        gone.unlink()
    standins.random_weights("caffenet", tmp_path / "bvlc_reference_caffenet.caffemodel")
    with standins.serve(tmp_path / "served") as address:
        standins.flickr_list(tmp_path / "flickr_style.csv.gz", address, images=4)
        experiment = recipe("flickr_style", {"sample": 70, "allow_private": True})
    layers = check_training(experiment)
    assert layers.pop("fc8_flickr") == "filled"
    assert layers.pop("fc8") == "left out"
    assert layers == dict.fromkeys([*(f"conv{number}" for number in range(1, 6)), "fc6", "fc7"], "copied")
    assert outputs_of(experiment, "fc8_flickr") == 20
    deployed = caffe.read_net(experiment / "prototxt/train.prototxt")
    (last,) = (layer for layer in deployed.layer if layer.name == "fc8_flickr")
    assert [param.lr_mult for param in last.param] == [10, 20]
    per_class = pd.read_csv(experiment / "evaluate/per_class.csv")
    assert "Depth of Field" in per_class.to_csv()


def test_cats_and_birds_from_a_folder(recipe, tmp_path):
    standins.class_folders(tmp_path / "photos", {"birds": 5, "cats": 5})
    standins.random_weights("caffenet", tmp_path / "bvlc_reference_caffenet.caffemodel")
    experiment = recipe("folder")
    layers = check_training(experiment)
    assert (layers["fc8_photos"], layers["fc8"], layers["fc7"]) == ("filled", "left out", "copied")
    assert outputs_of(experiment, "fc8_photos") == 2


@pytest.mark.parametrize(("name", "experiment", "last"), [("mnist", "lenet", "ip2"), ("cifar10", "quick", "ip2")])
def test_published_collections(recipe, tmp_path, name, experiment, last):
    fetched = tmp_path / f"results/datasets/{name}/published"
    standins.mnist_files(fetched) if name == "mnist" else standins.cifar10_files(fetched, images=20)
    experiment = recipe(name)
    assert set(check_training(experiment).values()) == {"filled"}
    assert outputs_of(experiment, last) == 10
    assert len(pd.read_parquet(experiment / "features/ip1.parquet")) == (200 if name == "mnist" else 20)
