"""YOLO's losses and detections, compared with loops over each prediction and true box, as the forks define them."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import draw, exercises, finite_differences, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run(write, layer, *bottoms, phase=caffe.TRAIN):
    """The net of one layer after a forward and backward pass."""
    arrays = [np.asarray(bottom, np.float32) for bottom in bottoms]
    net = make_net(write, layer, [array.shape for array in arrays], phase)
    for index, array in enumerate(arrays):
        net.blobs[f"x{index}"].data[...] = array
    net.forward()
    if net.layers[-1].is_loss:
        net.backward()
    return net


def iou(a, b):
    """Intersection over union of two boxes of centre and sides."""
    sides = [min(a[k] + a[k + 2] / 2, b[k] + b[k + 2] / 2) - max(a[k] - a[k + 2] / 2, b[k] - b[k + 2] / 2) for k in (0, 1)]
    common = 0.0 if min(sides) < 0 else sides[0] * sides[1]
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def generalised(a, b, kind):
    """GIoU, DIoU (as the fork has it) or CIoU of two boxes; else their intersection over union."""
    around = [max(a[k] + a[k + 2] / 2, b[k] + b[k + 2] / 2) - min(a[k] - a[k + 2] / 2, b[k] - b[k + 2] / 2) for k in (0, 1)]
    plain = iou(a, b)
    if kind == "GIOU":
        union = (a[2] * a[3] + b[2] * b[3]) / (1 + plain)
        return plain - (around[0] * around[1] - union) / (around[0] * around[1])
    penalty = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (around[0] ** 2 + around[1] ** 2)
    if kind == "DIOU":
        return plain - penalty**0.6
    if kind == "CIOU":
        shape = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
        return plain - penalty - shape**2 / (1 - plain + shape + 1e-6)
    return plain


def truths(*images, rows=7):
    """The second bottom (N, 1, 1, rows · 5), padded with zeros."""
    result = np.zeros((len(images), rows, 5))
    for image, boxes in zip(result, images, strict=True):
        for row, box in zip(image, boxes, strict=False):
            row[...] = box
    return result.reshape(len(images), 1, 1, -1)


# The first two boxes are in one cell and of one shape; the third shares their class; the second image has none.
BOXES = [(1, 0.36, 0.41, 0.3, 0.4), (0, 0.37, 0.42, 0.32, 0.38), (1, 0.8, 0.1, 0.1, 0.12), (2, 0.55, 0.9, 0.7, 0.15)]


# ---- YOLOv2

ANCHORS2 = [(0.6, 0.5), (1.2, 1.4), (2.5, 0.7)]
BIASES2 = " ".join(f"biases: {value}" for pair in ANCHORS2 for value in pair)


def region_loss(x, labels, rescore, bias_match, thresh=0.3, scales=(2.0, 0.5, 1.5, 3.0)):
    """Loss and gradients of predictions (N, 3 · (5 + 3), H, W); scales of object, no object, class and box."""
    images, _, height, width = x.shape
    of_object, of_none, of_class, of_box = scales
    values, delta = x.reshape(images, 3, 8, height, width), np.zeros((images, 3, 8, height, width))

    def box(n, k, j, i):
        tx, ty, tw, th = values[n, k, :4, j, i]
        w, h = ANCHORS2[k]
        return (i + sigmoid(tx)) / width, (j + sigmoid(ty)) / height, math.exp(tw) * w / width, math.exp(th) * h / height

    for n in range(images):
        boxes = [row for row in labels[n].reshape(-1, 5) if row[3]]
        for k, j, i in np.ndindex(3, height, width):
            if max((iou(box(n, k, j, i), row[1:]) for row in boxes), default=0) <= thresh:
                c = sigmoid(values[n, k, 4, j, i])
                delta[n, k, 4, j, i] = of_none * c * c * (1 - c)
        for label, x0, y0, w, h in boxes:
            i, j = int(x0 * width), int(y0 * height)
            shapes = [(a / width, b / height) if bias_match else box(n, k, j, i)[2:] for k, (a, b) in enumerate(ANCHORS2)]
            k = int(np.argmax([iou((0, 0, *shape), (0, 0, w, h)) for shape in shapes]))
            overlap = iou(box(n, k, j, i), (x0, y0, w, h))
            own = values[n, k, :, j, i]
            weight = of_box * (1 if rescore else 2 - w * h)
            for axis, target in ((0, x0 * width - i), (1, y0 * height - j)):
                s = sigmoid(own[axis])
                delta[n, k, axis, j, i] = weight * (s - target) * s * (1 - s)
            delta[n, k, 2, j, i] = weight * (own[2] - math.log(w * width / ANCHORS2[k][0]))
            delta[n, k, 3, j, i] = weight * (own[3] - math.log(h * height / ANCHORS2[k][1]))
            c = sigmoid(own[4])
            delta[n, k, 4, j, i] = of_object * (c - (overlap if rescore else 1)) * c * (1 - c)
            chance = np.exp(own[5:]) / np.exp(own[5:]).sum()
            delta[n, k, 5:, j, i] = of_class * (chance - (np.arange(3) == label))
    return (delta**2).sum() / images, delta.reshape(x.shape) / images


REGION = """type: "RegionLoss" region_loss_param { num_class: 3 object_scale: 2 noobject_scale: 0.5 class_scale: 1.5
  coord_scale: 3 thresh: 0.3 %s }"""
THREE = "num: 3 " + BIASES2


@pytest.mark.parametrize("size", [(4, 5), (1, 1)])
@pytest.mark.parametrize("bias_match", [0, 1])
@pytest.mark.parametrize("rescore", [0, 1])
@exercises("RegionLoss")
def test_region_loss_is_that_of_loops(write, rescore, bias_match, size):
    x, labels = draw(2, 24, *size, low=-1.5, high=1.5).astype(np.float32), truths(BOXES, [])
    net = run(write, REGION % f"{THREE} rescore: {rescore} bias_match: {bias_match}", x, labels)
    loss, gradient = region_loss(x.astype(float), labels, rescore, bias_match)
    np.testing.assert_allclose(net.blobs["y0"].data, loss, rtol=1e-5)
    np.testing.assert_allclose(net.blobs["x0"].diff, gradient, rtol=1e-4, atol=1e-6)


def test_region_loss_gradients_are_half_the_derivatives_of_the_squared_errors(write):
    """Of box and confidence, without rescore; the classes' are those of the cross-entropy."""
    x, labels = draw(1, 24, 2, 2).astype(np.float32), truths([BOXES[0]])
    net = run(write, REGION % f"{THREE} rescore: 0", x, labels)
    values = x.astype(float)
    _, reference = region_loss(values, labels, 0, 1)
    learned = np.abs(reference.reshape(3, 8, 2, 2)[:, 5:]).sum(1) > 0  # the prediction of the true box
    k, j, i = np.argwhere(learned)[0]
    _, x0, y0, w, h = BOXES[0]

    def objective():
        own = values.reshape(3, 8, 2, 2)
        box, chance = own[k, :5, j, i], np.exp(own[k, 5:, j, i])
        target = (x0 * 2 - i, y0 * 2 - j, math.log(w * 2 / ANCHORS2[k][0]), math.log(h * 2 / ANCHORS2[k][1]))
        error = (*(sigmoid(box[:2]) - target[:2]), *(box[2:4] - target[2:]))
        total = 3 * (2 - w * h) * sum(each**2 for each in error) / 2 + 2 * (sigmoid(box[4]) - 1) ** 2 / 2
        return total - 1.5 * math.log(chance[1] / chance.sum())

    expected = finite_differences(objective, values).reshape(3, 8, 2, 2)[k, :, j, i]
    np.testing.assert_allclose(net.blobs["x0"].diff.reshape(3, 8, 2, 2)[k, :, j, i], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("num: 3", "0 biases"),
        (THREE + ' softmax_tree: "9k.tree"', "class hierarchies are not supported"),
        (THREE + " coords: 5", "coords 5"),
        ("num: 5 " + BIASES2, "24 channels"),
        (THREE + " biases: 3", "width and height of each anchor"),
    ],
)
def test_region_loss_refuses_settings_that_do_not_fit(write, settings, words):
    assert words in str(layer_error(write, REGION % settings, (1, 24, 4, 4), (1, 1, 1, 35)))


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((3, 0.5, 0.5, 0.1, 0.1), "class 3"),
        ((0, 1.5, 0.5, 0.1, 0.1), "outside the image"),
        ((0, 0.5, 0.5, 0.1, 0), "without width"),
    ],
)
def test_true_boxes_that_are_none_are_refused(write, box, words):
    with pytest.raises(caffe.LayerError, match=words):
        run(write, REGION % THREE, draw(1, 24, 2, 2), truths([box]))
    assert "rows of 5 values" in str(layer_error(write, REGION % THREE, (2, 24, 4, 4), (1, 1, 1, 35)))


