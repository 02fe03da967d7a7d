"""What BVLC's notebooks call, to their end: those that train CaffeNet, here thin and from random weights; in our own words."""

import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import caffe
from caffe import layers as L
from caffe.proto import caffe_pb2
from tests.tutorials.thin_caffenet import FROZEN, LEARNED, add_layers, deploy, photograph


def written(text: object) -> str:
    """The name of a temporary file, which has no suffix, with this text."""
    with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as file:
        file.write(str(text))
        return file.name


# ---- 02-fine-tuning


def style_net(train: bool, learn_all: bool = False, subset: str = "") -> str:
    """A net of five styles, on a list of images."""
    n = caffe.NetSpec()
    transform = {"mirror": train, "crop_size": 227, "mean_file": "imagenet_mean.binaryproto"}
    source = f"{subset or ('train' if train else 'test')}.txt"
    n.data, n.label = L.ImageData(transform_param=transform, source=source, batch_size=10, new_height=256, new_width=256, ntop=2)
    below = add_layers(n, LEARNED if learn_all else FROZEN, drop=train)
    filler = {"type": "gaussian", "std": 0.01}
    setattr(n, "fc8_flickr", scores := L.InnerProduct(below, num_output=5, param=LEARNED, weight_filler=filler))  # noqa: B010
    if not train:
        n.probs = L.Softmax(scores)
    n.loss, n.acc = L.SoftmaxWithLoss(scores, n.label), L.Accuracy(scores, n.label)
    return written(n.to_proto())


def style_solver(net: str) -> caffe.Solver:
    s = caffe_pb2.SolverParameter(train_net=net, iter_size=1, max_iter=100000, type="SGD", base_lr=0.001, lr_policy="step")
    s.gamma, s.stepsize, s.momentum, s.weight_decay, s.display, s.snapshot = 0.1, 20000, 0.9, 5e-4, 1000, 10000
    s.snapshot_prefix, s.solver_mode = "style", caffe_pb2.SolverParameter.GPU
    return caffe.get_solver(written(s))


def run_solvers(iterations: int, solvers: dict[str, caffe.Solver]) -> tuple[dict, dict[str, str]]:
    """Losses of each iteration, and files of the final weights, of solvers that are stepped in turn."""
    losses = {name: np.zeros(iterations) for name in solvers}
    for number in range(iterations):
        for name, solver in solvers.items():
            solver.step(1)
            losses[name][number], accuracy = (solver.net.blobs[blob].data.copy() for blob in ("loss", "acc"))
            assert 0 <= accuracy <= 1
    folder, weights = tempfile.mkdtemp(dir="."), {}
    for name, solver in solvers.items():
        weights[name] = f"{folder}/weights.{name}.caffemodel"
        solver.net.save(weights[name])
    return losses, weights


def accuracy_of(weights: str) -> tuple[caffe.Net, float]:
    net = caffe.Net(style_net(train=False), weights, caffe.TEST)
    return net, sum(float(net.forward()["acc"]) for _ in range(2)) / 2


def test_fine_tuning(examples):
    _, weights = deploy(examples)
    for part in ("train", "test"):
        names = [photograph(examples / f"{part}{number}.jpg", 35 * (number % 5), seed=number) for number in range(20)]
        (examples / f"{part}.txt").write_text("".join(f"{name} {number % 5}\n" for number, name in enumerate(names)))
    mean = caffe.io.array_to_blobproto(np.full((1, 3, 256, 256), 100, np.float32))
    (examples / "imagenet_mean.binaryproto").write_bytes(mean.SerializeToString())

    n = caffe.NetSpec()
    n.data = L.DummyData(shape={"dim": [1, 3, 227, 227]})
    n.fc8 = L.InnerProduct(add_layers(n, drop=False), num_output=1000)
    n.probs = L.Softmax(n.fc8)
    imagenet_net = caffe.Net(written(n.to_proto()), weights, caffe.TEST)
    untrained = caffe.Net(style_net(train=False, subset="train"), weights, caffe.TEST)
    untrained.forward()
    image = untrained.blobs["data"].data[8].copy()
    assert np.array(untrained.blobs["label"].data, dtype=np.int32)[8] == 3
    shown = np.require(np.round((image[::-1].transpose(1, 2, 0) + 100).clip(0, 255)), dtype=np.uint8)
    plt.imshow(shown)
    for net in (imagenet_net, untrained):
        net.blobs["data"].data[0, ...] = image
        probabilities = net.forward(start="conv1")["probs"][0]
        assert probabilities[(-probabilities).argsort()[:5]].sum() <= 1.0001
    difference = untrained.blobs["fc7"].data[0] - imagenet_net.blobs["fc7"].data[0]
    assert (difference**2).sum() < 1e-8 * (imagenet_net.blobs["fc7"].data[0] ** 2).sum()
    del untrained

    pretrained, scratch = (style_solver(style_net(train=True)) for _ in range(2))
    pretrained.net.copy_from(weights)
    before = {name: p[0].data.copy() for name, p in pretrained.net.params.items()}
    losses, made = run_solvers(20, {"pretrained": pretrained, "scratch": scratch})
    changed = {name for name, p in pretrained.net.params.items() if (p[0].data != before[name]).any()}
    assert changed == {"fc8_flickr"}
    assert losses["pretrained"][-3:].mean() < losses["pretrained"][0]
    plt.plot(np.vstack([losses["pretrained"], losses["scratch"]]).T)
    del pretrained, scratch
    net, accuracy = accuracy_of(made["pretrained"])
    assert accuracy > 0.4  # of five classes
    assert accuracy_of(made["scratch"])[1] <= 1

    whole = style_net(train=True, learn_all=True)
    end_to_end = style_solver(whole)
    end_to_end.net.copy_from(made["pretrained"])
    before = {name: p[0].data.copy() for name, p in end_to_end.net.params.items()}
    _, tuned = run_solvers(4, {"end-to-end": end_to_end})
    assert all((p[0].data != before[name]).any() for name, p in end_to_end.net.params.items())
    net, _ = accuracy_of(tuned["end-to-end"])
    net.blobs["data"].data[0, ...] = image
    assert net.forward(start="conv1")["probs"][0].shape == (5,)


