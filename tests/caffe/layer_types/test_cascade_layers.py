"""Regions of MS-CNN and Cascade R-CNN, compared with loops over each position and region, as the fork defines them."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


def run(write, layer, *bottoms, phase=caffe.TEST, tops=1):
    net = make_net(write, layer, [bottom.shape for bottom in bottoms], phase, tops)
    for index, bottom in enumerate(bottoms):
        net.blobs[f"x{index}"].data[...] = bottom
    net.forward()
    return [net.blobs[f"y{index}"].data for index in range(tops)]


FIELDS = "field_w: 12 field_w: 20 field_h: 16 field_h: 24 downsample_rate: 4 downsample_rate: 8"
MEAN, DEVIATION = (0, 0.1, 0, -0.1), (0.5, 0.4, 1, 2)
NORMALIZED = " ".join([*(f"bbox_mean: {value}" for value in MEAN), *(f"bbox_std: {value}" for value in DEVIATION)])
NORMALIZED = f"bbox_reg_param {{ {NORMALIZED} }}"


def proposed(maps, image, least, mean, deviation, small):
    """Boxes x, y, w, h, score of an image, in the order of the maps and positions."""
    found = []
    for x, fw, fh, step in zip(maps, (12, 20), (16, 24), (4, 8), strict=True):
        height, width = x.shape[2:]
        for h, w in np.ndindex(height, width):
            *scores, bx, by, bw, bh = x[image, :, h, w].astype(float)
            score = max(scores[1:]) - scores[0]
            if score < least:
                continue
            bx, by, bw, bh = (v * d + m for v, d, m in zip((bx, by, bw, bh), deviation, mean, strict=True))
            cx = min(max(bx, -0.5), 0.5) * fw + (w + 0.5) * step
            cy = min(max(by, -0.5), 0.5) * fh + (h + 0.5) * step
            bw, bh = (f * math.exp(min(max(b, -math.log(2)), math.log(2))) for f, b in ((fw, bw), (fh, bh)))
            left, top = max(cx - bw / 2, 0), max(cy - bh / 2, 0)
            bw, bh = min(bw, width * step - left), min(bh, height * step - top)
            if min(bw, bh) >= small:
                found.append((left, top, bw, bh, score))
    return found


def share(a, b, kind):
    """The intersection of a, the better, and b over what `kind` says."""
    w, h = (min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    common = max(w, 0) * max(h, 0)
    areas = a[2] * a[3], b[2] * b[3]
    return common / {"IOU": sum(areas) - common, "IOMU": min(areas), "IOFU": areas[0]}[kind]


@pytest.mark.parametrize("kind", ["IOU", "IOMU", "IOFU"])
@pytest.mark.parametrize("normalized", [True, False])
@exercises("BoxOutput")
def test_boxes_are_those_of_loops(write, kind, normalized):
    maps = [draw(2, 3 + 4, *size, low=-2, high=2).astype(np.float32) for size in ((12, 15), (6, 8))]
    settings = f'fg_thr: 0.5 iou_thr: 0.4 nms_type: "{kind}" max_nms_num: 30 max_post_nms_num: 6 min_size: 9 {FIELDS}'
    layer = f'type: "BoxOutput" box_output_param {{ {settings} }} {NORMALIZED if normalized else ""}'
    regions, with_scores = run(write, layer, *maps, tops=2)
    mean, deviation = (MEAN, DEVIATION) if normalized else ((0,) * 4, (1,) * 4)
    wanted = []
    for image in range(2):
        kept = []
        for box in sorted(proposed(maps, image, 0.5, mean, deviation, 9), key=lambda each: -each[4])[:30]:
            if all(share(other, box, kind) <= 0.4 for other in kept):
                kept.append(box)
        wanted += [(image, x, y, x + w, y + h, score) for x, y, w, h, score in kept[:6]]
    assert len(wanted) > 8
    np.testing.assert_allclose(with_scores[:, :, 0, 0], wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(regions, with_scores[:, :5])


def test_of_equal_scores_the_last_box_comes_first(write):
    maps = np.zeros((1, 6, 2, 2), np.float32)
    settings = "field_w: 8 field_h: 8 downsample_rate: 8 min_size: 0"
    (regions,) = run(write, f'type: "BoxOutput" box_output_param {{ {settings} }}', maps)
    assert regions[:, 1:3, 0, 0].tolist() == [[8, 8], [0, 8], [8, 0], [0, 0]]


def test_without_boxes_there_is_one_region(write):
    layer = 'type: "BoxOutput" box_output_param { fg_thr: 9 field_w: 8 field_h: 8 downsample_rate: 8 }'
    regions, with_scores = run(write, layer, np.zeros((2, 6, 1, 1), np.float32), tops=2)
    assert regions.tolist() == [[[[value]] for value in (0, 1, 1, 10, 10)]]
    assert with_scores.shape == (1, 6, 1, 1)
    assert not with_scores.any()


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ("field_w: 8 field_h: 8", (1, 6, 2, 2), "downsample_rate []"),
        ("field_w: 8 field_w: 9 field_h: 8 downsample_rate: 8", (1, 6, 2, 2), "field_w [8, 9]"),
        ('field_w: 8 field_h: 8 downsample_rate: 8 nms_type: "MAX"', (1, 6, 2, 2), 'nms_type "MAX"'),
        ("field_w: 8 field_h: 8 downsample_rate: 8 field_whr: 0", (1, 6, 2, 2), "field_whr 0"),
        ("field_w: 8 field_h: 8 downsample_rate: 8", (1, 5, 2, 2), "at least 2 classes and 4 offsets"),
    ],
)
def test_box_output_refuses_what_does_not_fit(write, settings, shape, words):
    assert words in str(layer_error(write, f'type: "BoxOutput" box_output_param {{ {settings} }}', shape))


def decoded(offsets, regions):
    rows = []
    for (*_, dx, dy, dw, dh), (image, x1, y1, x2, y2) in zip(offsets, regions, strict=True):
        dx, dy, dw, dh = dx * 0.5, dy * 0.4 + 0.1, dw, dh * 2 - 0.1
        w, h = x2 - x1 + 1, y2 - y1 + 1
        x, y = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
        w, h = w * math.exp(dw), h * math.exp(dh)
        rows.append((image, x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2))
    return np.array(rows)


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
@exercises("DecodeBBox")
def test_regions_are_moved_by_their_offsets(write, phase):
    offsets = draw(6, 8).astype(np.float32)
    regions = np.hstack((rng.integers(0, 2, (6, 1)), rng.uniform(0, 20, (6, 2)), rng.uniform(20, 40, (6, 2)))).astype(np.float32)
    offsets[2, 6] = -9  # so narrow that its last column is before the first
    truths = np.hstack((draw(6, 4), [[0.1], [0.96], [0.3], [0.5], [0.94], [0.95]])).astype(np.float32)
    wanted = decoded(offsets.astype(float), regions.astype(float))
    layer = f'type: "DecodeBBox" {NORMALIZED}'
    (top,) = run(write, layer, offsets, regions, phase=phase)
    kept = [0, 1, 3, 4, 5] if phase == caffe.TRAIN else list(range(6))
    np.testing.assert_allclose(top[:, :, 0, 0], wanted[kept], rtol=1e-4, atol=1e-3)
    if phase == caffe.TRAIN:
        (top,) = run(write, layer, offsets, regions, truths, phase=phase)
        np.testing.assert_allclose(top[:, :, 0, 0], wanted[[0, 3, 4]], rtol=1e-4, atol=1e-3)
        with pytest.raises(caffe.LayerError, match="no region left of 6"):
            run(write, layer, offsets, regions, np.ones_like(truths), phase=phase)
    else:
        assert "give two" in str(layer_error(write, layer, (6, 8), (6, 5), (6, 5), phase=phase))
        (top,) = run(write, layer, offsets[:0], regions[:0])
        assert top.shape == (0, 5, 1, 1)


@pytest.mark.parametrize(
    ("settings", "shapes", "words"),
    [
        ("", [(6, 4), (6, 5)], "8 offsets and 5 values"),
        ("", [(6, 8), (6, 4)], "8 offsets and 5 values"),
        ("", [(6, 8), (6, 5), (5, 5)], "true boxes of shape (5, 5)"),
        ("bbox_reg_param { bbox_mean: 0 bbox_std: 1 }", [(6, 8), (6, 5)], "four of each"),
    ],
)
def test_decode_bbox_refuses_what_does_not_fit(write, settings, shapes, words):
    assert words in str(layer_error(write, f'type: "DecodeBBox" {settings}', *shapes))