# ---- YOLOv3

ANCHORS3 = [(6, 5), (12, 14), (25, 7), (10, 11)]
BIASES3 = " ".join(f"biases: {value}" for pair in ANCHORS3 for value in pair)


def overlap_gradient(box, truth, kind, step=1e-6):
    """What the fork calls the gradient: see `overlap_gradients`; here from differences of the parts' formulas."""

    def corners(b):
        return b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2

    def parts(b):
        p, t = corners(b), corners(truth)
        w, h = min(p[2], t[2]) - max(p[0], t[0]), min(p[3], t[3]) - max(p[1], t[1])
        around = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
        union = b[2] * b[3] + truth[2] * truth[3] - w * h
        # Of distant boxes the "intersection" may exceed the areas, which the fork counts as none.
        return min(w, h), w * h / union if union > 0 else 0, union / (around[0] * around[1]), around[0] ** 2 + around[1] ** 2

    def slope(part, axis):
        above, below = list(box), list(box)
        above[axis] += step
        below[axis] -= step
        return (parts(above)[part] - parts(below)[part]) / (2 * step)

    apart = parts(box)[0] <= 0
    result = []
    for axis in range(4):
        factor = 1 if axis < 2 else 2
        value = 0 if apart and kind != "IOU" else factor * slope(1, axis)
        if kind == "GIOU":
            value += factor * slope(2, axis)
        if kind in ("DIOU", "CIOU"):
            diagonal, distance = parts(box)[3], (box[0] - truth[0]) ** 2 + (box[1] - truth[1]) ** 2
            of_diagonal = slope(3, axis) * distance / diagonal**2
            value += 2 * (truth[axis] - box[axis]) / diagonal - of_diagonal if axis < 2 else of_diagonal
        if kind == "CIOU" and axis >= 2:
            difference = math.atan(truth[2] / truth[3]) - math.atan(box[2] / box[3])
            shape = 4 / math.pi**2 * difference**2
            alpha = shape / (1 - parts(box)[1] + shape + 1e-6)
            value += alpha * 8 / math.pi**2 * difference * (box[3] if axis == 2 else -box[2])
        result.append(value)
    return result


