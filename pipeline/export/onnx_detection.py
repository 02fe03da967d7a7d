"""Convert the layers of detectors to ONNX that choose boxes: PriorBox, DetectionOutput, Proposal, BoxOutput.

They are composed of ONNX's own operators, so that no runtime needs a plug-in; their rows have the order of Caffe's.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from caffe.proto import caffe_pb2
from pipeline.export.onnx_part import Part, converts

CODES = caffe_pb2.PriorBoxParameter
DETECTIONS = ("DetectionOutput", "YoloDetectionOutput", "Yolov3DetectionOutput", "BoxOutput")
"""Types whose tops are the rows of all images, however many they are."""
ROWS_OF_VALUES = (*DETECTIONS, "Proposal", "Filter")
"""Types whose number of rows depends on values."""
LabelOf = Callable[[str], str]
LEFT_OUT = -1.0
"""Score of regions that are left out, less than any probability."""
EMPTY = -1.0
"""What a row of DetectionOutput holds instead of a detection, after the image's index."""


def gather_rows(part: Part, x: str, indices: str) -> str:
    """Rows (N, K, …) of x (N, P, …) by indices (N, K)."""
    return part.add("GatherND", x, part.add("Unsqueeze", indices, part.whole("axes", [-1])), batch_dims=1)


def _count(part: Part, x: str) -> str:
    """The extent of the first axis, (1,)."""
    return part.slice(part.add("Shape", x), [0], [0], [1])


def take_best(part: Part, scores: str, count: int) -> tuple[str, str]:
    """The `count` best of the last axis, best first, and their places; of equal ones the first comes first."""
    values = part.add("TopK", scores, part.whole("count", [count]), outputs=2, axis=-1)
    return values, part.nodes[-1].output[1]


def suppress(part: Part, boxes: str, scores: str, most: int, threshold: float, least: float | None = None) -> str:
    """Non-maximum suppression of boxes (M, K, 4) by scores (M, K): (rows, 2), which of M and of K, best first.

    threshold  1 and more keep all boxes; ONNX takes none above 1
    least      score above which boxes are taken; None: all
    """
    rows = part.add("Unsqueeze", scores, part.whole("axes", [1]))
    limits = [part.whole("most", [most]), part.tensor("nms_threshold", np.array([min(threshold, 1)], np.float32))]
    if least is not None:
        limits.append(part.tensor("score_threshold", np.array([least], np.float32)))
    selected = part.add("NonMaxSuppression", boxes, rows, *limits)
    return part.add("Gather", selected, part.whole("columns", [0, 2]), axis=1)


def keep_likely(part: Part, boxes: str, likely: str, count: int, most: int, threshold: float) -> str:
    """A mask (N, K) of the boxes (N, K, 4) that non-maximum suppression keeps among those that are likely (N, K), a condition.

    The boxes are sorted, the best first, the likely ones before all others. Those become one box, so that they take little time;
    they are left in, as OpenCV would crash on an empty tensor. The boxes' ranks are their scores, as OpenCV takes none below 0.

    count  K
    most   number of boxes of an image that are kept
    """
    ranks = part.tensor("ranks", np.arange(count, 0, -1, dtype=np.float32)[None])
    scores = part.add("Expand", ranks, part.add("Shape", likely))
    condition = part.add("Unsqueeze", likely, part.whole("axes", [-1]))
    boxes = part.add("Where", condition, boxes, part.tensor("unlikely", np.array([0, 0, 1, 1], np.float32)))
    kept = suppress(part, boxes, scores, most, threshold)
    mask = part.add("ScatterND", _zeros(part, scores), kept, _ones(part, kept))
    return part.add("Mul", mask, part.add("Cast", likely, to=TensorProto.FLOAT))


# ---- SSD


@converts("PriorBox", single_precision=True)
def prior_box(part: Part, _map: str, _image: str) -> str:
    """The boxes, which depend on nothing but extents, as a constant."""
    layer = part.layer
    extents = part.shapes[0][2:], part.shapes[1][2:]
    return part.add("Identity", part.tensor("priors", layer.place(extents[0], layer.image or extents[1])))


