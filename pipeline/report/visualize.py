"""Show what a trained net has learned, and what it makes of some images.

Written to a folder: filters.png (weights of the first convolutions), net.svg (the net as a graph), probabilities.png (what each
image is taken for), activations.png (values of the last vectors of the net), and feature_maps/NUMBER_CLASS.png (maps of the
layers, for each image). The images are the first validation images of different classes, or image files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline import devices
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.figures import COLOURS, STYLE, save_png
from pipeline.files import plain_name, written_whole
from pipeline.formats.images import content_of, why_unreadable
from pipeline.formats.lists import read_labels
from pipeline.inference.classify import image_files
from pipeline.inference.trained import loaded
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.flags import read_flags
from pipeline.options.training import VisualizeOptions
from pipeline.report import diagram
from pipeline.report.gallery import in_order, labelled
from pipeline.report.tiles import normalised, save_page, tiled

CHANNELS = 24
"""Filters, and input channels of each, that are shown of a layer with many; more are too small on a phone."""
COLUMNS = 11
"""Feature maps in a row: each has room for 56 pixels."""
MAPS, LARGE_MAPS, LARGE = 64, 33, 20
"""Feature maps shown of a layer, and of one whose maps are larger than so many pixels."""
LAYERS = 12
"""Most layers whose maps are shown: of a deeper net, the first and last of each resolution."""
VECTORS = 3
"""Fully connected layers whose activations are shown: the last ones."""
FEW = 50
"""Values that have room for a bar each."""
TOP = 5
"""Classes named for each image."""


@dataclass(frozen=True)
class Shown:
    """An image that is shown: its pixels as the records have them, channels × height × width, and the class it has."""

    name: str
    pixels: np.ndarray
    label: str = ""


def first_of_classes(database: Path, names: list[str], count: int) -> list[Shown]:
    """The first image of each of the first `count` classes that a database has."""
    found: dict[int, Shown] = {}
    for where, record in labelled(database, len(names)):
        if record.label not in found:
            label = names[record.label]
            found[record.label] = Shown(label, np.array(caffe.pixels_of(record, None, where)), label)
        if len(found) == count:
            break
    if not found:
        raise InputError(database, "the database has no records", do="build it again")
    return list(found.values())


def of_files(path: Path, how: Preprocessing, count: int) -> list[Shown]:
    """The first `count` images of a folder, or an image."""
    found = []
    for file in image_files([path])[:count]:
        content = content_of(file)
        pixels = how.pixels(content)
        if pixels is None:
            raise InputError(file, f"not readable: {why_unreadable(content)}", do="remove it, or name another image")
        found.append(Shown(file.stem, pixels))
    return found


def as_seen(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    """The middle of an image as the net sees it, cropped where it crops; uint8, height × width (× 3, RGB)."""
    if crop := how.transform.crop_size:
        top, left = ((side - crop) // 2 for side in pixels.shape[1:])
        pixels = pixels[:, top : top + crop, left : left + crop]
    pixels = pixels if pixels.dtype == np.uint8 else normalised(pixels)
    return in_order(pixels, how.channels, "RGB").transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


def filters(
    net: caffe_pb2.NetParameter, params: dict[str, np.ndarray], channels: str = "BGR"
) -> Iterator[tuple[str, np.ndarray]]:
    """Tiles of the first two convolutions with windows larger than a pixel, each layer from black to white.

    params  {layer: weights}, outputs × inputs × height × width for convolutions
    The first is in colour where it has three inputs, whose order `channels` says; of the second, rows are filters and columns
    their inputs.
    """
    kinds = {layer.name: caffe.layer_type(layer.type) for layer in net.layer}
    layers = [layer for layer in net.layer if kinds[layer.name].is_linear and not kinds[layer.name].is_transposed]
    layers = [layer for layer in layers if params[layer.name].ndim == 4 and max(params[layer.name].shape[2:]) > 1]
    for number, layer in enumerate(layers[:2]):
        weights = params[layer.name]
        outputs, inputs, high, wide = weights.shape
        said = f"{layer.name}: {outputs} filters of {high}×{wide}, {inputs} input{'s' * (inputs > 1)}"
        values = normalised(weights)
        if inputs == 3 and number == 0:
            in_rgb = values if channels == "RGB" else values[:, ::-1]
            yield f"{said} ({channels})", tiled(in_rgb.transpose(0, 2, 3, 1), _columns(outputs))
        elif inputs == 1:
            yield said, tiled(values[:, 0], _columns(outputs))
        else:
            some = values[:CHANNELS, :CHANNELS]
            part = f"; the first {some.shape[0]}, a row each, and {some.shape[1]} inputs" if some.size < values.size else ""
            yield said + part, tiled(some.reshape(-1, high, wide), some.shape[1])


def _columns(count: int) -> int:
    """Tiles in a row, so that they are neither too large nor too small."""
    return min(max(8, round(count**0.5)), 12)


def mapped(net: caffe_pb2.NetParameter, blobs: dict[str, np.ndarray]) -> list[str]:
    """The blobs whose maps are shown: every layer's, or the first and last of each resolution where there are many."""
    names = [name for name in _tops(net) if blobs[name].ndim == 4 and blobs[name].shape[2] * blobs[name].shape[3] > 1]
    if len(names) <= LAYERS:
        return names
    ends: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        ends.setdefault(blobs[name].shape[2:], []).append(name)
    kept = {name for one in ends.values() for name in (one[0], one[-1])}
    return [name for name in names if name in kept][:LAYERS]