def yolov3(x, labels, mask, kind, iou_thresh, logistic=False, focal=False, smooth=0.1, accumulate=True, scale=8):
    """Loss and gradients of predictions (N, 2 · (5 + 3), H, W)."""
    images, _, height, width = x.shape
    values, delta = x.reshape(images, 2, 8, height, width), np.zeros((images, 2, 8, height, width))
    shapes = [(w / (width * scale), h / (height * scale)) for w, h in ANCHORS3]
    found = []

    def box(n, k, j, i):
        tx, ty, tw, th = values[n, k, :4, j, i]
        w, h = shapes[mask[k]]
        return (i + sigmoid(tx)) / width, (j + sigmoid(ty)) / height, math.exp(tw) * w, math.exp(th) * h

    def learn(n, k, j, i, label, truth):
        own, d = values[n, k, :, j, i], delta[n, k, :, j, i]
        if kind == "MSE":
            weight = 4 * (2 - truth[2] * truth[3])
            d[0] = weight * (sigmoid(own[0]) - (truth[0] * width - i))
            d[1] = weight * (sigmoid(own[1]) - (truth[1] * height - j))
            d[2] = weight * (own[2] - math.log(truth[2] / shapes[mask[k]][0]))
            d[3] = weight * (own[3] - math.log(truth[3] / shapes[mask[k]][1]))
        else:
            towards = overlap_gradient(box(n, k, j, i), truth, kind)
            towards = [0.25 * t * f for t, f in zip(towards, (1, 1, *np.exp(own[2:4])), strict=True)]
            if not accumulate:
                d[:4] = 0
            d[:4] -= np.clip(towards, -0.4, 0.4)
            found.append(1 - generalised(box(n, k, j, i), truth, "DIOU" if kind == "IOU" else kind))
        d[4] = (sigmoid(own[4]) - 1) * (3 if logistic else 1)
        if d[5 + label]:
            d[5 + label] = 1.5 * (sigmoid(own[5 + label]) - (1 - smooth / 2))
        elif focal:
            p = sigmoid(own[5 + label])
            d[5:] = 1.5 * (sigmoid(own[5:]) - (np.arange(3) == label)) * -0.5 * (1 - p) * (2 * p * math.log(p) + p - 1)
        else:
            d[5:] = 1.5 * (sigmoid(own[5:]) - (np.arange(3) == label) * (1 - smooth) - smooth / 2)

    for n in range(images):
        boxes = [row for row in labels[n].reshape(-1, 5) if row[3]]
        for k, j, i in np.ndindex(2, height, width):
            if max((generalised(box(n, k, j, i), row[1:], kind) for row in boxes), default=0) <= 0.3:
                delta[n, k, 4, j, i] = sigmoid(values[n, k, 4, j, i])
        for label, *truth in boxes:
            i, j = int(truth[0] * width), int(truth[1] * height)
            fits = [generalised((0, 0, *shape), (0, 0, *truth[2:]), kind) for shape in shapes]
            best = int(np.argmax(fits)) if max(fits) > 0 else -1
            if best in mask:
                best = mask.index(best)
                learn(n, best, j, i, int(label), truth)
            for anchor, fit in enumerate(fits):
                if anchor in mask and anchor != best and iou_thresh < 1 and fit > iou_thresh:
                    learn(n, mask.index(anchor), j, i, int(label), truth)
    loss = (delta**2).sum() if kind == "MSE" else (delta[:, :, 4:] ** 2).sum() + (0.25 * np.mean(found) if found else 0)
    if logistic:
        active = sigmoid(values)
        active[:, :, 2:4] = values[:, :, 2:4]
        if kind != "MSE":
            active[:, :, :2] = values[:, :, :2]
        slope = active * (1 - active)
        slope[:, :, 2:4] = 1
        delta = delta * slope
    return loss / images, delta.reshape(x.shape) / images


