"""DetectNet's layers: lists of boxes from maps, their precision and recall, and ground truth maps with their augmentation."""

import math

import cv2
import numpy as np
import pytest

import caffe
from caffe.layer_types.forks.detectnet import Rotation
from caffe.layer_types.forks.detectnet_boxes import group
from caffe.transforms.colours import with_hue_and_saturation
from caffe.transforms.cubic import rotated
from tests.caffe.layer_checks import exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)
    caffe.set_random_seed(1)


def python(module, layer, settings=""):
    module = f"caffe.layers.detectnet.{module}"
    return f'type: "Python" python_param {{ module: "{module}" layer: "{layer}" param_str: "{settings}" }}'


def run(write, layer, *bottoms, tops=1, phase=caffe.TEST):
    arrays = [np.asarray(bottom, np.float32) for bottom in bottoms]
    net = make_net(write, layer, [array.shape for array in arrays], phase, tops)
    for number, array in enumerate(arrays):
        net.blobs[f"x{number}"].data[...] = array
    net.forward()
    return [net.blobs[f"y{number}"].data.copy() for number in range(tops)]


def maps(boxes, classes=1, height=6, width=8, stride=16):
    """Coverage and corner maps whose cells hold boxes: {(class, row, column): box in pixels}."""
    coverage, corners = np.zeros((1, classes, height, width)), np.zeros((1, 4, height, width))
    for (kind, row, column), (score, *box) in boxes.items():
        coverage[0, kind, row, column] = score
        corners[0, :, row, column] = np.subtract(box, [column * stride, row * stride] * 2)
    return coverage, corners


# ---- ClusterGroundtruth, ClusterDetections

CAR, VAN = (10, 12, 60, 50), (70, 20, 120, 90)


def test_true_boxes_are_listed_once_by_class(write):
    boxes = {(0, 1, 1): (1, *CAR), (0, 1, 2): (1, *CAR), (0, 2, 5): (0.5, *VAN), (1, 4, 6): (1, 80, 70, 110, 95)}
    layer = python("clustering", "ClusterGroundtruth", "128, 96, 16, 2")
    first, second = run(write, layer, *maps(boxes, classes=2), tops=2)
    assert first.shape == second.shape == (1, 50, 5)
    assert first[0, :3].tolist() == [[*CAR, 0], [*VAN, 0], [0] * 5]
    assert second[0, :2].tolist() == [[80, 70, 110, 95, 0], [0] * 5]


def test_detections_are_the_means_of_groups_of_similar_boxes(write):
    boxes = {(0, 1, column): (0.7, 10 + column % 2, 12, 60, 50) for column in range(1, 5)}
    boxes |= {(0, 3, 4): (0.9, *VAN), (0, 3, 5): (0.9, *VAN), (0, 4, 5): (0.3, *VAN)}
    layer = python("clustering", "ClusterDetections", "128,96,16,0.6,1,0.05,22")
    (found,) = run(write, layer, *maps(boxes))
    # The first box: x is the mean of 10 and 11, and the width that of 50 and 49, halves rounded to even.
    assert found[0, :, :4].tolist() == [[10, 12, 60, 50], list(VAN), *[[0] * 4] * 48]
    np.testing.assert_allclose(found[0, :2, 4], np.float16([math.log(4), math.log(2)]))
    (found,) = run(write, layer.replace("0.6,1", "0.6,2"), *maps(boxes))
    assert found[0, :2, :4].tolist() == [[10, 12, 60, 50], [0] * 4]
    (found,) = run(write, layer.replace(",22", ",39"), *maps(boxes))
    assert found[0, :2, :4].tolist() == [list(VAN), [0] * 4]


@pytest.mark.parametrize("score", [0.0, 0.5])
def test_maps_without_a_covered_cell_give_no_detection(write, score):
    coverage, corners = np.full((2, 1, 6, 8), score), rng.uniform(-9, 40, (2, 4, 6, 8))
    assert not run(write, python("clustering", "ClusterDetections", "128,96,16,0.6,1,0.05,22"), coverage, corners)[0].any()


def test_predictions_that_are_not_finite_leave_the_other_detections(write):
    boxes = {(0, 1, column): (0.7, *CAR) for column in (1, 2)} | {(0, 4, column): (0.9, *VAN) for column in (5, 6)}
    coverage, corners = maps(boxes)
    corners[0, :, 4] = np.inf
    (found,) = run(write, python("clustering", "ClusterDetections", "128,96,16,0.6,1,0.05,22"), coverage, corners)
    assert found[0, :, :4].tolist().count(list(CAR)) == 1


