"""SSD's AnnotatedData layer: what it reads, and that boxes follow their objects through every image transformation."""

import cv2
import lmdb
import numpy as np
import pytest

import caffe
from caffe.proto import caffe_pb2
from caffe.transforms.box_transform import BoxTransformer, satisfies
from caffe.transforms.detections import read_label_map
from tests.caffe.layer_checks import exercises

LABELS = """
item { name: "none_of_the_above" label: 0 display_name: "background" }
item { name: "n02084071" label: 1 display_name: "dog" }
item { name: "n02121808" label: 2 display_name: "cat" }
"""


def picture(height, width, corners, colour=(255, 255, 255)):
    """A black image with a filled box, and the box in relative coordinates."""
    image = np.zeros((height, width, 3), np.uint8)
    left, top, right, bottom = corners
    image[top:bottom, left:right] = colour
    return image, [left / width, top / height, right / width, bottom / height]


def record(image, boxes, annotated=True, encoded=True):
    datum = caffe_pb2.AnnotatedDatum()
    if encoded:
        datum.datum.encoded, datum.datum.data = True, cv2.imencode(".png", image)[1].tobytes()
    else:
        datum.datum.data = image.transpose(2, 0, 1).tobytes()
    datum.datum.height, datum.datum.width, datum.datum.channels = image.shape
    datum.datum.label = 7
    if annotated:
        datum.type = caffe_pb2.AnnotatedDatum.BBOX
    for label, number, corners, difficult in boxes:
        each = datum.annotation_group.add(group_label=label).annotation.add(instance_id=number)
        each.bbox.xmin, each.bbox.ymin, each.bbox.xmax, each.bbox.ymax = corners
        each.bbox.difficult = difficult
    return datum.SerializeToString()


@pytest.fixture
def net(tmp_path, write):
    """net(records, settings) reads a database of these records."""

    def make(records, settings="", batch=2, tops='top: "data" top: "label"', phase=caffe.TEST):
        with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
            for index, value in enumerate(records):
                transaction.put(b"%08d" % index, value)
        text = f'layer {{ name: "data" type: "AnnotatedData" {tops} data_param {{ source: "{tmp_path}/db" backend: LMDB '
        return caffe.Net(write("net.prototxt", f"{text} batch_size: {batch} }} {settings} }}"), phase)

    return make


ONE, ONE_BOX = picture(20, 30, (3, 4, 12, 16))
TWO, TWO_BOX = picture(20, 30, (15, 10, 27, 18), (10, 60, 250))


@pytest.mark.parametrize("encoded", [True, False])
@exercises("AnnotatedData")
def test_images_and_box_rows_are_read_in_order_and_wrap_around(net, encoded):
    records = [
        record(ONE, [(1, 5, ONE_BOX, False), (2, 0, [0.5, 0.5, 0.75, 1], True)], encoded=encoded),
        record(TWO, [(2, 1, TWO_BOX, False)], encoded=encoded),
        record(ONE, [], encoded=encoded),
    ]
    reader = net(records)
    assert reader.blobs["data"].shape == (2, 3, 20, 30)
    reader.forward()
    np.testing.assert_array_equal(reader.blobs["data"].data, np.stack([ONE, TWO]).transpose(0, 3, 1, 2))
    rows = [[0, 1, 5, *ONE_BOX, 0], [0, 2, 0, 0.5, 0.5, 0.75, 1, 1], [1, 2, 1, *TWO_BOX, 0]]
    np.testing.assert_allclose(reader.blobs["label"].data, [[rows]], rtol=1e-6)
    reader.forward()
    assert reader.blobs["label"].data[0, 0, :, 0].tolist() == [1, 1]  # the third image has no boxes, then the first again
    reader.close()


def test_a_batch_without_boxes_has_a_row_of_minus_ones(net):
    reader = net([record(ONE, [])])
    assert reader.forward()["label"].tolist() == [[[[-1] * 8]]]
    reader.close()


