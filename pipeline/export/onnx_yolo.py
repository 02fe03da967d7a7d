"""Convert the detections of YOLO to ONNX: YoloDetectionOutput, Yolov3DetectionOutput."""

import numpy as np
from onnx import TensorProto

from pipeline.export.onnx_detection import detections, gather_rows, keep_likely, take_best
from pipeline.export.onnx_part import Part, converts


def _cells(part: Part, index: int, x: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Predictions (N, H · W · anchors, values) of a map, column and row of the cell of each, and width and height of the map."""
    p, (_, channels, height, width) = part.layer.settings_of(part.param), part.shapes[index]
    values = part.add("Reshape", x, part.whole("anchors", [-1, p.num_box, channels // p.num_box, height, width]))
    values = part.add("Transpose", values, perm=[0, 3, 4, 1, 2])
    values = part.add("Reshape", values, part.whole("cells", [-1, height * width * p.num_box, channels // p.num_box]))
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    return values, np.repeat(places, p.num_box, 0).astype(np.float32), np.array([width, height], np.float32)


def _centre(part: Part, moves: str, places: np.ndarray, size: np.ndarray) -> str:
    """Centres of boxes in fractions of the image, from values for their column and row."""
    at = part.add("Add", part.add("Sigmoid", moves), part.tensor("places", places))
    return part.add("Div", at, part.tensor("size", size))


def _best_class(part: Part, scores: str) -> list[str]:
    """The greatest of the scores (N, K, classes) and its class, counted from 1, both (N, K)."""
    label = part.add("Cast", part.add("ArgMax", scores, axis=-1, keepdims=0), to=TensorProto.FLOAT)
    return [part.reduce("ReduceMax", scores, [-1], keepdims=0), part.add("Add", label, part.number("one", 1))]


def _join(part: Part, maps: list[list[str]]) -> list[str]:
    """Tensors of all maps, joined along their second axis."""
    return [part.add("Concat", *each, axis=1) if len(each) > 1 else each[0] for each in zip(*maps, strict=True)]


def _output(part: Part, like: str, boxes: str, scores: str, labels: str, count: int, is_likely: str) -> str:
    """The top from centres and sides (N, K, 4), scores and labels (N, K).

    is_likely  operator that compares scores to confidence_threshold
    """
    p = part.layer.settings_of(part.param)
    half = part.add("Div", part.columns(boxes, 2, 4), part.number("two", 2))
    centre = part.columns(boxes, 0, 2)
    corners = part.add("Concat", part.add("Sub", centre, half), part.add("Add", centre, half), axis=-1)
    scores, places = take_best(part, scores, count)
    corners, labels = gather_rows(part, corners, places), gather_rows(part, labels, places)
    likely = part.add(is_likely, scores, part.number("confidence_threshold", p.confidence_threshold))
    if p.nms_threshold > 1:
        mask = part.add("Cast", likely, to=TensorProto.FLOAT)
    else:
        # A box is left out if another overlaps it by the threshold or more; at 0, that is all but the best.
        threshold = float(np.nextafter(np.float32(p.nms_threshold), np.float32(-1)))
        mask = keep_likely(part, corners, likely, count, count if p.nms_threshold > 0 else 1, max(threshold, 0))
    return detections(part, mask, [(labels, 1), (scores, 1), (corners, 4)], count, like)


@converts("YoloDetectionOutput", single_precision=True)
def yolo_detection_output(part: Part, *maps: str) -> str:
    anchors, joined, count = part.layer.anchors, [], 0
    for index, x in enumerate(maps):
        values, places, size = _cells(part, index, x)
        own = part.tensor("anchors", np.tile(anchors, (len(places) // len(anchors), 1)))
        sides = part.add("Mul", part.add("Exp", part.columns(values, 2, 4)), own)
        sides = part.add("Div", sides, part.tensor("size", size))
        boxes = part.add("Concat", _centre(part, part.columns(values, 0, 2), places, size), sides, axis=-1)
        classes = part.add("Softmax", part.columns(values, 5, 5 + part.param.yolo_detection_output_param.num_classes), axis=-1)
        score, label = _best_class(part, classes)
        confidence = part.add("Sigmoid", part.add("Gather", values, part.whole("confidence", 4), axis=-1))
        joined.append([boxes, part.add("Mul", confidence, score), label])
        count += len(places)
    boxes, scores, labels = _join(part, joined)
    return _output(part, maps[0], boxes, scores, labels, count, "GreaterOrEqual")


@converts("Yolov3DetectionOutput", single_precision=True)
def yolov3_detection_output(part: Part, *maps: str) -> str:
    p, joined, count = part.param.yolov3_detection_output_param, [], 0
    for index, x in enumerate(maps):
        values, places, size = _cells(part, index, x)
        if p.gaussian_box:  # x, its variance, y, its variance …
            moves, variances = (part.slice(values, [-1], [start], [8], [2]) for start in (0, 1))
            certain = part.add("Sub", part.number("one", 1), part.reduce("ReduceMean", part.add("Sigmoid", variances), [-1]))
            confidence = part.add("Mul", part.add("Sigmoid", part.columns(values, 8, 9)), certain)
        else:
            moves, confidence = part.columns(values, 0, 4), part.add("Sigmoid", part.columns(values, 4, 5))
        anchors = part.layer.anchors[list(p.mask[index * p.num_box : (index + 1) * p.num_box])]
        anchors = np.tile(anchors / (size * np.float32(p.anchors_scale[index])), (len(places) // p.num_box, 1))
        sides = part.add("Mul", part.add("Exp", part.columns(moves, 2, 4)), part.tensor("anchors", anchors.astype(np.float32)))
        boxes = part.add("Concat", _centre(part, part.columns(moves, 0, 2), places, size), sides, axis=-1)
        first = 9 if p.gaussian_box else 5
        classes = part.add("Sigmoid", part.columns(values, first, first + p.num_classes))
        joined.append([boxes, part.add("Mul", classes, confidence)])
        count += len(places)
    boxes, scores = _join(part, joined)
    if p.nms_threshold <= 1:
        # The same box as another class would be left out anyway.
        best, label = _best_class(part, scores)
        return _output(part, maps[0], boxes, best, label, count, "Greater")
    # Each class of a box is a detection of its own.
    rows = part.add("Reshape", scores, part.whole("rows", [-1, count * p.num_classes]))
    labels = np.tile(np.arange(1, p.num_classes + 1, dtype=np.float32), count)[None]
    label = part.add("Expand", part.tensor("labels", labels), part.add("Shape", rows))
    boxes = part.add("Tile", boxes, part.whole("classes", [1, 1, p.num_classes]))
    boxes = part.add("Reshape", boxes, part.whole("boxes", [-1, count * p.num_classes, 4]))
    return _output(part, maps[0], boxes, rows, label, count * p.num_classes, "Greater")