# ---- pascal-multilabel-with-datalayer

DATA_LAYER = '''
import numpy as np
import caffe


class Multilabel(caffe.Layer):
    """Images and 0/1 vectors of a split, in order."""

    def setup(self, bottom, top):
        self.top_names = ["data", "label"]
        params = eval(self.param_str)
        self.images, self.labels = (np.load(f"{params['root']}/{params['split']}_{what}.npy") for what in ("images", "labels"))
        self.count, self.next = params["batch_size"], 0
        top[0].reshape(self.count, 3, *params["im_shape"])
        top[1].reshape(self.count, 20)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        for number in range(self.count):
            top[0].data[number, ...] = self.images[self.next]
            top[1].data[number, ...] = self.labels[self.next]
            self.next = (self.next + 1) % len(self.images)

    def backward(self, top, propagate_down, bottom):
        pass
'''


def share_right(net: caffe.Net, batches: int) -> float:
    """Share of the entries of all label vectors that are right: 1 less Hamming's distance."""
    right = 0.0
    for _ in range(batches):
        net.forward()
        right += ((net.blobs["score"].data > 0) == net.blobs["label"].data).mean() / batches
    return right


def test_multilabel_with_a_data_layer(examples, monkeypatch):
    _, weights = deploy(examples)
    (examples / "layers").mkdir()
    (examples / "layers/multilabel_layers.py").write_text(DATA_LAYER)
    monkeypatch.setattr(sys, "path", [*sys.path, "layers"])
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        labels = draw.uniform(size=(16, 20)) < 0.1
        np.save(f"{split}_labels.npy", labels)
        np.save(f"{split}_images.npy", draw.uniform(-100, 100, (16, 3, 227, 227)).astype(np.float32))
        n, params = caffe.NetSpec(), {"batch_size": 8, "im_shape": [227, 227], "split": split, "root": "."}
        n.data, n.label = L.Python(module="multilabel_layers", layer="Multilabel", ntop=2, param_str=str(params))
        n.score = L.InnerProduct(add_layers(n, LEARNED), num_output=20)
        n.loss = L.SigmoidCrossEntropyLoss(n.score, n.label)
        (examples / f"{split}net.prototxt").write_text(str(n.to_proto()))
    settings = {
        **{"base_lr": "0.0001", "momentum": "0.9", "test_iter": "1", "test_interval": "250", "display": "1", "snapshot": "2500"},
        **{"snapshot_prefix": '"snapshot"', "lr_policy": '"fixed"', "gamma": "0.1", "weight_decay": "0.0005"},
        **{"train_net": '"trainnet.prototxt"', "test_net": '"valnet.prototxt"', "max_iter": "100000", "iter_size": "1"},
        **{"test_initialization": "false", "average_loss": "25"},
    }
    (examples / "solver.prototxt").write_text("".join(f"{name}: {value}\n" for name, value in sorted(settings.items())))
    solver = caffe.SGDSolver("solver.prototxt")
    solver.net.copy_from(weights)
    solver.test_nets[0].share_with(solver.net)
    before = float(solver.net.forward()["loss"])
    solver.step(10)
    np.testing.assert_array_equal(solver.test_nets[0].params["conv1"][0].data, solver.net.params["conv1"][0].data)
    assert float(solver.net.forward()["loss"]) < before
    assert solver.net.blobs["label"].data[0].astype(int).tolist() == np.load("train_labels.npy")[8].tolist()
    assert 0.5 < share_right(solver.test_nets[0], 2) <= 1
