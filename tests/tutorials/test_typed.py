"""What readers of Caffe's tutorials of 2014 to 2017 type, as it is printed there, in folders with tiny data."""

import os
import re
import subprocess
import warnings

import cv2
import numpy as np
import pytest

import caffe
from caffe.engine import early
from caffe.formats.db import DatabaseWriter, open_db
from caffe.proto import caffe_pb2
from pipeline import link_tools
from tests.conftest import ROOT, SHARED, needs_leveldb, needs_shared

IP = 'layers { name: "%s" type: INNER_PRODUCT bottom: "%s" top: "%s" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0\n'
IP += "  inner_product_param { num_output: %d weight_filler { type: %s } bias_filler { type: %s } } }\n"
FILLERS = ('"gaussian" std: 0.01', '"constant"')
SCORES = 'layers { name: "%s" type: SOFTMAX_LOSS bottom: "ip" bottom: "label" }\n'
ACCURACY = 'layers { name: "accuracy" type: ACCURACY bottom: "%s" bottom: "label" top: "accuracy" }\n'


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The working folder: a checkout whose build/tools are links."""
    monkeypatch.chdir(tmp_path)
    link_tools.main(["."])
    return tmp_path


def shell(text, folder="."):
    """Run what is typed; returns its exit code and its output with the log."""
    path = os.pathsep.join([str(link_tools.caffe_script().parent), os.path.abspath("build/tools"), os.environ["PATH"]])  # noqa: PTH100
    environment = {**os.environ, "PATH": path, "GLOG_minloglevel": "0"}
    done = subprocess.run(["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def script(path, text):
    """Write a shell script of the reader's, which may be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env sh\nset -e\n{text}")
    path.chmod(0o755)


def database(path, shape, count=12, classes=2, backend="leveldb"):
    """A database of random records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    with DatabaseWriter(str(path), backend) as write:
        for number in range(count):
            datum = caffe.io.array_to_datum(draw.integers(0, 256, shape).astype(np.uint8), number % classes)
            write(b"%08d" % number, datum.SerializeToString())


def typed(text, **names):
    """Run lines of Python as typed, without the warnings of early calls; returns the names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exec(compile(text, "typed", "exec"), names)
    return names


# ---- notes of 2014


@needs_leveldb
def test_cifar_10_is_trained_by_its_script_with_the_log_that_is_on_paper(checkout):
    folder = checkout / "examples/cifar10"
    for part in ("train", "test"):
        database(folder / f"cifar10-leveldb/cifar-{part}-leveldb", (3, 8, 8))
        data = 'layers { name: "cifar" type: DATA top: "data" top: "label" data_param {'
        data += f' source: "cifar10-leveldb/cifar-{part}-leveldb" mean_file: "mean.binaryproto" batch_size: 4 }} }}\n'
        net = f'name: "CIFAR10_quick_{part}"\n' + data
        net += IP % ("ip", "data", "ip", 2, *FILLERS)
        net += SCORES % "loss" if part == "train" else ACCURACY % "ip" + SCORES % "loss"
        (folder / f"cifar10_quick_{part}.prototxt").write_text(net)
    (folder / "cifar10_quick_solver.prototxt").write_text(
        'train_net: "cifar10_quick_train.prototxt"\ntest_net: "cifar10_quick_test.prototxt"\ntest_iter: 3\ntest_interval: 2\n'
        'base_lr: 0.0001\nmomentum: 0.9\nweight_decay: 0.004\nlr_policy: "fixed"\ndisplay: 2\nmax_iter: 4\nsnapshot: 4\n'
        'snapshot_prefix: "cifar10_quick"\nsolver_mode: CPU\n'
    )
    script(folder / "train_quick.sh", "GLOG_logtostderr=1 ../../build/tools/train_net.bin cifar10_quick_solver.prototxt\n")
    mean = "../../build/tools/compute_image_mean.bin ./cifar10-leveldb/cifar-train-leveldb mean.binaryproto"
    assert shell(mean, folder)[0] == 0
    code, said = shell("./train_quick.sh", folder)
    assert code == 0, said
    assert re.search(r"Iteration 2, lr = 0.0001", said)
    assert re.search(r"Iteration 2 .*loss = \d", said)
    assert re.search(r"Test net output #\d: accuracy = \d", said)
    assert (folder / "cifar10_quick_iter_4.solverstate").exists()