def test_a_group_inside_a_larger_one_is_left_out():
    outer, inner = [0, 0, 100, 100], [40, 40, 20, 20]
    rectangles = np.array([outer] * 5 + [inner] * 3 + [[300, 0, 20, 20]] * 2)
    means, counts = group(rectangles, 1, 0.2)
    assert (means.tolist(), counts.tolist()) == ([outer, [300, 0, 20, 20]], [5, 2])
    means, counts = group(rectangles, 0, 0.2)
    assert (means.tolist(), counts.tolist()) == (rectangles.tolist(), [1] * 10)


def test_groups_reach_from_one_similar_rectangle_to_the_next():
    """Each is similar to its neighbours, and the first not to the last."""
    rectangles = np.array([[4 * step, 0, 40, 40] for step in (0, 2, 1, 3, 30)])
    means, counts = group(rectangles, 1, 0.1)
    assert (means.tolist(), counts.tolist()) == ([[6, 0, 40, 40]], [4])


def test_more_than_50_boxes_are_cut_to_50(write):
    coverage, corners = np.ones((1, 1, 6, 12)), rng.uniform(-9, 40, (1, 4, 6, 12))
    (true,) = run(write, python("clustering", "ClusterGroundtruth", "192,96,16"), coverage, corners)
    assert true.shape == (1, 50, 5)
    assert true[..., :4].any(-1).all()


@pytest.mark.parametrize(
    ("layer", "settings", "expected"),
    [
        ("ClusterGroundtruth", "", "it must be image_size_x, image_size_y, stride, num_classes, separated by commas"),
        ("ClusterGroundtruth", "128,96", "it must be image_size_x"),
        ("ClusterGroundtruth", "128,96,16,1,1", "it must be image_size_x"),
        ("ClusterGroundtruth", "128,96,x", "it must be an integer of at least 1"),
        ("ClusterGroundtruth", "128,96,16,2", "num_classes 2 needs a channel and a top for each class"),
        ("ClusterGroundtruth", "128,9,16", "at least as large as the stride 16"),
        ("ClusterDetections", "128,96,16,0.6,3,0.02", "gridbox_cvg_threshold"),
        ("ClusterDetections", "128,96,16,0.6,3,0.02,2.5", "it must be an integer of at least 0"),
    ],
)
def test_a_bad_param_str_is_one_clear_error(write, layer, settings, expected):
    error = layer_error(write, python("clustering", layer, settings), (1, 1, 6, 8), (1, 4, 6, 8))
    assert expected in error.expected
    assert (
        "4 channels"
        in layer_error(
            write, python("clustering", layer, "128,96,16,0.6,3,0.02,2"[: 9 if "G" in layer else 99]), (1, 1, 6, 8), (1, 3, 6, 8)
        ).expected
    )


# ---- ScoreDetections, mAP


def listed(*boxes):
    rows = np.zeros((1, 50, 5))
    rows[0, : len(boxes), :4] = np.reshape(boxes, (-1, 4))
    return rows


def test_detections_are_scored_against_true_boxes(write):
    near = (12, 12, 60, 50)  # 48 · 38 of 50 · 38 pixels
    detections = listed((0, 60, 20, 90), CAR, near)
    (marked,) = run(write, python("mean_ap", "ScoreDetections"), listed(CAR, VAN), detections)
    assert marked.shape == (1, 50, 5)
    assert marked[0, :5].tolist() == [[*CAR, 1], [0, 60, 20, 90, 2], [*near, 2], [*VAN, 3], [0] * 5]
    precise = run(write, python("mean_ap", "mAP", "128,96,16"), marked, tops=3)
    np.testing.assert_allclose(np.ravel(precise), [100 / 3 * 50 / 100, 100 / 3, 50], rtol=1e-6)


def test_no_boxes_at_all_have_no_precision(write):
    (marked,) = run(write, python("mean_ap", "ScoreDetections"), listed(), listed())
    assert not marked.any()
    assert np.ravel(run(write, python("mean_ap", "mAP"), marked, tops=3)).tolist() == [0, 0, 0]


def test_full_lists_without_a_match_are_all_counted(write):
    lists = [np.arange(50)[None, :, None] * [40, 0, 40, 0, 0] + [shift, 0, shift + 9, 9, 0] for shift in (0, 20)]
    (marked,) = run(write, python("mean_ap", "ScoreDetections"), *lists)
    assert np.bincount(marked[0, :, 4].astype(int)).tolist() == [0, 0, 50, 50]
    assert "for the same N images" in layer_error(write, python("mean_ap", "ScoreDetections"), (1, 50, 5), (2, 50, 5)).expected
    assert "marked boxes" in layer_error(write, python("mean_ap", "mAP"), (1, 50, 4), tops=3).expected


