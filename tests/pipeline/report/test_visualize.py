"""Pictures of a trained net: known weights and values become known pixels, and every picture is written."""

from xml.etree import ElementTree

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.dataset import ImageSize, ResizeOptions
from pipeline.report import visualize
from pipeline.report.tiles import GAP
from pipeline.report.visualize import Picture

CONVOLUTIONS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "squeeze" type: "Convolution" bottom: "conv1" top: "squeeze" convolution_param { num_output: 70 kernel_size: 1 } }
layer { name: "conv2" type: "Convolution" bottom: "squeeze" top: "conv2" convolution_param { num_output: 30 kernel_size: 3 } }
layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "fc" inner_product_param { num_output: 60 } }
layer { name: "last" type: "InnerProduct" bottom: "fc" top: "last" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "last" top: "prob" }
"""
ARGUMENTS = ["deploy.prototxt", "net.caffemodel", "pictures", "--labels", "lists/labels.txt"]


@pytest.fixture
def net(tmp_path):
    """A net of two convolutions, with random weights, and its definition."""
    (tmp_path / "deploy.prototxt").write_text(CONVOLUTIONS)
    made = caffe.Net(str(tmp_path / "deploy.prototxt"), caffe.TEST)
    drawn = np.random.default_rng(1)
    for blobs in made.params.values():
        blobs[0].data[...] = drawn.normal(size=blobs[0].shape)
    return made, caffe.read_net(tmp_path / "deploy.prototxt")


@pytest.fixture
def ready(net, small, monkeypatch):
    """The small dataset as working folder, with that net's weights and its preprocessing.json."""
    monkeypatch.chdir(small)
    net[0].save(str(small / "net.caffemodel"))
    Preprocessing(ResizeOptions(size=ImageSize(height=8, width=8)), caffe_pb2.TransformationParameter(scale=0.004)).write(
        small / "preprocessing.json"
    )
    return small


def cropping(crop: int, channels: str = "BGR") -> Preprocessing:
    return Preprocessing(
        ResizeOptions(size=ImageSize(height=8, width=8)), caffe_pb2.TransformationParameter(crop_size=crop), channels
    )


def test_an_image_is_shown_in_rgb_whatever_its_channel_order():
    red = np.zeros((3, 8, 8), np.uint8)
    red[2] = 255
    assert (visualize.as_seen(red, cropping(4)) == (255, 0, 0)).all()
    assert (visualize.as_seen(red[::-1], cropping(0, "RGB")) == (255, 0, 0)).all()


def weights(net) -> dict[str, np.ndarray]:
    return {name: blobs[0].data for name, blobs in net.params.items()}


def test_filters_of_three_inputs_are_in_colour_and_bgr_becomes_rgb(net):
    made, definition = net
    kernels = weights(made)
    kernels["conv1"][...] = -1
    kernels["conv1"][1, 2] = 1  # all red
    (first, tiles), (second, others) = visualize.filters(definition, kernels)
    assert first == "conv1: 4 filters of 3×3, 3 inputs (BGR)"
    side = (tiles.shape[1] + GAP) // 4 - GAP
    assert (tiles[:, :side] == 0).all()
    assert (tiles[:, side + GAP : 2 * side + GAP] == (255, 0, 0)).all()
    assert second == "conv2: 30 filters of 3×3, 70 inputs; the first 24, a row each, and 24 inputs"
    assert others.ndim == 2
    (first, tiles), _ = visualize.filters(definition, kernels, "RGB")
    assert first.endswith("(RGB)")
    assert (tiles[:, side + GAP : 2 * side + GAP] == (0, 0, 255)).all()


def test_each_row_of_the_second_convolutions_tiles_is_a_filter(net):
    made, definition = net
    kernels = weights(made)
    kernels["conv2"][...] = 0
    kernels["conv2"][2, 5] = 1
    (_, _), (_, tiles) = visualize.filters(definition, kernels)
    white = tiles == 255
    gaps = white.all(0)
    side = int(np.flatnonzero(gaps)[0])
    step = side + GAP
    assert white[2 * step : 2 * step + side, 5 * step : 5 * step + side].all()
    assert not white[:side, :side].any()


def test_feature_maps_are_shown_layer_by_layer_up_to_a_limit(net):
    made, definition = net
    made.blobs["data"].data[...] = np.random.default_rng(2).normal(size=(1, 3, 8, 8))
    made.forward()
    blobs = {name: made.blobs[name].data for name in made.blobs}
    blobs["conv1"] = blobs["conv1"].copy()
    blobs["conv1"][0] = 0
    blobs["conv1"][0, 3] = 1
    names = visualize.blobs_with_maps(definition, blobs)
    assert names == ["conv1", "squeeze", "conv2"]
    sections = list(visualize.feature_maps(names, blobs, 0))
    assert [title for title, _ in sections] == [
        "conv1: 4 maps of 6×6",
        "squeeze: 70 maps of 6×6, the first 64",
        "conv2: 30 maps of 4×4",
    ]
    tiles = sections[0][1]
    side = (tiles.shape[1] + GAP) // 4 - GAP
    assert (tiles[:, :side] == 0).all()
    assert (tiles[:, 3 * (side + GAP) :] == 255).all()