def yolov3_layer(mask, kind, iou_thresh, **changed):
    settings = {"num": 2, "thresh": 0.3, "object_scale": 3, "class_scale": 1.5, "coord_scale": 4, "max_delta": 0.4, **changed}
    text = " ".join([BIASES3, *(f"mask: {index}" for index in mask), *(f"{name}: {value}" for name, value in settings.items())])
    return f'type: "Yolov3" yolov3_param {{ num_class: 3 anchors_scale: 8 iou_loss: {kind} iou_thresh: {iou_thresh} {text} }}'


@pytest.mark.parametrize("size", [(4, 5), (1, 1)])
@pytest.mark.parametrize(("mask", "iou_thresh"), [([0, 1], 0.2), ([2, 3], 0.2), ([1, 3], 1.0)])
@pytest.mark.parametrize("kind", ["MSE", "IOU", "GIOU", "DIOU", "CIOU"])
@exercises("Yolov3")
def test_yolov3_is_that_of_loops(write, kind, mask, iou_thresh, size):
    x, labels = draw(2, 16, *size, low=-1.5, high=1.5).astype(np.float32), truths(BOXES, [])
    net = run(write, yolov3_layer(mask, kind, iou_thresh), x, labels)
    loss, gradient = yolov3(x.astype(float), labels, mask, kind, iou_thresh)
    np.testing.assert_allclose(net.blobs["y0"].data, loss, rtol=1e-4)
    np.testing.assert_allclose(net.blobs["x0"].diff, gradient, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ["MSE", "GIOU"])
