"""Training layers of MS-CNN compared with loops over each position, as its paper and its fork define them."""

import math

import cv2
import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import draw, exercises, finite_differences, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


FIELD = "cls_num: 3 field_w: 12 field_h: 16 downsample_rate: 8"
SIDES, STEP = (12, 16), 8
MEAN, DEVIATION = (0, 0.1, 0, -0.1), (0.5, 0.4, 1, 2)
NORMALIZED = " ".join([*(f"bbox_mean: {value}" for value in MEAN), *(f"bbox_std: {value}" for value in DEVIATION)])
NORMALIZED = f"bbox_reg_param {{ {NORMALIZED} }}"


def labels_of(shape=(2, 3, 4)):
    """Labels (N, 6, H, W): a third of the positions have an object, and some of the others overlap one much."""
    count, height, width = shape
    labels = np.zeros((count, 6, height, width))
    labels[:, 0] = rng.integers(0, 3, shape) * rng.integers(0, 2, shape)
    labels[:, 0, 0, 0] = 1
    for n, h, w in np.ndindex(shape):
        centre = np.array([w + 0.5, h + 0.5]) * STEP + rng.uniform(-3, 3, 2)
        labels[n, 1:5, h, w] = *centre, *(np.array(SIDES) * rng.uniform(0.7, 1.4, 2))
        labels[n, 5, h, w] = rng.uniform(0.5, 1) if labels[n, 0, h, w] else rng.uniform(0, 0.8)
    return labels.astype(np.float32).astype(float)


def set_bottoms(net, *bottoms):
    for index, bottom in enumerate(bottoms):
        net.blobs[f"x{index}"].data[...] = bottom


# ---- DetectionLoss


def detection_loss(x, labels, chosen, smooth=True, by_overlap=False, balanced=False, multiple=4, scale=1.0):
    """The two values, of the background positions `chosen` (N, H, W)."""
    objects = labels[:, 0] > 0
    weights = np.where(objects, labels[:, 5], 1) if by_overlap else np.ones(objects.shape)
    if balanced:
        count, share = objects.sum() + chosen.sum(), 1 / (1 + multiple)
        positive, negative = weights[objects].sum(), weights[chosen].sum()
        weights = weights * np.where(objects, share * count / positive, (1 - share) * count / negative)
    entropy = regression = 0.0
    for n, h, w in zip(*np.nonzero(objects | chosen), strict=True):
        scores = x[n, :3, h, w]
        entropy -= weights[n, h, w] * (scores[int(labels[n, 0, h, w])] - np.log(np.exp(scores).sum()))
        if not objects[n, h, w]:
            continue
        bx, by, bw, bh = labels[n, 1:5, h, w]
        wanted = (bx - (w + 0.5) * 8) / 12, (by - (h + 0.5) * 8) / 16, math.log(bw / 12), math.log(bh / 16)
        for value, target, mean, deviation in zip(x[n, 3:, h, w], wanted, MEAN, DEVIATION, strict=True):
            d = abs(value - (target - mean) / deviation)
            regression += d * d / 2 if d < 1 or not smooth else d - 0.5
    entropy, regression = entropy / (objects | chosen).sum(), scale * regression / (4 * objects.sum())
    return entropy + regression, regression


LOSS = f'type: "DetectionLoss" {NORMALIZED} detection_loss_param {{ {FIELD} field_xyr: 0.5 field_whr: 9 %s }}'


@pytest.mark.parametrize(("settings", "options"), [
    ("", {}),
    ("bb_smooth: false lambda: 0.5", {"smooth": False, "scale": 0.5}),
    ("iou_weighted: true", {"by_overlap": True}),
    ("pos_neg_weighted: true", {"balanced": True}),
    ("pos_neg_weighted: true iou_weighted: true bg_multiple: 2", {"balanced": True, "by_overlap": True, "multiple": 2}),
])  # fmt: skip
@exercises("DetectionAccuracy")
def test_detection_loss_of_all_background(write, settings, options):
    x, labels = draw(2, 7, 3, 4), labels_of()
    chosen = (labels[:, 0] == 0) & (labels[:, 5] < 0.5)
    net = make_net(write, LOSS % f'sample_mode: "all" {settings}', [x.shape, labels.shape])
    x = x.astype(np.float32).astype(float)
    set_bottoms(net, x, labels)
    assert net.forward()["y0"].shape == (1, 1, 1, 2)
    np.testing.assert_allclose(net.blobs["y0"].data.ravel(), detection_loss(x, labels, chosen, **options), rtol=1e-4)
    net.backward()
    expected = finite_differences(lambda: detection_loss(x, labels, chosen, **options)[0], x)
    np.testing.assert_allclose(net.blobs["x0"].diff, expected, rtol=1e-3, atol=1e-5)
    accuracy = make_net(write, ACCURACY % "", [x.shape, labels.shape], tops=2)  # the same bottoms fit it
    set_bottoms(accuracy, x, labels)
    accuracy.forward()


