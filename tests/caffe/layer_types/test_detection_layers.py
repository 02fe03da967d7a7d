"""SSD's layers compared with plain loops over their definitions (Liu et al. 2016), the loss also with finite differences."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


# ---- PriorBox

PRIORS = 'type: "PriorBox" prior_box_param { %s }'


def prior_boxes(height, width, image, low, high=(), ratios=(1,), variance=(0.1,) * 4, clip=False, step=None, offset=0.5):
    step = step or (image[0] / height, image[1] / width)
    corners = []
    for i, j in np.ndindex(height, width):
        y, x = (i + offset) * step[0], (j + offset) * step[1]
        for index, size in enumerate(low):
            sizes = [(size, size)]
            if high:
                sizes.append((math.sqrt(size * high[index]),) * 2)
            sizes += [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for ratio in ratios if ratio != 1]
            for w, h in sizes:
                corners += [(x - w / 2) / image[1], (y - h / 2) / image[0], (x + w / 2) / image[1], (y + h / 2) / image[0]]
    if clip:
        corners = [min(max(corner, 0), 1) for corner in corners]
    return np.array([corners, list(variance) * (len(corners) // 4)])[None]


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ("min_size: 30", {"low": [30]}),
        ("min_size: 30.9 max_size: 60.5", {"low": [30], "high": [60]}),
        ("min_size: 30 max_size: 60 aspect_ratio: 2", {"low": [30], "high": [60], "ratios": (2, 0.5)}),
        (
            "min_size: 30 aspect_ratio: 1 aspect_ratio: 2 aspect_ratio: 3 aspect_ratio: 2",
            {"low": [30], "ratios": (2, 0.5, 3, 1 / 3)},
        ),
        ("min_size: 20 min_size: 40 aspect_ratio: 2 flip: false", {"low": [20, 40], "ratios": (2,)}),
        ("min_size: 60 clip: true variance: 0.2", {"low": [60], "clip": True, "variance": (0.2,) * 4}),
        (
            "min_size: 9 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.3 step: 16 offset: 0.25",
            {"low": [9], "variance": (0.1, 0.1, 0.2, 0.3), "step": (16, 16), "offset": 0.25},
        ),
        ("min_size: 9 step_h: 8 step_w: 12 img_h: 200 img_w: 300", {"low": [9], "step": (8, 12), "image": (200, 300)}),
        ("min_size: 9 img_size: 150", {"low": [9], "image": (150, 150)}),
    ],
)
@exercises("PriorBox")
def test_prior_box(write, settings, arguments):
    net = make_net(write, PRIORS % settings, [(2, 5, 3, 4), (2, 3, 90, 100)])
    wanted = prior_boxes(3, 4, **{"image": (90, 100), **arguments})
    assert net.blobs["y0"].shape == wanted.shape
    np.testing.assert_allclose(net.forward()["y0"], wanted, rtol=1e-5, atol=1e-6)
    net.blobs["x0"].reshape(1, 5, 2, 2)
    np.testing.assert_allclose(net.forward()["y0"], prior_boxes(2, 2, **{"image": (90, 100), **arguments}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("", "no min_size"),
        ("min_size: 0", "min_size 0"),
        ("min_size: 30 max_size: 40 max_size: 50", "2 values of max_size"),
        ("min_size: 30 max_size: 20", "max_size 20 for min_size 30"),
        ("min_size: 30 variance: 1 variance: 2", "variance 1, 2"),
        ("min_size: 30 aspect_ratio: 0", "aspect_ratio 0"),
        ("min_size: 30 img_size: 300 img_w: 300", "both img_size and img_h or img_w"),
        ("min_size: 30 step_h: 8", "step (8.0, 0.0)"),
    ],
)
def test_prior_box_refuses_invalid_settings(write, settings, found):
    assert layer_error(write, PRIORS % settings, (1, 5, 3, 4), (1, 3, 90, 100)).found == found


# ---- boxes, one at a time


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) if box[2] >= box[0] and box[3] >= box[1] else 0 for box in (a, b)]
    return width * height / (sum(sizes) - width * height)


@exercises("PriorBox")
def test_priors_of_given_widths_and_heights(write):
    layer = 'type: "PriorBox" prior_box_param { width: 9.5 height: 20 width: 30 height: 12.5 variance: 0.1 %s }'
    top = make_net(write, layer % "step: 16 clip: true", [(1, 4, 2, 3), (1, 3, 32, 48)]).forward()["y0"]
    wanted = []
    for row, column in np.ndindex(2, 3):
        x, y = (column + 0.5) * 16, (row + 0.5) * 16
        for w, h in ((9.5, 20), (30, 12.5)):
            wanted.append(np.clip([(x - w / 2) / 48, (y - h / 2) / 32, (x + w / 2) / 48, (y + h / 2) / 32], 0, 1))
    np.testing.assert_allclose(top[0, 0], np.ravel(wanted), rtol=1e-5, atol=1e-7)
    assert (top[0, 1] == np.float32(0.1)).all()
    shapes = (1, 4, 2, 3), (1, 3, 32, 48)
    assert "only one form may be given" in str(layer_error(write, layer % "min_size: 9", *shapes))
    assert "one of each for a box" in str(layer_error(write, layer % "height: 9", *shapes))


def decode_box(prior, variance, offset, code):
    offset = [v * o for v, o in zip(variance, offset, strict=True)]
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code == "CORNER":
        return [p + o for p, o in zip(prior, offset, strict=True)]
    if code == "CORNER_SIZE":
        return [p + o * side for p, o, side in zip(prior, offset, (width, height) * 2, strict=True)]
    x, y = offset[0] * width + (prior[0] + prior[2]) / 2, offset[1] * height + (prior[1] + prior[3]) / 2
    w, h = math.exp(offset[2]) * width, math.exp(offset[3]) * height
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def encode_box(prior, variance, box, code):
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    differences = [b - p for b, p in zip(box, prior, strict=True)]
    if code == "CORNER_SIZE":
        differences = [d / side for d, side in zip(differences, (width, height) * 2, strict=True)]
    if code == "CENTER_SIZE":
        differences = [
            ((box[0] + box[2]) - (prior[0] + prior[2])) / 2 / width,
            ((box[1] + box[3]) - (prior[1] + prior[3])) / 2 / height,
            math.log((box[2] - box[0]) / width),
            math.log((box[3] - box[1]) / height),
        ]
    return [d / v for d, v in zip(differences, variance, strict=True)]


def random_priors(count):
    centres, sides = rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0.15, 0.5, (count, 2))
    corners = np.hstack((centres - sides / 2, centres + sides / 2))
    return np.stack((corners.reshape(-1), np.tile([0.1, 0.1, 0.2, 0.2], count)))[None].astype(np.float32).astype(float)


CODES = ["CORNER", "CENTER_SIZE", "CORNER_SIZE"]


# ---- DetectionOutput


def expected_detections(
    offsets,
    scores,
    priors,
    classes,
    code,
    shared=True,
    background=0,
    threshold=0.45,
    eta=1.0,
    top=-1,
    keep=-1,
    least=-9e9,
    plain=False,
    clip=False,
):
    rows = []
    corners, variances = priors[0].reshape(2, -1, 4)
    for image, (own, confidences) in enumerate(zip(offsets, scores, strict=True)):
        own, confidences = own.reshape(len(corners), -1, 4), confidences.reshape(len(corners), classes)
        mine = []
        for label in range(classes):
            if label == background:
                continue
            found = [
                decode_box(corners[k], [1] * 4 if plain else variances[k], own[k, 0 if shared else label], code)
                for k in range(len(corners))
            ]
            found = [np.clip(box, 0, 1) for box in found] if clip else found
            order = sorted(
                (k for k in range(len(corners)) if confidences[k, label] > least), key=lambda k: -confidences[k, label]
            )
            kept, limit = [], threshold
            for k in order[:top] if top > -1 else order:
                if all(overlap(found[k], found[other]) <= limit for other in kept):
                    kept.append(k)
                    if eta < 1 and limit > 0.5:
                        limit *= eta
            mine += [[image, label, confidences[k, label], *found[k]] for k in kept]
        if -1 < keep < len(mine):
            mine = sorted(sorted(mine, key=lambda row: -row[2])[:keep], key=lambda row: row[1])
        rows += mine
    return np.array(rows)[None, None]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ("nms_param { nms_threshold: 0.45 }", {}),
        ("nms_param { nms_threshold: 0.3 top_k: 5 }", {"threshold": 0.3, "top": 5}),
        ("nms_param { nms_threshold: 0.9 eta: 0.8 } background_label_id: -1", {"threshold": 0.9, "eta": 0.8, "background": -1}),
        ("nms_param { nms_threshold: 0.45 } keep_top_k: 6 confidence_threshold: 0.3", {"keep": 6, "least": 0.3}),
        ("nms_param { nms_threshold: 0.45 } share_location: false background_label_id: 1", {"shared": False, "background": 1}),
        ("nms_param { nms_threshold: 0.45 } variance_encoded_in_target: true", {"plain": True}),
        ("nms_param { nms_threshold: 0.45 } clip: true", {"clip": True}),
    ],
)
@exercises("DetectionOutput")
def test_detection_output(write, code, settings, arguments):
    count, classes, each = 20, 3, 1 if arguments.get("shared", True) else 3
    offsets = rng.normal(0, 0.3, (2, count * each * 4)).astype(np.float32).astype(float)
    scores = rng.uniform(0, 1, (2, count * classes)).astype(np.float32).astype(float)
    priors = random_priors(count)
    layer = f'type: "DetectionOutput" detection_output_param {{ num_classes: 3 code_type: {code} {settings} }}'
    net = make_net(write, layer, [offsets.shape, scores.shape, priors.shape], caffe.TEST)
    assert net.blobs["y0"].shape == (1, 1, 1, 7)
    for index, values in enumerate((offsets, scores, priors)):
        net.blobs[f"x{index}"].data[...] = values
    wanted = expected_detections(offsets, scores, priors, classes, code, **arguments)
    assert 3 < wanted.shape[2] < 2 * count * classes
    np.testing.assert_allclose(net.forward()["y0"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bottoms", [1, 2])
@pytest.mark.parametrize("code", CODES)
def test_detection_output_of_refined_priors(write, code, bottoms):
    """RefineDet's: improbable objects are background, and each image's priors are moved before boxes are decoded."""
    count, classes = 20, 3
    offsets, refinement = (rng.normal(0, 0.3, (2, count * 4)).astype(np.float32).astype(float) for _ in range(2))
    scores, objects = (rng.uniform(0, 1, (2, count * each)).astype(np.float32).astype(float) for each in (classes, 2))
    priors = random_priors(count)
    settings = "num_classes: 3 confidence_threshold: 0.2 objectness_score: 0.6 nms_param { nms_threshold: 0.45 }"
    layer = f'type: "DetectionOutput" detection_output_param {{ code_type: {code} {settings} }}'
    values = [offsets, scores, priors, objects, refinement][: 3 + bottoms]
    net = make_net(write, layer, [each.shape for each in values], caffe.TEST)
    for index, each in enumerate(values):
        net.blobs[f"x{index}"].data[...] = each
    wanted = []
    for image in range(2):
        moved = priors.copy()
        corners, variances = moved[0].reshape(2, -1, 4)
        if bottoms == 2:
            corners[:] = [decode_box(corners[k], variances[k], refinement[image].reshape(-1, 4)[k], code) for k in range(count)]
        own = np.where((objects[image].reshape(-1, 2)[:, 1] < 0.6)[:, None], [1, 0, 0], scores[image].reshape(-1, classes))
        rows = expected_detections(offsets[image : image + 1], own.reshape(1, -1), moved, classes, code, least=0.2)[0, 0]
        rows[:, 0] = image
        wanted.append(rows)
    wanted = np.concatenate(wanted)
    assert 3 < len(wanted) < 2 * count
    np.testing.assert_allclose(net.forward()["y0"][0, 0], wanted, rtol=1e-4, atol=1e-5)


def test_detection_output_ignores_an_image(write):
    layer = 'type: "DetectionOutput" detection_output_param { num_classes: 3 }'
    tops = []
    for more in ([], [(1, 3, 8, 8)]):
        reseed("image")
        net = make_net(write, layer, [(1, 80), (1, 60), (1, 2, 80), *more], caffe.TEST)
        for index, values in enumerate((rng.normal(0, 0.3, (1, 80)), rng.uniform(0, 1, (1, 60)), random_priors(20))):
            net.blobs[f"x{index}"].data[...] = values
        tops.append(net.forward()["y0"].copy())
    np.testing.assert_array_equal(*tops)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e3, -1e3, 1e38, np.nan, np.inf])
def test_huge_or_non_finite_boxes_do_not_crash(write, value):
    layer = 'type: "DetectionOutput" detection_output_param { num_classes: 3 code_type: CENTER_SIZE }'
    net = make_net(write, layer, [(1, 12), (1, 9), (1, 2, 12)], caffe.TEST)
    net.blobs["x0"].data[...] = [[value] * 4 + [0] * 8]
    net.blobs["x1"].data[...] = 0.5
    net.blobs["x2"].data[...] = random_priors(3)
    rows = net.forward()["y0"][0, 0]
    assert 0 < len(rows) <= 6


def test_an_image_without_detections_has_a_placeholder_row(write):
    layer = 'type: "DetectionOutput" detection_output_param { num_classes: 3 confidence_threshold: 0.5 }'
    net = make_net(write, layer, [(2, 8), (2, 6), (1, 2, 8)], caffe.TEST)
    assert net.forward()["y0"].tolist() == [[[[0, *[-1] * 6], [1, *[-1] * 6]]]]


@pytest.mark.parametrize(
    ("settings", "shapes", "found"),
    [
        ("", [(2, 8), (2, 6), (1, 2, 8)], "num_classes is not given"),
        ("num_classes: 3", [(2, 9), (2, 6), (1, 2, 8)], "9 values of boxes for each image"),
        ("num_classes: 3", [(2, 8), (2, 4), (1, 2, 8)], "4 values of scores for each image"),
        ("num_classes: 3", [(2, 8), (1, 6), (1, 2, 8)], "2 images of boxes and 1 of scores"),
        ("num_classes: 3", [(2, 8), (2, 6), (2, 8)], "priors of shape (2, 8)"),
        ("num_classes: 3 nms_param { eta: 0 }", [(2, 8), (2, 6), (1, 2, 8)], "nms_threshold 0.3 and eta 0"),
        ("num_classes: 3 visualize: true", [(2, 8), (2, 6), (1, 2, 8)], "visualize: true"),
    ],
)
def test_detection_output_refuses_inconsistent_shapes_and_settings(write, settings, shapes, found):
    assert layer_error(write, f'type: "DetectionOutput" detection_output_param {{ {settings} }}', *shapes).found == found


def test_a_prior_without_area_is_named(write):
    layer = 'type: "DetectionOutput" detection_output_param { num_classes: 3 code_type: CENTER_SIZE }'
    with pytest.raises(caffe.LayerError, match="a prior without width or height"):
        make_net(write, layer, [(2, 8), (2, 6), (1, 2, 8)], caffe.TEST).forward()


# ---- DetectionEvaluate

FOUND = [
    [0, 1, 0.9, 0.1, 0.1, 0.5, 0.5],
    [0, 1, 0.95, 0.12, 0.1, 0.5, 0.5],  # the better of two detections of the same box
    [0, 1, 0.3, 0.6, 0.6, 0.9, 0.9],  # matches no box
    [0, 2, 0.8, 0.1, 0.1, 0.5, 0.5],  # the wrong class
    [1, 2, 0.7, 0.3, 0.3, 0.8, 0.75],  # matches a difficult box
    [1, 2, 0.6, 0.3, 0.3, 0.8, 0.8],
    [2, -1, -1, -1, -1, -1, -1],
]
TRUE = [
    [0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0],
    [0, 1, 1, 0.0, 0.7, 0.2, 0.9, 0],
    [1, 2, 0, 0.3, 0.3, 0.8, 0.8, 1],
    [3, 3, 0, 0.1, 0.1, 0.5, 0.5, 0],
]
COUNTS = [[-1, 1, 2, -1, -1], [-1, 2, 1, -1, -1], [-1, 3, 1, -1, -1]]


def evaluate(write, settings, found, true):
    layer = f'type: "DetectionEvaluate" detection_evaluate_param {{ num_classes: 4 {settings} }}'
    net = make_net(write, layer, [(1, 1, len(found), 7), (1, 1, len(true), 8)], caffe.TEST)
    net.blobs["x0"].data[0, 0] = found
    net.blobs["x1"].data[0, 0] = true
    return net.forward()["y0"][0, 0]


@pytest.mark.parametrize(
    ("settings", "counts", "difficult"),
    [
        ("", COUNTS, [[1, 0], [0, 1]]),
        ("evaluate_difficult_gt: false", [COUNTS[0], [-1, 2, 0, -1, -1], COUNTS[2]], [[0, 0], [0, 0]]),
    ],
)
@exercises("DetectionEvaluate")
def test_each_true_box_matches_at_most_one_detection(write, settings, counts, difficult):
    rows = [
        *counts,
        [0, 1, 0.95, 1, 0],
        [0, 1, 0.9, 0, 1],
        [0, 1, 0.3, 0, 1],
        [0, 2, 0.8, 0, 1],
        [1, 2, 0.7, *difficult[0]],
        [1, 2, 0.6, *difficult[1]],
    ]
    np.testing.assert_allclose(evaluate(write, settings, FOUND, TRUE), rows, rtol=1e-6)


def test_detections_are_compared_in_inclusive_pixels(write):
    # The overlap is 2 / 9 for boxes 2 and 9 wide, but 3 / 10 for inclusive pixels 0 to 2 and 0 to 9.
    found, true = [[0, 1, 1, 0, 0, 0.1, 0.5]], [[0, 1, 0, 0, 0, 0.45, 0.5, 0]]
    assert evaluate(write, "overlap_threshold: 0.26", found, true)[3].tolist() == [0, 1, 1, 0, 1]
    sizes = f'name_size_file: "{write("sizes.txt", "a 20 20")}" overlap_threshold: 0.26'
    assert evaluate(write, sizes, found, true)[3].tolist() == [0, 1, 1, 1, 0]


def test_detection_evaluate_refuses_invalid_settings_and_rows(write):
    assert layer_error(write, 'type: "DetectionEvaluate"', (1, 1, 1, 7), (1, 1, 1, 8)).found == "num_classes is not given"
    layer = 'type: "DetectionEvaluate" detection_evaluate_param { num_classes: 4 }'
    assert layer_error(write, layer, (1, 1, 1, 6), (1, 1, 1, 8)).expected == "their rows must have 7 and 8 values"


# ---- MultiBoxLoss


class Loss:
    """MultiBoxLoss with one loop for each step of its definition."""

    def __init__(self, classes, code="CENTER_SIZE", **settings):
        self.classes, self.code = classes, code
        self.background, self.threshold, self.each = 0, 0.5, True
        self.mining, self.ratio, self.neg_overlap, self.sample_size, self.nms = "MAX_NEGATIVE", 3, 0.5, 64, None
        self.shared, self.by_prior, self.inside_only, self.bp_inside = True, True, False, False
        self.plain_targets, self.logistic, self.square, self.agnostic, self.difficult = False, False, False, False, True
        self.weight, self.normalization, self.learns = 1.0, "VALID", (True, True)
        self.focal, self.objectness, self.objects = None, 0.01, None
        vars(self).update(settings)

    def __call__(self, offsets, scores, priors, truths, objects=None, refinement=None):
        plain, variances = priors[0].reshape(2, -1, 4)
        count = len(plain)
        box_loss = class_loss = 0.0
        matches = 0
        for image in range(len(scores)):
            own, confidences = offsets[image].reshape(count, -1, 4), scores[image].reshape(count, self.classes)
            corners = plain
            if refinement is not None:
                corners = [self.box(refinement[image].reshape(count, 4)[k], plain[k], variances[k]) for k in range(count)]
            self.objects = None if objects is None else objects[image].reshape(count, 2)[:, 1]
            rows = [row for row in truths.reshape(-1, 8) if row[0] == image and (self.difficult or not row[7])]
            tables = self.match(own, corners, variances, rows) if rows else {}
            negatives = self.mine(tables, own, confidences, corners, variances, rows) if self.mining != "NONE" and rows else []
            labels = {}
            for slot, (table, _) in tables.items():
                for k, truth in enumerate(table):
                    if truth >= 0:
                        matches += 1
                        labels[k] = self.label(rows[truth])
                        box_loss += sum(self.location_losses(own[k, slot], corners[k], variances[k], rows[truth]))
            if self.mining == "NONE":
                otherwise = None if self.logistic else self.background
                class_loss += sum(self.final_loss(confidences[k], labels.get(k, otherwise)) for k in range(count))
            else:
                class_loss += sum(self.final_loss(confidences[k], label) for k, label in labels.items())
                class_loss += sum(self.final_loss(confidences[k], self.background) for k in negatives)
        divisor = {"VALID": matches, "FULL": len(scores) * count, "BATCH_SIZE": len(scores), "NONE": 1}[self.normalization]
        loss = self.weight * box_loss * self.learns[0] + class_loss * self.learns[1]
        return np.float64(loss / max(1, divisor))

    def label(self, row):
        return self.background + 1 if self.agnostic else int(row[1])

    def confidence_loss(self, scores, label):
        if self.logistic:
            return sum(math.log1p(math.exp(-score if c == label else score)) for c, score in enumerate(scores))
        return math.log(sum(math.exp(score) for score in scores)) - scores[label]

    def final_loss(self, scores, label):
        loss = self.confidence_loss(scores, label)
        if self.focal is None or self.logistic:
            return loss
        alpha, gamma = self.focal
        return alpha * (1 - math.exp(-loss)) ** gamma * loss

    def box(self, offset, prior, variance):
        return decode_box(prior, [1] * 4 if self.plain_targets else variance, offset, self.code)

    def location_losses(self, offset, prior, variance, row):
        target = encode_box(prior, variance, row[3:7], self.code)
        ends = prior if self.by_prior else self.box(offset, prior, variance)
        for k in range(4):
            if self.bp_inside and not 0 <= ends[k] <= 1:
                continue
            d = offset[k] / (variance[k] if self.plain_targets else 1) - target[k]
            yield d * d / 2 if self.square or abs(d) < 1 else abs(d) - 0.5

    def match(self, own, corners, variances, rows):
        slots = [0] if self.shared else [c for c in range(self.classes) if c != self.background]
        if self.by_prior:
            table, best = self.assign(corners, rows, range(len(rows)))
            if self.shared:
                return {0: (table, best)}
            return {c: ([t if t >= 0 and rows[t][1] == c else -1 for t in table], best) for c in slots}
        tables = {}
        for slot in slots:
            candidates = [self.box(own[k, slot], corners[k], variances[k]) for k in range(len(corners))]
            mine = [g for g in range(len(rows)) if self.shared or rows[g][1] == slot]
            tables[slot] = self.assign(candidates, rows, mine)
        return tables

    def assign(self, candidates, rows, mine):
        table, best = [-1] * len(candidates), [0.0] * len(candidates)
        overlaps = {}
        for k, candidate in enumerate(candidates):
            if self.inside_only and any(not 0 <= end <= 1 for end in candidate):
                table[k] = -2
                continue
            for g in mine:
                value = overlap(candidate, rows[g][3:7])
                if value > 1e-6:
                    overlaps[k, g] = value
                    best[k] = max(best[k], value)
        pool = set(mine)
        while pool:
            pairs = [(value, k, g) for (k, g), value in overlaps.items() if table[k] == -1 and g in pool]
            if not pairs:
                break
            value, k, g = max(pairs)
            table[k], best[k] = g, value
            pool.remove(g)
        if self.each:
            for k in range(len(candidates)):
                near = [(value, g) for (other, g), value in overlaps.items() if other == k and value >= self.threshold]
                if table[k] == -1 and near:
                    table[k] = max(near)[1]
        return table, best

    def mine(self, tables, own, confidences, corners, variances, rows):
        table, best = tables[0]
        hardness = []
        for k, truth in enumerate(table):
            value = self.confidence_loss(confidences[k], self.label(rows[truth]) if truth >= 0 else self.background)
            if self.mining == "HARD_EXAMPLE" and truth >= 0:
                value += sum(self.location_losses(own[k, 0], corners[k], variances[k], rows[truth]))
            hardness.append(value)
        if self.mining == "MAX_NEGATIVE":
            eligible = [k for k, truth in enumerate(table) if truth == -1 and best[k] < self.neg_overlap]
            wanted = int(sum(truth >= 0 for truth in table) * self.ratio)
        else:
            eligible, wanted = list(range(len(table))), self.sample_size
        if self.objects is not None:
            eligible = [k for k in eligible if self.objects[k] >= self.objectness]
        order = sorted(eligible, key=lambda k: -hardness[k])
        if self.nms:
            limit, top, candidates = *self.nms, [self.box(own[k, 0], corners[k], variances[k]) for k in range(len(table))]
            kept = []
            for k in order[:top]:
                if all(overlap(candidates[k], candidates[other]) <= limit for other in kept):
                    kept.append(k)
            order = kept
        chosen = set(order[:wanted])
        negatives = [k for k in range(len(table)) if table[k] == -1 and k in chosen]
        if self.mining == "HARD_EXAMPLE":
            table[:] = [truth if truth < 0 or k in chosen else -1 for k, truth in enumerate(table)]
        return negatives


TRUTHS = np.array(
    [
        [0, 1, 0, 0.1, 0.1, 0.5, 0.45, 0],
        [0, 3, 0, 0.4, 0.5, 0.9, 0.8, 0],
        [0, 2, 0, 0.42, 0.3, 0.75, 0.7, 1],
        [2, 2, 0, 0.2, 0.25, 0.6, 0.9, 0],
        [-1] * 8,
        [2, 1, 1, 0.55, 0.1, 0.95, 0.6, 0],
    ]
)

CASES = [
    ("", {}),
    ("match_type: BIPARTITE", {"each": False}),
    ("overlap_threshold: 0.3 neg_pos_ratio: 1.5 neg_overlap: 0.3", {"threshold": 0.3, "ratio": 1.5, "neg_overlap": 0.3}),
    ("mining_type: NONE", {"mining": "NONE"}),
    ("mining_type: NONE conf_loss_type: LOGISTIC", {"mining": "NONE", "logistic": True}),
    ("conf_loss_type: LOGISTIC loc_loss_type: L2 loc_weight: 2.5", {"logistic": True, "square": True, "weight": 2.5}),
    ("mining_type: NONE share_location: false", {"mining": "NONE", "shared": False}),
    (
        "mining_type: NONE share_location: false use_prior_for_matching: false",
        {"mining": "NONE", "shared": False, "by_prior": False},
    ),
    (
        "mining_type: NONE share_location: false use_prior_for_matching: false ignore_cross_boundary_bbox: true",
        {"mining": "NONE", "shared": False, "by_prior": False, "inside_only": True},
    ),
    ("use_prior_for_matching: false", {"by_prior": False}),
    ("use_difficult_gt: false", {"difficult": False}),
    ("encode_variance_in_target: true", {"plain_targets": True}),
    ("encode_variance_in_target: true use_prior_for_matching: false", {"plain_targets": True, "by_prior": False}),
    ("ignore_cross_boundary_bbox: true", {"inside_only": True}),
    ("bp_inside: true", {"bp_inside": True}),
    ("bp_inside: true use_prior_for_matching: false", {"bp_inside": True, "by_prior": False}),
    ("mining_type: HARD_EXAMPLE sample_size: 7", {"mining": "HARD_EXAMPLE", "sample_size": 7}),
    (
        "mining_type: HARD_EXAMPLE sample_size: 7 nms_param { nms_threshold: 0.2 top_k: 12 }",
        {"mining": "HARD_EXAMPLE", "sample_size": 7, "nms": (0.2, 12)},
    ),
]


def inputs(classes=4, slots=1, count=16):
    return (
        rng.normal(0, 0.6, (3, count * slots * 4)),
        rng.normal(0, 1.5, (3, count * classes)),
        random_priors(count),
        TRUTHS[None, None],
    )


def loss_layer(settings, code="CENTER_SIZE", classes=4, more=""):
    return f'type: "MultiBoxLoss" {more} multibox_loss_param {{ num_classes: {classes} code_type: {code} {settings} }}'


@pytest.mark.parametrize(("settings", "arguments"), CASES, ids=[case[0] or "defaults" for case in CASES])
@exercises("MultiBoxLoss")
def test_multibox_loss(write, settings, arguments):
    slots = 1 if arguments.get("shared", True) else 4
    check(write, loss_layer(settings), Loss(4, **arguments), *inputs(slots=slots), wrt=(0, 1))


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ("", {"focal": (0.25, 2)}),
        ("mining_type: NONE", {"mining": "NONE", "focal": (0.25, 2)}),
        ("conf_loss_type: LOGISTIC", {"logistic": True, "focal": (0.25, 2)}),
    ],
)
@exercises("MultiBoxFocalLoss")
def test_multibox_focal_loss(write, settings, arguments):
    layer = loss_layer(settings).replace("MultiBoxLoss", "MultiBoxFocalLoss")
    check(write, layer, Loss(4, **arguments), *inputs(), wrt=(0, 1))
    if not settings:
        layer += " focal_loss_param { alpha: 0.6 gamma: 1.5 }"
        check(write, layer, Loss(4, focal=(0.6, 1.5)), *inputs(), wrt=(0, 1))
    weights = layer.split(" focal_loss_param")[0] + " focal_loss_param { alpha: 1 alpha: 2 alpha: 3 }"
    assert layer_error(write, weights, (3, 64), (3, 64), (1, 2, 64), (1, 1, 6, 8)).expected == "there are 4 classes"


def refinements(count=16):
    """Probabilities of background and object (3, P · 2), and offsets of the priors (3, P · 4)."""
    objects = rng.uniform(0, 1, (3, count, 2))
    return (objects / objects.sum(2, keepdims=True)).reshape(3, -1), rng.normal(0, 0.6, (3, count * 4))


@pytest.mark.parametrize("bottoms", [1, 2])
@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ("", {}),
        ("encode_variance_in_target: true bp_inside: true", {"plain_targets": True, "bp_inside": True}),
        ("mining_type: NONE", {"mining": "NONE"}),
    ],
)
def test_multibox_loss_of_refined_priors(write, settings, arguments, bottoms):
    """RefineDet's: negatives are mined among probable objects, and each image's priors are moved first."""
    layer, reference = loss_layer(settings + " objectness_score: 0.5"), Loss(4, objectness=0.5, **arguments)
    check(write, layer, reference, *inputs(), *refinements()[:bottoms], wrt=(0, 1))


@pytest.mark.parametrize(
    ("settings", "shapes", "found"),
    [
        ("", [(3, 31)], "probabilities of objects of shape (3, 31)"),
        ("", [(3, 32), (3, 63)], "offsets of priors of shape (3, 63)"),
        ("", [(2, 32)], "probabilities of objects of shape (2, 32)"),
        ("mining_type: NONE share_location: false", [(3, 32), (3, 64)], "refined priors with share_location: false"),
    ],
)
def test_refined_priors_that_do_not_fit_are_refused(write, settings, shapes, found):
    boxes = (3, 256) if "share" in settings else (3, 64)
    assert layer_error(write, loss_layer(settings), boxes, (3, 64), (1, 2, 64), (1, 1, 6, 8), *shapes).found == found
    if not settings:
        layer = 'type: "DetectionOutput" detection_output_param { num_classes: 4 }'
        bottoms = [*shapes, (3, 64)][:2]  # of one further bottom only that of objects is taken for RefineDet's
        assert layer_error(write, layer, (3, 64), (3, 64), (1, 2, 64), *bottoms).found == found


@pytest.mark.parametrize("code", CODES)
def test_multibox_loss_supports_every_code_type(write, code):
    check(write, loss_layer("", code), Loss(4, code), *inputs(), wrt=(0, 1))


@pytest.mark.parametrize(
    ("more", "arguments"),
    [
        ("loss_param { normalization: FULL }", {"normalization": "FULL"}),
        ("loss_param { normalization: BATCH_SIZE }", {"normalization": "BATCH_SIZE"}),
        ("loss_param { normalize: false }", {"normalization": "BATCH_SIZE"}),
        ("loss_param { normalization: NONE }", {"normalization": "NONE"}),
    ],
)
def test_multibox_loss_is_normalised_as_loss_param_says(write, more, arguments):
    check(write, loss_layer("", more=more), Loss(4, **arguments), *inputs(), wrt=(0, 1))


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_multibox_loss_omits_terms_whose_propagate_down_is_false(write, learns):
    flags = " ".join(f"propagate_down: {str(flag).lower()}" for flag in (*learns, False, False))
    values = inputs()
    net = make_net(write, loss_layer("", more=flags), [x.shape for x in values])
    for index, array in enumerate(values):
        net.blobs[f"x{index}"].data[...] = array
    assert net.forward()["y0"] == pytest.approx(Loss(4, learns=learns)(*values), rel=1e-4)
    net.backward()
    assert [bool(net.blobs[name].diff.any()) for name in ("x0", "x1")] == list(learns)


def test_multibox_loss_of_class_agnostic_objects(write):
    check(write, loss_layer("map_object_to_agnostic: true", classes=2), Loss(2, agnostic=True), *inputs(classes=2), wrt=(0, 1))


def test_multibox_loss_without_true_boxes_is_0(write):
    net = make_net(write, loss_layer(""), [x.shape for x in inputs()])
    for index, array in enumerate(inputs()[:3]):
        net.blobs[f"x{index}"].data[...] = array
    net.blobs["x3"].reshape(1, 1, 1, 8)
    net.blobs["x3"].data[...] = -1
    assert net.forward()["y0"] == 0
    net.backward()
    assert not net.blobs["x1"].diff.any()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("do_neg_mining: false", "do_neg_mining: false and mining_type: MAX_NEGATIVE"),
        ("share_location: false", "mining with share_location: false"),
        ("mining_type: HARD_EXAMPLE sample_size: 0", "sample_size 0"),
        ("background_label_id: 4", "background_label_id 4"),
        ("map_object_to_agnostic: true", "4 classes with map_object_to_agnostic"),
    ],
)
def test_multibox_loss_refuses_contradictory_settings(write, settings, found):
    assert layer_error(write, loss_layer(settings), (3, 64), (3, 64), (1, 2, 64), (1, 1, 6, 8)).found == found


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([0, 4, 0, 0.1, 0.1, 0.5, 0.5, 0], "label 4 of a true box"),
        ([0, 0, 0, 0.1, 0.1, 0.5, 0.5, 0], "label 0 of a true box"),
        ([0, 1, 0, 0.5, 0.1, 0.5, 0.5, 0], "a true box without width or height"),
    ],
)
def test_multibox_loss_refuses_an_invalid_true_box(write, row, found):
    values = inputs()
    net = make_net(write, loss_layer(""), [x.shape for x in values])
    for index, array in enumerate(values):
        net.blobs[f"x{index}"].data[...] = array
    net.blobs["x3"].data[0, 0, 3] = row
    with pytest.raises(caffe.LayerError) as error:
        net.forward()
    assert error.value.found == found


# ---- TextBoxes

TEXT = """
layer { name: "map" type: "Input" top: "map" input_param { shape { dim: 1 dim: 2 dim: 2 dim: 3 } } }
layer { name: "image" type: "Input" top: "image" input_param { shape { dim: 1 dim: 3 dim: 40 dim: 60 } } }
layer { name: "loc" type: "Convolution" bottom: "map" top: "loc" convolution_param { num_output: OUTPUTS kernel_size: 1 } }
layer { name: "perm" type: "Permute" bottom: "loc" top: "perm" permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "flat" type: "Flatten" bottom: "perm" top: "flat" }
layer { name: "conf" type: "Convolution" bottom: "map" top: "conf" convolution_param { num_output: SCORES kernel_size: 1 } }
layer { name: "conf_flat" type: "Flatten" bottom: "conf" top: "conf_flat" }
layer { name: "prior" type: "PriorBox" bottom: "map" bottom: "image" top: "prior"
  prior_box_param { min_size: 16 aspect_ratio: 2 aspect_ratio: 5 flip: false clip: false } }
