"""Classifier and Detector: cropping, preprocessing and averaging compared with the same done by hand."""

import cv2
import numpy as np
import pytest

import caffe

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""
MEAN = np.array([10.0, 20.0, 30.0])


@pytest.fixture
def files(write, tmp_path):
    """Paths of a net and of weights for it."""
    caffe.set_random_seed(3)
    path = write("net.prototxt", NET)
    caffe.Net(path, caffe.TEST).save(tmp_path / "a.caffemodel")
    return path, str(tmp_path / "a.caffemodel")


def images(*shapes):
    rng = np.random.default_rng(0)
    return [rng.uniform(size=(*shape, 3)).astype(np.float32) for shape in shapes]


def probabilities(files, batch):
    """The net's output for a preprocessed batch."""
    net = caffe.Net(*files, caffe.TEST)
    net.blobs["data"].reshape(*batch.shape)
    net.blobs["data"].data[...] = batch
    return net.forward()["prob"]


def preprocess(crops):
    """Convert RGB crops of 0 to 1 to mean-subtracted BGR of 0 to 255: N × 3 × H × W."""
    return np.stack(crops)[:, :, :, ::-1].transpose(0, 3, 1, 2) * 255 - MEAN[:, None, None]


def classifier(files, **settings):
    return caffe.Classifier(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0), **settings)


def test_without_oversampling_the_centre_crop_is_classified(files):
    pictures = images((12, 10), (12, 10), (12, 10), (12, 10), (12, 10))
    predictions = classifier(files, image_dims=(12, 10)).predict(pictures, oversample=False)
    assert predictions.shape == (5, 5)
    np.testing.assert_allclose(predictions, probabilities(files, preprocess([p[2:10, 1:9] for p in pictures])), rtol=1e-4)


def test_oversampling_averages_corner_and_centre_crops_and_their_mirrors(files):
    pictures = images((12, 10), (12, 10))
    predictions = classifier(files, image_dims=(12, 10)).predict(pictures)
    for picture, prediction in zip(pictures, predictions, strict=True):
        crops = [picture[y : y + 8, x : x + 8] for y, x in ((0, 0), (0, 2), (4, 0), (4, 2), (2, 1))]
        crops += [crop[:, ::-1] for crop in crops]
        np.testing.assert_allclose(prediction, probabilities(files, preprocess(crops)).mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (["cat.jpg"], "'cat.jpg'"),
        (images((12, 10))[0], "an array of shape (10, 3)"),
        ([np.zeros((4, 4))], "an array of shape (4, 4)"),
    ],
)
def test_what_is_no_list_of_images_is_named(files, inputs, found):
    with pytest.raises(caffe.Error) as error:
        caffe.Classifier(*files).predict(inputs)
    assert error.value.found == found
    assert "net.predict([caffe.io.load_image(FILE)])" in error.value.do


def test_without_image_dims_images_are_resized_to_the_input(files):
    net = classifier(files)
    assert list(net.image_dims) == list(net.crop_dims) == [8, 8]
    picture = np.full((31, 17, 3), 0.25, np.float32)
    wanted = probabilities(files, preprocess([np.full((8, 8, 3), 0.25)]))
    np.testing.assert_allclose(net.predict([picture], oversample=False), wanted, rtol=1e-4)


def test_input_scale_is_applied_after_mean_subtraction(files):
    picture = images((8, 8))
    scaled = classifier(files, input_scale=0.5).predict(picture, oversample=False)
    np.testing.assert_allclose(scaled, probabilities(files, preprocess(picture) * 0.5), rtol=1e-4)


# ---- windows


@pytest.fixture
def photograph(tmp_path):
    """Path and pixels (RGB, 0 to 1) of an image of 20 × 30."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photograph.png"), pixels[:, :, ::-1])
    return str(tmp_path / "photograph.png"), pixels.astype(np.float32) / 255


def detector(files, **settings):
    return caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=(2, 1, 0), **settings)


def test_windows_are_classified_in_their_order(files, photograph):
    name, pixels = photograph
    windows = np.array([[0, 0, 8, 8], [5, 7, 13, 15], [12, 22, 20, 30], [1, 2, 9, 10], [3, 3, 11, 11]])
    found = detector(files).detect_windows([(name, windows[:3]), (name, windows[3:])])
    assert [tuple(one["window"]) for one in found] == [tuple(window) for window in windows]
    assert {one["filename"] for one in found} == {name}
    crops = [pixels[top:bottom, left:right] for top, left, bottom, right in windows]
    wanted = probabilities(files, preprocess(crops))
    np.testing.assert_allclose([one["prediction"] for one in found], wanted, rtol=1e-4)


def test_a_detector_without_windows_returns_nothing(files, photograph):
    assert detector(files).detect_windows([(photograph[0], [])]) == []


def test_context_outside_the_image_is_filled_with_the_mean(files):
    net = detector(files, context_pad=2)
    image = np.zeros((40, 40, 3), np.float32)
    image[16:20, 16:20] = 1
    # 4 pixels and 2 × 2 of context, scaled to 8 × 8: the window fills the middle half.
    inside = net.crop(image, np.array([16, 16, 19, 19]))
    assert inside.shape == (8, 8, 3)
    assert inside[3:5, 3:5].min() == 1
    assert inside[[0, -1]].max() == inside[:, [0, -1]].max() == 0
    corner = net.crop(image, np.array([0, 0, 3, 3]))
    np.testing.assert_allclose(corner[0, 0], MEAN[::-1] / 255, rtol=1e-5)
    np.testing.assert_allclose(corner[-1, -1], 0, atol=1e-6)
    outside = (np.abs(corner - MEAN[::-1] / 255) < 1e-5).all(2)
    assert outside[:2].all()
    assert outside[:, :2].all()
    assert not outside[2:, 2:].any()


def test_context_outside_the_image_is_black_without_a_mean(files):
    net = caffe.Detector(*files, context_pad=2)
    assert not net.crop(np.ones((40, 40, 3), np.float32), np.array([0, 0, 3, 3]))[0].any()


def test_a_window_outside_the_image_is_an_error(files):
    with pytest.raises(caffe.Error) as error:
        detector(files, context_pad=2).crop(np.zeros((10, 10, 3), np.float32), np.array([30, 30, 40, 40]))
    assert error.value.expected == "the image has 10×10 pixels"


def test_selective_search_names_its_requirements_and_uses_them_if_installed(files, photograph, tmp_path, monkeypatch):
    with pytest.raises(caffe.Error) as error:
        detector(files).detect_selective_search([photograph[0]])
    assert "MATLAB" in error.value.expected
    proposals = "def get_windows(names, cmd):\n    return [[[0, 0, 8, 8]] for name in names]\n"
    (tmp_path / "selective_search_ijcv_with_python.py").write_text(proposals)
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = detector(files).detect_selective_search([photograph[0]])
    assert (found["window"], found["filename"]) == ([0, 0, 8, 8], photograph[0])