@pytest.mark.parametrize(
    "line",
    [
        "./get_cifar10.sh",
        "./create_cifar10.sh",
        "./data/ilsvrc12/get_ilsvrc_aux.sh",
        "./scripts/download_model_binary.py models/bvlc_reference_caffenet",
        "python examples/finetune_flickr_style/assemble_data.py --workers=-1 --images=2000 --seed 831486",
    ],
)
def test_a_script_that_needs_a_server_is_answered_on_the_page_of_weights(line):
    name = re.search(r"\w+\.(sh|py)", line)[0]
    assert re.search(rf"/{name}[` ]|`{name}`", (ROOT / "docs/weights.md").read_text())


@needs_leveldb
def test_features_are_extracted_by_the_lines_on_paper(checkout):
    draw = np.random.default_rng(0)
    (checkout / "photos").mkdir()
    for number in range(20):
        cv2.imwrite(f"photos/{number}.jpg", draw.integers(0, 256, (9, 9, 3)).astype(np.uint8))
    mean = caffe.io.array_to_blobproto(np.full((1, 3, 8, 8), 100, np.float32))
    (checkout / "mean.binaryproto").write_bytes(mean.SerializeToString())
    data = 'layers { name: "data" type: IMAGE_DATA top: "data" top: "label" image_data_param { source: "file_list.txt"'
    data += ' batch_size: 2 new_height: 8 new_width: 8 mean_file: "mean.binaryproto" } }\n'
    (checkout / "imagenet_val.prototxt").write_text(data + IP % ("fc7", "data", "fc7", 5, *FILLERS))
    code, said = shell(r'find `pwd`/photos -type f -exec echo {} \; > temp.txt; sed "s/$/ 0/" temp.txt > file_list.txt')
    assert code == 0, said
    caffe.Net("imagenet_val.prototxt", caffe.TEST).save("MODEL")
    line = "build/tools/extract_features.bin MODEL imagenet_val.prototxt fc7 OUT 10"
    code, said = shell(line)
    assert code == 0, said
    assert len(open_db("OUT", caffe_pb2.DataParameter.LEVELDB)) == 20
    code, said = shell(line)
    assert (code, "OUT: it exists already; delete it, or give another name" in said) == (1, True)


@needs_leveldb
def test_photographs_of_two_classes_are_converted_trained_and_resumed(checkout):
    draw = np.random.default_rng(0)
    (checkout / "ROOT").mkdir()
    for number in range(12):
        cv2.imwrite(f"ROOT/{number}.jpg", draw.integers(0, 256, (256, 256, 3)).astype(np.uint8))
    (checkout / "LIST").write_text("".join(f"{number}.jpg {number % 2}\n" for number in range(12)))
    code, said = shell(
        "convert_imageset.bin ROOT/ LIST OUT 1 leveldb 256 256 && mv OUT LEVELDB && compute_image_mean.bin LEVELDB OUT"
    )
    assert code == 0, said
    assert len(open_db("LEVELDB", caffe_pb2.DataParameter.LEVELDB)) == 12
    data = 'layers { name: "data" type: DATA top: "data" top: "label" data_param { source: "LEVELDB" mean_file: "OUT"'
    data += " batch_size: 2 crop_size: 20 mirror: %s } }\n"
    net = IP % ("ip", "data", "ip", 2, *FILLERS) + SCORES % "loss"
    (checkout / "imagenet_train.prototxt").write_text(data % "true" + net)
    (checkout / "imagenet_val.prototxt").write_text(data % "false" + net + ACCURACY % "ip")
    (checkout / "imagenet_solver.prototxt").write_text(
        'train_net: "imagenet_train.prototxt" test_net: "imagenet_val.prototxt" test_iter: 2 test_interval: 2 base_lr: 0.0001 '
        'lr_policy: "step" gamma: 0.1 stepsize: 2 display: 1 max_iter: 4 momentum: 0.9 weight_decay: 0.0005 snapshot: 2 '
        'snapshot_prefix: "caffenet_train"'
    )
    script(checkout / "train_imagenet.sh", "GLOG_logtostderr=1 build/tools/train_net.bin imagenet_solver.prototxt\n")
    resume = "GLOG_logtostderr=1 build/tools/train_net.bin imagenet_solver.prototxt caffenet_train_iter_2.solverstate\n"
    script(checkout / "resume_training.sh", resume)
    for line in ("./train_imagenet.sh", "./resume_training.sh"):
        code, said = shell(line)
        assert code == 0, said
        assert (checkout / "caffenet_train_iter_4.caffemodel").exists()
        assert "lr = 1e-05" in said
        (checkout / "caffenet_train_iter_4.caffemodel").unlink()
    assert "Iteration 0," not in said


