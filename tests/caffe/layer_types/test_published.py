"""LeNet's training on MNIST compared with BVLC Caffe's own log, and weights that Caffe's users trained in 2014."""

import gzip
import re

import lmdb
import numpy as np
import pytest

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


def recorded(pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, (TRAIN / "caffe_train.log").read_text())]


def losses() -> list[float]:
    """The loss that BVLC Caffe logged in each iteration."""
    return recorded(r"Iteration \d+ \(.*loss = (\S+)")


# A training of some hundred iterations is chaotic: of two almost equal values in a max-pooling window, the last bit of a sum
# decides which is larger, and processors, numbers of threads and libraries round differently. So the first iterations are
# compared closely, from the start and from Caffe's own snapshot, and the rest by how well the net classifies.


in_full_precision = pytest.mark.parametrize(
    "numerics", ["fp32", pytest.param("reproducible", marks=pytest.mark.long)], indirect=True
)


@in_full_precision
@pytest.mark.usefixtures("numerics")
def test_lenet_training_matches_the_recorded_log(mnist, monkeypatch):
    monkeypatch.chdir(mnist)
    solver = caffe.get_solver("solver_traj.prototxt")
    solver.net.copy_from("lenet_init.caffemodel")
    rows = []
    solver.on_metrics(rows.append)
    solver.solve()
    solver.close()
    np.testing.assert_allclose([row["loss"] for row in rows[:50]], losses()[:50], rtol=1e-3)
    accuracies = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    np.testing.assert_allclose(accuracies, recorded(r"Test net output #0: accuracy = (\S+)"), rtol=0, atol=0.004)


@in_full_precision
@pytest.mark.usefixtures("numerics")
def test_training_resumed_from_bvlc_caffes_snapshot_matches_its_log(mnist, monkeypatch):
    monkeypatch.chdir(mnist)
    for suffix in ("caffemodel", "solverstate"):
        (mnist / f"traj_iter_100.{suffix}").write_bytes((TRAIN / f"traj_iter_100.{suffix}").read_bytes())
    solver = caffe.get_solver("solver_traj.prototxt")
    solver.restore("traj_iter_100.solverstate")
    rows = []
    solver.on_metrics(rows.append)
    solver.step(20)
    solver.close()
    np.testing.assert_allclose([row["loss"] for row in rows], losses()[100:120], rtol=1e-4)


def test_the_lenet_of_2014_reaches_its_accuracy(mnist, monkeypatch):
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