def test_records_without_annotations_give_plain_labels(net):
    reader = net([record(ONE, [], annotated=False)])
    assert reader.forward()["label"].tolist() == [7, 7]
    reader.close()


def test_records_that_are_invalid_or_unlike_the_first_are_errors(net):
    with pytest.raises(caffe.Error, match="records with annotations and records without"):
        net([record(ONE, []), record(ONE, [], annotated=False)]).forward()
    with pytest.raises(caffe.Error, match="in a batch of"):
        net([record(ONE, []), record(picture(20, 31, (0, 0, 1, 1))[0], [])]).forward()
    with pytest.raises(caffe.Error, match="not an AnnotatedDatum"):
        net([b"\xff\xff"])
    with pytest.raises(caffe.Error, match="not finite"):
        net([record(ONE, [(1, 0, [0, 0, float("inf"), 1], False)])])


def test_the_image_is_resized_mean_subtracted_and_scaled(net):
    reader = net(
        [record(ONE, [(1, 0, ONE_BOX, False)])],
        "transform_param { scale: 0.5 mean_value: 104 mean_value: 117 mean_value: 123 resize_param { height: 40 width: 40 } }",
    )
    wanted = (cv2.resize(ONE, (40, 40)).astype(float) - [104, 117, 123]) * 0.5
    np.testing.assert_allclose(reader.forward()["data"][0], wanted.transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_allclose(reader.blobs["label"].data[0, 0, 0, 3:7], ONE_BOX, rtol=1e-6)
    reader.close()


def test_a_mean_image_is_cropped_and_mirrored_with_the_image(tmp_path):
    mean = np.arange(20 * 30 * 3, dtype=np.float32).reshape(3, 20, 30) / 100
    blob = caffe_pb2.BlobProto(num=1, channels=3, height=20, width=30, data=mean.reshape(-1))
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    param = caffe_pb2.TransformationParameter(mean_file=str(tmp_path / "mean.binaryproto"), crop_size=16, mirror=True)
    transformer = BoxTransformer(param, [], caffe.TEST, "data", caffe.Generator(0))
    centre = (ONE.transpose(2, 0, 1) - mean)[:, 2:18, 7:23]
    seen = set()
    for _ in range(20):
        values, _ = transformer(ONE, np.empty((0, 7), np.float32))
        mirrored = np.allclose(values, centre[:, :, ::-1])
        assert mirrored or np.allclose(values, centre)
        seen.add(mirrored)
    assert seen == {True, False}


def bright_corners(values):
    """Corners of the region that is not black, in relative coordinates."""
    rows, columns = np.nonzero(values.max(0) > 127)
    height, width = values.shape[1:]
    return np.array([columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height])


@pytest.mark.parametrize(
    "settings",
    [
        {"mirror": True},
        {"crop_size": 100},
        {"crop_h": 90, "crop_w": 140, "mirror": True},
        {"resize_param": {"height": 150, "width": 120}},
        {"resize_param": {"height": 200, "width": 200, "resize_mode": "FIT_LARGE_SIZE_AND_PAD"}},
        {"resize_param": {"height": 300, "width": 100, "resize_mode": "FIT_LARGE_SIZE_AND_PAD"}},
        {"resize_param": {"height": 100, "width": 300, "resize_mode": "FIT_LARGE_SIZE_AND_PAD"}},
        {"resize_param": {"height": 150, "width": 150, "resize_mode": "FIT_SMALL_SIZE"}, "crop_size": 150, "mirror": True},
        {"expand_param": {"max_expand_ratio": 4}},
        {"expand_param": {"max_expand_ratio": 3}, "resize_param": {"height": 300, "width": 300}, "mirror": True},
        {"sampled": True, "resize_param": {"height": 300, "width": 300}, "mirror": True},
        {"jitter": 0.3, "resize_param": {"height": 300, "width": 300}, "mirror": True},
        {"jitter": 0.3, "resize_param": {"height": 300, "width": 300, "resize_mode": "FIT_LARGE_SIZE_AND_PAD"}},
    ],
    ids=str,
)
def test_boxes_stay_on_their_objects(settings):
    settings = dict(settings)
    samplers, jitter = [], settings.pop("jitter", 0)
    if settings.pop("sampled", False):
        samplers = [caffe_pb2.BatchSampler(max_sample=1, max_trials=50) for _ in range(2)]
        for sampler in samplers:
            sampler.sampler.MergeFrom(caffe_pb2.Sampler(min_scale=0.3, min_aspect_ratio=0.5, max_aspect_ratio=2))
            sampler.sample_constraint.min_object_coverage = 0.3
    param = caffe_pb2.TransformationParameter()
    for name, value in settings.items():
        if name == "resize_param":
            param.resize_param.add(**value)
        elif isinstance(value, dict):
            getattr(param, name).MergeFrom(type(getattr(param, name))(**value))
        else:
            setattr(param, name, value)
    image, corners = picture(120, 180, (60, 40, 100, 85))
    truth = np.array([[1, 0, *corners, 0]], np.float32)
    transformer = BoxTransformer(param, samplers, caffe.TRAIN, "data", caffe.Generator(3), jitter)
    sizes = set()
    for _ in range(30):
        values, truths = transformer(image, truth)
        assert len(truths) == 1
        # Tolerance: one pixel for rounding crops and canvases, and one for interpolation blur, in a small crop.
        np.testing.assert_allclose(truths[0, 2:6], bright_corners(values), atol=0.04 if samplers else 0.02 if jitter else 0.012)
        sizes.add(tuple(truths[0, 2:6].round(4)))
    if {"mirror", "expand_param"} & set(settings) or samplers or jitter:
        assert len(sizes) > 1


@pytest.mark.parametrize(
    ("constraint", "stays"),
    [
        (None, [True, True, False]),
        ({"emit_type": "CENTER"}, [True, False, False]),
        ({"emit_type": "MIN_OVERLAP", "emit_overlap": 0.2}, [True, True, False]),
        ({"emit_type": "MIN_OVERLAP", "emit_overlap": 0.3}, [True, False, False]),
    ],
)
def test_emit_constraint_decides_which_boxes_a_crop_keeps(constraint, stays):
    param = caffe_pb2.TransformationParameter(crop_size=50)
    if constraint:
        param.emit_constraint.MergeFrom(caffe_pb2.EmitConstraint(**constraint))
    # The crop in the middle of 100 × 100 is 0.25 to 0.75.
    truths = np.array([[1, 0, 0.3, 0.3, 0.5, 0.5, 0], [2, 0, 0.1, 0.3, 0.3, 0.5, 0], [3, 0, 0, 0, 0.25, 0.25, 0]], np.float32)
    transformer = BoxTransformer(param, [], caffe.TEST, "data", caffe.Generator(0))
    _, left = transformer(np.zeros((100, 100, 3), np.uint8), truths)
    assert left[:, 0].tolist() == [label for label, stay in zip((1, 2, 3), stays, strict=True) if stay]
    np.testing.assert_allclose(left[0, 2:6], [0.1, 0.1, 0.5, 0.5], atol=1e-6)
    if len(left) > 1:
        np.testing.assert_allclose(left[1, 2:6], [0, 0.1, 0.1, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "met"),
    [
        ({}, True),
        ({"min_jaccard_overlap": 0.25}, True),
        ({"min_jaccard_overlap": 0.26}, False),
        ({"max_jaccard_overlap": 0.2}, False),
        ({"min_sample_coverage": 0.25, "min_object_coverage": 1}, True),
        ({"min_sample_coverage": 0.3, "min_object_coverage": 1}, False),
    ],
)
def test_sample_constraints_compare_a_crop_with_each_box(settings, met):
    crop, box = np.array([0, 0, 1, 1], np.float32), np.array([[0.25, 0.25, 0.75, 0.75]], np.float32)
    assert satisfies(caffe_pb2.SampleConstraint(**settings), crop, box) == met
    assert satisfies(caffe_pb2.SampleConstraint(**settings), crop, box[:0]) == (not settings)


def distorted(seed=0, **settings):
    param = caffe_pb2.TransformationParameter(distort_param=caffe_pb2.DistortionParameter(**settings))
    image = np.arange(4 * 16 * 3, dtype=np.uint8).reshape(4, 16, 3)
    values, _ = BoxTransformer(param, [], caffe.TRAIN, "data", caffe.Generator(seed))(image, np.empty((0, 7), np.float32))
    return image.astype(int), values.transpose(1, 2, 0)


def test_images_that_a_transformation_cannot_handle_are_refused():
    transformer = BoxTransformer(
        caffe_pb2.TransformationParameter(distort_param=caffe_pb2.DistortionParameter(), scale=2), [], caffe.TRAIN, "data", None
    )
    with pytest.raises(caffe.Error, match="distort_param for records of floats"):
        transformer(np.zeros((4, 4, 1), np.float32), np.empty((0, 7), np.float32))
    size = caffe_pb2.TransformationParameter(resize_param=[caffe_pb2.ResizeParameter(height=3, width=3)])
    with pytest.raises(caffe.Error, match="resize_param for images of 5 channels"):
        BoxTransformer(size, [], caffe.TRAIN, "data", None)(np.zeros((4, 4, 5), np.uint8), np.empty((0, 7), np.float32))


def test_contrast_multiplies_and_brightness_adds():
    image, values = distorted(contrast_prob=1, contrast_lower=1.5, contrast_upper=1.5)
    np.testing.assert_array_equal(values, np.minimum(np.rint(image * 1.5), 255))
    image, values = distorted(brightness_prob=1, brightness_delta=32)
    inside = (values > 0) & (values < 255)
    (change,) = set((values - image)[inside])
    assert 0 < abs(change) <= 32
    image, values = distorted(brightness_prob=0, brightness_delta=32)
    np.testing.assert_array_equal(values, image)


def test_zero_saturation_gives_grey_and_channels_are_reordered():
    _, values = distorted(saturation_prob=1, saturation_lower=0, saturation_upper=0)
    assert np.ptp(values, axis=2).max() == 0
    orders = set()
    for seed in range(20):
        image, values = distorted(seed, random_order_prob=1)
        orders.add(tuple(int(np.abs(image - values[:, :, [channel]]).sum((0, 1)).argmin()) for channel in range(3)))
        np.testing.assert_array_equal(np.sort(values, 2), np.sort(image, 2))
    assert len(orders) > 3


def test_hue_changes_colours_but_not_grey():
    param = caffe_pb2.TransformationParameter(distort_param=caffe_pb2.DistortionParameter(hue_prob=1, hue_delta=18))
    image = np.array([[[90, 90, 90], [200, 100, 50]]], np.uint8)
    values, _ = BoxTransformer(param, [], caffe.TRAIN, "data", caffe.Generator(1))(image, np.empty((0, 7), np.float32))
    assert values[:, 0, 0].tolist() == [90] * 3
    assert values[:, 0, 1].tolist() != [200, 100, 50]
    assert values[:, 0, 1].max() == pytest.approx(200, abs=2)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ('transform_param { mean_file: "m" mean_value: 1 }', "both mean_file and mean_value"),
        ("transform_param { crop_size: 3 crop_h: 3 }", "both crop_size and crop_h or crop_w"),
        ("transform_param { crop_size: 21 }", "a crop of 21×21 on images of 20×30"),
        ("transform_param { resize_param { height: 3 } }", "resize_param without height and width"),
        ("transform_param { mean_value: 1 mean_value: 2 }", "2 mean values"),
        ("transform_param { noise_param { } }", "noise_param"),
        ("transform_param { augmentation_param { rotation: 5 } }", "augmentation_param"),
        ("annotated_data_param { batch_sampler { sampler { min_scale: 2 } } }", "scales 2 to 1"),
        ('annotated_data_param { label_map_file: "absent" }', "no such file"),
        ("annotated_data_param { yolo_data_type: 2 }", "yolo_data_type 2"),
        ("annotated_data_param { yolo_data_jitter: 1 }", "yolo_data_jitter 1"),
        ("annotated_data_param { yolo_data_jitter: -0.5 }", "yolo_data_jitter -0.5"),
    ],
)
def test_invalid_settings_are_refused(net, settings, found):
    with pytest.raises(caffe.Error) as error:
        net([record(ONE, [])], settings)
    assert error.value.found == found


