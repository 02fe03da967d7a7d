"""Any classifier's prototxt as a template: published nets in every format, and prototxts that are refused."""

import pytest

import caffe
from pipeline.nets.models import Last, adapted
from pipeline.nets.prototxt import Dataset, nets
from pipeline.options.training import PrototxtOptions
from tests.conftest import SHARED, needs_shared

ZOO = SHARED / "zoo"
CLASSIFIERS = {
    "bvlc/examples/cifar10/cifar10_full_sigmoid_train_test_bn.prototxt": ["ip1"],
    "bvlc/examples/mnist/lenet_train_test.prototxt": ["ip2"],
    "bvlc/models/bvlc_googlenet/deploy.prototxt": ["loss3/classifier"],
    "bvlc/models/bvlc_googlenet/train_val.prototxt": ["loss1/classifier", "loss2/classifier", "loss3/classifier"],
    "bvlc/models/finetune_flickr_style/train_val.prototxt": ["fc8_flickr"],
    "inception_v3/deploy.prototxt": ["classifier"],
    "mobilenet_v2/deploy.prototxt": ["fc7"],
    "resnet50/deploy.prototxt": ["fc1000"],
    "squeezenet_v1.1/train_val.prototxt": ["conv10"],
    "v1_format/bvlc_reference_caffenet__train_val.prototxt": ["fc8"],
    "v1_format/mnist__lenet.prototxt": ["ip2"],
}

MEASURED = {"train": ["accuracy"], "test": ["accuracy", "accuracy_top5"]}


def build_nets(net, tmp_path, shape=(3, 320, 320), **fields):
    """The three nets for a dataset of 7 classes, and the deploy net's blobs."""
    dataset = Dataset("lmdb/train", "lmdb/val", "mean.binaryproto", shape, 7, 500, 90)
    experiment = PrototxtOptions(name="e", model="mine", last=f"{net.last}_dogs", last_lr_mult=10, batch_size=4, **fields)
    written = nets(net, dataset, experiment)
    for layer in written["deploy"].layer:  # to draw as many numbers as CaffeNet has takes long
        for settings in (layer.convolution_param, layer.inner_product_param):
            settings.ClearField("weight_filler")
    caffe.write_prototxt(tmp_path / "deploy.prototxt", written["deploy"])
    return written, caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)


def layers_of(net, kind):
    return [layer for layer in net.layer if layer.type == kind]


@needs_shared
@pytest.mark.parametrize(("path", "heads"), CLASSIFIERS.items(), ids=CLASSIFIERS)
def test_a_published_net_is_adapted_to_another_dataset(path, heads, tmp_path):
    net = adapted.read(ZOO / path)
    assert [head.layer for head in net.heads] == heads
    published = {layer.name: layer for layer in caffe.read_net(ZOO / path).layer}
    written, deploy = build_nets(net, tmp_path)
    assert deploy.blobs["prob"].data.size == 7
    for part in ("train", "test"):
        assert [layer.type for layer in written[part].layer if not layer.bottom] == ["Data"]
        assert len(layers_of(written[part], "SoftmaxWithLoss")) == len(heads)
        assert [layer.name for layer in layers_of(written[part], "Accuracy")] == MEASURED[part]
        names = {layer.name: layer for layer in written[part].layer}
        for head in heads:
            assert head not in names
            layer = names[f"{head}_dogs"]
            assert (layer.inner_product_param.num_output or layer.convolution_param.num_output) == 7
            before = [spec.lr_mult for spec in published[head].param] or [1, 1]
            assert [spec.lr_mult for spec in layer.param] == [10 * rate for rate in before]
    for part, net in written.items():
        assert all(layer.batch_norm_param.use_global_stats == (part != "train") for layer in layers_of(net, "BatchNorm"))
    kept = {layer.name for layer in written["deploy"].layer} - {"data", "prob"}
    assert {name.removesuffix("_dogs") for name in kept} <= set(published)  # so that weights are found by name


