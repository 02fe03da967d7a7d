"""Visualize a trained net: filters, graph, and its feature maps, activations and probabilities for some images.

Written to a folder: filters.png (weights of the first convolutions), net.svg (the net as a graph), probabilities.png (predicted
classes of each image), activations.png (values of the last fully connected blobs), and feature_maps/NUMBER_CLASS.png (maps of the
layers, for each image). The images are the first validation images of different classes, or image files.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
from pipeline.inference.trained import load_net, outputs_of
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.flags import read_flags
from pipeline.options.training import VisualizeOptions
from pipeline.report import diagram
from pipeline.report.gallery import labelled_records, reorder_channels, truncate
from pipeline.report.tiles import normalise, save_page, tile

CHANNELS = 24
"""Most filters, and input channels of each, shown of a layer; more would be too small on a phone."""
COLUMNS = 11
"""Feature maps per row: each has room for 56 pixels."""
MAPS, LARGE_MAPS, LARGE = 64, 33, 20
"""Most feature maps shown of a layer, and of one with maps larger than so many pixels."""
LAYERS = 12
"""Most layers whose maps are shown; of a deeper net, the first and last of each resolution."""
VECTORS = 3
"""Number of last fully connected layers whose activations are shown."""
FEW = 50
"""Most values that are drawn as a bar each."""
TOP = 5
"""Most probable classes named for each image."""


@dataclass(frozen=True)
class Picture:
    """An image to show: its name, pixels as in the records, channels × height × width, and true class if known."""

    name: str
    pixels: np.ndarray
    label: str = ""


def first_of_classes(database: Path, names: list[str], count: int) -> list[Picture]:
    """The first image of each of the first `count` classes of a database."""
    pictures: dict[int, Picture] = {}
    for where, record in labelled_records(database, len(names)):
        if record.label not in pictures:
            label = names[record.label]
            pictures[record.label] = Picture(label, np.array(caffe.pixels_of(record, None, where)), label)
        if len(pictures) == count:
            break
    if not pictures:
        raise InputError(database, "the database has no records", do="build it again")
    return list(pictures.values())


def read_pictures(path: Path, how: Preprocessing, count: int) -> list[Picture]:
    """The image at a path, or the first `count` images of a folder."""
    pictures = []
    for file in image_files([path])[:count]:
        content = content_of(file)
        pixels = how.pixels(content)
        if pixels is None:
            raise InputError(file, f"not readable: {why_unreadable(content)}", do="remove it, or name another image")
        pictures.append(Picture(file.stem, pixels))
    return pictures


def as_seen(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    """An image as the net sees it, with its centre crop; uint8, height × width (× 3, RGB)."""
    if crop := how.transform.crop_size:
        top, left = ((side - crop) // 2 for side in pixels.shape[1:])
        pixels = pixels[:, top : top + crop, left : left + crop]
    pixels = pixels if pixels.dtype == np.uint8 else normalise(pixels)
    return reorder_channels(pixels, how.channels, "RGB").transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]


def filters(
    net: caffe_pb2.NetParameter, params: dict[str, np.ndarray], channels: str = "BGR"
) -> Iterator[tuple[str, np.ndarray]]:
    """(title, tiles) of the filters of the first two convolutions that are not 1 × 1, normalised per layer.

    The first is in colour if it has three inputs, in the order `channels` (BGR or RGB). In the tiles of the second, rows are
    filters and columns their inputs. `params` is {layer: weights}, outputs × inputs × height × width for convolutions.
    """
    kinds = ((layer.name, caffe.layer_type(layer.type)) for layer in net.layer)
    linear = [(name, params[name]) for name, kind in kinds if kind.is_linear and not kind.is_transposed]
    convolutions = [(name, weights) for name, weights in linear if weights.ndim == 4 and max(weights.shape[2:]) > 1]
    for number, (name, weights) in enumerate(convolutions[:2]):
        outputs, inputs, high, wide = weights.shape
        title = f"{name}: {outputs} filters of {high}×{wide}, {inputs} input{'s' * (inputs > 1)}"
        values = normalise(weights)
        if inputs == 3 and number == 0:
            in_rgb = values if channels == "RGB" else values[:, ::-1]
            yield f"{title} ({channels})", tile(in_rgb.transpose(0, 2, 3, 1), _columns(outputs))
        elif inputs == 1:
            yield title, tile(values[:, 0], _columns(outputs))
        else:
            first = values[:CHANNELS, :CHANNELS]
            part = f"; the first {first.shape[0]}, a row each, and {first.shape[1]} inputs" if first.size < values.size else ""
            yield title + part, tile(first.reshape(-1, high, wide), first.shape[1])


def _columns(count: int) -> int:
    """Tiles per row: about a square, 8 to 12."""
    return min(max(8, round(math.sqrt(count))), 12)


def blobs_with_maps(net: caffe_pb2.NetParameter, blobs: dict[str, np.ndarray]) -> list[str]:
    """The blobs whose maps are shown: of every layer; of more than LAYERS, the first and last of each resolution."""
    names = [name for name in _tops(net) if blobs[name].ndim == 4 and blobs[name].shape[2] * blobs[name].shape[3] > 1]
    if len(names) <= LAYERS:
        return names
    first = {blobs[name].shape[2:]: name for name in reversed(names)}
    last = {blobs[name].shape[2:]: name for name in names}
    ends = {*first.values(), *last.values()}
    return [name for name in names if name in ends][:LAYERS]


def _tops(net: caffe_pb2.NetParameter) -> list[str]:
    """The blobs that layers compute from the input, in the net's order, each once."""
    computed = [layer for layer in net.layer if layer.bottom and not caffe.layer_type(layer.type).copies_values]
    return list(dict.fromkeys(top for layer in computed for top in layer.top))


