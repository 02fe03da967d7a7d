"""Built-in versions of MNC's, SSH's and CTPN's Python layers, compared with loops over their description."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import draw, layer_error, make_net, reseed, rng
from tests.caffe.layer_types.test_known_python import python
from tests.caffe.layer_types.test_region_layers import overlap


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)
    caffe.set_random_seed(1)


def run(write, layer, *bottoms, phase=caffe.TEST, tops=1):
    net = make_net(write, layer, [np.shape(bottom) for bottom in bottoms], phase, tops)
    for index, bottom in enumerate(bottoms):
        net.blobs[f"x{index}"].data[...] = bottom
    net.forward()
    return net, [net.blobs[f"y{index}"].data.copy() for index in range(tops)]


SIZE = [[90, 120, 1]]


# ---- MNC

PROPOSAL = python("pylayer.proposal_layer", "ProposalLayer", "'feat_stride': 16, 'scales': [1, 2], 'ratios': [1]%s")


def proposals_of(write, more="", layer=PROPOSAL, height=4, width=5, phase=caffe.TRAIN):
    return run(write, layer % more, draw(1, 4, height, width, low=0), draw(1, 8, height, width) / 3, SIZE, phase=phase)


def test_mncs_regions_are_faster_rcnns(write):
    settings = "'feat_stride': 16, 'scales': [1, 2], 'ratios': [1], 'RPN_MIN_SIZE': 4"
    inputs = draw(1, 4, 4, 5, low=0), draw(1, 8, 4, 5) / 3, SIZE
    _, (mine,) = run(write, python("pylayer.proposal_layer", "ProposalLayer", f"{{{settings}, 'use_clip': 0}}"), *inputs)
    _, (theirs,) = run(write, python("rpn.proposal_layer", "ProposalLayer", settings), *inputs)
    np.testing.assert_array_equal(mine, theirs)


def decoded(anchor, offsets):
    side = anchor[2] - anchor[0] + 1
    x, y = ((anchor[k] + side / 2 + offsets[k] * side) for k in (0, 1))
    w, h = (math.exp(offsets[k]) * side / 2 for k in (2, 3))
    return np.array([x - w, y - h, x + w, y + h])


@pytest.mark.parametrize("limit", [None, 0.05])
def test_offsets_of_regions_inside_the_image_get_their_gradient(write, limit):
    more = f", 'use_clip': 1, 'clip_base': {1 / limit:g}" if limit else ""
    net, (regions,) = proposals_of(write, more)
    net.blobs["y0"].diff[...] = g = draw(*regions.shape)
    net.backward()
    offsets = net.blobs["x1"].data[0].reshape(2, 4, 4, 5).astype(float)
    expected, moved = np.zeros_like(offsets), 0
    for a, i, j in np.ndindex(2, 4, 5):
        side = 16 * (a + 1)
        anchor = np.array([7.5 - (side - 1) / 2] * 2 + [7.5 + (side - 1) / 2] * 2) + 16 * np.array([j, i, j, i])
        box = decoded(anchor, offsets[a, :, i, j])
        edges = np.array([119, 89, 119, 89])
        row = np.flatnonzero(np.abs(regions[:, 1:] - np.clip(box, 0, edges)).max(1) < 1e-3)
        if not len(row) or any((each < 0).any() or (each > edges).any() for each in (box, anchor)):
            continue
        moved += 1
        for k in range(4):
            step = np.eye(4)[k] * 1e-6
            up, down = (decoded(anchor, offsets[a, :, i, j] + sign * step) for sign in (1, -1))
            slope = ((up - down) / 2e-6 * g[row[0], 1:]).sum()
            expected[a, k, i, j] = np.clip(slope, -limit, limit) if limit else slope
    assert moved > 3
    np.testing.assert_allclose(net.blobs["x1"].diff[0].reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)
    assert not net.blobs["x0"].diff.any()


def test_mncs_proposals_take_one_image_and_check_their_settings(write):
    assert "use_clip -1" in layer_error(write, PROPOSAL % ", 'use_clip': -1", (1, 4, 4, 5), (1, 8, 4, 5), (1, 3)).found
    net = make_net(write, PROPOSAL % "", [(2, 4, 4, 5), (2, 8, 4, 5), (1, 3)])
    with pytest.raises(caffe.LayerError, match="takes one image"):
        net.forward()


TRUTHS = [[10, 10, 49, 49, 2], [60, 20, 99, 79, 1]]


@pytest.mark.parametrize("everything", [0, 1])
def test_regions_of_several_intervals_with_their_gradient(write, everything):
    regions = np.zeros((60, 5))
    for row in regions:
        x1, y1, x2, y2, _ = TRUTHS[rng.integers(2)]
        row[1:] = np.clip(np.array([x1, y1, x2, y2]) + rng.integers(-14, 15, 4), 0, 119)
    settings = f"'num_classes': 3, 'bp_all': {everything}, 'BATCH_SIZE': 20"
    layer = python("pylayer.proposal_target_layer", "ProposalTargetLayer", settings)
    net, (rows, classes, targets, inside, outside) = run(write, layer, regions, TRUTHS, SIZE, phase=caffe.TRAIN, tops=5)
    shared = np.array([max(overlap(row[1:], truth[:4]) for truth in TRUTHS) for row in rows])
    objects = int((classes > 0).sum())
    assert objects == 6
    assert (shared[:6] >= 0.5).all()
    # 0.85 and 0.15 of the other 14, as far as there are any.
    every = np.array([max(overlap(row[1:], truth[:4]) for truth in TRUTHS) for row in regions])
    wanted = min(12, ((every >= 0.1) & (every <= 0.5)).sum()) + min(2, (every <= 0.1).sum())
    assert len(rows) == 6 + wanted
    assert (shared[6:] <= 0.5).all()
    np.testing.assert_array_equal(inside, outside)
    for row, number, target in zip(rows[:6], classes.ravel().astype(int), targets, strict=False):
        truth = next(truth for truth in TRUTHS if truth[4] == number)
        sides, true = ([box[k + 2] - box[k] + 1 for k in (0, 1)] for box in (row[1:], truth))
        shift = [(truth[k] + true[k] / 2 - row[1 + k] - sides[k] / 2) / sides[k] / 0.1 for k in (0, 1)]
        wanted_target = [*shift, *(math.log(t / s) / 0.2 for t, s in zip(true, sides, strict=True))]
        np.testing.assert_allclose(target[4 * number : 4 * number + 4], wanted_target, rtol=1e-3, atol=1e-4)
    net.blobs["y0"].diff[...] = g = draw(*rows.shape)
    net.backward()
    expected = np.zeros_like(regions)
    kept = net.layers[-1].kept
    for place, number in enumerate(kept):
        if number < 60 and (everything or place < 6):
            np.testing.assert_array_equal(rows[place], regions[number])
            expected[number] = g[place]
    assert expected.any()
    np.testing.assert_allclose(net.blobs["x0"].diff, expected, rtol=1e-6)
    wrong = python("pylayer.proposal_target_layer", "ProposalTargetLayer", "'num_classes': 3, 'FG_FRACTION': [0.1, 0.2]")
    assert layer_error(write, wrong, (6, 5), (2, 5), (1, 3), tops=5).expected == "as many of each"


def test_masks_and_regions_of_the_next_stage(write):
    mask = python("pylayer.mask_layer", "MaskLayer", "")
    values = draw(3, 9)
    np.testing.assert_array_equal(run(write, mask, values)[1][0], values.astype(np.float32).reshape(3, 1, 3, 3))
    assert "a square" in layer_error(write, mask, (3, 8), phase=caffe.TEST).expected
    assert "in testing only" in layer_error(write, mask, (3, 9)).expected
    bridge = python("pylayer.stage_bridge_layer", "StageBridgeLayer", "")
    regions, offsets, scores = np.array([[0, 10, 20, 41, 51], [0, 100, 0, 119, 19]]), draw(2, 12), draw(2, 3)
    _, (moved,) = run(write, bridge, regions, offsets, scores, SIZE)
    for row, region, of_classes, score in zip(moved, regions, offsets.reshape(2, 3, 4), scores, strict=True):
        box = decoded(region[1:], of_classes[score.argmax()])
        np.testing.assert_allclose(row, [0, *np.clip(box, 0, [119, 89, 119, 89])], rtol=1e-5, atol=1e-3)
    assert "4 offsets of each class" in layer_error(write, bridge, (2, 5), (2, 8), (2, 3), (1, 3), phase=caffe.TEST).expected


# ---- SSH

FACES = python("SSH.layers.proposal_layer", "ProposalLayer", "'feat_stride': 16, 'scales': [1, 2], 'ratios': [1,]%s")


def test_faces_are_suppressed_in_training_only(write):
    inputs = draw(1, 4, 4, 5, low=0), draw(1, 8, 4, 5) / 9, SIZE
    _, (regions, scores) = run(write, FACES % ", 'N_DETS_PER_MODULE': 30", *inputs, tops=2)
    best = np.sort(inputs[0][0, 2:].ravel())[::-1][:30]
    np.testing.assert_allclose(scores.ravel(), best, rtol=1e-6)
    assert regions.shape == (30, 5)
    _, (regions, scores) = run(write, FACES % "", *inputs, phase=caffe.TRAIN, tops=2)
    assert 0 < len(regions) < 30
    for number, row in enumerate(regions):
        assert all(overlap(row[1:], other[1:]) <= 0.3 + 1e-6 for other in regions[:number])
    _, (regions,) = run(write, FACES % ", 'ANCHOR_MIN_SIZE': 200", *inputs)
    assert regions.tolist() == [[0, 0, 0, 16, 16]]


HARD = python("SSH.layers.anchor_target_layer", "AnchorTargetLayer", "'feat_stride': 16, 'scales': [1, 2], 'ratios': [1,]%s")


def labels_of(write, more="", hard=True, size=SIZE):
    truths = [[0, 0, 15, 15, 1], [32, 32, 63, 63, 1], [34, 16, 49, 31, 1]]
    scores = draw(1, 4, 5, 7, low=0)
    bottoms = [np.zeros((1, 4, 5, 7)), truths, size, np.zeros((1, 1)), *[scores] * hard]
    _, tops = run(write, HARD % more, *bottoms, phase=caffe.TRAIN, tops=4)
    shared = np.full((2, 5, 7), -1.0)
    for a, i, j in np.ndindex(2, 5, 7):
        half = 8 * (a + 1)
        box = [7.5 - half + 0.5 + 16 * j, 7.5 - half + 0.5 + 16 * i, 7.5 + half - 0.5 + 16 * j, 7.5 + half - 0.5 + 16 * i]
        if box[0] >= 0 and box[1] >= 0 and box[2] < size[0][1] and box[3] < size[0][0]:
            shared[a, i, j] = max(overlap(box, truth[:4]) for truth in truths)
    return tops, shared, scores[0, 2:]


def test_the_hardest_anchors_are_labelled(write):
    (labels, _, inside, outside), shared, scores = labels_of(write, ", 'ANCHORS_PER_BATCH': 4")
    labels = labels.reshape(2, 5, 7)
    objects, background = shared >= 0.5, (shared >= 0) & (shared < 0.3)
    assert objects.sum() > 1
    wanted = np.full_like(labels, -1)
    wanted[objects & (scores <= scores[objects].min())] = 1
    wanted[background & (scores >= np.sort(scores[background])[-3])] = 0
    np.testing.assert_array_equal(labels, wanted)
    assert inside.sum() == 4
    np.testing.assert_allclose(outside[outside > 0], 1 / 4)
    (labels, *_), _, _ = labels_of(write, ", 'ANCHORS_PER_BATCH': 4, 'HARD_POSITIVE_MINING': False")
    assert (labels == 1).sum() == 1
    (labels, *_), _, _ = labels_of(write, ", 'ANCHORS_PER_BATCH': 4", hard=False)
    assert [(labels == each).sum() for each in (1, 0)] == [1, 3]


def test_overlaps_of_a_module_and_images_smaller_than_all_anchors(write):
    (labels, *_), shared, _ = labels_of(write, ", 'positive_overlap': 0.9")
    assert (labels == 1).sum() == (shared >= 0.9).sum()
    (labels, *_), _, _ = labels_of(write, size=[[8, 8, 1]])
    assert (labels >= 0).any()
    wrong = (1, 4, 5, 7), (1, 5), (1, 3), (1, 1), (1, 3, 5, 7)
    assert "for 2 anchors" in layer_error(write, HARD % "", *wrong, tops=4).expected


# ---- CTPN


def test_text_proposals_move_up_and_down(write):
    layer = python("layers.text_proposal_layer", "ProposalLayer", "'feat_stride': 16")
    scores, offsets = draw(1, 20, 2, 3, low=0), draw(1, 20, 2, 3)
    _, (boxes, best) = run(write, layer, scores, offsets, SIZE, tops=2)
    # Upper and lower edges of the anchors of heights 11, 16, 23 and 33, whole numbers.
    edges = {0: (2, 12), 1: (0, 15), 2: (-3, 18), 3: (-8, 23)}
    for i, j in np.ndindex(2, 3):
        for a, (upper, lower) in edges.items():
            row = (i * 3 + j) * 10 + a
            shift, growth = offsets[0, 2 * a : 2 * a + 2, i, j]
            side = lower - upper + 1
            tall = math.exp(growth) * side
            y = shift * side + (upper + lower) / 2 + 16 * i - tall / 2
            np.testing.assert_allclose(
                boxes[row], [16 * j, np.clip(y, 0, 89), 16 * j + 15, np.clip(y + tall, 0, 89)], rtol=1e-4, atol=1e-4
            )
            assert best[row, 0] == np.float32(scores[0, 10 + a, i, j])
    assert "as many offsets" in layer_error(write, layer, (1, 20, 2, 3), (1, 40, 2, 3), (1, 3), tops=2).expected