LENET = """
name: "LeNet"
layers { name: "mnist" type: DATA top: "data" top: "label"
  data_param { source: "mnist-train-leveldb" batch_size: 64 scale: 0.00390625 } }
layers { type: CONVOLUTION blobs_lr: 1 blobs_lr: 2 name: "conv1" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernelsize: 5 stride: 1 weight_filler { type: "xavier" } bias_filler { type: "constant" } } }
layers { name: "pool1" type: POOLING bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 pool: MAX } }
layers { name: "ip2" type: INNER_PRODUCT bottom: "pool1" top: "ip2" blobs_lr: 1 blobs_lr: 2
  inner_product_param { num_output: 10 weight_filler { type: "xavier" } bias_filler { type: "constant" } } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip2" bottom: "label" }
""".replace("kernelsize", "kernel_size")
SOLVER = """
train_net: "lenet_train.prototxt"
test_net: "lenet_train.prototxt"
test_iter: 1
test_interval: 2
base_lr: 0.01
lr_policy: "inv"
gamma: 0.0001
power: 0.75
max_iter: 2
snapshot_prefix: "lenet"
solver_mode: 1
"""


@needs_leveldb
def test_lenet_written_by_hand_trains_also_where_solver_mode_1_finds_no_gpu(checkout):
    database(checkout / "mnist-train-leveldb", (1, 28, 28), 64, 10)
    (checkout / "lenet_train.prototxt").write_text(LENET)
    (checkout / "lenet_solver.prototxt").write_text(SOLVER)
    code, said = shell("build/tools/train_net.bin lenet_solver.prototxt")
    assert code == 0, said
    net = caffe.Net("lenet_train.prototxt", caffe.TRAIN, weights="lenet_iter_2.caffemodel")
    net.forward()
    assert 0 < net.blobs["data"].data.max() < 1


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "batch_size:",
            "batch size:",
            'lenet_train.prototxt:4: DataParameter has no field "batch size"; did you mean "batch_size"?',
        ),
        ("max_iter:", "max iter:", 'lenet_solver.prototxt:10: SolverParameter has no field "max iter"; did you mean "max_iter"?'),
        ("solver_mode:", "solver mode:", 'no field "solver mode"; did you mean "solver_mode"?'),
        (
            'bias_filler { type: "constant" } } }\nlayers { name: "loss"',
            'bias_filler { type: "constant" } }\nlayers { name: "loss"',
            "layers of line 8 is not closed",
        ),
    ],
)
def test_a_misprint_is_answered_with_its_correction(checkout, before, after, said):
    for name, text in (("lenet_train.prototxt", LENET), ("lenet_solver.prototxt", SOLVER)):
        (checkout / name).write_text(text.replace(before, after))
    code, printed = shell("build/tools/train_net.bin lenet_solver.prototxt")
    assert code == 1
    assert said in printed