@pytest.mark.parametrize(
    ("extra", "options"),
    [
        ({"use_logic_gradient": "true"}, {"logistic": True}),
        ({"use_focal_loss": "true"}, {"focal": True}),
        ({"label_smooth_eps": 0}, {"smooth": 0}),
        ({"accumulate": "false"}, {"accumulate": False}),
    ],
)
def test_yolov3_with_other_settings(write, extra, options, kind):
    x, labels = draw(2, 16, 3, 3, low=-1.5, high=1.5).astype(np.float32), truths(BOXES, BOXES[2:])
    net = run(write, yolov3_layer([1, 3], kind, 0.2, **extra), x, labels)
    loss, gradient = yolov3(x.astype(float), labels, [1, 3], kind, 0.2, **options)
    np.testing.assert_allclose(net.blobs["y0"].data, loss, rtol=1e-4)
    np.testing.assert_allclose(net.blobs["x0"].diff, gradient, rtol=1e-3, atol=2e-4)


def test_yolov3_gradients_are_derivatives_of_cross_entropies(write):
    """Of confidence and classes, without any true box and for the prediction of one."""
    x, labels = draw(1, 16, 2, 2).astype(np.float32), truths([BOXES[0]])
    net = run(write, yolov3_layer([0, 1], "MSE", 1.0, thresh=0.99, class_scale=1, label_smooth_eps=0), x, labels)
    got = net.blobs["x0"].diff.reshape(2, 8, 2, 2)
    k, j, i = np.argwhere(np.abs(got[:, 5]) > 0)[0]
    values = x.astype(float)

    def objective():
        chance = sigmoid(values.reshape(2, 8, 2, 2))
        total = -np.log(1 - chance[:, 4]).sum() + np.log(1 - chance[k, 4, j, i]) - np.log(chance[k, 4, j, i])
        return total - np.log(np.where(np.arange(3) == 1, chance[k, 5:, j, i], 1 - chance[k, 5:, j, i])).sum()

    expected = finite_differences(objective, values).reshape(2, 8, 2, 2)
    np.testing.assert_allclose(got[:, 4:], expected[:, 4:], rtol=1e-3, atol=1e-4)


def test_a_batch_without_true_boxes_learns_background(write):
    for layer in (REGION % THREE, yolov3_layer([0, 1], "GIOU", 0.2)):
        net = run(write, layer, draw(2, 24 if "Region" in layer else 16, 3, 3), truths([], []))
        touched = np.abs(net.blobs["x0"].diff).reshape(2, -1, 8, 3, 3).sum((0, 1, 3, 4)) > 0
        assert touched.tolist() == [False] * 4 + [True] + [False] * 3
        assert net.blobs["y0"].data > 0


@pytest.mark.parametrize(
    ("mask", "settings", "words"),
    [([0, 4], {}, "2 indices"), ([0, 1, 2], {}, "2 indices"), ([0, 1], {"num": 3}, "16 channels")],
)
def test_yolov3_refuses_masks_that_do_not_fit(write, mask, settings, words):
    assert words in str(layer_error(write, yolov3_layer(mask, "MSE", 0.5, **settings), (1, 16, 4, 4), (1, 35)))


# ---- detections


def suppressed(rows, threshold):
    """Rows of image, label, score, corners of one image in the order of their scores, without those that overlap a better one."""
    kept = []
    for row in sorted(rows, key=lambda each: -each[2]):
        boxes = [((b[3] + b[5]) / 2, (b[4] + b[6]) / 2, b[5] - b[3], b[6] - b[4]) for b in (*kept, row)]
        if all(iou(boxes[-1], other) < threshold for other in boxes[:-1]):
            kept.append(row)
    return kept


