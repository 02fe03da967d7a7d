"""Draw a dataset: images of each class, class sizes, image sizes, and the mean image.

Written to a folder: overview.png (a row of images for each class), classes.png and classes.svg (images per class and split),
sizes.png and sizes.svg (height and width of the image files), mean.png, and sheets/NUMBER_CLASS.jpg, a contact sheet per class.
Images are those of the training database.
"""

from collections import Counter
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

import caffe
from pipeline.command import run, step_parser
from pipeline.figures import COLOURS, STYLE, save, save_png
from pipeline.files import plain_name, written_whole
from pipeline.formats.images import write_png
from pipeline.formats.lists import read_image_list, read_labels
from pipeline.formats.records import channels_of
from pipeline.formats.tables import read_table
from pipeline.report.gallery import labelled_records, reorder_channels
from pipeline.report.tiles import grid

ROW, COLUMNS, ROWS = 8, 8, 6
"""Images of a class in the overview; columns and rows of its sheet."""
SIDE, GAP = 96, 4
"""Side of a thumbnail, and white between them, in pixels."""
SHOWN = 40
"""Most classes in the overview and the plot; there are sheets of all."""


def thumbnail(image: np.ndarray) -> np.ndarray:
    """An image, channels × height × width, as SIDE × SIDE × 3 (BGR), padded with white; a pair of images side by side."""
    gray = np.hstack(list(image))[None] if len(image) == 2 else image[:1]
    planes = image if len(image) == 3 else np.repeat(gray, 3, 0)
    height, width = planes.shape[1:]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = cv2.resize(np.ascontiguousarray(planes.transpose(1, 2, 0)), size, interpolation=interpolation)
    padded = np.full((SIDE, SIDE, 3), 255, np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    padded[top : top + size[1], left : left + size[0]] = small
    return padded


def first_of_each(database: Path, classes: int, count: int) -> list[list[np.ndarray]]:
    """Thumbnails of the first `count` images of each class of a database, which is read no further."""
    images: list[list[np.ndarray]] = [[] for _ in range(classes)]
    missing, channels = classes * count, channels_of(database)
    for where, record in labelled_records(database, classes):
        if len(images[record.label]) < count:
            pixels = caffe.pixels_of(record, None, where)
            images[record.label].append(thumbnail(reorder_channels(pixels, channels, "BGR")))
            missing -= 1
        if not missing:
            break
    return images


def overview(images: list[list[np.ndarray]], names: list[str]) -> Figure:
    """A row of images for each of the first SHOWN classes, with its name."""
    blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
    rows = [grid(thumbnails[:ROW], ROW, GAP) if thumbnails else blank for thumbnails in images[:SHOWN]]
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.95 * len(rows)), squeeze=False, layout="constrained")
    for axis, row, name in zip(axes[:, 0], rows, names, strict=False):
        axis.imshow(row[:, :, ::-1], aspect="equal")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    return figure


def class_sizes(counts: dict[str, Counter[int]], names: list[str]) -> Figure:
    """Images per class by split: a bar for each class; for many classes, the sorted numbers."""
    many, left = len(names) > SHOWN, np.zeros(len(names))
    figure, axis = plt.subplots(figsize=(6.4, 4 if many else 1.2 + 0.3 * len(names)), layout="constrained")
    for (part, counter), colour in zip(counts.items(), COLOURS, strict=False):
        sizes = np.array([counter[number] for number in range(len(names))])
        if many:
            axis.plot(np.sort(sizes)[::-1], label=part, color=colour)
        else:
            axis.barh(range(len(names)), sizes, left=left, label=part, color=colour)
            left += sizes
    if many:
        axis.set(xlabel="classes, largest first", ylabel="images", ylim=(0, None))
    else:
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("images")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def file_sizes(sizes: np.ndarray, resized: tuple[int, int]) -> Figure:
    """Width and height of the image files: `sizes` has rows of height, width and count; `resized`: after resizing."""
    heights, widths, counts = sizes.T
    figure, axis = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    areas = 12 + 300 * counts / counts.max()
    axis.scatter(widths, heights, areas, color=COLOURS[0], alpha=0.4, linewidths=0, label="images, by number")
    axis.scatter([resized[1]], [resized[0]], 60, color=COLOURS[1], marker="x", label=f"resized to {resized[1]}×{resized[0]}")
    for set_scale, values in ((axis.set_xscale, widths), (axis.set_yscale, heights)):
        if values.max() > 4 * values.min():
            set_scale("log")
    axis.set(xlabel="width in pixels", ylabel="height in pixels")
    figure.legend(loc="outside upper right", ncols=2, markerscale=0.6)
    return figure


def write(dataset: Path, folder: Path) -> None:
    """Write all pictures of the dataset in `dataset` to `folder`, whole."""
    names = read_labels(dataset / "lists/labels.txt")
    entries = {split: read_image_list(dataset / f"lists/{split}.txt", len(names)) for split in ("train", "val")}
    counts = {split: Counter(label for _, label in listed) for split, listed in entries.items()}
    images = first_of_each(dataset / "lmdb/train", len(names), COLUMNS * ROWS)
    mean = caffe.read_mean(str(dataset / "mean.binaryproto"))
    with written_whole(folder) as part:
        (part / "sheets").mkdir(parents=True)
        for number, (name, thumbnails) in enumerate(zip(names, images, strict=True)):
            if thumbnails:
                _, content = cv2.imencode(".jpg", grid(thumbnails, COLUMNS, GAP), [cv2.IMWRITE_JPEG_QUALITY, 75])
                (part / f"sheets/{number:04d}_{plain_name(name, 60)}.jpg").write_bytes(content.data)
        with plt.rc_context(STYLE):
            save_png(overview(images, names), part / "overview.png", tight=True)
            save(class_sizes(counts, names), part / "classes")
            sizes = read_table(dataset / "lists/sizes.csv", ("height", "width", "images")).to_numpy(int)
            save(file_sizes(sizes, mean.shape[1:]), part / "sizes")
        planes = reorder_channels(mean, channels_of(dataset / "lmdb/train"), "BGR") if len(mean) == 3 else mean[:1]
        write_png(part / "mean.png", np.ascontiguousarray(planes.round().astype(np.uint8).transpose(1, 2, 0)))


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("dataset", type=Path, help="the folder of a dataset, with lists/, lmdb/ and mean.binaryproto")
    parser.add_argument("folder", type=Path, help="where the pictures go; replaced if it exists")
    a = parser.parse_args(argv)
    write(a.dataset, a.folder)
    print(f"{a.folder}: pictures of {len(list((a.folder / 'sheets').iterdir()))} classes")


if __name__ == "__main__":
    run(main)