def test_ssd_fields_in_a_data_layer_are_refused(tmp_path, write):
    with lmdb.open(str(tmp_path / "db")) as database, database.begin(write=True) as transaction:
        transaction.put(b"0", caffe_pb2.Datum(channels=1, height=2, width=2, data=bytes(4)).SerializeToString())
    text = f'layer {{ type: "Data" top: "x" data_param {{ source: "{tmp_path}/db" backend: LMDB batch_size: 1 }}'
    with pytest.raises(caffe.Error, match="expand_param"):
        caffe.Net(write("net.prototxt", text + " transform_param { expand_param { max_expand_ratio: 3 } } }"), caffe.TEST)


# ---- labels and crops for YOLO


def yolo_rows(*boxes):
    """Labels of an image, (1, 300, 5), for boxes of class and corners."""
    rows = np.zeros((1, 300, 5), np.float32)
    for row, (kind, (left, top, right, bottom)) in zip(rows[0], boxes, strict=False):
        row[:] = kind, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return rows


HARD_BOX = [0.5, 0.5, 0.75, 1]
YOLO = "annotated_data_param {{ yolo_data_type: 1 yolo_data_jitter: 0 {} }}"


@pytest.mark.parametrize(
    ("settings", "hard"), [("", True), ("train_diffcult: true", True), ("train_diffcult: false", False)], ids=str
)
def test_yolo_labels_are_rows_of_class_centre_and_size(net, settings, hard):
    boxes = [(3, 0, HARD_BOX, True), (1, 5, ONE_BOX, False), (2, 1, TWO_BOX, False)]
    reader = net([record(ONE, boxes), record(TWO, boxes[:1]), record(TWO, boxes[2:])], YOLO.format(settings), batch=3)
    assert reader.blobs["label"].shape == (3, 1, 300, 5)
    labels = reader.forward()["label"]
    difficult = [(2, HARD_BOX)] if hard else []
    expected = [yolo_rows(*difficult, (0, ONE_BOX), (1, TWO_BOX)), yolo_rows(*difficult), yolo_rows((1, TWO_BOX))]
    np.testing.assert_allclose(labels, expected, atol=1e-7)
    np.testing.assert_array_equal(reader.blobs["data"].data, np.stack([ONE, TWO, TWO]).transpose(0, 3, 1, 2))
    reader.close()


