"""Checking a config: all problems at once, each with its key, its value and what is allowed."""

import copy
from pathlib import Path

import pytest
import yaml

from pipeline import configuration
from pipeline.configuration import check_config, experiments
from pipeline.configuration.keys import KINDS
from pipeline.errors import InputError
from pipeline.nets.models import TEMPLATES, Published
from pipeline.options.dataset import FetchOptions
from tests.conftest import ROOT

GOOD = {
    "datasets": {"cats": {"source": {"list": "cats.csv"}}},
    "experiments": {"breeds": {"dataset": "cats", "model": "lenet"}},
}
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 %s } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
"""


def problems(change) -> list[str]:
    config = copy.deepcopy(GOOD)
    change(config)
    with pytest.raises(InputError) as error:
        check_config(config, "my.yaml")
    return str(error.value).splitlines()


def test_features_that_would_share_a_file_name_are_refused(tmp_path):
    data, ip = (NET % "dim: 3 dim: 256 dim: 256").strip().splitlines()
    powers = [
        f'layer {{ name: "{top}" type: "Power" bottom: "{bottom}" top: "{top}" }}'
        for bottom, top in [("data", "ip_a"), ("ip_a", "ip/a")]
    ]
    text = "\n".join([data, *powers, ip.replace('bottom: "data"', 'bottom: "ip/a"')])
    (tmp_path / "net.prototxt").write_text(text)
    found = problems(lambda c: c["experiments"]["breeds"].update(model=str(tmp_path / "net.prototxt"), features=["ip_a", "ip/a"]))
    assert found == [
        "my.yaml: experiments.breeds.features: files of 'ip_a' and 'ip/a' would have one name, ip_a; remove one of them"
    ]


def test_evaluating_on_test_is_allowed_if_the_list_may_have_test_images():
    for split in ({}, {"by": "column"}):
        config = copy.deepcopy(GOOD)
        config["datasets"]["cats"]["split"] = split
        config["experiments"]["breeds"]["evaluate"] = ["test"]
        assert check_config(config, "my.yaml")["experiments"]["breeds"]["evaluate"] == ["test"]


def test_defaults_are_filled_in_at_every_depth():
    config = check_config(GOOD, "my.yaml")
    assert config["compute"] == "cpu"
    assert config["datasets"]["cats"]["size"] == {"height": 256, "width": 256}
    assert config["datasets"]["cats"]["split"] == {"balance": "none"}
    assert config["experiments"]["breeds"]["weights"] == {}
    assert config["experiments"]["breeds"]["pictures"] == {"count": 2}
    assert "compute" not in GOOD


def test_features_of_both_images_of_a_pair_are_allowed():
    config = copy.deepcopy(GOOD)
    config["experiments"]["breeds"] |= {"model": "mnist_siamese", "features": ["data", "ip1_p", "feat", "feat_p"]}
    check_config(config, "my.yaml")


def test_a_sweep_whose_name_is_a_number_is_refused_with_a_message():
    config = copy.deepcopy(GOOD)
    config["experiments"][2024] = {"dataset": "cats", "model": ["lenet", "caffenet"]}
    with pytest.raises(InputError) as raised:
        check_config(config, "my.yaml")
    assert "my.yaml: experiments: the name 2024 is not a text; put it into quotation marks" in str(raised.value).splitlines()


def test_duplicate_keys_are_reported_with_their_lines(write):
    path = write(
        "my.yaml", yaml.safe_dump(GOOD) + "experiments: # again\n  breeds: {dataset: cats, model: lenet, model: caffenet}\n"
    )
    with pytest.raises(InputError) as raised:
        check_config(yaml.safe_load(Path(path).read_text()), path)
    line = yaml.safe_dump(GOOD).count("\n") + 1
    assert str(raised.value).splitlines() == [
        f"{path}: experiments: given again in line {line}; rename one of them, or remove it",
        f"{path}: experiments.breeds.model: given again in line {line + 1}; rename one of them, or remove it",
    ]


def test_a_net_is_built_once_for_all_experiments_that_have_it(monkeypatch):
    experiments._built.cache_clear()
    built, build = [], Published.built
    monkeypatch.setattr(Published, "built", lambda net, last, deploy=False: built.append(last) or build(net, last, deploy))
    rates = [0.1, 0.01, 0.001]
    config = copy.deepcopy(GOOD)
    config["experiments"]["breeds"] |= {"features": ["ip1"], "freeze_to": "conv1", "solver": {"base_lr": rates}}
    assert len(check_config(config, "my.yaml")["experiments"]) == len(rates)
    assert len(built) == 1


def test_the_embedded_example_is_valid():
    check_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()), "config/config.yaml")


CASES = {
    "a typo in a key": (
        lambda c: c["datasets"]["cats"].update(sise={"height": 28}),
        'my.yaml: datasets.cats.sise: unknown key; did you mean "size"?',
    ),
    "a value out of range": (
        lambda c: c["datasets"]["cats"].update(split={"val": 1.2}),
        "my.yaml: datasets.cats.split.val: 1.2 is not between 0 and 1",
    ),
    "a value of another type": (
        lambda c: c["datasets"]["cats"].update(shard_size="many"),
        "my.yaml: datasets.cats.shard_size: 'many' is not a whole number",
    ),
    "a word that is not one of the choices": (
        lambda c: c["datasets"]["cats"].update(color="grey"),
        "my.yaml: datasets.cats.color: 'grey' is not one of color, gray; did you mean \"gray\"?",
    ),
    "a name that YAML reads as a boolean": (
        lambda c: c["datasets"].update(yaml.safe_load("no: {source: {list: no.csv}}")),
        "my.yaml: datasets: the name False is not a text; put it into quotation marks",
    ),
    "a key that YAML reads as a boolean": (
        lambda c: c["datasets"]["cats"]["source"].update(columns=yaml.safe_load("no: number")),
        "my.yaml: datasets.cats.source.columns.False: unknown key; the known ones are url, path, label, split, group, sha256",
    ),
    "a solver field that YAML reads as a boolean": (
        lambda c: c["experiments"]["breeds"].update(solver=yaml.safe_load("yes: 1")),
        "my.yaml: experiments.breeds.solver.True: no field of Caffe's SolverParameter",
    ),
    "a number that is NaN": (
        lambda c: c["experiments"]["breeds"].update(solver={"base_lr": float("nan")}),
        "my.yaml: experiments.breeds.solver.base_lr: nan is not a finite number",
    ),
    "a small number that YAML reads as a string": (
        lambda c: c["experiments"]["breeds"].update(solver=yaml.safe_load("base_lr: 1e-7")),
        "my.yaml: experiments.breeds.solver.base_lr: '1e-7' is not a number; write 1.0e-07",
    ),
    "a whole number with an exponent": (
        lambda c: c["experiments"]["breeds"].update(solver=yaml.safe_load("max_iter: 1e3")),
        "my.yaml: experiments.breeds.solver.max_iter: '1e3' is not a whole number; write 1000",
    ),
    "a dataset's number that YAML reads as a string": (
        lambda c: c["datasets"]["cats"]["source"].update(yaml.safe_load("min_yield: 1e-1")),
        "my.yaml: datasets.cats.source.min_yield: '1e-1' is not a number; write 0.1",
    ),
    "neither true nor false": (
        lambda c: c["experiments"]["breeds"].update(rename_last="yes please"),
        "my.yaml: experiments.breeds.rename_last: 'yes please' is not true or false",
    ),
    "a missing key": (lambda c: c["datasets"]["cats"].pop("source"), "my.yaml: datasets.cats: source is missing"),
    "a source of two kinds": (
        lambda c: c["datasets"]["cats"]["source"].update(published="mnist"),
        f"my.yaml: datasets.cats.source: list and published given; it has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}",
    ),
    "a source of no kind, and keys that some kinds do not have": (
        lambda c: c["datasets"]["cats"].update(source={"val_labels": "labels.txt"}, size={"height": 32}, seed=2),
        f"my.yaml: datasets.cats.source: none given; it has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}",
    ),
    "a key of lists for a folder": (
        lambda c: c["datasets"]["cats"].update(source={"folder": "cats", "root": "."}),
        "my.yaml: datasets.cats.source.root: no effect without list",
    ),
    "allow_outside_root without a root": (
        lambda c: c["datasets"]["cats"]["source"].update(allow_outside_root=True),
        "my.yaml: datasets.cats.source.allow_outside_root: no effect without root",
    ),
    "allow_outside_root for a folder": (
        lambda c: c["datasets"]["cats"].update(source={"folder": "cats", "allow_outside_root": True}),
        "my.yaml: datasets.cats.source.allow_outside_root: no effect without list",
    ),
    "a dataset with a long name": (
        lambda c: c["datasets"].update({"x" * 129: {"source": {"list": "x.csv"}}}),
        f"my.yaml: datasets: the name '{'x' * 40}'… has 129 characters; files are named after it, so at most 128",
    ),
    "a sweep with a long name": (
        lambda c: c["experiments"].update({"x" * 127: {"dataset": "cats", "model": "lenet", "batch_size": [16]}}),
        f"my.yaml: experiments: the name '{'x' * 40}'… has 130 characters; files are named after it, so at most 128",
    ),
    "a name of two lines": (
        lambda c: c["datasets"].update({"x\n": {"source": {"list": "x.csv"}}}),
        "my.yaml: datasets: 'x\\n' is not a valid name; letters, digits, _ and - are allowed, - not at its beginning",
    ),
    "a path that is too long": (
        lambda c: c["datasets"]["cats"]["source"].update(list="lists/" + "ä" * 130),
        f"my.yaml: datasets.cats.source.list: 'lists/{'ä' * 34}'… is too long: names of files have at most 255 bytes, paths 4095",
    ),
    "a copy without a published collection": (
        lambda c: c["datasets"]["cats"]["source"].update(copy="there"),
        "my.yaml: datasets.cats.source.copy: no effect without published",
    ),
    "a size for a database": (
        lambda c: c["datasets"]["cats"].update(source={"database": {"train": "a", "val": "b"}}, size={"height": 9}),
        "my.yaml: datasets.cats.size: no effect, it is the database's",
    ),
    "a database without validation": (
        lambda c: c["datasets"]["cats"].update(source={"database": {"train": "a"}}),
        "my.yaml: datasets.cats.source.database: val is missing",
    ),
    "images of an unknown dataset": (
        lambda c: c["datasets"].update(kittens={"source": {"dataset": "cat"}}),
        "my.yaml: datasets.kittens.source.dataset: 'cat' is not one of cats, kittens; did you mean \"cats\"?",
    ),
    "images of a published collection": (
        lambda c: c["datasets"].update(digits={"source": {"published": "mnist"}}, more={"source": {"dataset": "digits"}}),
        "my.yaml: datasets.more.source.dataset: 'digits' comes from published; name a dataset with a list or a folder",
    ),
    "a dataset that is its own source": (
        lambda c: c["datasets"].update(cats={"source": {"dataset": "cats"}}),
        "my.yaml: datasets.cats.source.dataset: 'cats' comes from another dataset; name a dataset with a list or a folder",
    ),
    "folds without a fold": (
        lambda c: c["datasets"]["cats"].update(split={"by": "fold", "folds": 5}),
        "my.yaml: datasets.cats.split: fold is missing; by: fold needs folds, their number, and fold, the one for"
        " validation, from 0",
    ),
    "a fold out of range": (
        lambda c: c["datasets"]["cats"].update(split={"by": "fold", "folds": 5, "fold": 5}),
        "my.yaml: datasets.cats.split.fold: 5 is not one of 0 to 4",
    ),
    "a fold of a split by fraction": (
        lambda c: c["datasets"]["cats"].update(split={"fold": 1}),
        "my.yaml: datasets.cats.split.fold: 1 has no effect with by: fraction; remove it, or use by: fold",
    ),
    "an augmentation beyond its range": (
        lambda c: c["datasets"]["cats"].update(augmentation={"brightness": 3}),
        "my.yaml: datasets.cats.augmentation.brightness: 3 is not between 0 and 1",
    ),
    "an unknown dataset": (
        lambda c: c["experiments"]["breeds"].update(dataset="cat"),
        "my.yaml: experiments.breeds.dataset: 'cat' is not one of cats; did you mean \"cats\"?",
    ),
    "an unknown model": (
        lambda c: c["experiments"]["breeds"].update(model="squeezenett"),
        f"my.yaml: experiments.breeds.model: 'squeezenett' is not one of {', '.join(TEMPLATES)}; did you mean \"squeezenet\"?",
    ),
    "a missing prototxt": (
        lambda c: c["experiments"]["breeds"].update(model="nets/absent.prototxt"),
        "my.yaml: experiments.breeds.model: nets/absent.prototxt: no such file",
    ),
    "a crop larger than the images": (
        lambda c: (
            c["datasets"]["cats"].update(size={"height": 32, "width": 256}),
            c["experiments"]["breeds"].update(model="caffenet"),
        ),
        "my.yaml: experiments.breeds.model: caffenet crops 227×227, but the images are 32×256; give the dataset a larger size",
    ),
    "a crop larger than another dataset's images": (
        lambda c: (
            c["datasets"]["cats"].update(size={"height": 32, "width": 32}),
            c["datasets"].update(kittens={"source": {"dataset": "cats"}}),
            c["experiments"]["breeds"].update(dataset="kittens", model="vgg16"),
        ),
        "my.yaml: experiments.breeds.model: vgg16 crops 224×224, but the images are 32×32; give the dataset a larger size",
    ),
    "mean values of channels that gray images lack": (
        lambda c: (c["datasets"]["cats"].update(color="gray"), c["experiments"]["breeds"].update(model="googlenet")),
        "my.yaml: experiments.breeds.model: googlenet subtracts a value from each of 3 channels, but the images have 1; choose"
        " another model, or images of that many",
    ),
    "a convolutional export smaller than the crop": (
        lambda c: c["experiments"]["breeds"].update(model="caffenet", export={"convolutional": {"height": 300, "width": 200}}),
        "my.yaml: experiments.breeds.export.convolutional: 300×200 is smaller than the net's own 227×227; give no side that is"
        " smaller",
    ),
    "a convolutional export smaller than the images": (
        lambda c: c["experiments"]["breeds"].update(export={"convolutional": {"height": 200, "width": 256}}),
        "my.yaml: experiments.breeds.export.convolutional: 200×256 is smaller than the net's own 256×256; give no side that is"
        " smaller",
    ),
    "a layer to freeze to that the net does not have": (
        lambda c: c["experiments"]["breeds"].update(freeze_to="conv3"),
        'my.yaml: experiments.breeds.freeze_to: "conv3", but the layers with weights are conv1, conv2, ip1, ip2; did you mean'
        ' "conv2" or "conv1"?',
    ),
    "weights for training from scratch": (
        lambda c: c["experiments"]["breeds"].update(strategy="scratch", weights={"file": "x.caffemodel"}),
        "my.yaml: experiments.breeds.strategy: scratch takes no weights; remove weights, or choose another strategy",
    ),
    "frozen layers without weights": (
        lambda c: c["experiments"]["breeds"].update(strategy="half"),
        "my.yaml: experiments.breeds.strategy: half needs weights, but there are none; give weights, or use scratch",
    ),
    "features_from without strategy features": (
        lambda c: c["experiments"]["breeds"].update(features_from="pool2"),
        "my.yaml: experiments.breeds.features_from: no effect with strategy: full; use strategy: features",
    ),
    "features_from an unknown blob": (
        lambda c: c["experiments"]["breeds"].update(strategy="features", weights={"file": "w"}, features_from="pool9"),
        'my.yaml: experiments.breeds.features_from: "pool9", but it is top, middle, or a blob below the classifier: conv1, pool1,'
        ' conv2, pool2, ip1; did you mean "pool2" or "pool1"?',
    ),
    "features of a blob that strategy auto may leave out": (
        lambda c: c["experiments"]["breeds"].update(strategy="auto", weights={"file": "w"}, features=["ip1"]),
        "my.yaml: experiments.breeds.features: 'ip1' is not one of data, conv1, pool1, conv2, pool2, linear (auto may choose the"
        " features of the middle)",
    ),
    "frozen batch norm without weights": (
        lambda c: c["experiments"]["breeds"].update(model="resnet18", batch_norm="freeze"),
        "my.yaml: experiments.breeds.batch_norm: freeze keeps the statistics of the weights, but there are no weights; give"
        " weights, or use learn",
    ),
    "frozen batch norm for a net without batch norm": (
        lambda c: c["experiments"]["breeds"].update(batch_norm="freeze", weights={"file": "x.caffemodel"}),
        "my.yaml: experiments.breeds.batch_norm: no effect, lenet has no BatchNorm; remove it",
    ),
    "both epochs and max_iter": (
        lambda c: c["experiments"]["breeds"].update(solver={"epochs": 3, "max_iter": 100}),
        "my.yaml: experiments.breeds.solver.epochs: max_iter says it too; remove one of them",
    ),
    "both step_epochs and stepsize": (
        lambda c: c["experiments"]["breeds"].update(solver={"step_epochs": 3, "stepsize": 100}),
        "my.yaml: experiments.breeds.solver.step_epochs: stepsize says it too; remove one of them",
    ),
    "epochs that are not a number": (
        lambda c: c["experiments"]["breeds"].update(solver={"epochs": "many"}),
        "my.yaml: experiments.breeds.solver.epochs: 'many' is not a number above 0",
    ),
    "step_epochs that do not increase": (
        lambda c: c["experiments"]["breeds"].update(solver={"step_epochs": [3, 3]}),
        "my.yaml: experiments.breeds.solver.step_epochs: [3, 3] does not rise",
    ),
    "a step after the end of training": (
        lambda c: c["experiments"]["breeds"].update(solver={"step_epochs": 3, "epochs": 2}),
        "my.yaml: experiments.breeds.solver.step_epochs: 3 has no effect, for training ends after 2 epochs",
    ),
    "step_epochs with another policy": (
        lambda c: c["experiments"]["breeds"].update(solver={"step_epochs": 3, "lr_policy": "inv"}),
        "my.yaml: experiments.breeds.solver.step_epochs: no effect with lr_policy: inv; remove one, or use lr_policy: step",
    ),
    "a step after the default end of training": (
        lambda c: c["experiments"]["breeds"].update(solver={"step_epochs": 30}),
        "my.yaml: experiments.breeds.solver.step_epochs: 30 has no effect, for training ends after 20 epochs",
    ),
    "policy step without gamma": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "step", "stepsize": 5}),
        "my.yaml: experiments.breeds.solver.lr_policy: step without gamma; give gamma, what the rate is multiplied by at each"
        " step, such as 0.1",
    ),
    "policy step without stepsize": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "step", "gamma": 0.1}),
        "my.yaml: experiments.breeds.solver.lr_policy: step without stepsize; give stepsize, iterations from step to step, or"
        " step_epochs",
    ),
    "policy multistep without stepvalue": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "multistep", "gamma": 0.1}),
        "my.yaml: experiments.breeds.solver.lr_policy: multistep without stepvalue; give stepvalue, a list of the steps'"
        " iterations, or step_epochs",
    ),
    "policy exp without gamma": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "exp"}),
        "my.yaml: experiments.breeds.solver.lr_policy: exp without gamma; give gamma, what the rate is multiplied by at each"
        " iteration, such as 0.9999",
    ),
    "policy inv without gamma": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "inv", "power": 0.75}),
        "my.yaml: experiments.breeds.solver.lr_policy: inv without gamma; give gamma, how fast the rate falls, such as 0.0001",
    ),
    "policy poly without power": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "poly"}),
        "my.yaml: experiments.breeds.solver.lr_policy: poly without power; give power, 1 for a straight line",
    ),
    "policy sigmoid without gamma": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "sigmoid", "stepsize": 100}),
        "my.yaml: experiments.breeds.solver.lr_policy: sigmoid without gamma; give gamma, how fast the rate changes around"
        " stepsize, below 0 where it falls, such as -0.01",
    ),
    "stepvalue without a policy": (
        lambda c: c["experiments"]["breeds"].update(solver={"stepvalue": [50, 100]}),
        "my.yaml: experiments.breeds.solver.stepvalue: no effect with lr_policy: fixed, the default; give lr_policy: multistep,"
        " or remove it",
    ),
    "stepvalue that does not increase": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [100, 50]}),
        "my.yaml: experiments.breeds.solver.stepvalue: [100, 50] does not rise",
    ),
    "a stepvalue after the end of training": (
        lambda c: c["experiments"]["breeds"].update(
            solver={"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [50, 100], "max_iter": 100}
        ),
        "my.yaml: experiments.breeds.solver.stepvalue: 100 has no effect, for training ends after 100 iterations",
    ),
    "classify with a net without classes": (
        lambda c: c["experiments"]["breeds"].update(model="mnist_siamese", classify={"images": "x.jpg"}),
        "my.yaml: experiments.breeds.classify: mnist_siamese gives values to compare, no classes; remove it",
    ),
    "strategy features for a net without classes": (
        lambda c: c["experiments"]["breeds"].update(model="mnist_siamese", strategy="features", weights={"file": "w"}),
        "my.yaml: experiments.breeds.strategy: features fits a classifier, but mnist_siamese gives values to compare, no classes;"
        " choose another strategy",
    ),
    "freeze_to with strategy scratch": (
        lambda c: c["experiments"]["breeds"].update(strategy="scratch", freeze_to="conv1"),
        "my.yaml: experiments.breeds.freeze_to: no effect with strategy: scratch; remove one of them",
    ),
    "an experiment that starts from itself": (
        lambda c: c["experiments"]["breeds"].update(weights={"experiment": "breeds"}),
        "my.yaml: experiments.breeds.weights.experiment: breeds → breeds goes in a circle",
    ),
    "weights of an unknown experiment": (
        lambda c: c["experiments"]["breeds"].update(weights={"experiment": "breds"}),
        "my.yaml: experiments.breeds.weights.experiment: 'breds' is not one of breeds; did you mean \"breeds\"?",
    ),
    "weights of two kinds": (
        lambda c: c["experiments"]["breeds"].update(weights={"file": "a.caffemodel", "experiment": "breeds"}),
        "my.yaml: experiments.breeds.weights: experiment and file given; it is one of experiment, file and url",
    ),
    "one of several weights without a kind": (
        lambda c: c["experiments"]["breeds"].update(weights=[{"file": "a.caffemodel"}, {}]),
        "my.yaml: experiments.breeds.weights.1: none given; it is one of experiment, file and url",
    ),
    "a typo in one of several weights": (
        lambda c: c["experiments"]["breeds"].update(weights=[{"file": "a.caffemodel", "bset": True}]),
        'my.yaml: experiments.breeds.weights.0.bset: unknown key; did you mean "best"?',
    ),
    "weights of another type": (
        lambda c: c["experiments"]["breeds"].update(weights=3),
        "my.yaml: experiments.breeds.weights: 3 is not a text or a mapping",
    ),
    "a placeholder for a key that is not swept": (
        lambda c: c["experiments"]["breeds"].update(weights="weights/{model}.caffemodel"),
        "my.yaml: experiments.breeds.weights.file: {model} is not replaced; only a key with a list of values is, such as {model}",
    ),
    "a URL without its hash": (
        lambda c: c["experiments"]["breeds"].update(weights={"url": "http://x/a.caffemodel"}),
        "my.yaml: experiments.breeds.weights: sha256 is missing; it identifies the file at the url",
    ),
    "an invalid hash": (
        lambda c: c["experiments"]["breeds"].update(weights={"url": "http://x/a.caffemodel", "sha256": "abc"}),
        "my.yaml: experiments.breeds.weights.sha256: 'abc' is not 64 digits of 0 to 9 and a to f",
    ),
    "best without an experiment": (
        lambda c: c["experiments"]["breeds"].update(weights={"file": "a.caffemodel", "best": True}),
        "my.yaml: experiments.breeds.weights.best: no effect without experiment",
    ),
    "a layer to skip that the net does not have": (
        lambda c: c["experiments"]["breeds"].update(weights={"file": "a.caffemodel"}, skip_layers=["conv_1"]),
        "my.yaml: experiments.breeds.skip_layers: 'conv_1' is not one of conv1, pool1, conv2, pool2, ip1, relu1, ip2;"
        ' did you mean "conv1" or "conv2"?',
    ),
    "skip_layers with strategy features": (
        lambda c: c["experiments"]["breeds"].update(
            weights={"file": "a.caffemodel"}, skip_layers=["conv1"], strategy="features", features=["ip1"]
        ),
        "my.yaml: experiments.breeds.skip_layers: strategy: features reads all layers of the weights; choose another strategy",
    ),
    "several weights with strategy auto": (
        lambda c: c["experiments"]["breeds"].update(weights=[{"file": "a.h5"}, {"file": "b.h5"}], strategy="auto"),
        "my.yaml: experiments.breeds.weights: strategy: auto takes one file, and there are 2; give one",
    ),
    "skip_layers without weights": (
        lambda c: c["experiments"]["breeds"].update(skip_layers=["conv1"]),
        "my.yaml: experiments.breeds.skip_layers: no effect without weights",
    ),
    "a negative early_stopping": (
        lambda c: c["experiments"]["breeds"].update(early_stopping=-1),
        "my.yaml: experiments.breeds.early_stopping: -1 is less than 0",
    ),
    "a name that is a number": (
        lambda c: c["datasets"].update({2024: c["datasets"]["cats"]}),
        "my.yaml: datasets: the name 2024 is not a text; put it into quotation marks",
    ),
    "a fraction for a split by column": (
        lambda c: c["datasets"]["cats"].update(split={"by": "column", "val": 0.2}),
        "my.yaml: datasets.cats.split.val: 0.2 has no effect with by: column; remove it, or use by: fraction",
    ),
    "a solver field that Caffe does not have": (
        lambda c: c["experiments"]["breeds"].update(solver={"base_lrr": 1}),
        'my.yaml: experiments.breeds.solver.base_lrr: no field of Caffe\'s SolverParameter; did you mean "base_lr"?',
    ),
    "a number that YAML reads as a string": (
        lambda c: c["experiments"]["breeds"].update(solver=yaml.safe_load("base_lr: 1e-3")),
        "my.yaml: experiments.breeds.solver.base_lr: '1e-3' is not a number; write 0.001",
    ),
    "an unknown learning-rate policy": (
        lambda c: c["experiments"]["breeds"].update(solver={"lr_policy": "stepp"}),
        "my.yaml: experiments.breeds.solver.lr_policy: 'stepp' is not one of fixed, step, exp, inv, multistep, poly, sigmoid;"
        ' did you mean "step"?',
    ),
    "a solver field that the workflow sets": (
        lambda c: c["experiments"]["breeds"].update(solver={"solver_mode": "GPU"}),
        "my.yaml: experiments.breeds.solver.solver_mode: set by the workflow; say compute: cpu or compute: gpu",
    ),
    "an unknown part to evaluate on": (
        lambda c: c["experiments"]["breeds"].update(evaluate=["val", "tran"]),
        "my.yaml: experiments.breeds.evaluate.1: 'tran' is not one of val, train, test; did you mean \"train\"?",
    ),
    "an evaluation on test without test images": (
        lambda c: (c["datasets"]["cats"].update(split={"val": 0.3}), c["experiments"]["breeds"].update(evaluate=["test"])),
        "my.yaml: experiments.breeds.evaluate: test: there are no test images; mark them in the list's split column, and"
        " set split: {by: column}",
    ),
    "an evaluation on test of a published collection": (
        lambda c: (
            c["datasets"].update(digits={"source": {"published": "mnist"}}),
            c["experiments"]["breeds"].update(evaluate=["test"], dataset="digits"),
        ),
        "my.yaml: experiments.breeds.evaluate: test: a dataset from published has train and val; name one of these",
    ),
    "an unknown feature format": (
        lambda c: c["experiments"]["breeds"].update(features=["ip1"], feature_formats=["csv"]),
        "my.yaml: experiments.breeds.feature_formats.0: 'csv' is not one of hdf5, leveldb, lmdb, npy, parquet",
    ),
    "feature_formats without features": (
        lambda c: c["experiments"]["breeds"].update(feature_formats=["npy"]),
        "my.yaml: experiments.breeds.feature_formats: no effect without features",
    ),
    "too many pictures of a net": (
        lambda c: c["experiments"]["breeds"].update(pictures={"count": 100}),
        "my.yaml: experiments.breeds.pictures.count: 100 is not between 0 and 20",
    ),
    "features of a blob that the model does not have": (
        lambda c: c["experiments"]["breeds"].update(features=["ip1", "ip2"], rename_last=True),
        "my.yaml: experiments.breeds.features: 'ip2' is not one of data, conv1, pool1, conv2, pool2, ip1, ip2_cats",
    ),
    "an average with strategy features": (
        lambda c: c["experiments"]["breeds"].update(
            strategy="features", weights="w", export={"average": 3}, solver={"snapshot": 5}
        ),
        "my.yaml: experiments.breeds.export.average: strategy: features trains nothing, and there are no snapshots; remove it",
    ),
    "an average without snapshots": (
        lambda c: c["experiments"]["breeds"].update(export={"average": 3}),
        "my.yaml: experiments.breeds.export.average: no snapshots to average; set solver.snapshot, the iterations between"
        " snapshots",
    ),
    "an average of more snapshots than there are": (
        lambda c: c["experiments"]["breeds"].update(export={"average": 3}, solver={"snapshot": 5, "max_iter": 10}),
        "my.yaml: experiments.breeds.export.average: 3, but 10 iterations with solver.snapshot: 5 leave 2; set it lower",
    ),
    "weights trained on RGB for BGR images": (
        lambda c: (
            c["datasets"].update(cifar={"source": {"published": "cifar10"}}),
            c["experiments"].update(base={"dataset": "cifar", "model": "cifar10_quick"}),
            c["experiments"]["breeds"].update(weights={"experiment": "base"}),
        ),
        "my.yaml: experiments.breeds.dataset: channels are BGR, but base was trained on RGB; set datasets.cats.channels: RGB",
    ),
    "weights trained on BGR for an RGB collection": (
        lambda c: (
            c["datasets"].update(cifar={"source": {"published": "cifar10"}}),
            c["experiments"].update(
                more={"dataset": "cifar", "model": "cifar10_quick", "weights": {"experiment": "breeds"}, "rename_last": True}
            ),
        ),
        "my.yaml: experiments.more.dataset: channels are RGB, but breeds was trained on BGR; set datasets.cats.channels: RGB",
    ),
    "a convolutional export without a width": (
        lambda c: c["experiments"]["breeds"].update(export={"convolutional": {"height": 454}}),
        "my.yaml: experiments.breeds.export.convolutional: width is missing",
    ),
}


@pytest.mark.parametrize(("change", "said"), CASES.values(), ids=CASES)
def test_a_problem_is_reported_with_its_key_its_value_and_what_is_allowed(change, said):
    assert problems(change) == [said]


def test_images_of_the_crop_size_and_published_records_are_valid():
    config = copy.deepcopy(GOOD)
    config["datasets"] |= {"digits": {"source": {"published": "mnist"}}, "small": {"source": {"list": "cats.csv"}}}
    config["datasets"]["small"]["size"] = {"height": 227, "width": 300}
    for dataset in ("digits", "small"):
        config["experiments"][dataset] = {"dataset": dataset, "model": "caffenet"}
    config["experiments"]["small"]["export"] = {"convolutional": {"height": 227, "width": 454}}
    check_config(config, "my.yaml")


@pytest.mark.parametrize(
    ("shape", "dataset", "said"),
    [
        ((3, 20, 28), {}, "takes 20×28, but the images are 32×32; set the dataset's size: {height: 20, width: 28}"),
        ((3, 20, 28), {"size": {"height": 20, "width": 28}}, ""),
        ((1, 28, 28), {}, "takes images of 1 channel, but they have 3; set the dataset's color: gray, or the prototxt's input"),
        ((1, 28, 28), {"color": "gray"}, ""),
        ((3, 28, 28), {"color": "gray"}, "takes images of 3 channels, but they have 1; set the dataset's color: color, or"),
        ((4, 28, 28), {}, "takes images of 4 channels, but they have 3; change the prototxt's input"),
        ((3, 36, 36), {}, "crops 36×36, but the images are 32×32; give the dataset a larger size"),
    ],
)
def test_images_must_match_the_input_of_a_deploy_net(write, shape, dataset, said):
    net = NET % " ".join(f"dim: {size}" for size in shape)
    config = copy.deepcopy(GOOD)
    config["datasets"]["cats"] |= {"size": {"height": 32, "width": 32}} | dataset
    config["experiments"]["breeds"]["model"] = model = write("net.prototxt", net)
    if not said:
        check_config(config, "my.yaml")
        return
    with pytest.raises(InputError) as error:
        check_config(config, "my.yaml")
    assert str(error.value).startswith(f"my.yaml: experiments.breeds.model: {model} {said}")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "solver",
    [
        {"step_epochs": 5},
        {"step_epochs": 5, "gamma": 0.5, "lr_policy": "step"},
        {"step_epochs": 30, "max_iter": 100000},
        {"lr_policy": "fixed", "gamma": 0.1, "stepsize": 5},
        {"lr_policy": "inv", "gamma": 0.0001, "power": 0.75},
        {"lr_policy": "sigmoid", "gamma": -0.01},
        {"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [50, 100], "epochs": 9},
    ],
)
def test_complete_learning_rate_policies_are_valid(solver):
    config = copy.deepcopy(GOOD)
    config["experiments"]["breeds"]["solver"] = solver
    check_config(config, "my.yaml")


def test_all_problems_are_shown_at_once():
    def change(config):
        config["compute"] = "tpu"
        config["datasets"]["cats"]["seed"] = -1
        config["experiments"]["breeds"]["modle"] = config["experiments"]["breeds"].pop("model")
        config["experiments"]["breeds"]["dataset"] = "dogs"

    assert len(problems(change)) == 5  # the misspelt key is unknown, and the right one missing


def test_a_cycle_of_experiments_is_shown_in_full():
    def change(config):
        breeds = config["experiments"]["breeds"]
        config["experiments"] = {
            name: {**breeds, "weights": {"experiment": source}} for name, source in {"a": "b", "b": "c", "c": "b"}.items()
        }

    assert problems(change) == [
        "my.yaml: experiments.b.weights.experiment: b → c → b goes in a circle",
        "my.yaml: experiments.c.weights.experiment: c → b → c goes in a circle",
    ]


def test_a_cycle_through_one_of_several_weights_is_found():
    def change(config):
        breeds = config["experiments"]["breeds"]
        config["experiments"] = {
            "a": {**breeds, "weights": [{"file": "x.caffemodel"}, {"experiment": "b"}]},
            "b": {**breeds, "weights": [{"experiment": "c"}, {"experiment": "a"}]},
            "c": breeds,
        }

    assert problems(change) == [
        "my.yaml: experiments.a.weights.1.experiment: a → b → a goes in a circle",
        "my.yaml: experiments.b.weights.1.experiment: b → a → b goes in a circle",
    ]


@pytest.mark.parametrize(
    "target",
    [
        {"source": {"published": "mnist"}},
        {"source": {"list": "gray.csv"}, "color": "gray"},
        {"source": {"list": "mine.csv"}, "channels": "RGB"},
        {"source": {"dataset": "rgb"}},
    ],
)
def test_weights_trained_on_rgb_are_valid_for_gray_and_rgb_images(target):
    config = copy.deepcopy(GOOD)
    config["datasets"] |= {
        "cifar": {"source": {"published": "cifar10"}},
        "rgb": {"source": {"list": "x.csv"}, "channels": "RGB"},
        "target": target,
    }
    config["experiments"] = {
        "base": {"dataset": "cifar", "model": "cifar10_quick"},
        "tuned": {"dataset": "target", "model": "cifar10_quick", "weights": {"experiment": "base"}, "rename_last": True},
    }
    check_config(config, "my.yaml")


def test_a_first_layer_that_is_skipped_may_have_other_channels():
    config = copy.deepcopy(GOOD)
    config["datasets"]["cifar"] = {"source": {"published": "cifar10"}}
    config["experiments"]["base"] = {"dataset": "cifar", "model": "lenet"}
    config["experiments"]["breeds"] |= {"weights": {"experiment": "base"}, "skip_layers": ["conv1"]}
    check_config(config, "my.yaml")


def test_several_weights_are_valid():
    config = copy.deepcopy(GOOD)
    sources = [{"file": "x.caffemodel"}, {"experiment": "breeds", "best": True}, {"url": "http://x/y", "sha256": "0" * 64}]
    config["experiments"]["more"] = {**GOOD["experiments"]["breeds"], "weights": sources}
    assert configuration.keys.origins(check_config(config, "my.yaml")["experiments"]["more"]) == sources


def test_a_string_as_weights_is_a_file():
    config = copy.deepcopy(GOOD)
    config["experiments"]["one"] = {**GOOD["experiments"]["breeds"], "weights": "x.caffemodel", "strategy": "half"}
    config["experiments"]["two"] = {**GOOD["experiments"]["breeds"], "weights": [{"experiment": "one"}, "y.h5"]}
    experiments = check_config(config, "my.yaml")["experiments"]
    assert experiments["one"]["weights"] == {"file": "x.caffemodel"}
    assert configuration.keys.origins(experiments["two"]) == [{"experiment": "one"}, {"file": "y.h5"}]
    assert config["experiments"]["one"]["weights"] == "x.caffemodel"


@pytest.mark.parametrize("config", [{}, {"datasets": 3}, {"datasets": {"cats": None}, "experiments": {"breeds": ["lenet"]}}])
def test_a_config_of_another_structure_is_refused_with_a_message(config):
    with pytest.raises(InputError):
        check_config(config, "my.yaml")


def test_download_options_of_a_source_have_the_defaults_of_the_step():
    source = check_config(GOOD, "my.yaml")["datasets"]["cats"]["source"]
    assert {name: source[name] for name in FetchOptions.model_fields} == FetchOptions().model_dump()


@pytest.mark.parametrize(
    ("made", "split", "evaluate", "said"),
    [
        (["train/a", "test/a"], {}, ["test"], "evaluate: test: photos has no val/, so its test images are used for validation"),
        (["train/a", "val/a"], {}, ["val", "test"], "evaluate: test: photos has no test/; add it"),
        (["a", "b"], {}, ["test"], "evaluate: test: there are no test images"),
        (["a", "b"], {"by": "column"}, ["val"], "split.by: column, but photos has no train/ and val/; use by: fraction"),
        (["train/a", "val/a", "test/a"], {"by": "column"}, ["val", "test"], ""),
        (["train/a", "test/a"], {}, ["val"], ""),
    ],
)
def test_missing_split_folders_are_reported_before_anything_runs(tmp_path, monkeypatch, made, split, evaluate, said):
    monkeypatch.chdir(tmp_path)
    for name in made:
        (tmp_path / "photos" / name).mkdir(parents=True)
    config = {"datasets": {"d": {"source": {"folder": "photos"}, "split": split}}}
    config["experiments"] = {"e": {"dataset": "d", "model": "lenet", "evaluate": evaluate}}
    assert_problem(config, said)
    config["datasets"]["same"] = {"source": {"dataset": "d"}, "split": split}
    config["experiments"]["e"]["dataset"] = "same"
    assert_problem(config, said)


@pytest.mark.parametrize(
    ("name", "header", "columns", "said"),
    [
        ("l.csv", "url,label", {}, "split.by: column, but l.csv has no column of splits"),
        ("l.tsv", "url\tlabel\tpart", {}, "split.by: column, but l.tsv has no column of splits"),
        ("l.csv", 'url,label,"part"', {"split": "part"}, ""),
        ("l.csv", "url;label;split", {}, ""),
        ("l.txt", "http://x/a.jpg 0", {}, "split.by: column, but l.txt has no column of splits"),
        ("absent.csv", "", {}, ""),
    ],
)
def test_a_list_without_a_split_column_is_recognised_by_its_header(tmp_path, monkeypatch, name, header, columns, said):
    monkeypatch.chdir(tmp_path)
    if header:
        (tmp_path / name).write_text(header + "\n")
    assert_problem({"datasets": {"d": {"source": {"list": name, "columns": columns}, "split": {"by": "column"}}}}, said)


def assert_problem(config: dict, said: str) -> None:
    """Assert that the config has one problem whose message contains `said`, or none if `said` is empty."""
    if not said:
        check_config(config, "config.yaml")
        return
    with pytest.raises(InputError) as raised:
        check_config(config, "config.yaml")
    assert said in str(raised.value)
