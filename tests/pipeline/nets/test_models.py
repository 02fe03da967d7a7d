"""The templates compared with the published definitions."""

import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.nets.models import TEMPLATES, Last, siamese
from tests.conftest import SHARED, needs_shared

TRAINED = {
    "lenet": ("bvlc/examples/mnist/lenet_train_test.prototxt", 10),
    "cifar10_quick": ("bvlc/examples/cifar10/cifar10_quick_train_test.prototxt", 10),
    "cifar10_full": ("bvlc/examples/cifar10/cifar10_full_train_test.prototxt", 10),
    "alexnet": ("bvlc/models/bvlc_alexnet/train_val.prototxt", 1000),
    "caffenet": ("bvlc/models/bvlc_reference_caffenet/train_val.prototxt", 1000),
    "googlenet": ("bvlc/models/bvlc_googlenet/train_val.prototxt", 1000),
    "squeezenet": ("squeezenet_v1.1/train_val.prototxt", 1000),
}
"""Nets that were published as they are trained, with fillers and learning rates."""
DEPLOYED = {
    "mnist_siamese": "bvlc/examples/siamese/mnist_siamese.prototxt",
    "vgg16": "vgg16/deploy.prototxt",
    "resnet50": "resnet50/deploy.prototxt",
    "resnet152": "resnet152/deploy.prototxt",
    "mobilenet": "mobilenet/deploy.prototxt",
    "mobilenet_v2": "mobilenet_v2/deploy.prototxt",
}
"""Nets of which only the deploy prototxt was published."""
NAMES = {"dropout6": "drop6", "dropout7": "drop7", "classifier": "fc8"}
"""Names of layers in the published vgg16 prototxt → names in the authors' weights, which the template uses."""
PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet101": 44_549_160, "vgg19": 143_667_240}
"""Numbers of parameters, from the literature, of the nets without a published definition to compare with."""


def net_of(name, classes, *shape):
    """A template's net from its data to its scores."""
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": list(shape)})
    TEMPLATES[name].body(n, Last(TEMPLATES[name].last, classes))
    return n.to_proto()


def body(net, deployed=False):
    """Layers between data and loss without fields that are default or of no effect; `deployed`: nor those for training."""
    layers = []
    for layer in net.layer:
        if layer.type in ("Data", "Input", "Softmax", "SoftmaxWithLoss", "Accuracy"):
            continue
        copy = type(layer)()
        copy.CopyFrom(layer)
        copy.ClearField("include")
        convolution = copy.convolution_param
        convolution.ClearField("engine")
        for field, default in (("stride", [1]), ("pad", [0])):
            if list(getattr(convolution, field)) == default:
                convolution.ClearField(field)
        if convolution.group == 1:
            convolution.ClearField("group")
        for name in ("convolution_param", "inner_product_param"):
            param = getattr(copy, name)
            if param.bias_term:
                param.ClearField("bias_term")
            if param.bias_filler.value == 0:
                param.bias_filler.Clear()
            if deployed:
                param.ClearField("weight_filler")
                param.ClearField("bias_filler")
        for spec in copy.param:
            spec.lr_mult, spec.decay_mult = spec.lr_mult, spec.decay_mult
        if deployed:
            copy.ClearField("param")
            copy.ClearField("batch_norm_param")
            copy.scale_param.ClearField("filler")
            copy.scale_param.ClearField("bias_filler")
            if copy.eltwise_param.operation == caffe.params.Eltwise.SUM:
                copy.eltwise_param.Clear()
        for name in ("convolution_param", "inner_product_param", "eltwise_param", "scale_param"):
            getattr(copy, name).SetInParent()
        layers.append(copy)
    return layers


@needs_shared
@pytest.mark.parametrize("name", TRAINED)
def test_a_template_equals_the_published_net(name):
    path, classes = TRAINED[name]
    ours, theirs = body(net_of(name, classes, 1, 1, 227, 227)), body(caffe.read_net(SHARED / "zoo" / path))
    assert [layer.name for layer in ours] == [layer.name for layer in theirs]
    for mine, published in zip(ours, theirs, strict=True):
        assert mine == published