def _decode(part: Part, offsets: str, corners: str, variances: str) -> str:
    """Boxes (N, L, P, 4) from their offsets, which are relative to priors (P, 4)."""
    code, scaled = part.param.detection_output_param.code_type, offsets
    if not part.param.detection_output_param.variance_encoded_in_target:
        scaled = part.add("Mul", offsets, variances)
    if code == CODES.CORNER:
        return part.add("Add", scaled, corners)
    first, last = part.columns(corners, 0, 2), part.columns(corners, 2, 4)
    sides = part.add("Sub", last, first)
    if code == CODES.CORNER_SIZE:
        return part.add("Add", part.add("Mul", scaled, part.add("Concat", sides, sides, axis=-1)), corners)
    two = part.number("two", 2)
    middle = part.add("Div", part.add("Add", first, last), two)
    centre = part.add("Add", part.add("Mul", part.columns(scaled, 0, 2), sides), middle)
    half = part.add("Div", part.add("Mul", part.add("Exp", part.columns(scaled, 2, 4)), sides), two)
    return part.add("Concat", part.add("Sub", centre, half), part.add("Add", centre, half), axis=-1)


@converts("DetectionOutput", single_precision=True)
def detection_output(part: Part, offsets: str, scores: str, priors: str, *more: str) -> str:
    """The rows (1, 1, boxes, 7) of image, class, score and box, in the order of images, classes and scores.

    more  RefineDet's objectness of the priors and offsets that move them; or an image, which changes nothing
    """
    p = part.param.detection_output_param
    if p.nms_param.eta < 1:
        do = "remove eta, or crop the net before this layer"
        raise part.error(f"eta {p.nms_param.eta:g}", "ONNX's NonMaxSuppression does not change its threshold", do)
    labels = [label for label in range(p.num_classes) if label != p.background_label_id]
    count, classes = math.prod(part.shapes[2]) // 8, len(labels)
    places = 1 if p.share_location else p.num_classes
    both = part.add("Reshape", priors, part.whole("pair", [2, count, 4]))
    corners, variances = (part.add("Gather", both, part.whole("half", index), axis=0) for index in (0, 1))
    if len(more) > 1:
        moves = part.add("Reshape", more[1], part.whole("moves", [-1, 1, count, 4]))
        corners = _decode(part, moves, corners, variances)
    encoded = part.add("Reshape", offsets, part.whole("offsets", [-1, count, places, 4]))
    boxes = _decode(part, part.add("Transpose", encoded, perm=[0, 2, 1, 3]), corners, variances)  # images, places, priors, 4
    boxes = part.add("Clip", boxes, part.number("first", 0), part.number("last", 1)) if p.clip else boxes
    table = part.add("Reshape", scores, part.whole("scores", [-1, count, p.num_classes]))
    if part.layer.refines:
        objectness = part.add("Reshape", more[0], part.whole("objectness", [-1, count, 2]))
        objectness = part.columns(objectness, 1, 2)
        hopeless = part.add("Less", objectness, part.number("objectness_score", p.objectness_score))
        first = part.tensor("first_class", np.eye(1, p.num_classes, dtype=np.float32)[None])
        table = part.add("Where", hopeless, first, table)
    table = part.add("Transpose", table, perm=[0, 2, 1])
    table = part.add("Gather", table, part.whole("labels", labels), axis=1)  # images, classes, priors
    top_k = part.layer.candidates
    candidates = count if top_k is None else min(top_k, count)
    table, chosen = take_best(part, table, candidates)
    if places == 1:
        boxes = part.add("Reshape", boxes, part.whole("boxes", [-1, count, 4]))
        chosen = part.add("Reshape", chosen, part.whole("chosen", [-1, classes * candidates]))
    else:
        boxes = part.add("Gather", boxes, part.whole("labels", labels), axis=1)
        boxes = part.add("Reshape", boxes, part.whole("boxes", [-1, count, 4]))
        chosen = part.add("Reshape", chosen, part.whole("chosen", [-1, candidates]))
    boxes = gather_rows(part, boxes, chosen)
    boxes = part.add("Reshape", boxes, part.whole("boxes", [-1, candidates, 4]))  # images and classes, candidates, 4
    rows = part.add("Reshape", table, part.whole("rows", [-1, candidates]))
    # A box with a negative side overlaps none, in ONNX as one without area.
    first, last = part.columns(boxes, 0, 2), part.columns(boxes, 2, 4)
    upright = part.add("Concat", first, part.add("Max", first, last), axis=-1)
    kept = suppress(part, upright, rows, candidates, p.nms_param.nms_threshold)
    mask = part.add("ScatterND", _zeros(part, rows), kept, _ones(part, kept))
    if p.HasField("confidence_threshold"):
        # Afterwards, as boxes of low scores suppress none of higher ones; so no tensor is empty, which OpenCV would crash on.
        likely = part.add("Greater", rows, part.number("confidence_threshold", p.confidence_threshold))
        mask = part.add("Mul", mask, part.add("Cast", likely, to=TensorProto.FLOAT))
    if -1 < p.keep_top_k < classes * candidates:
        images = part.whole("images", [-1, classes * candidates])
        mask, ranks = (part.add("Reshape", values, images) for values in (mask, rows))
        mask = _limit(part, mask, ranks, p.keep_top_k)

    def label(found: str) -> str:
        of_class = part.add("Div", found, part.whole("candidates", [candidates]))
        number = part.add("Mod", of_class, part.whole("classes", [classes]))
        return part.add("Gather", part.tensor("labels_of", np.array(labels, np.float32)), number, axis=0)

    return detections(part, mask, [(rows, 1), (boxes, 4)], classes * candidates, scores, label)


