"""Files of SSD's detectors: label maps, image sizes, and detections in the formats of VOC, COCO and ILSVRC."""

import json
from pathlib import Path

import numpy as np

from caffe.errors import FileError
from caffe.formats.files import read_bytes
from caffe.formats.prototxt import read_prototxt
from caffe.proto import caffe_pb2
from caffe.transforms.boxes import Boxes

RESIZE = caffe_pb2.ResizeParameter
DetectionParameter = caffe_pb2.SaveOutputParameter | caffe_pb2.DetectionEvaluateParameter


def read_label_map(path: str) -> dict[int, caffe_pb2.LabelMapItem]:
    """Read {label: its item} from a label map (text, `item { name: … label: … display_name: … }`)."""
    labels: dict[int, caffe_pb2.LabelMapItem] = {}
    for item in read_prototxt(path, caffe_pb2.LabelMap()).item:
        if item.label in labels:
            found = f'label {item.label} for "{labels[item.label].name}" and "{item.name}"'
            raise FileError(path, found, "every class must have its own label")
        labels[item.label] = item
    return labels


def read_sizes(path: str) -> list[tuple[str, int, int]]:
    """Read name, height and width of each image from lines `name height width`."""
    sizes = []
    for number, line in enumerate(read_bytes(path).decode().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            raise FileError(f"{path}:{number}", f'"{line.strip()}"', "a line must be name, height and width")
        sizes.append((parts[0], int(parts[1]), int(parts[2])))
    return sizes


def in_pixels(corners: Boxes, height: int, width: int, param: DetectionParameter) -> Boxes:
    """Convert corners in fractions of the net's input to pixels of the image before `param.resize_param`."""
    p = param.resize_param
    size = np.array([width, height] * 2, float)
    if p.resize_mode == RESIZE.FIT_LARGE_SIZE_AND_PAD:
        aspect = width / height
        share = np.array([min(1, aspect * p.height / p.width), min(1, p.width / aspect / p.height)])
        corners = (corners - np.tile((1 - share) / 2, 2)) / np.tile(share, 2)
    elif p.resize_mode == RESIZE.FIT_SMALL_SIZE and p.height_scale and p.width_scale:
        scaled: Boxes = np.clip(corners * np.tile([p.width_scale, p.height_scale], 2), 0, size)
        return scaled
    pixels: Boxes = np.clip(corners, 0, 1) * size
    return pixels


class ResultFiles:
    """Collects the detections of the images of a name_size_file, in its order; writes them after the last image and starts again.

    VOC: a file for each class, lines of image, score and corners in pixels. COCO: one file of objects. ILSVRC: one file, lines of
    image, label, score and corners.
    """

    def __init__(self, param: caffe_pb2.SaveOutputParameter, classes: list[int], where: str):
        self.param, self.classes = param, classes
        self.items = read_label_map(param.label_map_file)
        self.sizes = read_sizes(param.name_size_file)
        if param.HasField("num_test_image"):
            if param.num_test_image > len(self.sizes):
                raise FileError(param.name_size_file, f"{len(self.sizes)} images", f"num_test_image is {param.num_test_image}")
            self.sizes = self.sizes[: param.num_test_image]
        if not self.sizes:
            raise FileError(param.name_size_file, "no images", "each must have a line: name, height and width")
        missing = [label for label in classes if label not in self.items]
        if missing:
            raise FileError(param.label_map_file, f"no item for label {missing[0]}", f"{where} has classes {classes}")
        if param.output_format not in ("VOC", "COCO", "ILSVRC"):
            raise FileError(where, f'output_format "{param.output_format}"', "it must be VOC, COCO or ILSVRC")
        self.detections: list[tuple[str, int, float, np.ndarray]] = []
        self.images = 0

    def add(self, rows: np.ndarray) -> None:
        """Add the detections of the next image: label, score, and corners in fractions of the image."""
        name, height, width = self.sizes[self.images]
        corners = in_pixels(rows[:, 2:].astype(np.float64), height, width, self.param)
        for (label, score), (xmin, ymin, xmax, ymax) in zip(rows[:, :2], corners, strict=True):
            box = np.round(np.array([xmin, ymin, xmax - xmin, ymax - ymin]) * 100) / 100
            self.detections.append((name, int(label), float(f"{score:.6g}"), box))
        self.images += 1
        if self.images == len(self.sizes):
            self.write()
            self.detections, self.images = [], 0

    def write(self) -> None:
        """Write the files of all images."""
        folder = Path(self.param.output_directory)
        folder.mkdir(parents=True, exist_ok=True)
        prefix = self.param.output_name_prefix
        if self.param.output_format == "COCO":
            objects = [
                {"image_id": _id_of(name), "category_id": _id_of(self.items[label].name), "bbox": box.tolist(), "score": score}
                for name, label, score, box in self.detections
            ]
            (folder / f"{prefix}.json").write_text(json.dumps(objects, indent=1) + "\n")
            return
        by_class = self.param.output_format == "VOC"
        files: dict[str, list[str]] = {self.items[label].name if by_class else "": [] for label in self.classes}
        for name, label, score, box in self.detections:
            x, y, w, h = box.astype(int)
            middle = f"{score:g}" if by_class else f"{label} {score:g}"
            files[self.items[label].name if by_class else ""].append(f"{name} {middle} {x} {y} {x + w} {y + h}\n")
        for name, lines in files.items():
            (folder / f"{prefix}{name}.txt").write_text("".join(lines))


def _id_of(text: str) -> int | str:
    return int(text) if text.isdigit() else text