def _tops(net: caffe_pb2.NetParameter) -> list[str]:
    """What layers compute of the input, in the net's order, each blob once."""
    computed = [layer for layer in net.layer if layer.bottom and not caffe.layer_type(layer.type).copies_values]
    return list(dict.fromkeys(top for layer in computed for top in layer.top))


def feature_maps(names: list[str], blobs: dict[str, np.ndarray], number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Tiles of the maps of one image, each layer from black to white.

    blobs  {name: images × channels × height × width}
    """
    for name in names:
        maps = blobs[name][number]
        channels, high, wide = maps.shape
        shown = maps[: MAPS if max(high, wide) <= LARGE else LARGE_MAPS]
        said = f"{name}: {channels} maps of {high}×{wide}" + (f", the first {len(shown)}" if len(shown) < channels else "")
        yield said, tiled(normalised(shown), COLUMNS)


def vectors(net: caffe_pb2.NetParameter, blobs: dict[str, np.ndarray], outputs: list[str]) -> list[str]:
    """The last blobs of a value a channel; the net's outputs where there are no others."""
    flat = [name for name in _tops(net) if blobs[name].ndim >= 2 and blobs[name][0].size == blobs[name].shape[1]]
    return [name for name in flat if name not in outputs][-VECTORS:] or flat


def activations(names: list[str], blobs: dict[str, np.ndarray], images: list[Shown]) -> plt.Figure:
    """For each blob, its values for each image; and, where they are many, how often those that are not 0 occur."""
    values = {name: blobs[name].reshape(len(images), -1) for name in names}
    many = {name: rows.shape[1] > FEW for name, rows in values.items()}
    heights = [height for name in names for height in ([1.2] * len(images) + [2.2] if many[name] else [2.2])]
    size = (5.2, sum(heights) + 0.4 * len(names))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    left = list(axes[:, 0])
    for name, rows in values.items():
        title = f"{name}: {rows.shape[1]} values"
        if many[name]:
            _many_values(title, rows, left[: len(images) + 1], images)
            del left[: len(images) + 1]
        else:
            _few_values(title, rows, left.pop(0), images)
    return figure


def _many_values(title: str, rows: np.ndarray, axes: list[plt.Axes], images: list[Shown]) -> None:
    edges = np.histogram_bin_edges(rows[rows != 0] if rows.any() else rows, 40)
    for image, row, axis, colour in zip(images, rows, axes, _colours(images), strict=False):
        axis.vlines(range(len(row)), 0, row, color=colour, linewidth=0.7)
        axis.set(ylim=(min(0, rows.min()), rows.max() or 1), xlim=(0, len(row)), ylabel=_short(image.name, 10))
        axes[-1].hist(row[row != 0], edges, color=colour, histtype="step", linewidth=1.5, label=f"{(row == 0).mean():.0%} are 0")
    axes[0].set_title(title)
    axes[-1].set(xlabel="value, where it is not 0", ylabel="how many")
    axes[-1].legend(fontsize=10)


def _few_values(title: str, rows: np.ndarray, axis: plt.Axes, images: list[Shown]) -> None:
    width = 0.8 / len(images)
    for place, (image, row, colour) in enumerate(zip(images, rows, _colours(images), strict=True)):
        axis.bar(np.arange(len(row)) + (place + 0.5) * width - 0.4, row, width, color=colour, label=_short(image.name, 16))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title(title)
    axis.legend(fontsize=10)


def _colours(images: list[Shown]) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(images))]