def _found(part: Part, mask: str, tables: Sequence[tuple[str, Sequence[float]]]) -> tuple[str, list[str]]:
    """Which entries of M · K a mask (M, K) marks, (R + 1,), and their rows of tables (M, K, width), each (R + 1, width).

    The last one is marked always, so that no tensor is empty, and comes after all entries; a table is given with its row there.
    """
    line = part.whole("line", [-1])
    marks = part.add("Concat", part.add("Reshape", mask, line), part.tensor("last_mark", np.ones(1, np.float32)), axis=0)
    found = part.add("Reshape", part.add("NonZero", marks), line)
    rows = []
    for table, last in tables:
        values = part.add("Reshape", table, part.whole("values", [-1, len(last)]))
        values = part.add("Concat", values, part.tensor("last", np.array([last], np.float32)), axis=0)
        rows.append(part.add("Gather", values, found, axis=0))
    return found, rows


def detections(
    part: Part, mask: str, tables: Sequence[tuple[str, int]], each: int, like: str, label: LabelOf | None = None
) -> str:
    """The top (1, 1, rows, 7) from the entries that a mask marks, of `each` for each image.

    After the rows comes an empty one for each image, for a batch without any detection: which of them the top has is decided by a
    slice at the end.

    tables  label, score and box of each entry, with their numbers of columns
    like    a tensor whose first axis is that of the images
    label   if the labels are no table: gives those of places among the entries, (R,), as (R,)
    """
    found, columns = _found(part, mask, [(table, [0.0] * width) for table, width in tables])
    image = part.add("Cast", part.add("Div", found, part.whole("entries", [each])), to=TensorProto.FLOAT)
    first = [image, label(found)] if label else [image]
    columns = [*(part.add("Reshape", column, part.whole("column", [-1, 1])) for column in first), *columns]
    result = part.add("Concat", part.add("Concat", *columns, axis=1), _empty_rows(part, like), axis=0)
    one = part.whole("one", [1])
    count = part.add("Sub", _count(part, found), one)
    none = part.add("Cast", part.add("Equal", count, part.whole("none", [0])), to=TensorProto.INT64)
    end = part.add("Add", count, part.add("Mul", none, part.add("Add", _count(part, like), one)))
    result = part.add("Slice", result, none, end, part.whole("axis", [0]))
    return part.add("Reshape", result, part.whole("top", [1, 1, -1, 7]))


def _zeros(part: Part, like: str) -> str:
    return part.add("Expand", part.number("zero", 0), part.add("Shape", like))


def _ones(part: Part, rows: str) -> str:
    """A 1 for each row, (rows,)."""
    return part.add("Expand", part.number("one", 1), _count(part, rows))


def _limit(part: Part, mask: str, scores: str, most: int) -> str:
    """Of the entries of each row that a mask marks, both (N, M), the `most` with the best scores."""
    marked = part.add("Cast", mask, to=TensorProto.BOOL)
    ranked = part.add("Where", marked, scores, part.number("lowest", -math.inf))
    values, places = take_best(part, ranked, most)
    ones = part.add("Expand", part.number("one", 1), part.add("Shape", values))
    return part.add("Mul", mask, part.add("ScatterElements", _zeros(part, mask), places, ones, axis=1))


def _empty_rows(part: Part, scores: str) -> str:
    """What a batch without any detection gives: a row for each image, of its index and -1."""
    images = part.add("Cast", part.add("NonZero", _ones(part, scores)), to=TensorProto.FLOAT)
    images = part.add("Reshape", images, part.whole("column", [-1, 1]))
    size = part.add("Concat", _count(part, scores), part.whole("six", [6]), axis=0)
    return part.add("Concat", images, part.add("Expand", part.number("empty", EMPTY), size), axis=1)