def test_yolo_labels_of_images_without_boxes_are_zeros(net):
    reader = net([record(ONE, [])], YOLO.format(""))
    np.testing.assert_array_equal(reader.forward()["label"], np.zeros((2, 1, 300, 5)))
    reader.close()


@pytest.mark.parametrize(
    ("boxes", "settings", "found"),
    [
        ([(1, 0, ONE_BOX, False)] * 301, "", "an image with 301 boxes"),
        ([(2, 0, ONE_BOX, False), (0, 0, ONE_BOX, False)], "", "a box of label 0"),
        ([(1, 0, ONE_BOX, True)] * 301, "train_diffcult: false", None),
        ([(1, 0, ONE_BOX, False)] * 300, "", None),
    ],
    ids=["301 boxes", "background", "301 difficult boxes left out", "300 boxes"],
)
def test_boxes_that_yolo_labels_cannot_hold_are_an_error(net, boxes, settings, found):
    reader = net([record(ONE, boxes)], YOLO.format(settings))
    if found:
        with pytest.raises(caffe.Error) as error:
            reader.forward()
        assert error.value.found == found
    else:
        easy = sum(not difficult for *_, difficult in boxes)
        assert (reader.forward()["label"][..., 3] != 0).sum((1, 2)).tolist() == [easy] * 2
    reader.close()