def corners_of(x, y, w, h):
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def check_rows(net, wanted):
    assert wanted
    assert {row[0] for row in wanted} == {0, 1}
    np.testing.assert_allclose(net.blobs["y0"].data, np.array(wanted)[None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [[(3, 4)], [(3, 4), (2, 2)], [(1, 1)]])
@exercises("YoloDetectionOutput")
def test_yolov2_detections_are_those_of_loops(write, sizes):
    maps = [draw(2, 24, *size, low=-2, high=2).astype(np.float32) for size in sizes]
    settings = f"num_classes: 3 num_box: 3 confidence_threshold: 0.15 nms_threshold: 0.4 {BIASES2}"
    net = run(write, f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {settings} }}', *maps, phase=caffe.TEST)
    wanted = []
    for n in range(2):
        rows = []
        for x in maps:
            height, width = x.shape[2:]
            for k, j, i in np.ndindex(3, height, width):
                tx, ty, tw, th, c, *scores = x[n].reshape(3, 8, height, width)[k, :, j, i].astype(float)
                chance = np.exp(scores) / np.exp(scores).sum()
                score = sigmoid(c) * chance.max()
                if score >= 0.15:
                    a, b = ANCHORS2[k]
                    box = (
                        (i + sigmoid(tx)) / width,
                        (j + sigmoid(ty)) / height,
                        math.exp(tw) * a / width,
                        math.exp(th) * b / height,
                    )
                    rows.append((n, chance.argmax() + 1, score, *corners_of(*box)))
        wanted += suppressed(rows, 0.4)
    check_rows(net, wanted)


@pytest.mark.parametrize("nms", [0, 0.4, 1.5])  # only the best box; …; above 1, a box is detected as each of its classes
@pytest.mark.parametrize("gaussian", [False, True])
@exercises("Yolov3DetectionOutput")
def test_yolov3_detections_are_those_of_loops(write, gaussian, nms):
    values, masks = (12 if gaussian else 8), ([2, 3], [0, 1])
    maps = [draw(2, 2 * values, *size, low=-2, high=2).astype(np.float32) for size in ((2, 3), (4, 6))]
    settings = (
        f"num_classes: 3 num_box: 2 confidence_threshold: 0.3 nms_threshold: {nms} {BIASES3} mask: 2 mask: 3 mask: 0 mask: 1"
    )
    settings += f" anchors_scale: 16 anchors_scale: 8 gaussian_box: {str(gaussian).lower()}"
    net = run(write, f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {settings} }}', *maps, phase=caffe.TEST)
    wanted = []
    for n in range(2):
        rows = []
        for x, mask, scale in zip(maps, masks, (16, 8), strict=True):
            height, width = x.shape[2:]
            for k, j, i in np.ndindex(2, height, width):
                own = x[n].reshape(2, values, height, width)[k, :, j, i].astype(float)
                confidence = sigmoid(own[8]) * (1 - sigmoid(own[1:8:2]).mean()) if gaussian else sigmoid(own[4])
                tx, ty, tw, th = own[0:8:2] if gaussian else own[:4]
                a, b = ANCHORS3[mask[k]]
                w, h = math.exp(tw) * a / (width * scale), math.exp(th) * b / (height * scale)
                box = corners_of((i + sigmoid(tx)) / width, (j + sigmoid(ty)) / height, w, h)
                for label, score in enumerate(sigmoid(own[-3:]) * confidence):
                    if score > 0.3:
                        rows.append((n, label + 1, score, *box))
        wanted += suppressed(rows, nms)
    check_rows(net, wanted)


def test_without_detections_there_is_a_row_for_each_image(write):
    settings = f"num_classes: 3 num_box: 3 confidence_threshold: 0.99 {BIASES2}"
    net = run(write, f'type: "YoloDetectionOutput" yolo_detection_output_param {{ {settings} }}', draw(3, 24, 2, 2))
    assert net.blobs["y0"].data.tolist() == [[[[n, *[-1] * 6] for n in range(3)]]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("mask: 0 mask: 1 anchors_scale: 8", "there are 1 bottoms"),
        ("mask: 0 anchors_scale: 8 mask_group_num: 1", "2 anchors of each of 1 maps"),
        ("mask: 0 mask: 9 anchors_scale: 8 mask_group_num: 1", "2 anchors of each of 1 maps"),
        ("mask: 0 mask: 1 anchors_scale: 8 mask_group_num: 1 gaussian_box: true", "16 channels"),
    ],
)
def test_yolov3_output_refuses_settings_that_do_not_fit(write, settings, words):
    layer = f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ num_classes: 3 num_box: 2 {BIASES3} {settings} }}'
    assert words in str(layer_error(write, layer, (1, 16, 4, 4)))


