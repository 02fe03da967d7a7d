"""Nets built from templates, with random weights and inputs, compared with BVLC Caffe's results for the published nets."""

import zlib

import numpy as np
import pytest

import caffe
from pipeline.nets.models import TEMPLATES, Last
from tests.conftest import SHARED, needs_shared

RECORDED = {
    "mnist__lenet": ("lenet", "ip2"),
    "siamese__mnist_siamese": ("mnist_siamese", "feat"),
    "cifar10__cifar10_quick": ("cifar10_quick", "ip2"),
    "cifar10__cifar10_full": ("cifar10_full", "ip1"),
    "bvlc_alexnet__deploy": ("alexnet", "fc8"),
    "bvlc_reference_caffenet__deploy": ("caffenet", "fc8"),
    "finetune_flickr_style__deploy": ("caffenet", "fc8_flickr"),
    "bvlc_googlenet__deploy": ("googlenet", "loss3/classifier"),
    "vgg16__deploy": ("vgg16", "classifier"),
    "resnet50__deploy": ("resnet50", "fc1000"),
    "squeezenet_v1.1__deploy": ("squeezenet", "conv10"),
    "mobilenet__deploy": ("mobilenet", "fc7"),
    "mobilenet_v2__deploy": ("mobilenet_v2", "fc7"),
}
"""{recording: (template, name of the last layer in the recording)}."""
KINDS = {"BatchNorm": ("bias", "positive", "one"), "Scale": ("positive", "bias")}
"""Kinds of values that a layer type's blobs are drawn with; other types have a weight and a bias."""


def draw(name, shape, kind):
    """Values by name, as ../shared/golden/check.py draws them."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if kind == "one":
        return np.ones(shape)
    if kind == "positive":
        return 0.5 + rng.uniform(0, 1, shape)
    scale = {"input": 40, "weight": np.sqrt(2 / max(1, np.prod(shape[1:]))), "bias": 0.1}[kind]
    return rng.standard_normal(shape) * scale


def summary(values):
    """Size, mean, deviation, largest magnitude, and samples."""
    flat = np.asarray(values).ravel().astype(np.float64)
    samples = flat[np.linspace(0, flat.size - 1, min(flat.size, 24)).astype(int)]
    return np.concatenate([[flat.size, flat.mean(), flat.std(), np.abs(flat).max()], samples])


def make_deploy_net(template, last, recorded, write):
    """A template's deploy net, with random weights."""
    published = caffe.read_net(write("published.prototxt", str(recorded["prototxt"])))
    shape = list(published.layer[0].input_param.shape[0].dim)
    n = caffe.NetSpec()
    n.data = caffe.layers.Input(shape={"dim": shape})
    net_param = n.to_proto()
    (output,) = recorded["outputs"]
    built = TEMPLATES[template].built(Last(last, int(recorded[f"blob/{output}"][0]) // shape[0]), deploy=True)
    for layer in built.layers:  # filling them takes longer than all the rest
        layer.convolution_param.ClearField("weight_filler")
        layer.inner_product_param.ClearField("weight_filler")
    net_param.layer.extend(built.layers)
    if output == "prob":
        net_param.layer.add(name="prob", type="Softmax", bottom=[built.heads[-1][0]], top=["prob"])
    path = write("net.prototxt", "")
    caffe.write_prototxt(path, net_param)
    net = caffe.Net(path, caffe.TEST)
    kinds = dict(zip(net._layer_names, (layer.type for layer in net.layers), strict=True))
    for layer, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            kind = KINDS.get(kinds[layer], ("weight", "bias"))[index]
            blob.data[...] = draw(f"{layer}/{index}", blob.data.shape, kind)
    net.blobs["data"].data[...] = draw("data", shape, "input")
    return net


@pytest.mark.long
@needs_shared
@pytest.mark.parametrize(("name", "template", "last"), [(name, *net) for name, net in RECORDED.items()], ids=RECORDED)
def test_a_template_gives_the_results_of_the_published_net(name, template, last, write):
    recorded = np.load(SHARED / f"golden/nets/{name}.npz")
    net = make_deploy_net(template, last, recorded, write)
    net.forward()
    (output,) = recorded["outputs"]
    net.blobs[output].diff[...] = draw(f"diff/{output}", net.blobs[output].data.shape, "bias")
    net.clear_param_diffs()
    net.backward()
    assert list(net.blobs) == list(recorded["blob_names"])
    values = {f"blob/{blob}": one.data for blob, one in net.blobs.items()}
    values |= {f"param_diff/{layer}/{i}": blob.diff for layer, blobs in net.params.items() for i, blob in enumerate(blobs)}
    for key, value in values.items():
        tolerance = 2e-4 * max(recorded[key][3], 1e-6)
        np.testing.assert_allclose(summary(value), recorded[key], 2e-3, tolerance, err_msg=key)
    net.close()