@needs_shared
def test_googlenets_auxiliary_heads_are_trained_but_not_deployed(tmp_path):
    net = adapted.read(ZOO / "bvlc/models/bvlc_googlenet/train_val.prototxt")
    written, deploy = build_nets(net, tmp_path)
    losses = {layer.name: (layer.bottom[0], list(layer.loss_weight)) for layer in layers_of(written["train"], "SoftmaxWithLoss")}
    assert losses == {
        "loss": ("loss3/classifier_dogs", []),
        "loss1": ("loss1/classifier_dogs", [pytest.approx(0.3)]),
        "loss2": ("loss2/classifier_dogs", [pytest.approx(0.3)]),
    }
    assert not any(name.startswith(("loss1", "loss2")) for name in deploy._layer_names)
    transform = written["train"].layer[0].transform_param
    assert (transform.crop_size, transform.mirror, list(transform.mean_value)) == (224, True, [104, 117, 123])
    assert not transform.mean_file
    assert tuple(deploy.blobs["data"].shape) == (1, 3, 224, 224)


DEPLOY = """
input: "pixels" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9
layer { name: "conv" type: "Convolution" bottom: "pixels" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "scores" type: "InnerProduct" bottom: "conv" top: "out" inner_product_param { num_output: 10 } }
"""
NO_LAST = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "r" type: "ReLU" bottom: "data" top: "r" }
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "out" top: "prob" }'


@pytest.mark.parametrize("end", ["", PROB])
def test_a_deploy_net_gets_data_labels_and_fillers(write, tmp_path, end):
    net = adapted.read(write("net.prototxt", DEPLOY + end))
    assert (net.last, net.crop_size, net.batch_size) == ("scores", 9, 32)
    written, deploy = build_nets(net, tmp_path, (3, 12, 12))
    layers = {layer.name: layer for layer in written["train"].layer}
    assert list(layers["conv"].bottom) == ["data"]
    assert (list(layers["scores_dogs"].top), list(layers["loss"].bottom)) == (["out_dogs"], ["out_dogs", "label"])
    assert layers["scores_dogs"].inner_product_param.weight_filler.type == "gaussian"
    assert deploy.blobs["prob"].data.shape == (1, 7)


LOSS = """
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "label" top: "loss"
  loss_weight: 2 loss_param { ignore_label: 255 normalize: false } }
"""


@pytest.mark.parametrize("end", [LOSS + PROB, PROB + LOSS, LOSS])
def test_a_loss_keeps_its_weight_and_parameters_beside_a_softmax(write, tmp_path, end):
    net = adapted.read(write("net.prototxt", DEPLOY + end))
    written, _ = build_nets(net, tmp_path, (3, 12, 12))
    for part in ("train", "test"):
        (loss,) = layers_of(written[part], "SoftmaxWithLoss")
        assert (list(loss.bottom), list(loss.loss_weight)) == (["out_dogs", "label"], [2])
        assert (loss.loss_param.ignore_label, loss.loss_param.normalize) == (255, False)


def test_a_top_with_a_name_of_its_own_is_kept_unless_renamed(write):
    net = adapted.read(write("net.prototxt", DEPLOY + PROB))
    built = net.built(Last("scores", 5))
    assert [layer.name for layer in built.layers] == ["conv", "relu", "scores"]
    assert built.heads == [("out", 1.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no layers"),
        ('layer { name: "a" type: "ReLU" bottom: "a" top: "a" }', "no data layer and no input"),
        (DEPLOY + 'layer { name: "l" type: "EuclideanLoss" bottom: "out" bottom: "label" }', 'layer "l": a EuclideanLoss'),
        (NO_LAST, 'no last layer for the scores "r"'),
        ("layer { nme: 3 }", "nme"),
        (
            DEPLOY.replace('type: "ReLU" bottom: "conv"', 'type: "ReLU" bottom: "cnov"'),
            ':4: layer "relu": bottom "cnov" is produced by no layer before it; the blobs so far are "pixels", "conv"',
        ),
    ],
)
def test_a_prototxt_that_is_not_a_classifier_is_refused(write, text, said):
    path = write("net.prototxt", text)
    with pytest.raises(caffe.Error, match=r"net\.prototxt") as error:
        adapted.read(path)
    assert said in str(error.value)
