"""The rules of exports and surgery, run by Snakemake on a trained net: the files that a config requests are made."""

import json

import numpy as np
import onnx
import pytest
from safetensors import safe_open

import caffe
from pipeline.dataset.mean import to_blob
from tests.pipeline.trained_nets import of_template, set_random_weights
from tests.pipeline.training.test_experiment_rules import CONFIG, snakemake  # noqa: F401, the fixture

EXPERIMENT = """\
experiments:
  small:
    dataset: few
    model: lenet
    solver: {max_iter: 4, snapshot: 2}
    export:
      onnx: true
      safetensors: true
      merged: true
      convolutional: {height: 36, width: 32}
      crop: smaller.prototxt
      average: 2
"""
SMALLER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 20 kernel_size: 5 } }
"""
FILES = [
    *("model.onnx", "model.safetensors"),
    *(f"{name}.{kind}" for name in ("merged", "convolutional", "cropped", "averaged") for kind in ("caffemodel", "prototxt")),
]
RULES = ("export", "merge", "convolutional", "crop", "average")


@pytest.fixture
def small(tmp_path):
    """Inputs of the rules: the config, and the files of a LeNet as training leaves them."""
    (tmp_path / "config.yaml").write_text(CONFIG.split("experiments:")[0] + EXPERIMENT)
    (tmp_path / "smaller.prototxt").write_text(SMALLER)
    dataset, experiment = tmp_path / "results/datasets/few", tmp_path / "results/experiments/small"
    for folder in (dataset / "lists", experiment / "prototxt", experiment / "train/snapshots"):
        folder.mkdir(parents=True)
    (dataset / "lists/labels.txt").write_text("a\nb\n")
    (dataset / "mean.binaryproto").write_bytes(to_blob(np.ones((3, 28, 28))).SerializeToString())
    resized = {"height": 28, "width": 28, "mode": "squash", "interpolation": "linear", "color": "BGR"}
    said = {"resize": resized, "transform_param": {"scale": 0.00390625, "mean_file": "results/datasets/few/mean.binaryproto"}}
    (experiment / "prototxt/preprocessing.json").write_text(json.dumps(said))
    definition = of_template("lenet", 2, 1, 3, 28, 28)
    caffe.write_prototxt(experiment / "prototxt/deploy.prototxt", definition)
    for seed, path in enumerate(("snapshots/small_iter_2.caffemodel", "snapshots/small_iter_4.caffemodel", "final.caffemodel")):
        set_random_weights(caffe.Net(definition, caffe.TEST), seed).save(experiment / "train" / path)
    (experiment / "train/best.json").write_text('{"diverged": null}')
    return experiment / "export"


def test_an_experiment_with_exports_makes_their_files(snakemake, small):  # noqa: F811
    paths = [f"results/experiments/small/export/{file}" for file in FILES]
    code, output = snakemake(*paths, "--allowed-rules", *RULES)
    assert code == 0, output
    assert sorted(path.name for path in small.iterdir()) == sorted(FILES)
    model = onnx.load(small / "model.onnx")
    assert {one.key for one in model.metadata_props} == {"preprocessing", "mean", "classes"}
    with safe_open(small / "model.safetensors", "np") as file:
        assert "ip2.weight" in file.keys()  # noqa: SIM118, it is no mapping
    net = caffe.Net(str(small / "convolutional.prototxt"), str(small / "convolutional.caffemodel"), caffe.TEST)
    assert tuple(net.blobs["prob"].shape) == (1, 2, 3, 2)
    assert list(caffe.Net(str(small / "cropped.prototxt"), caffe.TEST).params) == ["conv1"]


def test_exports_of_the_config_are_default_targets(snakemake, tmp_path):  # noqa: F811
    config = CONFIG.split("experiments:")[0] + EXPERIMENT.replace("      average: 2\n", "")
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "smaller.prototxt").write_text(SMALLER)
    code, output = snakemake("-n")
    assert code == 0, output
    assert [file for file in FILES if f"export/{file}" not in output] == ["averaged.caffemodel", "averaged.prototxt"]
    (tmp_path / "config.yaml").write_text(CONFIG)
    code, output = snakemake("-n")
    assert code == 0, output
    assert "/export/" not in output