PICTURES = """
name: "pictures"
input: "data" input_dim: 10 input_dim: 3 input_dim: 19 input_dim: 19
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 96 kernel_size: 4 weight_filler { type: "gaussian" std: 0.01 } } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "fc6" type: INNER_PRODUCT bottom: "conv1" top: "fc6"
  inner_product_param { num_output: 12 weight_filler { type: "gaussian" std: 0.01 } } }
layers { name: "prob" type: SOFTMAX bottom: "fc6" top: "prob" }
"""


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Names of the tutorial: a prototxt, weights, and an image; ilsvrc_2012_mean.npy is in the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(early, "_warned", set())
    monkeypatch.setattr(early._State, "phase", None)
    (tmp_path / "deploy.prototxt").write_text(PICTURES)
    caffe.set_random_seed(1)
    caffe.Net("deploy.prototxt", caffe.TEST).save("a.caffemodel")
    np.save("ilsvrc_2012_mean.npy", np.random.default_rng(0).uniform(90, 130, (3, 19, 19)))
    cv2.imwrite("cat.jpg", np.random.default_rng(1).integers(0, 256, (24, 30, 3)).astype(np.uint8))
    return {"PROTO": "deploy.prototxt", "MODEL": "a.caffemodel", "FILE": "cat.jpg", "caffe": caffe, "np": np}


def test_the_pictures_of_2014_are_made_by_its_calls(pictures):
    names = typed(
        """
net = caffe.Classifier(PROTO, MODEL)
net.set_phase_test()
net.set_mode_cpu()
net.set_mean('data', 'ilsvrc_2012_mean.npy')
net.set_channel_swap('data', (2,1,0))
net.set_input_scale('data', 255)
scores = net.predict([caffe.io.load_image(FILE)])
blobs = [(k, v.data.shape) for k, v in net.blobs.items()]
params = [(k, v[0].data.shape) for k, v in net.params.items()]
filters = net.params['conv1'][0].data
feat = net.blobs['conv1'].data[4, :96]
counts, _ = np.histogram(net.blobs['fc6'].data[4].flat, bins=10)
top = net.blobs['prob'].data[4].flatten().argsort()[-1:-6:-1]

def square(data, padsize=1, padval=0):
    data = data - data.min()
    data = data / data.max()
    n = int(np.ceil(np.sqrt(data.shape[0])))
    padding = ((0, n ** 2 - data.shape[0]), (0, padsize), (0, padsize)) + ((0, 0),) * (data.ndim - 3)
    data = np.pad(data, padding, mode='constant', constant_values=(padval, padval))
    data = data.reshape((n, n) + data.shape[1:]).transpose((0, 2, 1, 3) + tuple(range(4, data.ndim + 1)))
    return data.reshape((n * data.shape[1], n * data.shape[3]) + data.shape[4:])

shown = square(filters.transpose(0, 2, 3, 1)), square(feat)
""",
        **pictures,
    )
    assert names["scores"].shape == (1, 12)
    assert names["blobs"] == [("data", (10, 3, 19, 19)), ("conv1", (10, 96, 16, 16)), ("fc6", (10, 12)), ("prob", (10, 12))]
    assert names["params"] == [("conv1", (96, 3, 4, 4)), ("fc6", (12, 24576))]
    assert [picture.shape for picture in names["shown"]] == [(50, 50, 3), (170, 170)]
    assert names["counts"].sum() == 12
    assert len(set(names["top"])) == 5


def test_an_image_is_classified_by_the_calls_of_2014_whole_and_by_crops(pictures):
    names = typed(
        """
net = caffe.Classifier(PROTO, MODEL, mean_file='ilsvrc_2012_mean.npy', channel_swap=(2,1,0), input_scale=255)
image = caffe.io.load_image(FILE)
ten = net.predict([image])
one = net.predict([image], oversample=False)
crops = caffe.io.oversample([caffe.io.resize_image(image, net.image_dims)], net.crop_dims)
out = net.forward(data=np.asarray([net.preprocess('data', x) for x in crops]))
""",
        **pictures,
    )
    assert names["crops"].shape == (10, 19, 19, 3)
    np.testing.assert_allclose(names["out"]["prob"].mean(0), names["ten"][0], rtol=1e-5)
    np.testing.assert_allclose(names["out"]["prob"][4], names["one"][0], rtol=1e-4)
    today = caffe.Classifier(
        "deploy.prototxt", "a.caffemodel", mean=np.load("ilsvrc_2012_mean.npy"), channel_swap=(2, 1, 0), raw_scale=255
    )
    np.testing.assert_array_equal(today.predict([names["image"]]), names["ten"])


