"""Fully convolutional nets: score maps of image size, weights of classifiers, and training on pairs of databases."""

from pathlib import Path

import lmdb
import numpy as np
import pytest

import caffe
from caffe import layers as L
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.models import fcn
from pipeline.nets.models.blocks import rates
from pipeline.nets.segmentation import RATES, Pairs, started, write
from pipeline.options.training import SegmentationOptions

OFFSETS = {"fcn32s": [19], "fcn16s": [5, 27], "fcn8s": [5, 9, 31], "fcn_alexnet": [18]}
"""Crop offsets of the authors' published nets."""


@pytest.mark.parametrize("name", fcn.NETS)
def test_the_score_map_has_the_size_of_its_image(name, write):
    made = fcn.layers(name, 21)
    assert [layer.crop_param.offset[0] for layer in made if layer.type == "Crop"] == OFFSETS[name]
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1, 3, 37, 50]})
    definition = n.to_proto()
    definition.layer.extend(made)
    path = write("net.prototxt", "")
    caffe.write_prototxt(path, definition)
    net = caffe.Net(path, caffe.TEST)
    assert tuple(net.blobs["score"].shape) == (1, 21, 37, 50)
    net.blobs["data"].reshape(1, 3, 90, 64)
    net.reshape()
    assert tuple(net.blobs["score"].shape) == (1, 21, 90, 64)
    net.close()


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (63, 32), (64, 32)])
def test_upsampling_interpolates_each_class_separately(kernel, stride, write):
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1, 2, 4, 4]})
    shape = {"num_output": 2, "kernel_size": kernel, "stride": stride, "bias_term": False}
    n.up = L.Deconvolution(n.data, convolution_param=shape)
    path = write("net.prototxt", "")
    caffe.write_prototxt(path, n.to_proto())
    net = caffe.Net(path, caffe.TEST)
    fcn.set_upsampling(net, ["up"])
    net.blobs["data"].data[0] = [np.full((4, 4), 3), np.tile(np.arange(4), (4, 1))]
    net.forward()
    inner = net.blobs["up"].data[0, :, kernel // 2 : -kernel // 2, kernel // 2 : -kernel // 2]
    net.close()
    np.testing.assert_allclose(inner[0], 3, rtol=1e-5)
    np.testing.assert_allclose(np.diff(inner[1]), 1 / stride, rtol=1e-3)


def tiny(n, outputs):
    """A fully convolutional net with few weights."""
    n.conv1 = L.Convolution(n.data, num_output=4, kernel_size=3, pad=10, param=rates())
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2)
    n.fc6 = L.Convolution(n.pool1, num_output=5, kernel_size=3, param=rates())
    n.score_fr = L.Convolution(n.fc6, num_output=outputs, kernel_size=1, param=rates())
    n.upscore = L.Deconvolution(
        n.score_fr,
        convolution_param={"num_output": outputs, "kernel_size": 4, "stride": 2, "bias_term": False},
        param=[{"lr_mult": 0}],
    )
    n.score = fcn.crop(n.upscore, n.data)


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Three images of different sizes and their label maps in images/ and labels/, classifier weights, and a tiny net."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(fcn.NETS, "tiny", tiny)
    monkeypatch.setitem(RATES, "tiny", 1e-5)
    rng = np.random.default_rng(0)
    for name, channels, values in (("images", 3, 256), ("labels", 1, 3)):
        Path(name).mkdir()
        with lmdb.open(name, map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            for number, (height, width) in enumerate([(12, 20), (15, 9), (8, 8)]):
                pixels = rng.integers(0, values, channels * height * width, np.uint8)
                pixels[:4] = pixels[:4] if name == "images" else 255
                datum = caffe_pb2.Datum(channels=channels, height=height, width=width, data=pixels.tobytes())
                transaction.put(b"%08d" % number, datum.SerializeToString())
    net = caffe_pb2.NetParameter()
    for layer, shapes in {"conv1": [(4, 3, 3, 3), (4,)], "fc6": [(5, 36), (5,)], "fc8": [(10, 5), (10,)]}.items():
        stored = net.layer.add(name=layer, type="InnerProduct")
        for shape in shapes:
            stored.blobs.add(shape={"dim": shape}, data=rng.standard_normal(np.prod(shape)) / 10)
    Path("classifier.caffemodel").write_bytes(net.SerializeToString())
    return Pairs.read(Path("images"), Path("labels"))


def test_a_net_is_trained_on_pairs_starting_from_a_classifiers_weights(pairs):
    options = SegmentationOptions(
        model="tiny",
        classes=3,
        weights=Path("classifier.caffemodel"),
        mean=[100, 110, 120],
        solver={"max_iter": 4, "test_interval": 2},
    )
    assert write(options, pairs, pairs, Path("made")) == ["score_fr"]
    solver = caffe.get_solver("made/solver.prototxt")
    assert (solver.param.test_iter[0], solver.param.momentum) == (3, pytest.approx(0.99))
    stored = caffe_pb2.NetParameter.FromString(Path("classifier.caffemodel").read_bytes())
    np.testing.assert_array_equal(solver.net.params["fc6"][0].data.ravel(), np.float32(stored.layer[1].blobs[0].data))
    upsampling = solver.net.params["upscore"][0].data.copy()
    assert upsampling[0, 0].any()
    assert not upsampling[0, 1].any()
    solver.solve()
    np.testing.assert_array_equal(solver.net.params["upscore"][0].data, upsampling)
    assert solver.net.params["score_fr"][0].data.any()
    (test,) = solver.test_nets
    test.forward()
    predicted, label = test.blobs["score"].data[0].argmax(0), test.blobs["label"].data[0, 0]
    assert predicted.shape == label.shape
    assert (label == 255).sum() >= 4
    assert test.blobs["accuracy"].data == pytest.approx((predicted == label)[label != 255].mean())
    solver.close()
    assert Path("made_snapshots/tiny_iter_4.caffemodel").exists()
    deploy = caffe.Net("made/deploy.prototxt", "made_snapshots/tiny_iter_4.caffemodel", caffe.TEST)
    assert tuple(deploy.blobs["score"].shape) == (1, 3, 500, 500)


def test_the_score_layer_of_another_fcn_is_copied_if_the_classes_match(pairs):
    options = SegmentationOptions(model="tiny", classes=3, weights=Path("classifier.caffemodel"), solver={"max_iter": 4})
    write(options, pairs, pairs, Path("made"))
    for classes, anew in ((3, []), (4, ["score_fr"])):
        again = SegmentationOptions(model="tiny", classes=classes, weights=Path("made/start.caffemodel"))
        assert write(again, pairs, pairs, Path("again")) == anew
    lines = Path("again/solver.prototxt").read_text().splitlines()
    assert lines[lines.index("max_iter: 36") - 1] == "# 12 epochs of 3 iterations"


def test_weights_of_another_net_are_named(pairs):
    definition = caffe_pb2.NetParameter(layer=[caffe_pb2.LayerParameter(name="data", type="Input", top=["data"])])
    definition.layer[0].input_param.shape.add(dim=[1, 3, 9, 9])
    definition.layer.extend(fcn.layers("tiny", 3))
    definition.layer[3].convolution_param.kernel_size[:] = [5]
    with pytest.raises(InputError) as raised:
        started(definition, Path("classifier.caffemodel"))
    assert (raised.value.found, raised.value.expected) == ("180 and 5 values for fc6", "the net has 500 and 5")


COMMAND = ("pipeline.nets.segmentation", "made", "--model", "fcn_alexnet", "--classes", 3, "--weights", "classifier.caffemodel")


def test_pairs_with_different_keys_or_sizes_are_refused(pairs, fails):
    with lmdb.open("labels", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.delete(b"00000002")
    both = ("--train", "images", "labels", "--val", "images", "labels")
    fails(["labels: other keys than images has, such as 00000002"], *COMMAND, *both, leaves=("lock.mdb",))
    both = ("--train", "images", "images", "--val", "images", "images")
    fails(["images: the first map has shape (3, 12, 20), but its image is 12 × 20 pixels"], *COMMAND, *both, leaves=("lock.mdb",))
    missing = ("--train", "images", "nowhere", "--val", "images", "labels")
    fails(["nowhere: no such database"], *COMMAND, *missing, leaves=("lock.mdb",))


def test_invalid_weights_or_mean_values_are_refused(pairs, fails):
    both = ("--train", "images", "labels", "--val", "images", "labels")
    Path("classifier.caffemodel").write_text("none")
    fails(["classifier.caffemodel: no weights"], *COMMAND, *both, leaves=("lock.mdb",))
    fails(["--mean: 2 values"], *COMMAND, *both, "--mean", 1, 2, leaves=("lock.mdb",))
