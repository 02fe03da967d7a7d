"""Nets, weights and a training run as people have them: LeNet on MNIST against BVLC Caffe's own run, and weights of 2014."""

import gzip
import re

import lmdb
import numpy as np
import pytest
import torch

import caffe
from caffe.proto import caffe_pb2
from tests.conftest import SHARED, needs_shared

pytestmark = needs_shared
TRAIN = SHARED / "golden" / "train"


def idx(path):
    """An MNIST file as an array."""
    content = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with both MNIST databases and LeNet's prototxt, net and solver, as the recorded run had them."""
    folder = tmp_path_factory.mktemp("mnist")
    for part, name in (("train", "mnist_train_lmdb"), ("t10k", "mnist_test_lmdb")):
        images = idx(SHARED / f"data/mnist/{part}-images-idx3-ubyte.gz")
        labels = idx(SHARED / f"data/mnist/{part}-labels-idx1-ubyte.gz")
        environment = lmdb.open(str(folder / name), map_size=1 << 28)
        with environment.begin(write=True) as transaction:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                datum = caffe_pb2.Datum(channels=1, height=28, width=28, data=image.tobytes(), label=int(label))
                transaction.put(b"%08d" % number, datum.SerializeToString(), append=True)
        environment.close()
    for name in ("lenet_train_test.prototxt", "solver_traj.prototxt", "lenet_init.caffemodel"):
        (folder / name).write_bytes((TRAIN / name).read_bytes())
    return folder


@pytest.fixture
def two_threads():
    """Sums fall into other orders with other numbers of threads, and training meets near-ties in max pooling that show it."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def recorded(pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, (TRAIN / "caffe_train.log").read_text())]


def test_lenet_ends_on_caffes_weights(mnist, monkeypatch, two_threads):
    monkeypatch.chdir(mnist)
    solver = caffe.get_solver("solver_traj.prototxt")
    solver.net.copy_from("lenet_init.caffemodel")
    rows = train(solver)
    losses = recorded(r"Iteration \d+ \(.*loss = (\S+)")
    np.testing.assert_allclose([row["loss"] for row in rows[:200]], losses[:200], rtol=1e-3)
    assert rows[100]["test_accuracy"] == pytest.approx(recorded(r"Test net output #0: accuracy = (\S+)")[1], abs=0.002)
    assert_caffes_weights(solver)


def test_a_restored_run_is_the_undisturbed_run(mnist, monkeypatch, two_threads):
    monkeypatch.chdir(mnist)
    for suffix in ("caffemodel", "solverstate"):
        (mnist / f"traj_iter_100.{suffix}").write_bytes((TRAIN / f"traj_iter_100.{suffix}").read_bytes())
    solver = caffe.get_solver("solver_traj.prototxt")
    solver.restore("traj_iter_100.solverstate")
    rows = train(solver)
    np.testing.assert_allclose([row["loss"] for row in rows], recorded(r"Iteration \d+ \(.*loss = (\S+)")[100:200], rtol=1e-3)
    assert_caffes_weights(solver)


def train(solver) -> list[dict]:
    rows = []
    solver.on_metrics(rows.append)
    solver.step(200 - solver.iter)
    solver.close()
    return rows


def assert_caffes_weights(solver) -> None:
    """Every weight at 200 within 1e-3 of the largest in its blob."""
    net = caffe_pb2.NetParameter()
    net.ParseFromString((TRAIN / "traj_iter_200.caffemodel").read_bytes())
    recorded = {layer.name: layer.blobs for layer in net.layer}
    for name, blobs in solver.net.params.items():
        for blob, proto in zip(blobs, recorded[name], strict=True):
            expected = caffe.io.blobproto_to_array(proto)
            np.testing.assert_allclose(blob.data, expected.reshape(blob.data.shape), rtol=0, atol=1e-3 * np.abs(expected).max())


def test_the_lenet_of_2014_scores_what_it_scored(mnist, monkeypatch):
    monkeypatch.chdir(mnist)
    net = caffe.Net("lenet_train_test.prototxt", str(SHARED / "weights/lenet_iter_10000.caffemodel"), caffe.TEST)
    accuracy = np.mean([float(net.forward()["accuracy"]) for _ in range(100)])
    net.close()
    assert accuracy == pytest.approx(0.9905, abs=0.0002)


@pytest.mark.parametrize(
    ("name", "net", "layers"),
    [
        ("lenet_iter_5000", "lenet64", ["conv1", "conv2", "ip1", "ip2"]),
        ("lenet_iter_10000", "lenet64", ["conv1", "conv2", "ip1", "ip2"]),
        ("cifar10_quick_iter_4000", "cifarquick100", ["conv1", "conv2", "conv3", "ip1", "ip2"]),
    ],
)
def test_weights_of_2014_are_read(name, net, layers):
    net = caffe.Net(str(SHARED / f"bench/{net}.prototxt"), caffe.TRAIN)
    assert net.copy_from(SHARED / f"weights/{name}.caffemodel").copied == layers
    assert all(np.isfinite(blob.data).all() and blob.data.any() for blobs in net.params.values() for blob in blobs)