def jittered(jitter, seed=0, samplers=(), **resize):
    """A transformer with yolo_data_jitter."""
    param = caffe_pb2.TransformationParameter()
    if resize:
        param.resize_param.add(**resize)
    return BoxTransformer(param, samplers, caffe.TRAIN, "data", caffe.Generator(seed), jitter)


def test_a_jittered_crop_is_cut_from_the_image_and_its_boxes():
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    left, top, right, bottom = corners = np.array([0.25, 0.35, 0.75, 0.65])
    transformer, rng = jittered(0.3, seed=5), caffe.Generator(5)
    for _ in range(50):
        values, truths = transformer(image, np.array([[1, 0, *corners, 0]], np.float32))
        kind, x, y, width, height = rng.random(), 0.0, 0.0, 1.0, 1.0
        if kind >= 0.2:
            jitter = np.float32(0.3) / 2 if kind < 0.4 else np.float32(0.3)
            width, height = (1 - jitter * (1 - rng.random()) for _ in range(2))
            x, y = (1 - width) * rng.random(), (1 - height) * rng.random()
        rng.random()  # one crop is chosen from one
        tall, wide = int(height * 100), int(width * 200)
        window = image[int(y * 100) : int(y * 100) + tall, int(x * 200) : int(x * 200) + wide]
        np.testing.assert_array_equal(values, window.transpose(2, 0, 1))
        expected = [(left - x) / width, (top - y) / height, (right - x) / width, (bottom - y) / height]
        np.testing.assert_allclose(truths[0, 2:6], np.clip(expected, 0, 1), atol=1e-6)