# ---- Faster R-CNN


@converts("Proposal", single_precision=True)
def proposal(part: Part, scores: str, offsets: str, sizes: str) -> list[str]:
    """Regions (R, 5), and on request their scores, in the order of images and scores."""
    p, layer = part.param.proposal_param, part.layer
    images, _, height, width = part.shapes[0]
    rows = math.prod(part.shapes[2][:-1])
    if rows not in (1, images):
        raise part.error(f"{rows} image sizes for {images} images", "one for all or one for each is exported")
    count = len(layer.anchors)
    anchors = layer.placed_anchors(height, width)
    sides = anchors[:, 2:] - anchors[:, :2] + 1
    extent, middle = part.tensor("sides", sides), part.tensor("middle", (anchors[:, :2] + sides / 2).astype(np.float32))
    moves = part.add("Reshape", offsets, part.whole("anchors", [-1, count, 4, height, width]))
    moves = part.add("Reshape", part.add("Transpose", moves, perm=[0, 3, 4, 1, 2]), part.whole("rows", [-1, len(anchors), 4]))
    centre = part.add("Add", middle, part.add("Mul", part.columns(moves, 0, 2), extent))
    half = part.add("Mul", part.add("Exp", part.columns(moves, 2, 4)), extent)
    half = part.add("Div", half, part.number("two", 2))
    boxes = part.add("Concat", part.add("Sub", centre, half), part.add("Add", centre, half), axis=-1)
    size = part.add("Reshape", sizes, part.whole("sizes", [-1, 1, part.shapes[2][-1]]))
    far = part.add("Sub", part.add("Gather", size, part.whole("corner", [1, 0, 1, 0]), axis=-1), part.number("one", 1))
    boxes = part.add("Min", part.add("Max", boxes, part.number("zero", 0)), far)
    wide = part.add("Add", part.add("Sub", part.columns(boxes, 2, 4), part.columns(boxes, 0, 2)), part.number("one", 1))
    scale = part.add("Gather", size, part.whole("scale", [3 if part.shapes[2][-1] > 3 else 2, 2]), axis=-1)
    fits = part.add("GreaterOrEqual", wide, part.add("Mul", scale, part.number("min_size", p.min_size)))
    fits = part.add("Cast", fits, to=TensorProto.FLOAT)
    fits = part.reduce("ReduceMin", fits, [-1], keepdims=0)
    objects = part.add("Transpose", part.slice(scores, [1], [count], [2 * count]), perm=[0, 2, 3, 1])
    objects = part.add("Reshape", objects, part.whole("flat", [-1, len(anchors)]))
    if layer.keeps_small:
        objects = part.add("Mul", objects, fits)
    else:
        fits = part.add("Cast", fits, to=TensorProto.BOOL)
        objects = part.add("Where", fits, objects, part.number("left_out", LEFT_OUT))
    best, places = take_best(part, objects, min(p.pre_nms_topn, len(anchors)))
    boxes = gather_rows(part, boxes, places)
    # Both corners belong to a box.
    closed = part.add("Add", boxes, part.tensor("closed", np.array([0, 0, 1, 1], np.float32)))
    least = None if layer.keeps_small else LEFT_OUT / 2
    kept = suppress(part, closed, best, p.post_nms_topn, p.nms_thresh, least)
    image = part.add("Cast", part.columns(kept, 0, 1), to=TensorProto.FLOAT)
    regions = part.add("Concat", image, part.add("GatherND", boxes, kept), axis=1)
    tops = [regions, part.add("GatherND", best, kept)]
    if len(part.tops) > 1 and len(part.tops[1]) > 1:
        tops[1] = part.add("Reshape", tops[1], part.whole("column", [-1, 1]))
    return tops[: len(part.tops)]


# ---- MS-CNN


