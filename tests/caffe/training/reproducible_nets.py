"""Three nets in `numerics: reproducible`; as a module, trains the one in the working folder and prints a digest of its weights.

python -m tests.caffe.training.reproducible_nets cpu|gpu ITERATIONS [STATE]
"""

import hashlib
import sys
from pathlib import Path

import lmdb
import numpy as np

import caffe
from caffe import layers as L
from caffe import params as P
from caffe.proto import caffe_pb2

WEIGHTS = {"weight_filler": {"type": "msra"}}


def write_database(path: str, shape: tuple[int, int, int], count: int = 96) -> None:
    """Images of noise over a pattern for each of 10 classes, bytes."""
    draw = np.random.RandomState(1)  # whose numbers NumPy has frozen
    patterns = draw.randint(0, 256, (10, *shape))
    database = lmdb.open(path, map_size=1 << 26)
    with database.begin(write=True) as transaction:
        for number in range(count):
            noise = draw.randint(0, 256, shape)
            pixels = ((patterns[number % 10] + noise) // 2).astype(np.uint8)
            datum = caffe_pb2.Datum(channels=shape[0], height=shape[1], width=shape[2], data=pixels.tobytes(), label=number % 10)
            transaction.put(f"{number:08d}".encode(), datum.SerializeToString())
    database.close()


def data(n, batch, **transform):
    n.data, n.label = L.Data(
        source="db", backend=P.Data.LMDB, batch_size=batch, ntop=2, transform_param={"scale": 1 / 256, **transform}
    )
    return n.data


def lenet(n, batch):
    x = data(n, batch)
    for outputs in (20, 50):
        x = L.Pooling(L.Convolution(x, num_output=outputs, kernel_size=5, **WEIGHTS), pool=P.Pooling.MAX, kernel_size=2, stride=2)
    x = L.Dropout(L.ReLU(L.InnerProduct(x, num_output=500, **WEIGHTS), in_place=True), in_place=True)
    return L.InnerProduct(x, num_output=10, weight_filler={"type": "xavier"})


def cifar10(n, batch):
    """cifar10_full's layers, with random crops and mirrors."""
    x = L.Convolution(data(n, batch, crop_size=28, mirror=True), num_output=32, kernel_size=5, pad=2, **WEIGHTS)
    x = L.LRN(L.ReLU(L.Pooling(x, pool=P.Pooling.MAX, kernel_size=3, stride=2), in_place=True), local_size=3, alpha=5e-5)
    for outputs in (32, 64):
        x = L.ReLU(L.Convolution(x, num_output=outputs, kernel_size=5, pad=2, **WEIGHTS), in_place=True)
        x = L.Pooling(x, pool=P.Pooling.AVE, kernel_size=3, stride=2)
    return L.InnerProduct(x, num_output=10, **WEIGHTS)


def resnet(n, batch):
    def normalized(x, outputs, stride=1):
        x = L.Convolution(x, num_output=outputs, kernel_size=3, stride=stride, pad=1, bias_term=False, **WEIGHTS)
        return L.Scale(L.BatchNorm(x), bias_term=True)

    x = L.ReLU(normalized(data(n, batch, mirror=True), 16), in_place=True)
    for outputs, stride in ((16, 1), (32, 2)):
        shortcut = x if stride == 1 else normalized(x, outputs, stride)
        x = normalized(L.ReLU(normalized(x, outputs, stride), in_place=True), outputs)
        x = L.ReLU(L.Eltwise(shortcut, x), in_place=True)
    return L.InnerProduct(L.Pooling(x, pool=P.Pooling.AVE, global_pooling=True), num_output=10, **WEIGHTS)


NETS = {
    "lenet": (lenet, (1, 28, 28), 'type: "SGD" base_lr: 0.01 momentum: 0.9 lr_policy: "inv" gamma: 0.001 power: 0.75'),
    "cifar10": (cifar10, (3, 32, 32), 'type: "Nesterov" base_lr: 0.01 momentum: 0.9 lr_policy: "poly" power: 1.5'),
    "resnet": (resnet, (3, 16, 16), 'type: "Adam" base_lr: 0.001 momentum: 0.9 momentum2: 0.999 lr_policy: "exp" gamma: 0.99'),
}


def write(name: str, iterations: int, batch: int = 16, more: str = "") -> None:
    """Write net.prototxt, solver.prototxt and db to the working folder."""
    make, shape, solver = NETS[name]
    n = caffe.NetSpec()
    n.score = make(n, batch)
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    Path("net.prototxt").write_text(f'name: "{name}"\n{n.to_proto()}')
    Path("solver.prototxt").write_text(
        f'net: "net.prototxt" {solver} weight_decay: 0.0005 max_iter: {iterations} snapshot_prefix: "run"\n'
        f'random_seed: 3 solver_mode: CPU numerics: "reproducible" {more}\n'
    )
    write_database("db", shape)


def digest(net: caffe.Net) -> str:
    """SHA-256 of all parameters."""
    blobs = [blob.data for blobs in net.params.values() for blob in blobs]
    return hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in blobs)).hexdigest()


if __name__ == "__main__":
    device, iterations, *state = sys.argv[1:]
    if device == "gpu":
        caffe.set_mode_gpu()
    solver = caffe.get_solver("solver.prototxt")
    if state:
        solver.restore(state[0])
    solver.step(int(iterations))
    print(solver.iter, digest(solver.net))
    solver.close()