def test_predictions_beyond_the_bounds_keep_their_gradient(write):
    layer = f'type: "DetectionLoss" detection_loss_param {{ {FIELD} field_whr: 2 bb_smooth: false }}'
    net = make_net(write, layer, [(1, 7, 1, 1), (1, 6, 1, 1)])
    set_bottoms(net, np.reshape([0, 0, 0, 9, 0, 9, 0], (1, 7, 1, 1)), np.reshape([1, 4, 4, 12, 16, 1], (1, 6, 1, 1)))
    net.forward()
    # Cut to 1 / field_xyr and log field_whr: the differences are 0.5 and log 2.
    np.testing.assert_allclose(net.blobs["y0"].data.ravel()[1], (0.5**2 + math.log(2) ** 2) / 8, rtol=1e-5)
    net.backward()
    np.testing.assert_allclose(net.blobs["x0"].diff.ravel()[3:], np.array([0.5, 0, math.log(2), 0]) / 4, rtol=1e-5)


def test_bootstrap_takes_the_background_of_the_greatest_scores_and_random_takes_some(write):
    labels = np.zeros((1, 6, 6, 10))
    labels[0, 0, 0, :2] = 1
    labels[0, 3:5] = 12
    labels[0, 5, 5] = 0.7  # overlaps an object
    x = np.zeros((1, 7, 6, 10))
    x[0, 1], x[0, 2] = np.arange(60).reshape(6, 10), -np.arange(60).reshape(6, 10)
    free = (labels[:, 0] == 0) & (labels[:, 5] < 0.5)

    def chosen(mode):
        net = make_net(write, LOSS % f'bg_multiple: 5 sample_mode: "{mode}"', [x.shape, labels.shape])
        return net.layers[-1].sampled(x, labels[:, 0].astype(int), free)[0].ravel()

    # Ten of class 1, that has two objects, and four of class 2, that has none.
    assert np.flatnonzero(chosen("bootstrap")).tolist() == [2, 3, 4, 5, *range(40, 50)]
    counts = []
    for _ in range(20):
        drawn = chosen("random")
        assert not (drawn & ~free[0].ravel()).any()
        counts.append(drawn.sum())
    assert min(counts) > 0
    assert max(counts) <= 10
    mixed = chosen("mixture")
    assert mixed[[2, 3, 4, 5, *range(45, 50)]].all()
    assert mixed.sum() <= 4 + 5 + 8


def test_objectness_compares_objects_of_all_classes_with_background(write):
    layer = (
        'type: "DetectionLoss" detection_loss_param { cls_num: 2 field_w: 12 field_h: 16 downsample_rate: 8 objectness: true }'
    )
    net = make_net(write, layer, [(1, 6, 1, 1), (1, 6, 1, 1)])
    set_bottoms(net, np.reshape([0.0, 1, 0, 0, 0, 0], (1, 6, 1, 1)), np.reshape([2, 4, 4, 12, 16, 1], (1, 6, 1, 1)))
    np.testing.assert_allclose(net.forward()["y0"].ravel(), [math.log(1 + math.exp(-1)), 0], rtol=1e-5, atol=1e-7)


