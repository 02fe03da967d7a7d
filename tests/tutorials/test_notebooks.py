"""What BVLC's notebooks call, to their end: on MNIST's form, with small nets and stand-in data; in our own words."""

import os
import subprocess
import sys

import cv2
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn.datasets
import sklearn.model_selection

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.formats.db import DatabaseWriter
from caffe.proto import caffe_pb2
from tests.conftest import ROOT
from tests.tutorials.thin_caffenet import deploy, photograph

XAVIER = {"type": "xavier"}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 digits as images of 28 × 28, uint8, in an order by chance, and their labels."""
    data = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    return np.stack([cv2.resize(image * 15, (28, 28)) for image in data.images[order]]).astype(np.uint8), data.target[order]


def database(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """An LMDB of images N × H × W."""
    with DatabaseWriter(name, "lmdb") as write:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            write(b"%08d" % number, caffe.io.array_to_datum(image[None], int(label)).SerializeToString())


def score(net: caffe.Net, batches: int) -> float:
    """Accuracy over batches, counted by hand."""
    right = total = 0
    for _ in range(batches):
        net.forward()
        labels = net.blobs["label"].data
        right += sum(net.blobs["score"].data.argmax(1) == labels)
        total += len(labels)
    return right / total


# ---- 00-classification


def test_classification(examples):
    path, weights = deploy(examples)
    np.save("ilsvrc_2012_mean.npy", np.random.default_rng(0).uniform(90, 130, (3, 256, 256)))
    photograph(examples / "cat.jpg", 20)
    (examples / "synset_words.txt").write_text("".join(f"n{number:08d} thing {number}, other name\n" for number in range(1000)))

    caffe.set_mode_cpu()
    net = caffe.Net(path, weights, caffe.TEST)
    mu = np.load("ilsvrc_2012_mean.npy").mean(1).mean(1)
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mu)
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    net.blobs["data"].reshape(5, 3, 227, 227)
    image = caffe.io.load_image("cat.jpg")
    plt.imshow(image)
    net.blobs["data"].data[...] = transformer.preprocess("data", image)
    first = net.forward()["prob"][0].copy()
    labels = np.loadtxt("synset_words.txt", str, delimiter="\t")
    best = first.argsort()[::-1][:5]
    assert net.blobs["prob"].data.shape == (5, 1000)
    np.testing.assert_allclose(net.blobs["prob"].data, np.tile(first, (5, 1)), rtol=1e-4)
    assert first[best[0]] == first.max()
    assert [label.split(",")[0] for label in labels[best]] == [f"n{number:08d} thing {number}" for number in best]
    shapes = {name: blob.data.shape for name, blob in net.blobs.items()}
    assert shapes["conv1"] == (5, 12, 55, 55)
    assert {name: (p[0].data.shape, p[1].data.shape) for name, p in net.params.items()}["conv2"] == ((32, 6, 5, 5), (32,))
    for picture in (net.params["conv1"][0].data.transpose(0, 2, 3, 1)[0], net.blobs["conv1"].data[0, 0]):
        plt.imshow((picture - picture.min()) / (picture.max() - picture.min()))
    features = net.blobs["fc6"].data[0]
    assert plt.hist(features.flat[features.flat > 0], bins=100)[0].sum() == (features > 0).sum()
    plt.plot(net.blobs["prob"].data[0].flat)

    photograph(examples / "image.jpg", 110, seed=1)
    net.blobs["data"].data[...] = transformer.preprocess("data", caffe.io.load_image("image.jpg"))
    net.forward()
    assert not np.allclose(net.blobs["prob"].data[0], first, rtol=1e-3)


# ---- 01-learning-lenet


def write_lenet(name: str, source: str, batch: int, linear: bool = False) -> None:
    n = caffe.NetSpec()
    scaled = {"scale": 1.0 / 255}
    n.data, n.label = L.Data(batch_size=batch, backend=P.Data.LMDB, source=source, transform_param=scaled, ntop=2)
    below = n.data
    if not linear:
        n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=20, weight_filler=XAVIER)
        n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
        n.conv2 = L.Convolution(n.pool1, kernel_size=5, num_output=10, weight_filler=XAVIER)
        n.pool2 = L.Pooling(n.conv2, kernel_size=2, stride=2, pool=P.Pooling.MAX)
        n.fc1 = L.InnerProduct(n.pool2, num_output=50, weight_filler=XAVIER)
        n.relu1 = below = L.ReLU(n.fc1, in_place=True)
    n.score = L.InnerProduct(below, num_output=10, weight_filler=XAVIER)
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    with open(name, "w") as file:  # noqa: PTH123
        file.write(str(n.to_proto()))


def train(solver: caffe.Solver, iterations: int, interval: int) -> tuple[np.ndarray, list[float]]:
    """Losses of each iteration, and accuracies at each interval, of a loop around a solver."""
    losses, accuracies = np.zeros(iterations), []
    for number in range(iterations):
        solver.step(1)
        losses[number] = solver.net.blobs["loss"].data
        if number % interval == 0:
            accuracies.append(score(solver.test_nets[0], 4))
    _, axes = plt.subplots()
    axes.plot(np.arange(iterations), losses)
    axes.twinx().plot(interval * np.arange(len(accuracies)), accuracies, "r")
    return losses, accuracies


def test_learning_lenet(examples):
    images, labels = digits()
    database("mnist_train_lmdb", images[:1500], labels[:1500])
    database("mnist_test_lmdb", images[1500:], labels[1500:])
    write_lenet("auto_train.prototxt", "mnist_train_lmdb", 64)
    write_lenet("auto_test.prototxt", "mnist_test_lmdb", 50)
    (examples / "auto_solver.prototxt").write_text(
        'train_net: "auto_train.prototxt"\ntest_net: "auto_test.prototxt"\ntest_iter: 4\ntest_interval: 500\nbase_lr: 0.01\n'
        'momentum: 0.9\nweight_decay: 0.0005\nlr_policy: "inv"\ngamma: 0.0001\npower: 0.75\nmax_iter: 10000\ndisplay: 100\n'
        'snapshot: 5000\nsnapshot_prefix: "lenet"\nsolver_mode: CPU\n'
    )
    solver = caffe.SGDSolver("auto_solver.prototxt")
    shapes = [(name, blob.data.shape) for name, blob in solver.net.blobs.items()]
    assert shapes[:3] == [("data", (64, 1, 28, 28)), ("label", (64,)), ("conv1", (64, 20, 24, 24))]
    assert [p[0].data.shape for p in solver.net.params.values()] == [(20, 1, 5, 5), (10, 20, 5, 5), (50, 160), (10, 50)]
    assert set(solver.net.forward()) == set(solver.test_nets[0].forward()) == {"loss"}
    shown = solver.net.blobs["data"].data[:8, 0].transpose(1, 0, 2).reshape(28, 8 * 28)
    plt.imshow(shown, cmap="gray")
    np.testing.assert_allclose(shown[:, 28:56], images[1] / 255, rtol=1e-6)
    np.testing.assert_array_equal(solver.net.blobs["label"].data[:8], labels[:8])
    solver.step(1)
    gradients = solver.net.params["conv1"][0].diff[:, 0].reshape(4, 5, 5, 5).transpose(0, 2, 1, 3).reshape(20, 25)
    plt.imshow(gradients, cmap="gray")
    assert gradients.std() > 0

    seen = solver.test_nets[0].blobs["data"].data.copy()
    outputs = []
    for _ in range(3):
        solver.step(1)
        solver.test_nets[0].forward(start="conv1")
        outputs.append(solver.test_nets[0].blobs["score"].data[:8].copy())
    np.testing.assert_array_equal(solver.test_nets[0].blobs["data"].data, seen)
    assert (outputs[0] != outputs[-1]).any()
    losses, accuracies = train(solver, 120, 40)
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert accuracies[-1] > 0.7


@pytest.mark.usefixtures("examples")
def test_learning_a_net_of_one_s_own():
    images, labels = digits()
    database("mnist_train_lmdb", images[:1500], labels[:1500])
    database("mnist_test_lmdb", images[1500:], labels[1500:])
    for part, batch in (("train", 64), ("test", 50)):
        write_lenet(f"custom_auto_{part}.prototxt", f"mnist_{part}_lmdb", batch, linear=True)
    s = caffe_pb2.SolverParameter()
    s.random_seed = 0xCAFFE
    s.train_net = "custom_auto_train.prototxt"
    s.test_net.append("custom_auto_test.prototxt")
    s.test_interval = 500
    s.test_iter.append(4)
    s.max_iter, s.type, s.base_lr, s.momentum, s.weight_decay = 10000, "SGD", 0.01, 0.9, 5e-4
    s.lr_policy, s.gamma, s.power = "inv", 0.0001, 0.75
    s.display, s.snapshot, s.snapshot_prefix = 1000, 5000, "custom_net"
    s.solver_mode = caffe_pb2.SolverParameter.GPU  # as there; without a GPU, the processor computes
    with open("custom_auto_solver.prototxt", "w") as file:  # noqa: PTH123
        file.write(str(s))
    losses, accuracies = train(caffe.get_solver("custom_auto_solver.prototxt"), 100, 30)
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    assert accuracies[-1] > 0.8


# ---- brewing-logreg


def write_logistic(name: str, source: str, hidden: int) -> None:
    n = caffe.NetSpec()
    n.data, n.label = L.HDF5Data(batch_size=10, source=source, ntop=2)
    n.ip1 = last = L.InnerProduct(n.data, num_output=hidden or 2, weight_filler=XAVIER)
    if hidden:
        n.relu1 = L.ReLU(n.ip1, in_place=True)
        n.ip2 = last = L.InnerProduct(n.ip1, num_output=2, weight_filler=XAVIER)
    n.accuracy = L.Accuracy(last, n.label)
    n.loss = L.SoftmaxWithLoss(last, n.label)
    with open(name, "w") as file:  # noqa: PTH123
        file.write(str(n.to_proto()))


@pytest.mark.parametrize(("hidden", "least"), [(0, 0.7), (40, 0.75)])
def test_brewing_logistic_regression(examples, hidden, least):
    x, y = sklearn.datasets.make_classification(
        n_samples=2000, n_features=4, n_redundant=0, n_informative=2, n_clusters_per_class=2, hypercube=False, random_state=0
    )
    x, xt, y, yt = sklearn.model_selection.train_test_split(x, y, random_state=0)
    with h5py.File("train.h5", "w") as file:
        file["data"], file["label"] = x, y.astype(np.float32)  # data in double precision, as there
    with h5py.File("test.h5", "w") as file:
        packed = {"compression": "gzip", "compression_opts": 1}
        file.create_dataset("data", data=xt, **packed)
        file.create_dataset("label", data=yt.astype(np.float32), **packed)
    (examples / "train.txt").write_text(f"{examples}/train.h5\n" * 2)
    (examples / "test.txt").write_text(f"{examples}/test.h5\n")
    write_logistic("train.prototxt", "train.txt", hidden)
    write_logistic("test.prototxt", "test.txt", hidden)
    s = caffe_pb2.SolverParameter(train_net="train.prototxt", test_net=["test.prototxt"], test_interval=400, test_iter=[50])
    s.max_iter, s.base_lr, s.lr_policy, s.gamma, s.stepsize, s.momentum, s.weight_decay = 800, 0.01, "step", 0.1, 500, 0.9, 5e-4
    s.display, s.snapshot, s.snapshot_prefix, s.solver_mode = 400, 800, "train", caffe_pb2.SolverParameter.CPU
    (examples / "solver.prototxt").write_text(str(s))
    caffe.set_mode_cpu()
    solver = caffe.get_solver("solver.prototxt")
    solver.solve()
    batch, accuracy = solver.test_nets[0].blobs["data"].num, 0.0
    batches = int(len(xt) / batch)
    for _ in range(batches):
        solver.test_nets[0].forward()
        accuracy += solver.test_nets[0].blobs["accuracy"].data / batches
    assert least < accuracy <= 1
    done = subprocess.run(
        [sys.executable, "-m", "caffe", "train", "-solver", "solver.prototxt"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Optimization Done." in done.stderr
    assert (examples / "train_iter_800.caffemodel").exists()
