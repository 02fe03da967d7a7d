"""The rules of exports and surgery, run by Snakemake: what a config asks for is made."""

import onnx
from safetensors import safe_open

import caffe
from tests.pipeline.test_experiment_rules import CONFIG, snakemake  # noqa: F401, the fixture

EXPERIMENT = """\
experiments:
  small:
    dataset: few
    model: lenet
    batch_size: 2
    solver: {max_iter: 2}
    export:
      onnx: true
      safetensors: true
      merged: true
      convolutional: {height: 36, width: 32}
      crop: smaller.prototxt
"""
SMALLER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 20 kernel_size: 5 } }
"""
FILES = [
    *("model.onnx", "model.safetensors"),
    *(f"{name}.{kind}" for name in ("merged", "convolutional", "cropped") for kind in ("caffemodel", "prototxt")),
]


def test_an_experiment_with_exports_makes_their_files(snakemake, tmp_path):  # noqa: F811
    (tmp_path / "config.yaml").write_text(CONFIG.split("experiments:")[0] + EXPERIMENT)
    (tmp_path / "smaller.prototxt").write_text(SMALLER)
    paths = [f"results/experiments/small/export/{file}" for file in FILES]
    code, output = snakemake(*paths)
    assert code == 0, output
    folder = tmp_path / "results/experiments/small/export"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [one.name for one in onnx.load(folder / "model.onnx").graph.output] == ["prob"]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert "ip2.weight" in file.keys()  # noqa: SIM118, it is no mapping
    net = caffe.Net(str(folder / "convolutional.prototxt"), str(folder / "convolutional.caffemodel"), caffe.TEST)
    assert tuple(net.blobs["prob"].shape) == (1, 2, 3, 2)
    assert list(caffe.Net(str(folder / "cropped.prototxt"), caffe.TEST).params) == ["conv1"]

    for path in folder.iterdir():
        path.unlink()
    code, output = snakemake("-n")
    assert code == 0, output
    assert [path for path in paths if path not in output] == []


def test_an_experiment_without_exports_makes_none(snakemake):  # noqa: F811
    code, output = snakemake("-n")
    assert code == 0, output
    assert "/export/" not in output