@pytest.mark.parametrize("mode", ["WARP", "FIT_LARGE_SIZE_AND_PAD"])
def test_jitter_leaves_a_fifth_whole_and_keeps_the_aspect_if_resizing_does(mode):
    transformer = jittered(0.4, height=32, width=32, resize_mode=mode)
    crops = np.array([transformer.jittered_crop() for _ in range(4000)])
    sides = crops[:, 2:] - crops[:, :2]
    assert crops[:, :2].min() >= 0
    assert crops[:, 2:].max() <= 1 + 1e-6
    assert abs((sides == 1).all(1).mean() - 0.2) < 0.03
    assert 0.6 - 1e-6 <= sides.min() < 0.61
    # Of the others, a quarter has at most half of the jitter; the rest has it with one chance in two for each side drawn.
    keeps = mode != "WARP"
    assert abs((sides >= 0.8).all(1).mean() - (0.4 + 0.6 * (0.5 if keeps else 0.25))) < 0.03
    assert np.allclose(sides[:, 0], sides[:, 1], atol=1e-6) == keeps


def test_samplers_replace_the_jitter():
    samplers = [caffe_pb2.BatchSampler(max_sample=1, max_trials=3)]
    samplers[0].sampler.min_scale = 0.5
    truth = np.array([[1, 0, *ONE_BOX, 0]], np.float32)
    with_both, without = jittered(0.3, 2, samplers), jittered(0, 2, samplers)
    for _ in range(10):
        for one, other in zip(with_both(ONE, truth), without(ONE, truth), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@pytest.mark.parametrize(
    ("settings", "crops"),
    [("", False), ("yolo_data_jitter: 0.3", True), ("yolo_data_type: 1", True), ("yolo_data_type: 1 yolo_data_jitter: 0", False)],
)
def test_jitter_is_on_for_yolo_labels_or_if_it_is_set(net, phase, settings, crops):
    reader = net(
        [record(ONE, [(1, 0, ONE_BOX, False)])],
        f"transform_param {{ resize_param {{ height: 20 width: 30 }} }} annotated_data_param {{ {settings} }}",
        phase=phase,
    )
    same = [np.array_equal(image, ONE.transpose(2, 0, 1)) for _ in range(20) for image in reader.forward()["data"]]
    assert all(same) != crops
    assert bool(reader.layers[0].batch_dependence()) == crops
    reader.close()


def test_a_resumed_layer_draws_the_same_jitter(net):
    records = [record(ONE, [(1, 0, ONE_BOX, False)]), record(TWO, [(2, 0, TWO_BOX, False)]), record(TWO, [])]
    settings = "transform_param { mirror: true resize_param { height: 24 width: 24 } } annotated_data_param { yolo_data_type: 1 }"
    reader, other = (net(records, settings, phase=caffe.TRAIN) for _ in range(2))
    for _ in range(5):
        reader.forward()
    state = caffe_pb2.LayerState()
    reader.layers[0].keep(state)
    other.layers[0].resume(caffe_pb2.LayerState.FromString(state.SerializeToString()))
    seen = set()
    for _ in range(15):
        tops = reader.forward()
        seen.add(tops["label"].tobytes())
        for name, value in other.forward().items():
            np.testing.assert_array_equal(tops[name], value)
    assert len(seen) > 10
    for each in (reader, other):
        each.close()


YOLO_LOSSES = {
    "RegionLoss": "region_loss_param { num_class: 2 num: 2 biases: [1, 1, 2, 2] }",
    "Yolov3": "yolov3_param { num_class: 2 num: 2 anchors_scale: 16 biases: [16, 16, 32, 32] mask: [0, 1] }",
}


@pytest.mark.parametrize("kind", YOLO_LOSSES)
def test_a_yolo_net_trains_from_a_database(tmp_path, write, kind):
    boxes = [(2, 0, HARD_BOX, True), (1, 0, ONE_BOX, False)]
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        transaction.put(b"0", record(ONE, boxes))
        transaction.put(b"1", record(TWO, [(2, 0, TWO_BOX, False)]))
    loss = f'layer {{ name: "loss" type: "{kind}" bottom: "conv" bottom: "label" top: "loss" {YOLO_LOSSES[kind]} }}'
    net = write(
        "train.prototxt",
        f'layer {{ name: "data" type: "AnnotatedData" top: "data" top: "label" {YOLO.format("")}'
        f' data_param {{ source: "{tmp_path}/db" backend: LMDB batch_size: 2 }}'
        " transform_param { scale: 0.004 resize_param { height: 64 width: 64 } } }"
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 14 kernel_size: 16'
        f' stride: 16 weight_filler {{ type: "gaussian" std: 0.01 }} }} }} {loss}',
    )
    solver = caffe.get_solver(
        write(
            "solver.prototxt", f'train_net: "{net}" base_lr: 0.0001 lr_policy: "fixed" random_seed: 1 snapshot_after_train: false'
        )
    )
    solver.step(1)
    first, predictions = float(solver.net.blobs["loss"].data), solver.net.blobs["conv"].data.copy()
    inputs = "input_param { shape { dim: 2 dim: 14 dim: 4 dim: 4 } shape { dim: 2 dim: 1 dim: 2 dim: 5 } }"
    reference = caffe.Net(
        write("loss.prototxt", f'layer {{ name: "x" type: "Input" top: "conv" top: "label" {inputs} }} {loss}'), caffe.TEST
    )
    reference.blobs["conv"].data[...] = predictions
    labels = np.stack([yolo_rows((1, HARD_BOX), (0, ONE_BOX)), yolo_rows((1, TWO_BOX))])
    reference.blobs["label"].data[...] = labels[:, :, :2]
    assert first == pytest.approx(float(reference.forward()["loss"]), rel=1e-5)
    solver.step(1)
    assert float(solver.net.blobs["loss"].data) < first
    solver.net.close()


# ---- label maps and the files of detections


def test_a_label_map_gives_names_by_label(write):
    labels = read_label_map(write("labelmap.prototxt", LABELS))
    assert [(label, item.name, item.display_name) for label, item in labels.items()][1:] == [
        (1, "n02084071", "dog"),
        (2, "n02121808", "cat"),
    ]
    with pytest.raises(caffe.FileError) as error:
        read_label_map(write("twice.prototxt", LABELS + 'item { name: "cow" label: 2 }'))
    assert error.value.found == 'label 2 for "n02121808" and "cow"'


SIZES = "0001 100 200\n0002 50 80\n0003 10 10\n"


def detector(write, tmp_path, kind, more="num_test_image: 2", labels=LABELS, sizes=SIZES):
    save = f'output_directory: "{tmp_path}/results" output_name_prefix: "comp4_" output_format: "{kind}" {more}'
    save += f' label_map_file: "{write("labels.prototxt", labels)}" name_size_file: "{write("sizes.txt", sizes)}"'
    text = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'
        for name, dims in (("loc", "dim: 2 dim: 8"), ("conf", "dim: 2 dim: 6"), ("prior", "dim: 1 dim: 2 dim: 8"))
    )
    text += 'layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "out" '
    text += f"detection_output_param {{ num_classes: 3 confidence_threshold: 0.3 save_output_param {{ {save} }} }} }}"
    net = caffe.Net(write("net.prototxt", text), caffe.TEST)
    net.blobs["prior"].data[0, 0] = [0.1, 0.2, 0.5, 0.8, 0.5, 0.1, 1.2, 0.9]
    net.blobs["conf"].data[...] = [[0.1, 0.9, 0, 0.2, 0.1, 0.75], [1, 0, 0, 0.4, 0.0, 0.6]]
    return net