# ---- YOLO of one box size for each cell


def cells(images, side, classes, objects):
    """Predictions, and true boxes in about half of the cells."""
    x = draw(images, side**2 * (classes + 5 * objects), low=0.1, high=0.9)
    labels = np.zeros((images, 7 * side**2))
    for image in labels:
        image[: side**2] = rng.integers(0, 2, side**2)
        image[side**2 : 2 * side**2] = rng.integers(0, 2, side**2)
        image[side**2] = 1
        image[2 * side**2 : 3 * side**2] = rng.integers(0, classes, side**2)
        image[3 * side**2 :] = rng.uniform(0.1, 0.9, 4 * side**2)
    return x.astype(np.float32), labels.astype(np.float32)


def predicted_box(values, side, cell, root, relative):
    x, y, w, h = values
    if relative:
        x, y = (cell % side + x) / side, (cell // side + y) / side
    return (x, y, w * w, h * h) if root else (x, y, w, h)


@pytest.mark.parametrize(("root", "relative"), [(1, 0), (0, 1)])
@pytest.mark.parametrize("side", [3, 1])
@exercises("DetectionLoss")
def test_detection_loss_is_that_of_loops(write, side, root, relative):
    classes, objects, area = 4, 2, side**2
    x, labels = cells(2, side, classes, objects)
    labels[0, 3 * area : 3 * area + 2] = 5  # far from each prediction
    settings = f"side: {side} num_class: 4 object_scale: 2 noobject_scale: 0.7 class_scale: 1.5 coord_scale: 3"
    settings += f" sqrt: {'true' if root else 'false'} constriant: {'true' if relative else 'false'}"
    net = run(write, f'type: "DetectionLoss" detection_loss_param {{ {settings} }}', x, labels)
    delta, loss, empty, count = np.zeros(x.shape), 0.0, 0.0, 0
    for n in range(2):
        values, d, true = (x[n].astype(float), delta[n], labels[n].astype(float))
        for cell in range(area):
            own = [[values[(classes + objects + 4 * k + o) * area + cell] for o in range(4)] for k in range(objects)]
            boxes = [predicted_box(each, side, cell, root, relative) for each in own]
            best = -1
            if true[area + cell]:
                truth = true[3 * area + 4 * cell : 3 * area + 4 * cell + 4]
                fits = [iou(box, truth) for box in boxes]
                best = int(np.argmax(fits)) if max(fits) > 0 else int(np.argmin([math.dist(box, truth) for box in boxes]))
                count += 1
                for c in range(classes):
                    error = values[c * area + cell] - (c == true[2 * area + cell])
                    d[c * area + cell] = 1.5 * error
                    loss += 1.5 * error**2
                wanted = list(truth)
                if relative:
                    wanted[:2] = truth[0] * side - cell % side, truth[1] * side - cell // side
                if root:
                    wanted[2:] = np.sqrt(truth[2:])
                for o in range(4):
                    index = (classes + objects + 4 * best + o) * area + cell
                    d[index] = 3 * (values[index] - wanted[o])
                    loss += 3 * (values[index] - wanted[o]) ** 2
            for k in range(objects):
                index = (classes + k) * area + cell
                if k == best:
                    d[index] = 2 * (values[index] - max(fits))
                    loss += 2 * (values[index] - 1) ** 2
                else:
                    d[index] = 0.7 * values[index]
                    empty += 0.7 * values[index] ** 2
    np.testing.assert_allclose(net.blobs["y0"].data, loss / count + empty / (2 * area * objects - count), rtol=1e-5)
    np.testing.assert_allclose(net.blobs["x0"].diff, delta / 2, rtol=1e-4, atol=1e-6)


def test_detection_loss_without_boxes_is_that_of_the_confidences(write):
    x = draw(1, 4 * 30).astype(np.float32)
    net = run(write, 'type: "DetectionLoss" detection_loss_param { side: 2 }', x, np.zeros((1, 28)))
    np.testing.assert_allclose(net.blobs["y0"].data, 0.5 * (x[0, 80:88] ** 2).mean(), rtol=1e-5)
    assert "need 28" in str(layer_error(write, 'type: "DetectionLoss" detection_loss_param { side: 2 }', (1, 120), (1, 35)))
    labels = np.zeros((1, 28))
    labels[0, 4], labels[0, 8] = 1, 20
    with pytest.raises(caffe.LayerError, match="class 20"):
        run(write, 'type: "DetectionLoss" detection_loss_param { side: 2 }', x, labels)


@pytest.mark.parametrize("score_type", ["OBJ", "PROB", "MULTIPLY"])
@pytest.mark.parametrize("nms", [-1, 0.3])
@exercises("EvalDetection")
def test_detections_of_cells_are_matched_as_by_loops(write, score_type, nms):
    classes, objects, side, area = 3, 2, 3, 9
    x, labels = cells(9, side, classes, objects)
    settings = f"side: 3 num_class: 3 threshold: 0.3 score_type: {score_type} nms: {nms}"
    top = run(write, f'type: "EvalDetection" eval_detection_param {{ {settings} }}', x, labels).blobs["y0"].data
    matched = 0
    for n in range(9):
        values, true = x[n].astype(float), labels[n].astype(float)
        known = [(int(true[18 + c]), true[c] == 1, true[27 + 4 * c : 31 + 4 * c]) for c in range(area) if true[9 + c]]
        rows = []
        for cell in range(area):
            chance = [values[c * area + cell] for c in range(classes)]
            for k in range(objects):
                confidence = values[(classes + k) * area + cell]
                score = {"OBJ": confidence, "PROB": max(chance), "MULTIPLY": confidence * max(chance)}[score_type]
                box = [values[(classes + objects + 4 * k + o) * area + cell] for o in range(4)]
                rows.append((0, int(np.argmax(chance)), score, *corners_of(*predicted_box(box, side, cell, True, True))))
        rows = suppressed(rows, nms) if nms >= 0 else sorted(rows, key=lambda row: -row[2])
        wanted, seen = [], set()
        for _, label, score, x0, y0, x1, y1 in sorted(rows, key=lambda row: row[1]):
            box = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
            fits = [(iou(box, each[2]), -index) for index, each in enumerate(known) if each[0] == label]
            fit, index = max(fits, default=(-1, 0))
            outcome = (0, 1)
            if fit >= 0.3:
                outcome = (0, 0) if known[-index][1] else (0, 1) if index in seen else (1, 0)
                seen |= {index} if not known[-index][1] else set()
            matched += outcome[0]
            wanted.append((label, score, *outcome))
        counts = [sum(each[0] == c and not each[1] for each in known) for c in range(classes)]
        flat = np.concatenate((counts, np.ravel(wanted)))
        np.testing.assert_allclose(top[n], np.pad(flat, (0, top.shape[1] - len(flat))), rtol=1e-5)
    assert matched


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e3, -1e3, 1e38, np.nan, np.inf])
def test_huge_or_non_finite_predictions_do_not_crash(write, value):
    x = np.full((1, 16, 2, 2), value)
    for kind in ("MSE", "GIOU", "CIOU"):
        run(write, yolov3_layer([0, 1], kind, 0.2), x, truths(BOXES))
    run(write, REGION % THREE, np.full((1, 24, 2, 2), value), truths(BOXES))
    settings = f"num_classes: 3 num_box: 2 mask_group_num: 1 anchors_scale: 8 mask: 0 mask: 1 {BIASES3}"
    net = run(write, f'type: "Yolov3DetectionOutput" yolov3_detection_output_param {{ {settings} }}', x)
    assert 0 < net.blobs["y0"].data.shape[2] <= 8