# ---- DetectNetTransformation

NONE = " ".join(f"{name}_prob: 0" for name in ("crop", "scale", "flip", "rotation", "hue_rotation", "desaturation"))


def transformation(truth="", changes=NONE, more=""):
    return (
        f'type: "DetectNetTransformation" {more} detectnet_groundtruth_param {{ stride: 8 scale_cvg: 0.5 image_size_x: 64 '
        f"image_size_y: 48 {truth} }} detectnet_augmentation_param {{ {changes} }}"
    )


def labels(*boxes, rows=4):
    """A label of boxes (x1, y1, x2, y2, class)."""
    made = np.zeros((1, 1, rows + 1, 16))
    made[0, 0, 0, :2] = len(boxes), 16
    for row, (x1, y1, x2, y2, kind) in enumerate(boxes, 1):
        made[0, 0, row, :4], made[0, 0, row, 5] = (x1, y1, x2 - x1, y2 - y1), kind
    return made


def truth_maps(boxes, classes, most=50.0, least=None, norm=False, crop=True):
    """The maps of 8 × 6 cells by loops over boxes and cells."""
    result = np.zeros((8 + 1 + max(classes.values()), 6, 8))
    for x1, y1, x2, y2, kind in boxes:
        if crop:
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, 64), min(y2, 48)
        if kind not in classes or x2 <= x1 or y2 <= y1:
            continue
        width, height = (
            min(0.5 * side, most) if least is None else min(side, max(0.5 * side, least)) for side in (x2 - x1, y2 - y1)
        )
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        for row, column in np.ndindex(6, 8):
            across = min(x + width / 2, column * 8 + 8) - max(x - width / 2, column * 8)
            down = min(y + height / 2, row * 8 + 8) - max(y - height / 2, row * 8)
            if across > 0 and down > 0:
                corners = np.subtract([x1, y1, x2, y2], [column * 8, row * 8] * 2)
                ratio = 64 / (width * height)
                cell = [1, *corners, 1 / (x2 - x1), 1 / (y2 - y1), max(0 if norm else 1, ratio), *[0] * (len(result) - 8)]
                cell[8 + classes[kind]] = 1
                result[:, row, column] = cell
    return result