VOC = {
    "comp4_n02084071.txt": "0001 0.9 20 20 100 80\n",
    "comp4_n02121808.txt": "0001 0.75 100 10 200 90\n0002 0.6 40 5 80 45\n",
}
ILSVRC = {"comp4_.txt": "0001 1 0.9 20 20 100 80\n0001 2 0.75 100 10 200 90\n0002 2 0.6 40 5 80 45\n"}


@pytest.mark.parametrize(("kind", "files"), [("VOC", VOC), ("ILSVRC", ILSVRC)])
def test_detections_are_written_in_pixels_of_the_images(write, tmp_path, kind, files):
    net = detector(write, tmp_path, kind)
    for _ in range(2):  # the second pass writes the same files anew
        net.forward()
        assert {path.name: path.read_text() for path in (tmp_path / "results").iterdir()} == files


def test_coco_results_have_width_and_height(write, tmp_path):
    import json

    detector(write, tmp_path, "COCO", labels=LABELS.replace("n02084071", "18")).forward()
    objects = json.loads((tmp_path / "results" / "comp4_.json").read_text())
    assert objects[0] == {"image_id": 1, "category_id": 18, "bbox": [20, 20, 80, 60], "score": 0.9}
    assert [each["category_id"] for each in objects] == [18, "n02121808", "n02121808"]


def test_result_files_are_written_only_after_all_images(write, tmp_path):
    net = detector(write, tmp_path, "VOC", more="")
    net.forward()
    assert not (tmp_path / "results").exists()


def test_padding_is_removed_before_boxes_are_written(write, tmp_path):
    net = detector(
        write, tmp_path, "VOC", "num_test_image: 2 resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 300 width: 300 }"
    )
    net.forward()
    # 0.2 to 0.8 of a square of 200 are 40 to 160, of which 50 above the image are padding.
    assert (tmp_path / "results" / "comp4_n02084071.txt").read_text() == "0001 0.9 20 0 100 100\n"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"kind": "PASCAL"}, 'output_format "PASCAL"'),
        ({"kind": "VOC", "labels": LABELS.replace("label: 2", "label: 5")}, "no item for label 2"),
        ({"kind": "VOC", "sizes": "0001 100\n"}, '"0001 100"'),
        ({"kind": "VOC", "sizes": ""}, "0 images"),
    ],
)
def test_invalid_output_settings_are_refused_when_the_net_is_built(write, tmp_path, arguments, found):
    with pytest.raises(caffe.FileError) as error:
        detector(write, tmp_path, **arguments)
    assert error.value.found == found