def _fields(part: Part, index: int, x: str) -> tuple[str, str]:
    """Boxes (N, H · W, 4) of a map of BoxOutput, and scores (N, H · W); one that does not count has the score -∞."""
    p, layer, (_, channels, height, width) = part.param.box_output_param, part.layer, part.shapes[index]
    step, field = p.downsample_rate[index], part.tensor("field", np.array([p.field_w[index], p.field_h[index]], np.float32))
    values = part.add("Reshape", x, part.whole("cells", [-1, channels, height * width]))
    values = part.add("Transpose", values, perm=[0, 2, 1])
    offsets = part.columns(values, channels - 4, channels)
    offsets = part.add("Mul", offsets, part.tensor("bbox_std", np.array(layer.deviation, np.float32)))
    offsets = part.add("Add", offsets, part.tensor("bbox_mean", np.array(layer.mean, np.float32)))
    moves, bounds = [], (1 / p.field_xyr, math.log(p.field_whr))
    for begin, bound in zip((0, 2), bounds, strict=True):
        own = part.columns(offsets, begin, begin + 2)
        moves.append(part.add("Clip", own, part.number("least", -bound), part.number("most", bound)))
    sides = part.add("Mul", field, part.add("Exp", moves[1]))
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    middle = part.tensor("middle", ((cells + 0.5) * step).astype(np.float32))
    centre = part.add("Add", part.add("Mul", moves[0], field), middle)
    first = part.add("Sub", centre, part.add("Div", sides, part.number("two", 2)))
    first = part.add("Max", first, part.number("zero", 0))
    edge = part.tensor("edge", np.array([width * step, height * step], np.float32))
    sides = part.add("Min", sides, part.add("Sub", edge, first))
    best_class = part.reduce("ReduceMax", part.columns(values, 1, channels - 4), [-1], keepdims=0)
    scores = part.add("Sub", best_class, part.add("Gather", values, part.whole("background", 0), axis=-1))
    fits = part.add("Cast", part.add("GreaterOrEqual", sides, part.number("min_size", p.min_size)), to=TensorProto.FLOAT)
    fits = part.add("Cast", part.reduce("ReduceMin", fits, [-1], keepdims=0), to=TensorProto.BOOL)
    fits = part.add("And", fits, part.add("GreaterOrEqual", scores, part.number("fg_thr", p.fg_thr)))
    return part.add("Concat", first, part.add("Add", first, sides), axis=-1), _or_nothing(part, fits, scores)


def _or_nothing(part: Part, condition: str, scores: str) -> str:
    return part.add("Where", condition, scores, part.number("nothing", -math.inf))


@converts("BoxOutput", single_precision=True)
def box_output(part: Part, *maps: str) -> list[str]:
    """Regions (R, 5, 1, 1), and on request rows (R, 6, 1, 1) with their scores, in the order of images and scores."""
    p = part.param.box_output_param
    if p.nms_type != "IOU":
        do = 'set nms_type: "IOU", or crop the net before this layer'
        raise part.error(f'nms_type "{p.nms_type}"', "ONNX's NonMaxSuppression divides by the union of two boxes", do)
    fields = [_fields(part, index, x) for index, x in enumerate(maps)]
    boxes, scores = (part.add("Concat", *each, axis=1) if len(maps) > 1 else each[0] for each in zip(*fields, strict=True))
    count = sum(math.prod(shape[2:]) for shape in part.shapes)
    # Of equal scores, the last box comes first.
    boxes, scores = (part.slice(each, [1], [-1], [-count - 1], [-1]) for each in (boxes, scores))
    candidates = min(p.max_nms_num or count, count)
    scores, places = take_best(part, scores, candidates)
    boxes = gather_rows(part, boxes, places)
    likely = part.add("Greater", scores, part.number("none", -math.inf))
    mask = keep_likely(part, boxes, likely, candidates, min(p.max_post_nms_num or candidates, candidates), p.iou_thr)
    # Without any, the tops are these rows, which come after the last ones found.
    nowhere: list[tuple[str, list[float]]] = [(boxes, [1, 1, 10, 10]), (boxes, [0] * 4), (scores, [0])]
    found, (regions, corners, score) = _found(part, mask, nowhere)
    image = part.add("Mod", part.add("Div", found, part.whole("entries", [candidates])), _count(part, scores))
    image = part.add("Reshape", part.add("Cast", image, to=TensorProto.FLOAT), part.whole("column", [-1, 1]))
    one = part.whole("one", [1])
    end = part.add("Max", part.add("Sub", _count(part, found), one), one)
    tops: list[str] = []
    for columns in [(image, regions), (image, corners, score)][: len(part.tops)]:
        rows = part.add("Slice", part.add("Concat", *columns, axis=1), part.whole("first", [0]), end, part.whole("axis", [0]))
        tops.append(part.add("Reshape", rows, part.whole("top", [-1, part.tops[len(tops)][1], 1, 1])))
    return tops
