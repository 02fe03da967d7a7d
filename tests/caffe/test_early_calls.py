"""What scripts of 2014 call: nets that set their phase and preprocess images, as tutorials of that year show."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

import caffe
from caffe.engine import early

NET = """
name: "pictures"
input: "data" input_dim: 10 input_dim: 3 input_dim: 8 input_dim: 8
layers { name: "fc" type: INNER_PRODUCT bottom: "data" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.001 } } }
layers { name: "prob" type: SOFTMAX bottom: "fc" top: "prob" }
"""


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(early, "_warned", set())
    monkeypatch.setattr(early._State, "phase", None)


@pytest.fixture
def files(write, tmp_path):
    """Paths of a net, its weights, a mean and an image."""
    caffe.set_random_seed(3)
    path = write("deploy.prototxt", NET)
    caffe.Net(path, caffe.TEST).save(tmp_path / "a.caffemodel")
    draw = np.random.default_rng(5)
    np.save(tmp_path / "mean.npy", draw.uniform(90, 130, (3, 8, 8)))
    cv2.imwrite(str(tmp_path / "cat.png"), draw.integers(0, 256, (12, 10, 3), np.uint8))
    return path, *(str(tmp_path / name) for name in ("a.caffemodel", "mean.npy", "cat.png"))


def said(record):
    return [str(each.message) for each in record if each.category is FutureWarning]


def todays(files, **options):
    path, weights, mean, image = files
    net = caffe.Classifier(path, weights, mean=np.load(mean), raw_scale=255, channel_swap=(2, 1, 0), image_dims=(12, 10))
    return net, net.predict([caffe.io.load_image(image)], **options)


def test_a_classifier_is_told_mean_scale_and_channels_after_it_was_built(files):
    path, weights, mean, image = files
    net = caffe.Classifier(path, weights, image_dims=(12, 10))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        net.set_phase_test()
        net.set_mode_cpu()
        net.set_mean("data", mean)
        net.set_channel_swap("data", (2, 1, 0))
        net.set_input_scale("data", 255)
        prediction = net.predict([caffe.io.load_image(image)])
        net.set_channel_swap("data", (2, 1, 0))
    np.testing.assert_array_equal(prediction, todays(files)[1])
    lines = said(record)
    assert [line.split(" is of ")[0] for line in lines] == [
        *("net.set_phase_test()", "net.set_mode_cpu()", "net.set_mean(…)", "net.set_channel_swap(…)"),
        "input_scale above 1 without raw_scale",
    ]
    assert 'transformer.set_raw_scale("data", 255): it is applied before the mean' in lines[-1]
    assert {each.filename for each in record if each.category is FutureWarning} == {__file__}


def test_a_classifier_takes_mean_file_and_gpu(files):
    path, weights, mean, image = files
    with pytest.warns(FutureWarning) as record:
        net = caffe.Classifier(
            path, weights, image_dims=(12, 10), gpu=False, mean_file=mean, channel_swap=(2, 1, 0), input_scale=255
        )
    np.testing.assert_array_equal(net.predict([caffe.io.load_image(image)]), todays(files)[1])
    assert len(said(record)) == 3
    with pytest.raises(TypeError, match="takes no argument colour"):
        caffe.Classifier(path, weights, colour=True)


def test_crops_are_made_preprocessed_and_forwarded_by_hand(files):
    path, weights, mean, image = files
    expected = todays(files, oversample=False)[1]
    net = caffe.Classifier(path, weights, mean=mean, raw_scale=255, channel_swap=(2, 1, 0), image_dims=(12, 10))
    picture = caffe.io.load_image(image)
    crops = caffe.io.oversample([caffe.io.resize_image(picture, net.image_dims)], net.crop_dims)
    with pytest.warns(FutureWarning, match="net.preprocess"):
        batch = np.asarray([net.preprocess("data", crop) for crop in crops])
    out = net.forward(data=batch)["prob"]
    np.testing.assert_allclose(out[4:5], expected, rtol=1e-6)
    np.testing.assert_allclose(net.forward_all(data=batch)["prob"], out)
    with pytest.warns(FutureWarning, match="net.deprocess"):
        np.testing.assert_allclose(net.deprocess("data", batch[0]), crops[0], atol=1e-5)


def test_a_plain_net_preprocesses_too(files):
    path, weights, mean, image = files
    net = caffe.Net(path, caffe.TEST, weights=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net.set_mean("data", mean, mode="channel")
        net.set_raw_scale("data", 255)
        net.set_input_scale("data", 0.5)
        got = net.preprocess("data", caffe.io.load_image(image))
    transformer = caffe.io.Transformer({"data": (10, 3, 8, 8)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", np.load(mean).mean((1, 2)))
    transformer.set_raw_scale("data", 255)
    transformer.set_input_scale("data", 0.5)
    np.testing.assert_array_equal(got, transformer.preprocess("data", caffe.io.load_image(image)))


def test_a_net_of_two_files_is_built_for_testing_or_as_the_module_was_told(files):
    path, weights, *_ = files
    with pytest.warns(FutureWarning, match=r'caffe.Net\(".*deploy.prototxt", caffe.TEST, weights=".*a.caffemodel"\)'):
        assert caffe.Net(path, weights).phase == caffe.TEST
    with pytest.warns(FutureWarning, match="set_phase_train"):
        caffe.set_phase_train()
    net = caffe.Net(path, weights)
    assert net.phase == caffe.TRAIN
    with pytest.raises(
        caffe.Error, match=r"net.set_phase_test\(\), but the net is built for phase train; build it with caffe.TEST"
    ):
        net.set_phase_test()


@pytest.mark.own_device
def test_a_net_on_the_cpu_is_not_moved_to_a_gpu(files, monkeypatch):
    path, weights, *_ = files
    net = caffe.Net(path, caffe.TEST, weights=weights)
    with pytest.warns(FutureWarning), pytest.raises(caffe.Error, match="PyTorch finds no CUDA device"):
        net.set_mode_gpu()


@pytest.mark.parametrize("kind", ["npy", "binaryproto"])
def test_a_mean_may_be_a_file(files, tmp_path, kind):
    path, weights, mean, image = files
    if kind == "binaryproto":
        mean = str(tmp_path / "mean.binaryproto")
        (tmp_path / "mean.binaryproto").write_bytes(
            caffe.io.array_to_blobproto(np.load(files[2])[None].astype(np.float32)).SerializeToString()
        )
    net = caffe.Classifier(path, weights, mean=mean, raw_scale=255, channel_swap=(2, 1, 0), image_dims=(12, 10))
    np.testing.assert_allclose(net.predict([caffe.io.load_image(image)]), todays(files)[1], rtol=1e-5)
    with pytest.raises(caffe.FileError, match="no such mean file"):
        caffe.Classifier(path, weights, mean=f"absent.{kind}")


def test_an_image_may_be_an_open_file(files):
    image = files[3]
    with Path(image).open("rb") as file:
        np.testing.assert_array_equal(caffe.io.load_image(file), caffe.io.load_image(image))
    with Path(files[0]).open("rb") as file, pytest.raises(caffe.Error, match=r"deploy\.prototxt: not an image"):
        caffe.io.load_image(file)