def test_layers_are_made_convolutional_by_the_calls_of_2014(pictures, tmp_path):
    full = PICTURES.replace(
        "input_dim: 10 input_dim: 3 input_dim: 19 input_dim: 19", "input_dim: 1 input_dim: 3 input_dim: 26 input_dim: 26"
    )
    full = full.replace('name: "fc6" type: INNER_PRODUCT', 'name: "fc6-conv" type: CONVOLUTION').replace('"fc6"', '"fc6-conv"')
    full = full.replace("inner_product_param {", "convolution_param { kernel_size: 16")
    (tmp_path / "full_conv.prototxt").write_text(full)
    names = typed(
        """
net = caffe.Net(PROTO, MODEL)
net_full_conv = caffe.Net('full_conv.prototxt', MODEL)
W, b = net.params['fc6'][0].data, net.params['fc6'][1].data
W, b = W.reshape(1, 1, 12, 24576), b.reshape(1, 1, 1, 12)  # their shapes on paper
net_full_conv.params['fc6-conv'][0].data[...] = W.reshape(net_full_conv.params['fc6-conv'][0].data.shape)
net_full_conv.params['fc6-conv'][1].data[...] = b
net_full_conv.save('full_conv.caffemodel')
im = caffe.io.resize_image(caffe.io.load_image(FILE), (26, 26))
out = net_full_conv.forward_all(data=np.asarray([net_full_conv.preprocess('data', im)]))
corner = net.forward_all(data=np.asarray([net.preprocess('data', im[:19, :19])]))
""",
        **pictures,
    )
    assert names["out"]["prob"].shape == (1, 12, 8, 8)
    np.testing.assert_allclose(names["out"]["prob"][0, :, 0, 0], names["corner"]["prob"][0], rtol=1e-5)
    assert caffe.Net("full_conv.prototxt", "full_conv.caffemodel", caffe.TEST).params["fc6-conv"][0].data.any()


# ---- 2017

