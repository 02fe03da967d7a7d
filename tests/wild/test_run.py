"""The runner of the sample of files in the wild, on small files of each kind."""

import subprocess
import sys

import pytest

from tests.wild import check
from tests.wild.run import Entry, Limits, Row, causes, collect, read_sample, run, table

SOLVER = """
net: "nowhere.prototxt"
test_iter: 1000
test_interval: 500
base_lr: 0.01
lr_policy: "step"
gamma: 0.1
stepsize: 100
momentum: 0.9
"""
DEPLOY = """
input: "data"
input_dim: 10 input_dim: 3 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 2 kernel_size: 3 } }
layer { name: "prob" type: "Softmax" bottom: "conv" top: "prob" }
"""
TRAIN = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { crop_size: 12 mean_file: "nowhere.binaryproto" } data_param { source: "nowhere" batch_size: 64 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  data_param { source: "nowhere" batch_size: 50 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
TARGETS = """
layer { name: "data" type: "Python" top: "image" top: "density_label" python_param { module: "nowhere" layer: "Reader" } }
layer { name: "conv" type: "Convolution" bottom: "image" top: "conv"
  convolution_param { num_output: 4 kernel_size: 4 stride: 4 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "conv" bottom: "density_label" top: "loss" }
"""
YOLO = """
layer { name: "data" type: "AnnotatedData" top: "data" top: "label" data_param { source: "nowhere" batch_size: 8 }
  transform_param { resize_param { height: 64 width: 64 } } annotated_data_param { yolo_data_type: 1 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 14 kernel_size: 16 stride: 16 } }
layer { name: "loss" type: "RegionLoss" bottom: "conv" bottom: "label" top: "loss"
  region_loss_param { num_class: 2 num: 2 biases: 1 biases: 1 biases: 2 biases: 2 } }
"""
SEQUENCES = """
layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "nowhere" batch_size: 4 }
  transform_param { crop_size: 8 } }
layer { name: "steps" type: "Convolution" bottom: "data" top: "steps"
  convolution_param { num_output: 6 kernel_h: 8 kernel_w: 1 } }
layer { name: "turned" type: "Permute" bottom: "steps" top: "turned"
  permute_param { order: 3 order: 0 order: 1 order: 2 } }
layer { name: "indicator" type: "ContinuationIndicator" top: "indicator"
  continuation_indicator_param { time_step: 8 batch_size: 4 } }
layer { name: "rows" type: "Reshape" bottom: "turned" top: "rows" reshape_param { shape { dim: 8 dim: 4 dim: 6 } } }
layer { name: "lstm" type: "LSTM" bottom: "rows" bottom: "indicator" top: "lstm" recurrent_param { num_output: 5
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "CtcLoss" bottom: "lstm" bottom: "label" top: "loss" }
"""
REGIONS = """
layer { name: "data" type: "Python" top: "data" top: "rois" top: "gt_boxes" python_param { module: "nowhere" layer: "Reader" } }
layer { name: "sample" type: "Python" bottom: "rois" bottom: "gt_boxes" top: "regions" top: "labels" top: "bbox_targets"
  top: "bbox_inside_weights" top: "bbox_outside_weights"
  python_param { module: "rpn.proposal_target_layer" layer: "ProposalTargetLayer" param_str: "'num_classes': 3" } }
layer { name: "pool" type: "ROIPooling" bottom: "data" bottom: "regions" top: "pool"
  roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "labels" top: "loss" propagate_down: true
  propagate_down: false }
"""
CLIPS = """
layer { name: "data" type: "VideoData" top: "data" top: "label"
  video_data_param { source: "nowhere" batch_size: 2 new_length: 5 num_segments: 3 modality: FLOW }
  transform_param { crop_size: 12 } }
layer { name: "segments" type: "Reshape" bottom: "data" top: "segments"
  reshape_param { shape { dim: -1 dim: 10 dim: 12 dim: 12 } } }
layer { name: "ip" type: "InnerProduct" bottom: "segments" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "rows" type: "Reshape" bottom: "ip" top: "rows"
  reshape_param { shape { dim: -1 dim: 1 dim: 3 dim: 3 } } }
layer { name: "mean" type: "Pooling" bottom: "rows" top: "mean" pooling_param { pool: AVE kernel_h: 3 kernel_w: 1 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "mean" bottom: "label" top: "loss" loss_param { normalization: FULL }
  softmax_param { axis: 3 } }
"""


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("solver", SOLVER),
        ("deploy", DEPLOY),
        ("train", TRAIN),
        ("train", TARGETS),
        ("train", YOLO),
        ("train", SEQUENCES),
        ("train", REGIONS),
        ("train", CLIPS),
    ],
)
def test_a_file_without_its_data_or_nets_runs(write, tmp_path, kind, text):
    write("net.prototxt", text)
    assert check.check(tmp_path / "net.prototxt", kind) == ("runs", "", "")