def feature_maps(names: list[str], blobs: dict[str, np.ndarray], number: int) -> Iterator[tuple[str, np.ndarray]]:
    """(title, tiles) of one image's feature maps, normalised per layer; blobs: images × channels × height × width."""
    for name in names:
        maps = blobs[name][number]
        channels, high, wide = maps.shape
        shown = maps[: MAPS if max(high, wide) <= LARGE else LARGE_MAPS]
        title = f"{name}: {channels} maps of {high}×{wide}" + (f", the first {len(shown)}" if len(shown) < channels else "")
        yield title, tile(normalise(shown), COLUMNS)


def vectors(net: caffe_pb2.NetParameter, blobs: dict[str, np.ndarray], outputs: list[str]) -> list[str]:
    """The last VECTORS blobs with one value per channel, except outputs; if there are no others, the outputs."""
    flat = [name for name in _tops(net) if blobs[name].ndim >= 2 and blobs[name][0].size == blobs[name].shape[1]]
    return [name for name in flat if name not in outputs][-VECTORS:] or flat


def activations(names: list[str], blobs: dict[str, np.ndarray], images: list[Picture]) -> Figure:
    """The values of each blob for each image; for more than FEW values, also a histogram of those that are not 0."""
    values = {name: blobs[name].reshape(len(images), -1) for name in names}
    many = {name: rows.shape[1] > FEW for name, rows in values.items()}
    heights = [height for name in names for height in ([1.2] * len(images) + [2.2] if many[name] else [2.2])]
    size = (5.2, sum(heights) + 0.4 * len(names))
    figure, axes = plt.subplots(len(heights), 1, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    panels = iter(axes[:, 0])
    for name, rows in values.items():
        title = f"{name}: {rows.shape[1]} values"
        if many[name]:
            _draw_lines(title, rows, list(islice(panels, len(images) + 1)), images)
        else:
            _draw_bars(title, rows, next(panels), images)
    return figure


def _draw_lines(title: str, rows: np.ndarray, axes: list[Axes], images: list[Picture]) -> None:
    """Draw many values: a line for each in a panel per image, and a histogram in the last panel."""
    edges = np.histogram_bin_edges(rows[rows != 0] if rows.any() else rows, 40).tolist()
    for image, row, axis, colour in zip(images, rows, axes, cycle(COLOURS), strict=False):
        axis.vlines(range(len(row)), 0, row, color=colour, linewidth=0.7)
        axis.set(ylim=(min(0, rows.min()), rows.max() or 1), xlim=(0, len(row)), ylabel=truncate(image.name, 10))
        zeros = f"{(row == 0).mean():.0%} are 0"
        axes[-1].hist(row[row != 0], edges, color=colour, histtype="step", linewidth=1.5, label=zeros)
    axes[0].set_title(title)
    axes[-1].set(xlabel="value, where it is not 0", ylabel="count")
    axes[-1].legend(fontsize=10)


def _draw_bars(title: str, rows: np.ndarray, axis: Axes, images: list[Picture]) -> None:
    """Draw few values: a bar for each, images side by side."""
    width = 0.8 / len(images)
    for place, (image, row, colour) in enumerate(zip(images, rows, cycle(COLOURS), strict=False)):
        axis.bar(np.arange(len(row)) + (place + 0.5) * width - 0.4, row, width, color=colour, label=truncate(image.name, 16))
    axis.locator_params(axis="x", integer=True)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title(title)
    axis.legend(fontsize=10)


def draw_probabilities(probabilities: np.ndarray, names: list[str], images: list[Picture], how: Preprocessing) -> Figure:
    """Each image with its most probable classes, and the probabilities of all classes (images × classes)."""
    all_shown = probabilities.shape[1] <= TOP
    figure = plt.figure(figsize=(5.2, (2.2 if all_shown else 3.8) * len(images)), layout="constrained")
    grid = figure.add_gridspec((1 if all_shown else 2) * len(images), 2, width_ratios=[1, 2])
    for number, (image, row) in enumerate(zip(images, probabilities, strict=True)):
        top = number if all_shown else 2 * number
        axis = figure.add_subplot(grid[top, 0])
        axis.imshow(as_seen(image.pixels, how), cmap="gray")
        axis.set_title(truncate(image.label or image.name, 16), fontsize=12)
        axis.axis("off")
        axis = figure.add_subplot(grid[top, 1])
        best = np.argsort(-row, kind="stable")[:TOP]
        colours = [COLOURS[2] if names[label] == image.label else COLOURS[5] for label in best]
        axis.barh(range(len(best)), row[best], color=colours)
        for place, label in enumerate(best):
            axis.text(0.02, place, f"{truncate(names[label], 26)}  {row[label]:.1%}", va="center", fontsize=11)
        axis.set_xlim(0, 1)
        axis.invert_yaxis()
        axis.axis("off")
        if not all_shown:
            axis = figure.add_subplot(grid[top + 1, :])
            axis.bar(range(len(row)), row, width=max(0.8, len(row) / 300), color=COLOURS[5])
            axis.set(xlabel="class, by number", ylabel="probability", ylim=(0, 1))
    return figure


@dataclass(frozen=True)
class Trained:
    """A trained net: deploy prototxt, weights, train prototxt, preprocessing of images, class names."""

    deploy: Path
    weights: Path
    train: Path
    how: Preprocessing
    names: list[str]


def write(trained: Trained, images: list[Picture], folder: Path) -> None:
    """Write all pictures to `folder`, whole."""
    definition = diagram.of_phase(caffe.read_net(trained.deploy), caffe.TEST)
    inputs = np.concatenate([trained.how.inputs(image.pixels) for image in images])
    graph = diagram.drawn(trained.train, inputs.shape[1:])
    net = load_net(trained.deploy, trained.weights)
    probabilities = outputs_of(net, trained.deploy, inputs, len(trained.names))
    blobs = {name: net.blobs[name].data for name in _tops(definition)}
    if bad := [name for name, values in blobs.items() if not np.isfinite(values).all()]:
        do = "train with a smaller base_lr, or give other weights"
        raise InputError(trained.weights, f'blob "{bad[0]}" has NaN or infinite values', do=do)
    params = {name: blobs[0].data for name, blobs in net.params.items()}
    with written_whole(folder) as part, plt.rc_context(STYLE):
        (part / "feature_maps").mkdir(parents=True)
        (part / "net.svg").write_text(graph, encoding="utf-8")
        sections = list(filters(definition, params, trained.how.channels))
        save_page(part / "filters.png", sections or [("no convolution", np.zeros((1, 1), np.uint8))])
        names = blobs_with_maps(definition, blobs)
        for number, image in enumerate(images):
            seen = as_seen(image.pixels, trained.how)
            title = f"class {image.label}" if image.label else image.name
            first = (f"{truncate(title, 60)}: {'×'.join(map(str, inputs.shape[2:]))} pixels", tile(seen[None], 1, 200))
            page = part / f"feature_maps/{number + 1}_{plain_name(image.name, 40)}.png"
            save_page(page, [first, *feature_maps(names, blobs, number)])
        save_png(activations(vectors(definition, blobs, net.outputs), blobs, images), part / "activations.png")
        save_png(draw_probabilities(probabilities, trained.names, images, trained.how), part / "probabilities.png")


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
    images = first_of_classes(a.database, names, count) if a.database else read_pictures(a.images, how, count)
    with devices.computing(options):
        write(trained, images, a.folder)
    print(f"{a.folder}: pictures of the net, with {', '.join(image.name for image in images)}")


if __name__ == "__main__":
    run(main)