layer { name: "out" type: "DetectionOutput" bottom: "flat" bottom: "conf_flat" bottom: "prior" top: "out"
  detection_output_param { num_classes: 2 nms_param { nms_threshold: 0.4 } } }
"""


def test_priors_are_textboxes_where_the_net_predicts_so_many(write):
    net = caffe.Net(write("net.prototxt", TEXT.replace("OUTPUTS", "24").replace("SCORES", "12")), caffe.TEST)
    net.forward()
    boxes = net.blobs["prior"].data[0, 0].reshape(2, 3, 6, 4)
    sizes = [(16, 16), (16 * 2**0.5, 16 / 2**0.5), (16 * 5**0.5, 16 / 5**0.5)]
    for i, j, b in np.ndindex(2, 3, 3):
        for lower in (0, 1):
            x, y, (w, h) = (j + 0.5) * 20, (i + 0.5 + lower / 2) * 20, sizes[b]
            expected = (x - w / 2) / 60, (y - h / 2) / 40, (x + w / 2) / 60, (y + h / 2) / 40
            np.testing.assert_allclose(boxes[i, j, 2 * b + lower], expected, rtol=1e-5)


def test_priors_are_ssds_where_the_net_predicts_one_for_each(write):
    # As many scores as TextBoxes predicts boxes: eight classes.
    text = TEXT.replace("OUTPUTS", "12").replace("SCORES", "24").replace("num_classes: 2", "num_classes: 8")
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    assert net.blobs["prior"].shape == (1, 2, 2 * 3 * 3 * 4)
    net.forward()