@pytest.mark.parametrize(
    ("kind", "old", "new", "cause"),
    [
        ("deploy", "Softmax", "Softmin", "layer type Softmin"),
        ("deploy", "num_output: 2", "num_output: 2 deformable: 4", "field ConvolutionParameter.deformable"),
        ("deploy", "kernel_size: 3", "kernel_size: 9", "shape"),
        ("deploy", 'bottom: "conv"', 'bottom: "relu"', "missing bottom"),
        ("deploy", 'top: "prob" }', 'top: "prob"', "syntax"),
        ("deploy", '"Softmax"', '"Python" python_param { module: "no.where" layer: "Softmax" }', "python layer no.where"),
        ("train", '"SoftmaxWithLoss"', '"InfogainLoss" infogain_loss_param { source: "nowhere" }', "file not public"),
        ("solver", '"step"', '"stairs"', "solver lr_policy"),
        ("solver", "momentum: 0.9", "nesterov: true", "field SolverParameter.nesterov"),
    ],
)
def test_what_does_not_run_has_its_cause(write, tmp_path, kind, old, new, cause):
    write("net.prototxt", {"solver": SOLVER, "deploy": DEPLOY, "train": TRAIN}[kind].replace(old, new))
    outcome = check.check(tmp_path / "net.prototxt", kind)
    assert (outcome.result, outcome.cause) == ("refused", cause)


def test_all_missing_layer_types_are_causes(write, tmp_path):
    write("net.prototxt", DEPLOY.replace("Softmax", "Softmin").replace("Convolution", "Involution"))
    assert check.check(tmp_path / "net.prototxt", "deploy").cause == "layer type Involution; layer type Softmin"


def test_a_data_layer_that_the_engine_lacks_is_named_though_its_stand_in_runs(write, tmp_path):
    write("net.prototxt", TRAIN.replace('"Data"', '"CloudData"'))
    assert check.check(tmp_path / "net.prototxt", "train") == ("runs", "data layer CloudData", "")


def committed(folder):
    """Make a git repository of a folder; the commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "nets"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_files_are_collected_and_run_each_in_its_process(tmp_path):
    repository = tmp_path / "mirror" / "someone+nets"
    repository.mkdir(parents=True)
    (repository / "deploy.prototxt").write_text(DEPLOY)
    (repository / "deep.prototxt").write_text(DEPLOY.replace("Softmax", "Softmin"))
    commit = committed(repository)
    sample = [
        Entry("someone/nets", commit, name, "deploy", "bvlc") for name in ("deploy.prototxt", "deep.prototxt", "none.prototxt")
    ]
    assert collect(sample, tmp_path / "files", tmp_path / "mirror") == sample[2:]
    rows = run(sample[:2], tmp_path / "files", Limits())
    assert [(row.path, row.result, row.cause) for row in rows] == [
        ("deep.prototxt", "refused", "layer type Softmin"),
        ("deploy.prototxt", "runs", ""),
    ]
    assert rows[0].message.startswith("deep.prototxt:5:")
    assert table(rows)[-1].split() == ["all", "2", "1", "50.0"]
    assert run(sample[:1], tmp_path / "files", Limits(seconds=0))[0].result == "time"


LAYER = """
import caffe
from offset import OFFSET

class Shift(caffe.Layer):
    def setup(self, bottom, top):
        print "shift by", OFFSET

    def reshape(self, bottom, top):
\ttop[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + OFFSET
"""
OF_PYTHON = '"Python" python_param { module: "own.shift" layer: "Shift" }'


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="2to3 is not in Python 3.13 and later")
def test_a_repository_s_layers_in_python_2_are_translated_and_found(tmp_path):
    package = tmp_path / "mirror" / "someone+nets" / "lib" / "own"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "shift.py").write_text(LAYER)
    (package / "offset.py").write_text("OFFSET = 1L")
    (package.parent / "deploy.prototxt").write_text(DEPLOY.replace('"Softmax"', OF_PYTHON))
    sample = [Entry("someone/nets", committed(tmp_path / "mirror" / "someone+nets"), "lib/deploy.prototxt", "deploy", "bvlc")]
    assert collect(sample, tmp_path / "files", tmp_path / "mirror") == []
    assert run(sample, tmp_path / "files", Limits())[0].result == "runs"


def test_causes_are_listed_by_frequency_with_the_files_that_have_no_other():
    rows = [Row("a/b", f"{number}", "deploy", "", "refused", cause, "") for number, cause in enumerate(("x", "x; y", "z"))]
    assert [line.split()[:3] for line in causes(rows)[1:]] == [["2", "1", "x"], ["1", "0", "y"], ["1", "1", "z"]]


def test_the_sample_has_each_file_once_and_enough_repositories():
    sample = read_sample()
    assert len({(entry.repository, entry.path) for entry in sample}) == len(sample) >= 200
    assert len({entry.repository for entry in sample}) >= 60
    assert {entry.kind for entry in sample} == set(check.KINDS)
    assert all(len(entry.commit) == 40 for entry in sample)