def test_an_ignored_label_counts_nowhere(write):
    layer = LOSS % 'sample_mode: "all"' + " loss_param { ignore_label: 2 }"
    x, labels = draw(1, 7, 1, 2).astype(np.float32).astype(float), labels_of((1, 1, 2))
    labels[0, 0] = [[1, 2]]
    net = make_net(write, layer, [x.shape, labels.shape])
    set_bottoms(net, x, labels)
    one = detection_loss(x[..., :1], labels[..., :1], np.zeros((1, 1, 1), bool))
    np.testing.assert_allclose(net.forward()["y0"].ravel(), one, rtol=1e-4)
    net.backward()
    assert not net.blobs["x0"].diff[..., 1].any()


def test_detection_layers_say_what_they_take(write):
    assert "cls_num + 4 channels" in layer_error(write, LOSS % "", (1, 8, 2, 2), (1, 6, 2, 2)).expected
    assert "cls_num + 4 channels" in layer_error(write, LOSS % "", (1, 7, 2, 2), (1, 6, 2, 3)).expected
    assert "objectness: true" in layer_error(write, LOSS % "objectness: true", (1, 7, 2, 2), (1, 6, 2, 2)).found
    unset = 'type: "DetectionLoss" detection_loss_param { cls_num: 3 }'
    assert layer_error(write, unset, (1, 7, 2, 2), (1, 6, 2, 2)).found == "field_h is not given"
    assert layer_error(write, ACCURACY % "top_k: 4", (1, 7, 2, 2), (1, 6, 2, 2)).found == "top_k 4"


# ---- DetectionAccuracy

ACCURACY = f'type: "DetectionAccuracy" {NORMALIZED} detection_accuracy_param {{ {FIELD} field_xyr: 2 %s }}'