TRAIN = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
    data_filler { type: "gaussian" } data_filler { type: "constant" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def small_solver(folder, extra=""):
    (folder / "net.prototxt").write_text(TRAIN)
    path = folder / "solver.prototxt"
    path.write_text(
        'net: "net.prototxt" test_iter: 1 test_interval: 100 base_lr: 0.1 lr_policy: "fixed" max_iter: 4 '
        f'snapshot_prefix: "model" snapshot: 2 {extra}'
    )


def test_a_solver_is_stepped_in_a_loop_that_tests(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_solver(tmp_path)
    caffe.Net("net.prototxt", caffe.TRAIN).save("net.caffemodel")
    names = typed(
        """
proto, caffemodel, prune_proto, pruned = 'solver.prototxt', 'net.caffemodel', 'net.prototxt', 'pruned.caffemodel'
solver = caffe.SGDSolver(proto)
solver.net.copy_from(caffemodel)
total = loss = accuracy = 0
for it in range(6):
    solver.step(1)
    total += solver.net.blobs['loss'].data
    if it % 3 == 0:
        for _ in range(10):
            solver.test_nets[0].forward()
            loss += solver.test_nets[0].blobs['loss'].data
            accuracy += solver.test_nets[0].blobs['accuracy'].data
caffe.Net(prune_proto, caffemodel, caffe.TEST).save(pruned)
pretrain_net = caffe.Net("net.prototxt", "net.caffemodel")
solver.net.copy_from(pretrain_net)
copied = solver.net.params['ip'][0].data.copy()
solver = caffe.SGDSolver(proto)
solver.solve()
""",
        caffe=caffe,
    )
    assert 0 < names["total"] < 6 * 5
    assert 0 <= names["accuracy"] <= 20
    saved = caffe.Net("net.prototxt", "pruned.caffemodel", caffe.TEST).params["ip"][0].data
    np.testing.assert_array_equal(saved, caffe.Net("net.prototxt", "net.caffemodel", caffe.TEST).params["ip"][0].data)
    np.testing.assert_array_equal(saved, names["copied"])
    assert (tmp_path / "model_iter_4.caffemodel").exists()


FINE_TUNING = (
    "./build/tools/caffe train -solver models/finetune/solver.prototxt -weights models/vgg_face_caffe/VGG_FACE.caffemodel -gpu 0"
)


@pytest.mark.parametrize(
    "line",
    [FINE_TUNING, "caffe train -solver solver.prototxt -gpu all"],
)
@pytest.mark.own_device
def test_a_line_for_a_gpu_trains_on_it_or_says_to_omit_it(checkout, line):
    import torch

    small_solver(checkout)
    for folder in ("models/finetune", "models/vgg_face_caffe"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "models/finetune/solver.prototxt").write_text((checkout / "solver.prototxt").read_text())
    caffe.Net("net.prototxt", caffe.TRAIN).save("models/vgg_face_caffe/VGG_FACE.caffemodel")
    code, said = shell(line)
    if torch.cuda.is_available():
        assert code == 0, said
    else:
        flag = line[line.index("-gpu") :]
        assert code == 1
        assert f"error: {flag}: PyTorch finds no CUDA device; omit -gpu to run on the CPU\n" in said
    code, said = shell(line[: line.index(" -gpu")])
    assert code == 0, said
    assert (checkout / "model_iter_4.caffemodel").exists()


def test_a_training_is_resumed_by_snapshot(checkout):
    small_solver(checkout, "display: 1")
    assert shell("caffe train -solver solver.prototxt")[0] == 0
    (checkout / "model_iter_N.solverstate").write_bytes((checkout / "model_iter_2.solverstate").read_bytes())
    code, said = shell("caffe train -solver solver.prototxt -snapshot model_iter_N.solverstate")
    assert code == 0, said
    assert [f"Iteration {number} (" in said for number in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("b", "c", "learns"),
    [
        ("", "param { lr_mult: 0 } param { lr_mult: 0 }", {"b": (True, True), "c": (False, False), "d": (True, True)}),
        ("", "param { lr_mult: 0 }", {"b": (True, True), "c": (False, True), "d": (True, True)}),
        ("param { lr_mult: 0 } param { lr_mult: 0 }",) * 2 + ({"b": (False, False), "c": (False, False), "d": (True, True)},),
        (
            "param { lr_mult: 0 } param { lr_mult: 0 }",
            "param { lr_mult: 0 } param { lr_mult: 0 } propagate_down: false",
            {"b": (False, False), "c": (False, False), "d": (True, True)},
        ),
    ],
)
def test_a_layer_is_frozen_alone_or_with_those_below(tmp_path, monkeypatch, b, c, learns):
    monkeypatch.chdir(tmp_path)
    layer = 'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" {2} inner_product_param {{ num_output: 3'
    layer += ' weight_filler {{ type: "xavier" }} }} }}\n'
    small_solver(tmp_path)
    head, tail = TRAIN.split('layer { name: "ip"')
    tail = tail[tail.index("layer {") :].replace('bottom: "ip"', 'bottom: "d"')
    net = head + layer.format("b", "data", b) + layer.format("c", "b", c) + layer.format("d", "c", "") + tail
    (tmp_path / "net.prototxt").write_text(net)
    solver = caffe.SGDSolver("solver.prototxt")
    before = {name: [blob.data.copy() for blob in blobs] for name, blobs in solver.net.params.items()}
    solver.step(2)
    changed = {
        name: tuple(bool((x.data != y).any()) for x, y in zip(solver.net.params[name], old, strict=True))
        for name, old in before.items()
    }
    assert changed == learns


def test_a_train_and_a_test_net_made_from_deploy_prototxt_train_and_test(checkout):
    body = """
layer { bottom: "data" top: "conv1" name: "conv1" type: "Convolution"
  convolution_param { num_output: 4 kernel_size: 3 bias_term: false weight_filler { type: "msra" } } }
layer { bottom: "conv1" top: "conv1" name: "bn_conv1" type: "BatchNorm" batch_norm_param { use_global_stats: %s } }
layer { bottom: "conv1" top: "conv1" name: "scale_conv1" type: "Scale" scale_param { bias_term: true } }
layer { bottom: "conv1" top: "fc100" name: "fc100" type: "InnerProduct" param { lr_mult: 10 } param { lr_mult: 20 }
  inner_product_param { num_output: 100 weight_filler { type: "msra" } } }
layer { bottom: "fc100" bottom: "label" top: "loss" name: "loss" type: "SoftmaxWithLoss" }
"""
    database(checkout / "dogs_lmdb", (3, 8, 8), 12, 100, "lmdb")
    data = 'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { scale: 0.01 }\n'
    data += '  data_param { source: "dogs_lmdb" batch_size: 4 backend: LMDB } }'
    (checkout / "train.prototxt").write_text(data + body % "false")
    accuracy = 'layer { bottom: "fc100" bottom: "label" top: "acc" name: "acc" type: "Accuracy" }'
    (checkout / "test.prototxt").write_text(data + body % "true" + accuracy)
    (checkout / "resnet50_solver.prototxt").write_text(
        'train_net: "train.prototxt"   \ntest_net: "test.prototxt"\t\n#test_initialization: false  \ntest_iter: 2 \n'
        "test_interval: 3\n"
        'base_lr: 0.001\nlr_policy: "multistep"  # as on paper\nstepvalue: 2\nstepvalue: 4\ngamma: 0.1\nmax_iter: 5\n\n'
        'display: 1\nmomentum: 0.9\nsnapshot_prefix: "dogs"  \nsolver_mode: CPU   \n'
    )
    deploy = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    before = (
        (body % "true")
        .replace("fc100", "fc1000")
        .replace("num_output: 100 ", "num_output: 1000 ")
        .split('layer { bottom: "fc1000" bottom')[0]
    )
    (checkout / "deploy.prototxt").write_text(deploy + before)
    (checkout / "models").mkdir()
    caffe.Net("deploy.prototxt", caffe.TEST).save("models/resnet50.caffemodel")
    code, said = shell("caffe train --solver=resnet50_solver.prototxt --weights models/resnet50.caffemodel")
    assert code == 0, said
    assert "Ignoring source layer fc1000" in said
    assert [f"lr = {rate}" in said for rate in ("0.001", "0.0001", "1e-05")] == [True] * 3
    assert "Test net output #0: acc = " in said


def test_weight_is_a_flag_and_a_last_layer_with_a_new_name_starts_anew(checkout):
    small_solver(checkout)
    (checkout / "models/finetune_flickr_style").mkdir(parents=True)
    (checkout / "solver.prototxt").rename("models/finetune_flickr_style/solver.prototxt")
    caffe.Net("net.prototxt", caffe.TRAIN).save("bvlc_reference_caffenet.caffemodel")
    (checkout / "net.prototxt").write_text(TRAIN.replace('"ip"', '"fc8_flickr"').replace("num_output: 2", "num_output: 20"))
    line = "caffe train -solver models/finetune_flickr_style/solver.prototxt -weight bvlc_reference_caffenet.caffemodel"
    code, said = shell(line)
    assert code == 0, said
    assert "Ignoring source layer ip" in said
    assert line.replace("-weight ", "-weights ") in said


# ---- the list


PAGES = ("docs/weights.md", "docs/troubleshooting.md")
"""Pages that answer lines which need files that are no longer there."""
READERS_OWN = {"build/tools/…", "examples/…", "data/…", r"convert -resize 256x256\!"}
"""Of the list: parts of paths, and a command of ImageMagick."""


@needs_shared
def test_every_line_of_the_list_is_typed_in_a_test_or_answered_on_a_page():
    def plain(text):
        return re.sub(r"\s+", "", text.replace("'", '"'))

    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    known = plain("\n".join([*tests, *((ROOT / page).read_text() for page in PAGES)]))
    listed = re.findall(r"`([^`]+)`", (SHARED / "TUTORIALS.md").read_text())
    assert len(listed) > 40
    missing = [line for line in listed if line not in READERS_OWN and not all(plain(part) in known for part in line.split("…"))]
    assert missing == []