@needs_shared
@pytest.mark.parametrize("name", DEPLOYED)
def test_a_template_equals_the_published_deploy_net(name):
    net = caffe.read_net(SHARED / "zoo" / DEPLOYED[name])
    if name == "vgg16":
        for layer in net.layer:
            layer.name = NAMES.get(layer.name, layer.name)
            for blobs in (layer.bottom, layer.top):
                blobs[:] = [NAMES.get(blob, blob) for blob in blobs]
    ours, theirs = body(net_of(name, 2 if name == "mnist_siamese" else 1000, 1, 3, 224, 224), True), body(net, True)
    assert [layer.name for layer in ours] == [layer.name for layer in theirs]
    for mine, published in zip(ours, theirs, strict=True):
        assert mine == published


@needs_shared
@pytest.mark.parametrize(
    "path", ["bvlc/examples/siamese/mnist_siamese_train_test.prototxt", "v1_format/siamese__mnist_siamese_train_test.prototxt"]
)
def test_the_siamese_template_equals_the_published_net(path):
    template = TEMPLATES["mnist_siamese"]
    built = template.built(Last(template.last, 2))
    layers = [*siamese.paired(built.layers, 1), *siamese.compared(template.last, training=True)]
    net = caffe.read_net(SHARED / "zoo" / path)
    ours, theirs = body(caffe_pb2.NetParameter(layer=layers)), body(net)
    assert [layer.name for layer in ours] == [layer.name for layer in theirs]
    for mine, published in zip(ours, theirs, strict=True):
        assert mine == published


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_template_has_as_many_parameters_as_in_the_literature(name, write):
    net_param = net_of(name, 1000, 1, 3, 224, 224)
    for layer in net_param.layer:  # filling them takes longer than all the rest
        layer.convolution_param.ClearField("weight_filler")
        layer.inner_product_param.ClearField("weight_filler")
    path = write("net.prototxt", "")
    caffe.write_prototxt(path, net_param)
    net = caffe.Net(path, caffe.TEST)
    kinds = dict(zip(net._layer_names, (layer.type for layer in net.layers), strict=True))
    learned = sum(blob.data.size for layer, blobs in net.params.items() if kinds[layer] != "BatchNorm" for blob in blobs)
    assert learned == PARAMETERS[name]
    assert list(net.blobs[TEMPLATES[name].last].shape) == [1, 1000]


def test_every_template_is_compared_with_something():
    assert {*TRAINED, *DEPLOYED, *PARAMETERS} == set(TEMPLATES)


def test_googlenets_auxiliary_heads_are_renamed_too_and_used_only_in_training():
    template, last = TEMPLATES["googlenet"], Last("loss3/classifier_cats", 7, 10)
    built = template.built(last)
    assert built.heads == [("loss1/classifier_cats", 0.3), ("loss2/classifier_cats", 0.3), ("loss3/classifier_cats", 1.0)]
    assert built.classifiers == {blob for blob, _ in built.heads}
    heads = {layer.name: layer for layer in built.layers if layer.name in built.classifiers}
    for layer in heads.values():
        assert (layer.inner_product_param.num_output, [spec.lr_mult for spec in layer.param]) == (7, [10, 20])
    deployed = template.built(last, deploy=True)
    assert (deployed.heads, deployed.classifiers) == ([(last.name, 1.0)], {last.name})
    assert not any(layer.name.startswith(("loss1", "loss2")) for layer in deployed.layers)
    assert len(deployed.layers) == len(built.layers) - 2 * 7


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_layer_takes_name_classes_and_learning_rate(name):
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": [1, 3, 227, 227]})
    TEMPLATES[name].body(n, Last("last_cats", 7, 10))
    (layer,) = (layer for layer in n.to_proto().layer if layer.name == "last_cats")
    outputs = layer.inner_product_param.num_output or layer.convolution_param.num_output
    assert (list(layer.top), outputs) == (["last_cats"], 7)
    assert [spec.lr_mult for spec in layer.param] == [10, 10 if name == "squeezenet" else 20]