def test_a_deep_net_shows_the_first_and_last_maps_of_each_resolution():
    net = caffe_pb2.NetParameter()
    blobs = {"data": np.zeros((1, 3, 64, 64))}
    for number in range(20):
        net.layer.add(name=f"conv{number}", type="Convolution", bottom=["data"], top=[f"conv{number}"])
        blobs[f"conv{number}"] = np.zeros((1, 2, 32 >> number // 5, 32 >> number // 5))
    assert visualize.blobs_with_maps(net, blobs) == [f"conv{number}" for number in (0, 4, 5, 9, 10, 14, 15, 19)]


def test_activations_show_each_of_the_last_vectors_once(net):
    made, definition = net
    blobs = {name: np.array(made.blobs[name].data) for name in made.blobs}
    assert visualize.vectors(definition, blobs, ["prob"]) == ["pool", "fc", "last"]
    assert visualize.vectors(definition, blobs, ["prob", "last", "fc", "pool"]) == ["pool", "fc", "last", "prob"]
    blobs["fc"][...] = 0
    blobs["fc"][0, :6] = [1, 1, 1, 2, 2, 3]
    figure = visualize.activations(["fc", "last"], blobs, [Picture("a", np.zeros((3, 8, 8), np.uint8))])
    by_number, counted, few = figure.axes
    assert len(by_number.collections[0].get_segments()) == 60
    (line,) = counted.patches
    assert line.get_xy()[:, 1].max() == 3
    assert counted.get_legend().get_texts()[0].get_text() == "90% are 0"
    assert len(few.patches) == 3
    plt.close(figure)


def test_the_most_probable_classes_are_named_and_the_true_one_is_marked():
    names = [f"class{number}" for number in range(10)]
    made = np.array([[0.02, 0.3, 0, 0.4, 0.08, 0.01, 0, 0.1, 0.09, 0]])
    figure = visualize.draw_probabilities(made, names, [Picture("a", np.zeros((3, 8, 8), np.uint8), "class1")], cropping(4))
    image, best, every = figure.axes
    assert image.images[0].get_array().shape == (4, 4, 3)
    said = [text.get_text() for text in best.texts]
    assert said == ["class3  40.0%", "class1  30.0%", "class7  10.0%", "class8  9.0%", "class4  8.0%"]
    colours = [bar.get_facecolor() for bar in best.patches]
    assert colours[1] != colours[0] == colours[2]
    assert [bar.get_height() for bar in every.patches] == list(made[0])
    plt.close(figure)


def test_the_first_record_of_each_class_is_shown(small):
    names = ["cat", "dog", "owl"]
    images = visualize.first_of_classes(small / "lmdb/val", names, 2)
    assert len(images) == 2
    assert len({image.label for image in images}) == 2
    assert images[0].pixels.shape == (3, 8, 8)
    assert len(visualize.first_of_classes(small / "lmdb/val", names, 20)) == 3


def test_every_picture_is_drawn_from_records(ready, tmp_path):
    visualize.main([*ARGUMENTS, "--database", "lmdb/val", "--train", "deploy.prototxt"])
    pictures = tmp_path / "pictures"
    for name in ("filters", "activations", "probabilities"):
        assert cv2.imread(str(pictures / f"{name}.png")).std() > 10
    maps = sorted(path.name for path in (pictures / "feature_maps").iterdir())
    assert [name[:2] for name in maps] == ["1_", "2_"]
    assert {name[2:-4] for name in maps} < {"cat", "dog", "owl"}
    assert ElementTree.parse(pictures / "net.svg").getroot().tag.endswith("svg")


def test_every_picture_is_drawn_from_files_and_reproducible(ready, tmp_path, picture):
    (tmp_path / "look").mkdir()
    cv2.imwrite(str(tmp_path / "look/tabby cat.png"), picture(3))
    made = []
    for _ in range(2):
        visualize.main([*ARGUMENTS, "--images", "look"])
        made.append({path.name: path.read_bytes() for path in (tmp_path / "pictures").rglob("*.*")})
    assert set(made[0]) == {"filters.png", "activations.png", "probabilities.png", "net.svg", "1_tabby_cat.png"}
    assert made[0] == made[1]


def test_a_net_without_convolutions_has_a_page_that_says_so(trained, monkeypatch, tmp_path):
    data = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }'
    layers = (trained / "train.prototxt").read_text().split("layer {")[2:4]
    prob = 'layer { name: "prob" type: "Softmax" bottom: "scores" top: "prob" }'
    (trained / "deploy.prototxt").write_text(data + "".join(f"layer {{{layer}" for layer in layers) + prob)
    Preprocessing(ResizeOptions(size=ImageSize(height=8, width=8)), caffe_pb2.TransformationParameter()).write(
        trained / "preprocessing.json"
    )
    monkeypatch.chdir(trained)
    weights = ["out/final.caffemodel" if one == "net.caffemodel" else one for one in ARGUMENTS]
    visualize.main([*weights, "--database", "lmdb/val", "--count", "1"])
    assert (tmp_path / "pictures/filters.png").stat().st_size < 3000


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(("--database", "lmdb/nowhere"), "lmdb/nowhere"), (("--database", "lmdb/val", "--count", "0"), "--count")],
)
def test_a_missing_database_or_invalid_count_is_named(ready, arguments, where):
    with pytest.raises(caffe.Error) as raised:
        visualize.main([*ARGUMENTS, *arguments])
    assert str(raised.value.where) == where


def test_an_unreadable_image_is_named(fails, ready):
    (ready / "look").mkdir()
    (ready / "look/cut.png").write_bytes(b"\x89PNG and no more")
    fails(["look/cut.png: not readable: damaged"], "pipeline.report.visualize", *ARGUMENTS, "--images", "look")


def test_a_net_with_nan_activations_is_refused(net, ready):
    net[0].params["conv2"][0].data[...] = np.nan
    net[0].save(str(ready / "net.caffemodel"))
    with pytest.raises(InputError) as raised:
        visualize.main([*ARGUMENTS, "--database", "lmdb/val"])
    assert raised.value.found == 'blob "conv2" has NaN or infinite values'
    assert not (ready / "pictures").exists()