BOXES = [(4, 4, 40, 30, 1), (30, 20, 60, 46, 3), (50, -10, 90, 20, 1), (1, 40, 9, 47, 2), (70, 50, 90, 60, 1)]


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        ("", {"classes": {1: 0}}),
        ("object_class { src: 1 dst: 0 } object_class { src: 3 dst: 2 } max_cvg_len: 10", {"classes": {1: 0, 3: 2}, "most": 10}),
        ("gridbox_type: GRIDBOX_MIN min_cvg_len: 16 obj_norm: true", {"classes": {1: 0}, "least": 16, "norm": True}),
        ("crop_bboxes: false", {"classes": {1: 0}, "crop": False}),
    ],
)
@exercises("DetectNetTransformation")
def test_maps_are_those_of_loops_over_boxes_and_cells(write, truth, options):
    images = rng.uniform(0, 255, (1, 3, 48, 64)).astype(np.float32)
    for phase in (caffe.TRAIN, caffe.TEST):
        pixels, maps = run(write, transformation(truth), images, labels(*BOXES, rows=5), tops=2, phase=phase)
        np.testing.assert_allclose(pixels, images, atol=1e-3)
        wanted = truth_maps(BOXES, **options)
        assert wanted[0].sum() >= 8
        np.testing.assert_allclose(maps[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("boxes", [(), BOXES[4:]])
def test_an_image_without_boxes_has_empty_maps(write, boxes):
    _, maps = run(write, transformation(), np.zeros((1, 3, 48, 64)), labels(*boxes), tops=2)
    assert maps.shape == (1, 9, 6, 8)
    assert not maps.any()


def test_testing_resizes_images_and_boxes(write):
    image = rng.uniform(0, 255, (60, 100, 3)).astype(np.float32)
    box = (20, 10, 60, 40)
    pixels, maps = run(write, transformation(), image.transpose(2, 0, 1)[None], labels((*box, 1)), tops=2)
    np.testing.assert_allclose(
        pixels[0].transpose(1, 2, 0), cv2.resize(image, (64, 48), interpolation=cv2.INTER_CUBIC), atol=0.01
    )
    scaled = [value * factor for value, factor in zip(box, (0.64, 0.8) * 2, strict=True)]
    np.testing.assert_allclose(maps[0], truth_maps([(*scaled, 1)], {1: 0}), rtol=1e-5)


@pytest.mark.parametrize("extents", [(48, 64), (60, 100)])
def test_a_mean_is_subtracted(write, tmp_path, extents):
    image = rng.uniform(0, 255, (1, 3, *extents))
    plain = run(write, transformation(), image, labels(), tops=2)[0]
    values = "transform_param { mean_value: 10 mean_value: 20 mean_value: 30 }"
    pixels = run(write, transformation(more=values), image, labels(), tops=2)[0]
    np.testing.assert_allclose(plain - pixels, np.broadcast_to([[[[10]], [[20]], [[30]]]], plain.shape), atol=0.01)
    mean = np.broadcast_to(np.arange(3.0)[:, None, None], (3, 20, 30))
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(caffe.io.array_to_blobproto(mean[None]).SerializeToString())
    pixels = run(write, transformation(more=f'transform_param {{ mean_file: "{path}" }}'), image, labels(), tops=2)[0]
    np.testing.assert_allclose(plain - pixels, np.broadcast_to(mean[None, :, :1, :1], plain.shape), atol=0.01)


def changes(**own):
    return (
        " ".join(f"{name}: {value}" for name, value in own.items())
        + " "
        + " ".join(
            f"{name}_prob: 0"
            for name in ("crop", "scale", "flip", "rotation", "hue_rotation", "desaturation")
            if f"{name}_prob" not in own
        )
    )


def test_training_mirrors(write):
    image = rng.uniform(0, 255, (1, 3, 48, 64)).astype(np.float32)
    pixels, maps = run(
        write, transformation(changes=changes(flip_prob=1)), image, labels((4, 4, 40, 30, 1)), tops=2, phase=caffe.TRAIN
    )
    np.testing.assert_allclose(pixels, image[..., ::-1], atol=1e-3)
    np.testing.assert_allclose(maps[0], truth_maps([(23, 4, 59, 30, 1)], {1: 0}), rtol=1e-5)


def test_training_scales_and_crops_the_centre(write):
    """100 × 60 pixels become 150 × 90, of which 43 are left out at the left and 21 at the top."""
    image = rng.uniform(0, 255, (60, 100, 3)).astype(np.float32)
    layer = transformation(changes=changes(scale_prob=1, scale_min=1.5, scale_max=1.5))
    pixels, maps = run(write, layer, image.transpose(2, 0, 1)[None], labels((40, 20, 60, 40, 1)), tops=2, phase=caffe.TRAIN)
    large = cv2.resize(image, (150, 90), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), large[21:69, 43:107], atol=0.01)
    np.testing.assert_allclose(maps[0], truth_maps([(17, 9, 47, 39, 1)], {1: 0}), rtol=1e-5)


def test_training_crops_at_random_places_and_fills_with_0(write):
    image = np.arange(1, 52 * 70 * 3 + 1).reshape(1, 3, 52, 70) / 50
    layer, places = transformation(changes=changes(crop_prob=1, shift_x=8, shift_y=4)), set()
    for seed in range(12):
        caffe.set_random_seed(seed)
        pixels, maps = run(write, layer, image, labels((20, 10, 44, 34, 1)), tops=2, phase=caffe.TRAIN)
        row, column = (int(each[0]) for each in np.nonzero(maps[0, 0]))
        left, top = (20, 10) - (maps[0, 1:3, row, column] + [column * 8, row * 8])
        places.add((left, top))
        padded = np.pad(image[0], ((0, 0), (10, 10), (10, 10)))
        np.testing.assert_allclose(pixels[0], padded[:, 10 + int(top) :][:, :48, 10 + int(left) :][:, :, :64], atol=1e-3)
    assert len(places) > 6
    assert all(-4 <= left <= 10 and -2 <= top <= 6 for left, top in places)


@pytest.mark.parametrize("size", [(30, 40), (48, 64)])
def test_smaller_images_are_centred(write, size):
    pixels = run(write, transformation(), np.ones((1, 3, *size)), labels(), tops=2, phase=caffe.TRAIN)[0][0, 0]
    assert pixels.sum() == pytest.approx(size[0] * size[1])
    y, x = (np.arange(limit)[pixels.any(axis)] for limit, axis in ((48, 1), (64, 0)))
    assert (y[0], x[0]) == ((48 - size[0]) // 2, (64 - size[1]) // 2)


@pytest.mark.parametrize(("hue", "least"), [(0, 0.3), (180, 1), (20, 0.5)])
def test_hue_and_saturation_are_changed_as_by_opencv(hue, least):
    image = rng.uniform(0, 1, (5, 7, 3)).astype(np.float32)
    image[0, :3] = [[0.5] * 3, [0] * 3, [1, 0, 0]]
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV) * np.float32([1, least, 1]) + np.float32([hue, 0, 0])
    wanted = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    changed = with_hue_and_saturation(image.transpose(2, 0, 1), hue, least)
    np.testing.assert_allclose(changed.transpose(1, 2, 0), wanted, atol=1e-4)


def test_training_changes_colours_and_leaves_boxes(write):
    image = rng.uniform(0, 255, (1, 3, 48, 64))
    layer = transformation(changes=changes(hue_rotation_prob=1, desaturation_prob=1, desaturation_max=0.9))
    pixels, maps = run(write, layer, image, labels((4, 4, 40, 30, 1)), tops=2, phase=caffe.TRAIN)
    assert np.abs(pixels - image).max() > 10
    np.testing.assert_allclose(pixels.max(1), image.max(1), atol=0.01)
    np.testing.assert_allclose(maps[0], truth_maps([(4, 4, 40, 30, 1)], {1: 0}), rtol=1e-5)


@pytest.mark.parametrize("degrees", [7.0, -20.0, 90.0])
def test_a_rotation_holds_the_whole_image_and_is_opencvs(degrees):
    image = rng.uniform(0, 1, (30, 44, 3)).astype(np.float32)
    rotation = Rotation(30, 44, degrees)
    corners = np.array([[x, y, 1] for x in (0, 44) for y in (0, 30)]) @ rotation.matrix.T
    assert -1e-6 <= corners.min() < 1.1
    assert (corners.max(0) <= [rotation.width, rotation.height]).all()
    wanted = cv2.warpAffine(image, rotation.matrix, (rotation.width, rotation.height), flags=cv2.INTER_LINEAR)
    made = rotated(image.transpose(2, 0, 1), rotation.matrix, rotation.height, rotation.width).transpose(1, 2, 0)
    within = made.any(-1)
    assert within.sum() > 0.85 * 30 * 44
    np.testing.assert_allclose(made[within], wanted[within], atol=0.05)  # OpenCV's places are multiples of 1 / 32 pixel


def test_training_rotates_boxes_about_the_centre(write):
    """A box in the middle remains there, whatever the angle."""
    layer = transformation(changes=changes(rotation_prob=1, max_rotate_degree=40))
    image = np.full((1, 3, 48, 64), 9.0)
    pixels, maps = run(write, layer, image, labels((22, 14, 42, 34, 1)), tops=2, phase=caffe.TRAIN)
    row, column = (int(each[0]) for each in np.nonzero(maps[0, 0]))
    corners = maps[0, 1:5, row, column] + np.array([column, row] * 2) * 8
    np.testing.assert_allclose(corners, (22, 14, 42, 34), atol=1.5)
    assert pixels.min() == 0
    assert pixels[0, :, 24, 32].tolist() == pytest.approx([9] * 3)


def test_equal_seeds_draw_equal_changes(write):
    image, drawn = rng.uniform(0, 255, (2, 3, 60, 80)), []
    for seed in (1, 1, 2):
        caffe.set_random_seed(seed)
        both = np.concatenate([labels((9, 9, 40, 40, 1))] * 2)
        drawn.append(run(write, transformation(changes=""), image, both, tops=2, phase=caffe.TRAIN)[0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [
        ((1, 1, 48, 64), (1, 1, 3, 16), "takes 3 channels"),
        ((2, 3, 48, 64), (1, 1, 3, 16), "for the 2 images"),
        ((1, 3, 48, 64), (1, 1, 3, 5), "(N, 1, rows, 16)"),
    ],
)
def test_bottoms_that_do_not_fit_are_refused(write, images, given, expected):
    assert expected in layer_error(write, transformation(), images, given, tops=2).expected


def test_a_label_with_more_boxes_than_rows_is_refused(write):
    damaged = labels()
    damaged[0, 0, 0, 0] = 9
    with pytest.raises(caffe.LayerError, match=r"a label of 9 boxes of 16 numbers.*at most 4 of 16"):
        run(write, transformation(), np.zeros((1, 3, 48, 64)), damaged, tops=2)