def probabilities(made: np.ndarray, names: list[str], images: list[Shown], how: Preprocessing) -> plt.Figure:
    """For each image: itself, the most probable classes, and the probabilities of all.

    made  images × classes
    """
    all_shown = made.shape[1] <= TOP
    figure = plt.figure(figsize=(5.2, (2.2 if all_shown else 3.8) * len(images)), layout="constrained")
    grid = figure.add_gridspec((1 if all_shown else 2) * len(images), 2, width_ratios=[1, 2])
    for number, (image, row) in enumerate(zip(images, made, strict=True)):
        top = number if all_shown else 2 * number
        axis = figure.add_subplot(grid[top, 0])
        axis.imshow(as_seen(image.pixels, how), cmap="gray")
        axis.set(xticks=[], yticks=[])
        axis.set_title(_short(image.label or image.name, 16), fontsize=12)
        axis.spines[:].set_visible(False)
        axis = figure.add_subplot(grid[top, 1])
        best = np.argsort(-row, kind="stable")[:TOP]
        colours = [COLOURS[2] if names[one] == image.label else COLOURS[5] for one in best]
        axis.barh(range(len(best)), row[best], color=colours)
        for place, one in enumerate(best):
            axis.text(0.02, place, f"{_short(names[one], 26)}  {row[one]:.1%}", va="center", fontsize=11)
        axis.set(xlim=(0, 1), xticks=[], yticks=[])
        axis.invert_yaxis()
        axis.spines[:].set_visible(False)
        if not all_shown:
            axis = figure.add_subplot(grid[top + 1, :])
            axis.bar(range(len(row)), row, width=max(0.8, len(row) / 300), color=COLOURS[5])
            axis.set(xlabel="class, by number", ylabel="probability", ylim=(0, 1))
    return figure


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True)
class Trained:
    """A trained net: deploy prototxt, weights, the prototxt it was trained by, how images become inputs, and class names."""

    deploy: Path
    weights: Path
    train: Path
    how: Preprocessing
    names: list[str]


def write(trained: Trained, images: list[Shown], folder: Path) -> None:
    """Write all pictures to `folder`, whole."""
    definition = diagram.of_phase(caffe.read_net(trained.deploy), caffe.TEST)
    inputs = np.concatenate([trained.how.inputs(image.pixels) for image in images])
    drawn = diagram.drawn(trained.train, inputs.shape[1:])
    net = loaded(trained.deploy, trained.weights)
    net.blobs[net.inputs[0]].reshape(*inputs.shape)
    net.blobs[net.inputs[0]].data[...] = inputs
    made = net.forward()[net.outputs[0]].reshape(len(images), -1).copy()
    if made.shape[1] != len(trained.names):
        found, expected = f"{made.shape[1]} outputs", f"there are {len(trained.names)} class names"
        raise InputError(trained.deploy, found, expected, "give the labels of this net")
    blobs = {name: net.blobs[name].data for name in _tops(definition)}
    for name, values in blobs.items():
        if not np.isfinite(values).all():
            found, do = f'blob "{name}" has values that are no numbers', "train with a smaller base_lr, or give other weights"
            raise InputError(trained.weights, found, do=do)
    params = {name: blobs[0].data for name, blobs in net.params.items()}
    with written_whole(folder) as part, plt.rc_context(STYLE):
        (part / "feature_maps").mkdir(parents=True)
        (part / "net.svg").write_text(drawn, encoding="utf-8")
        learned = list(filters(definition, params, trained.how.channels))
        save_page(part / "filters.png", learned or [("no convolution", np.zeros((1, 1), np.uint8))])
        shown = mapped(definition, blobs)
        for number, image in enumerate(images):
            seen = as_seen(image.pixels, trained.how)
            what = f"class {image.label}" if image.label else image.name
            first = (f"{_short(what, 60)}: {'×'.join(map(str, inputs.shape[2:]))} pixels", tiled(seen[None], 1, 200))
            page = part / f"feature_maps/{number + 1}_{plain_name(image.name, 40)}.png"
            save_page(page, [first, *feature_maps(shown, blobs, number)])
        save_png(activations(vectors(definition, blobs, net.outputs), blobs, images), part / "activations.png")
        save_png(probabilities(made, trained.names, images, trained.how), part / "probabilities.png")


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, VisualizeOptions)
    parser.add_argument("net", type=Path, help="deploy.prototxt")
    parser.add_argument("weights", type=Path, help="the .caffemodel")
    parser.add_argument("folder", type=Path, help="where the pictures go; replaced if it exists")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--train", type=Path, help="the prototxt drawn as a graph; by default train.prototxt beside the net")
    parser.add_argument("--preprocessing", type=Path, help="by default preprocessing.json beside the net")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--database", type=Path, help="the validation LMDB: the first images of different classes")
    source.add_argument("--images", type=Path, help="an image, or a folder of images")
    a = parser.parse_args(argv)
    options = read_flags(a, VisualizeOptions)
    count = options.pictures.count
    if not count:
        raise InputError("--count", "0", "one image or more", "give a number, or leave it out")
    how = preprocessing.read(a.preprocessing or a.net.with_name("preprocessing.json"))
    names = read_labels(a.labels)
    trained = Trained(a.net, a.weights, a.train or a.net.with_name("train.prototxt"), how, names)
    images = first_of_classes(a.database, names, count) if a.database else of_files(a.images, how, count)
    with devices.on_gpu(options.gpu):
        write(trained, images, a.folder)
    print(f"{a.folder}: pictures of the net, with {', '.join(image.name for image in images)}")


if __name__ == "__main__":
    run(main)
