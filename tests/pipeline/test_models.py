"""The templates against the published definitions."""

import pytest

import caffe
from pipeline.models import TEMPLATES, Last
from tests.conftest import SHARED, needs_shared

PUBLISHED = {
    "lenet": ("bvlc/examples/mnist/lenet_train_test.prototxt", 10),
    "cifar10_quick": ("bvlc/examples/cifar10/cifar10_quick_train_test.prototxt", 10),
    "caffenet": ("bvlc/models/bvlc_reference_caffenet/train_val.prototxt", 1000),
}


def body(net):
    """Layers between data and loss, without what is the default or of no effect."""
    layers = []
    for layer in net.layer:
        if layer.type in ("Data", "Input", "Softmax", "SoftmaxWithLoss", "Accuracy"):
            continue
        copy = type(layer)()
        copy.CopyFrom(layer)
        copy.convolution_param.ClearField("engine")
        if list(copy.convolution_param.stride) == [1]:
            copy.convolution_param.ClearField("stride")
        for name in ("convolution_param", "inner_product_param"):
            param = getattr(copy, name)
            if param.bias_filler.value == 0:
                param.bias_filler.Clear()
        for spec in copy.param:
            spec.lr_mult, spec.decay_mult = spec.lr_mult, spec.decay_mult
        layers.append(copy)
    return layers


@needs_shared
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_the_published_net(name):
    path, classes = PUBLISHED[name]
    found = list(SHARED.glob(f"zoo/**/{path.removeprefix('bvlc/')}")) or list(SHARED.glob(f"zoo/**/*{path.rsplit('/', 1)[1]}"))
    template = TEMPLATES[name]
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": [1, 1, 227, 227]})
    template.body(n, Last(template.last, classes))
    ours, theirs = body(n.to_proto()), body(caffe.read_net(found[0]))
    assert [layer.name for layer in ours] == [layer.name for layer in theirs]
    for mine, published in zip(ours, theirs, strict=True):
        assert mine == published


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_layer_takes_name_classes_and_learning_rate(name):
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": [1, 3, 227, 227]})
    TEMPLATES[name].body(n, Last("last_cats", 7, 10))
    layer = n.to_proto().layer[-1]
    assert (layer.name, list(layer.top), layer.inner_product_param.num_output) == ("last_cats", ["last_cats"], 7)
    assert [spec.lr_mult for spec in layer.param] == [10, 20]
