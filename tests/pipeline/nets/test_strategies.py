"""Strategies: which layers are frozen, and that they keep their values while the others learn."""

import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.models import TEMPLATES, Last, adapted
from pipeline.nets.strategies import freeze, frozen
from tests.conftest import SHARED, needs_shared


def build(name):
    return TEMPLATES[name].built(Last(f"{TEMPLATES[name].last}_dogs", 3))


@pytest.mark.parametrize(
    ("name", "strategy", "freeze_to", "names"),
    [
        ("lenet", "full", "", []),
        ("lenet", "scratch", "", []),
        ("lenet", "last_layer", "", ["conv1", "conv2", "ip1"]),
        ("lenet", "half", "", ["conv1", "conv2"]),
        ("lenet", "full", "conv1", ["conv1"]),
        ("caffenet", "half", "", ["conv1", "conv2", "conv3", "conv4"]),
        ("resnet18", "full", "bn_conv1", ["conv1", "bn_conv1"]),
    ],
)
def test_a_strategy_freezes_the_layers_up_to_its_limit(name, strategy, freeze_to, names):
    made = build(name)
    assert frozen(made, strategy, freeze_to) == names


def test_half_of_a_residual_net_ends_before_a_convolution():
    made = build("resnet50")
    names = frozen(made, "half", "")
    convolutions = [layer.name for layer in made.layers if layer.type in ("Convolution", "InnerProduct")]
    assert names[-1].startswith("scale")
    assert sum(name in convolutions for name in names) == len(convolutions) // 2


@pytest.mark.parametrize(
    ("strategy", "freeze_to"), [("half", ""), ("full", "inception_4b/1x1"), ("full", "inception_5b/pool_proj")]
)
def test_layers_that_are_not_ancestors_of_freeze_to_are_learned(strategy, freeze_to):
    made = build("googlenet")
    names = frozen(made, strategy, freeze_to)
    assert not any(name.startswith("loss") for name in names)
    assert {"conv1/7x7_s2", "inception_3a/5x5", "inception_4a/pool_proj"} <= set(names)
    assert ("inception_4b/3x3" in names) == (freeze_to != "inception_4b/1x1")


def test_half_of_googlenet_is_counted_without_its_auxiliary_heads():
    made = build("googlenet")
    convolutions = {layer.name for layer in made.layers if layer.type == "Convolution"}
    assert len(convolutions & set(frozen(made, "half", ""))) == (57 + 1) // 2


@pytest.mark.parametrize(("name", "classifier"), [("lenet", "ip2_dogs"), ("googlenet", "loss1/classifier_dogs")])
def test_freezing_a_classifier_is_refused(name, classifier):
    with pytest.raises(InputError, match=f'freeze_to: "{classifier}", but a classifier is learned.*last_layer'):
        frozen(build(name), "full", classifier)


@needs_shared
def test_strategy_last_layer_learns_every_head_of_googlenet():
    net = adapted.read(SHARED / "zoo/bvlc/models/bvlc_googlenet/train_val.prototxt")
    made = net.built(Last("loss3/classifier_dogs", 3))
    assert made.classifiers == {f"loss{number}/classifier_dogs" for number in (1, 2, 3)}
    assert not made.classifiers & set(frozen(made, "last_layer", ""))


def test_an_unknown_layer_is_named():
    made = build("lenet")
    with pytest.raises(InputError, match=r'freeze_to: "conv3".*conv1, conv2, ip1'):
        frozen(made, "full", "conv3")


@pytest.mark.parametrize(("name", "strategy"), [("cifar10_quick", "last_layer"), ("cifar10_quick", "half"), ("resnet18", "half")])
def test_frozen_layers_keep_their_values_and_the_others_learn(name, strategy, tmp_path):
    made = build(name)
    names = frozen(made, strategy, "")
    side = 32 if name == "cifar10_quick" else 224
    freeze(made.layers, names, (4, 3, side, side))
    net = caffe_pb2.NetParameter()
    for top, shape, filler in (("data", [4, 3, side, side], {"type": "gaussian", "std": 1}), ("label", [4], {"value": 1})):
        layer = net.layer.add(name=top, type="DummyData", top=[top])
        layer.dummy_data_param.shape.add(dim=shape)
        layer.dummy_data_param.data_filler.add(**filler)
    net.layer.extend(made.layers)
    net.layer.add(name="loss", type="SoftmaxWithLoss", bottom=[made.heads[-1][0], "label"], top=["loss"])
    caffe.write_prototxt(tmp_path / "net.prototxt", net)
    solver = f'net: "{tmp_path}/net.prototxt" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.01 max_iter: 2'
    (tmp_path / "solver.prototxt").write_text(f"{solver} random_seed: 1 solver_mode: CPU")
    trained = caffe.get_solver(str(tmp_path / "solver.prototxt"))
    for layer, blobs in trained.net.params.items():
        if layer.startswith("bn"):  # statistics as after training: variance 1, seen once
            blobs[1].data[...] = blobs[2].data[...] = 1
    before = {layer: [blob.data.copy() for blob in blobs] for layer, blobs in trained.net.params.items()}
    trained.step(2)
    changed = {
        layer
        for layer, blobs in trained.net.params.items()
        if any(not np.array_equal(blob.data, old) for blob, old in zip(blobs, before[layer], strict=True))
    }
    assert changed == set(before) - set(names)