def overlap(a, b):
    """Of boxes x, y of the centre, width, height."""
    sides = [min(a[k] + a[k + 2] / 2, b[k] + b[k + 2] / 2) - max(a[k] - a[k + 2] / 2, b[k] - b[k + 2] / 2) for k in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


@pytest.mark.parametrize("best", [1, 2])
@exercises("DetectionAccuracy")
def test_detection_accuracy(write, best):
    x, labels = draw(2, 7, 3, 4), labels_of()
    net = make_net(write, ACCURACY % f"top_k: {best}", [x.shape, labels.shape], tops=2)
    set_bottoms(net, x, labels)
    net.forward()
    right, objects, shared = [], [], []
    for n, h, w in np.ndindex(2, 3, 4):
        label = int(labels[n, 0, h, w])
        if label == 0 and labels[n, 5, h, w] >= 0.5:
            continue
        right.append(label in np.argsort(-x[n, :3, h, w])[:best])
        if label:
            objects.append(right[-1])
            bx, by, bw, bh = (v * d + m for v, d, m in zip(x[n, 3:, h, w], DEVIATION, MEAN, strict=True))
            cx, cy = min(max(bx, -0.5), 0.5) * 12 + (w + 0.5) * 8, min(max(by, -0.5), 0.5) * 16 + (h + 0.5) * 8
            sides = (side * math.exp(min(max(b, -math.log(2)), math.log(2))) for side, b in zip(SIDES, (bw, bh), strict=True))
            shared.append(overlap((cx, cy, *sides), labels[n, 1:5, h, w]))
    np.testing.assert_allclose(net.blobs["y0"].data.ravel(), [np.mean(right), np.mean(objects)], rtol=1e-5)
    np.testing.assert_allclose(net.blobs["y1"].data.ravel(), np.mean(shared), rtol=1e-4)


def test_means_over_nothing_are_minus_1(write):
    net = make_net(write, ACCURACY % "", [(1, 7, 1, 1), (1, 6, 1, 1)], tops=2)
    net.forward()
    assert net.blobs["y0"].data.ravel().tolist() == [1, -1]
    assert net.blobs["y1"].data.ravel().tolist() == [-1]


# ---- ProposalTarget, BboxAccuracy

TARGET = f"""type: "ProposalTarget" {NORMALIZED}
    proposal_target_param {{ cls_num: 4 num_img_per_batch: 2 img_width: 90 img_height: 70 bg_thr_lw: 0.1 %s }}"""
TRUTHS = [[0, 10, 10, 29, 39, 2, 0], [0, 50, 10, 79, 29, 3, 1], [1, 20, 20, 59, 49, 1, 0]]
REGIONS = [
    [0, 12, 12, 29, 39], [0, 10, 25, 29, 54], [0, 52, 10, 79, 29], [1, 0, 0, 5, 5], [1, 10, 10, 29, 39], [1, 22, 21, 61, 50],
]  # fmt: skip


def pixels_shared(a, b):
    """Overlap of boxes whose last pixel is x2, y2."""
    grid = np.zeros((2, 90, 90), bool)
    for plane, (left, top, right, bottom) in zip(grid, (a, b), strict=True):
        plane[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
    return (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()


def target_of(region, truth):
    sides, true = ([box[2] - box[0] + 1, box[3] - box[1] + 1] for box in (region, truth))
    shift = [(truth[k] + true[k] / 2 - region[k] - sides[k] / 2) / sides[k] for k in (0, 1)]
    values = [*shift, *(math.log(t / s) for t, s in zip(true, sides, strict=True))]
    return [(value - mean) / deviation for value, mean, deviation in zip(values, MEAN, DEVIATION, strict=True)]


def chosen_rows(write, settings, aware=True, phase=caffe.TRAIN, tops=7):
    layer = TARGET % settings
    if not aware:
        layer = layer.replace("bbox_reg_param {", "bbox_reg_param { cls_aware: false")
    net = make_net(write, layer, [(6, 5, 1, 1), (3, 7, 1, 1)], phase, tops)
    set_bottoms(net, np.reshape(REGIONS, (6, 5, 1, 1)), np.reshape(TRUTHS, (3, 7, 1, 1)))
    shapes = [net.blobs[f"y{index}"].shape for index in range(tops)]
    net.forward()
    result = [net.blobs[f"y{index}"].data for index in range(tops)]
    if "-1" not in settings:
        assert [top.shape for top in result] == shapes
    return [top.reshape(len(top), -1).copy() for top in result]


@pytest.mark.parametrize("aware", [True, False])
@exercises("ProposalTarget")
def test_all_objects_and_background_with_their_targets(write, aware):
    rows, classes, targets, inside, outside, matched, samples = chosen_rows(write, "batch_size: -1 iou_weighted: true", aware)
    objects = [(REGIONS[0], TRUTHS[0]), (REGIONS[5], TRUTHS[2]), (TRUTHS[0], TRUTHS[0]), (TRUTHS[2], TRUTHS[2])]
    # Of the others 1 overlaps the first box by a third, and 4 that of image 1 less than a tenth and a half; 2 an ignored box.
    shared = [pixels_shared(region[1:5], truth[1:5]) for region, truth in objects]
    between = [index for index in (1, 4) if 0.1 <= pixels_shared(REGIONS[index][1:], TRUTHS[0 if index == 1 else 2][1:5]) < 0.5]
    assert rows.tolist() == [*(region[:5] for region, _ in objects), *(REGIONS[index] for index in between)]
    assert classes.ravel().tolist() == [2, 1, 2, 1, *[0] * len(between)]
    wanted = np.zeros_like(targets)
    for row, (region, truth) in enumerate(objects):
        place = 4 * (truth[5] if aware else 1)
        wanted[row, place : place + 4] = target_of(region[1:5], truth[1:5])
        assert inside[row].tolist() == [float(place <= column < place + 4) for column in range(targets.shape[1])]
    np.testing.assert_allclose(targets, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(outside, inside)
    np.testing.assert_allclose(
        matched[:4], [[truth[5], *truth[1:5], share] for (_, truth), share in zip(objects, shared, strict=True)], rtol=1e-5
    )
    count = len(rows)
    weights = [share * 0.25 * count / sum(shared) for share in shared] + [0.75 * count / len(between)] * len(between)
    np.testing.assert_allclose(samples.ravel(), weights, rtol=1e-5)


def test_a_batch_has_few_objects_and_is_filled_with_other_regions_and_random_boxes(write):
    seen = set()
    for _ in range(10):
        rows, classes, _, _, _, _ = chosen_rows(write, "batch_size: 8", tops=6)
        assert (classes > 0).sum() == 2
        seen.add(tuple(map(tuple, rows[:2])))
        for image, *box in rows[2:].tolist():
            assert all(pixels_shared(box, truth[1:5]) < 0.5 for truth in TRUTHS if truth[0] == image)
            assert [image, *box] in REGIONS or (box[2] - box[0] >= 31 and box[3] - box[1] >= 31)
        assert any(row.tolist() not in REGIONS for row in rows[2:])
    assert len(seen) > 1


def test_proposal_target_says_what_it_takes(write):
    error = layer_error(write, TARGET % "bg_thr_hg: 0.6", (6, 5), (3, 7), tops=6)
    assert "bg_thr_hg up to fg_thr" in error.expected
    assert "5 and 7 values" in layer_error(write, TARGET % "", (6, 5), (3, 6), tops=6).expected
    net = make_net(write, TARGET % "", [(1, 5), (1, 7)], tops=6)
    set_bottoms(net, [[2, 0, 0, 9, 9]])
    with pytest.raises(caffe.LayerError, match="a region of image 2"):
        net.forward()
    net = make_net(write, TARGET % "", [(1, 5), (1, 7)], tops=6)
    set_bottoms(net, [[0, 0, 0, 9, 9]], [[0, 0, 0, 9, 9, 4, 0]])
    with pytest.raises(caffe.LayerError, match="classes go from 1 to 3"):
        net.forward()


@exercises("BboxAccuracy")
def test_overlaps_before_and_after_regression(write):
    rows, _, targets, _, _, matched = chosen_rows(write, "batch_size: -1", tops=6)
    layer = f'type: "BboxAccuracy" {NORMALIZED}'
    net = make_net(write, layer, [targets.shape, rows.shape, matched.shape], tops=2)
    set_bottoms(net, targets, rows, matched)
    net.forward()
    # The targets move regions onto their boxes; true boxes among the regions do not count.
    np.testing.assert_allclose(net.blobs["y0"].data.ravel(), 1, rtol=1e-4)
    shared = [pixels_shared(REGIONS[0][1:], TRUTHS[0][1:5]), pixels_shared(REGIONS[5][1:], TRUTHS[2][1:5])]
    np.testing.assert_allclose(net.blobs["y1"].data.ravel(), np.mean(shared), rtol=1e-5)
    net.blobs["x2"].data[...] = 0
    net.forward()
    assert [net.blobs[f"y{index}"].data.item() for index in (0, 1)] == [-1, -1]
    assert "4 offsets of each class" in layer_error(write, layer, (2, 7), (2, 5), (2, 6)).expected


# ---- ImageGtData

DATA = """layer { name: "d" type: "ImageGtData" top: "x" top: "small" top: "large" TOP transform_param { mean_value: 10 MORE }
    image_gt_data_param { source: "list.txt" batch_size: 2 downsample_rate: 8 downsample_rate: 16
        field_w: 20 field_w: 40 field_h: 20 field_h: 40 SETTINGS } }"""


def data_net(write, settings="", top="", more="", boxes=((10, 10, 30, 30),), ignore=0, regions=()):
    cv2.imwrite("image.png", np.full((96, 128, 3), 60, np.uint8))
    lines = ["image.png", "3", "96", "128", str(len(boxes))]
    lines += [f"{number + 1} {ignore} {' '.join(map(str, box))}" for number, box in enumerate(boxes)]
    lines += [str(len(regions)), *(" ".join(map(str, region)) for region in regions)]
    write("list.txt", "".join(f"# {number}\n" + "\n".join(lines) + "\n" for number in range(2)))
    text = DATA.replace("SETTINGS", settings).replace("TOP", top).replace("MORE", more)
    return caffe.Net(write("net.prototxt", text), caffe.TRAIN)


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caffe.set_random_seed(5)


@pytest.mark.usefixtures("_folder")
@exercises("ImageGtData")
def test_labels_of_fields(write):
    net = data_net(
        write,
        "output_gt_boxes: true min_gt_width: 15",
        'top: "boxes"',
        boxes=[(10, 10, 30, 30), (60, 40, 100, 80), (1, 1, 9, 60)],
    )
    assert [net.blobs[name].shape for name in ("small", "large", "boxes")] == [(2, 6, 12, 16), (2, 6, 6, 8), (1, 7, 1, 1)]
    net.forward()
    assert (net.blobs["x"].data == 50).all()
    truths = net.blobs["boxes"].data.reshape(-1, 7)
    rows = [[10, 10, 30, 30, 1, 0], [60, 40, 100, 80, 2, 0], [1, 1, 9, 60, 3, 1]]
    assert truths.tolist() == [[image, *row] for image in (0, 1) for row in rows]
    for name, step, side in (("small", 8, 20), ("large", 16, 40)):
        labels = net.blobs[name].data[1]
        for h, w in np.ndindex(labels.shape[1:]):
            field = (w + 0.5) * step, (h + 0.5) * step, side, side
            shared = [overlap(field, ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)) for x1, y1, x2, y2, *_ in rows]
            best = int(np.argmax(shared))
            np.testing.assert_allclose(labels[5, h, w], shared[best], rtol=1e-4, atol=1e-6)
            matched = shared[best] > 0.5 and best < 2
            assert labels[0, h, w] == (best + 1 if matched else 0)
            if matched:
                x1, y1, x2, y2 = rows[best][:4]
                assert labels[1:5, h, w].tolist() == [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    assert (net.blobs["small"].data[:, 0] == 1).any()
    assert (net.blobs["large"].data[:, 0] == 2).any()
    net.close()


@pytest.mark.usefixtures("_folder")
def test_a_box_without_a_field_gets_that_of_its_centre_and_covered_fields_do_not_count(write):
    net = data_net(write, boxes=[(30, 30, 90, 42)], regions=[(96, 0, 128, 96)])
    net.forward()
    small, large = (net.blobs[name].data[0] for name in ("small", "large"))
    # A field of 20 × 20 shares 240 of 880 pixels, one of 40 × 40 480 of 1840.
    assert [len(np.argwhere(labels[0])) for labels in (small, large)] == [1, 0]
    assert np.argwhere(small[0]).tolist() == [[4, 7]]
    assert small[1:5, 4, 7].tolist() == [60, 36, 60, 12]
    assert (small[5, :, 13:] == 1).all()
    assert (small[5, :, :11] < 1).all()
    net.close()


@pytest.mark.usefixtures("_folder")
def test_crops_scales_and_mirrors_keep_boxes_on_their_objects(write):
    net = data_net(
        write,
        "output_gt_boxes: true crop_width: 64 crop_height: 64 do_multiple_scale: true min_scale: 15 max_scale: 60 shuffle: true",
        'top: "boxes"',
        "mirror: true",
        boxes=[(20, 30, 60, 50)],
    )
    pixels = np.full((96, 128, 3), 60, np.uint8)
    pixels[30:50, 20:60] = 200
    cv2.imwrite("image.png", pixels)
    widths = set()
    for _ in range(15):
        net.forward()
        for image, (_, x1, y1, x2, y2, label, _) in zip(net.blobs["x"].data, net.blobs["boxes"].data.reshape(-1, 7), strict=True):
            assert label == 1
            rows, columns = np.nonzero(image[0] > 130)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            np.testing.assert_allclose(seen, np.clip([x1, y1, x2, y2], 0, 64), atol=1.5)
            widths.add(round(float(x2 - x1)))
    assert len(widths) > 2
    net.close()


@pytest.mark.usefixtures("_folder")
def test_faulty_lists_and_settings_are_named(write):
    with pytest.raises(caffe.LayerError, match="one of each for each top of labels"):
        data_net(write, "field_w: 3")
    with pytest.raises(caffe.LayerError, match="only mirror and mean_value apply"):
        data_net(write, more="crop_size: 3")
    with pytest.raises(caffe.LayerError, match="it must fit into 96×128"):
        data_net(write, "crop_width: 200")
    write("list.txt", "# 0\nimage.png\n3 96 128\n1\n0 0 1 1 5 5\n0\n")
    text = DATA.replace("SETTINGS", "").replace("TOP", "").replace("MORE", "")
    with pytest.raises(caffe.Error, match="a true box of label 0"):
        caffe.Net(write("net.prototxt", text), caffe.TRAIN)
    write("list.txt", "# 0\nimage.png\n3 96 128\n2\n1 0 1 1 5 5\n")
    with pytest.raises(caffe.Error, match="it ends in an image"):
        caffe.Net(write("net.prototxt", text), caffe.TRAIN)
