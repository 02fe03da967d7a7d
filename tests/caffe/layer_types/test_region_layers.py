"""R-FCN's hard examples and region proposals, compared with plain loops over their published definitions."""

import math

import numpy as np
import pytest

from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed, rng


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


@pytest.mark.parametrize(
    ("settings", "divisor"), [("", 4), ("loss_param { normalization: FULL }", 5), ("loss_param { normalization: NONE }", 1)]
)
@exercises("SoftmaxWithLossOHEM")
def test_a_softmax_loss_gives_the_loss_of_each_label(write, settings, divisor):
    labels = np.array([0, 2, 1, -1, 2.0])
    settings = settings.replace("}", "ignore_label: -1 }") or "loss_param { ignore_label: -1 }"

    def reference(scores, labels):
        probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        losses = np.array(
            [0 if label < 0 else -math.log(row[int(label)]) for row, label in zip(probability, labels, strict=True)]
        )
        return losses.sum() / divisor, probability, losses

    check(
        write,
        f'type: "SoftmaxWithLossOHEM" {settings} loss_weight: 1 loss_weight: 0 loss_weight: 0',
        reference,
        draw(5, 3),
        labels,
    )


@pytest.mark.parametrize(("normalization", "divisor"), [("", 12), ("BATCH_SIZE", 2), ("NONE", 1)])
@pytest.mark.parametrize("weighted", [True, False])
@exercises("SmoothL1LossOHEM")
def test_a_smooth_l1_loss_gives_the_loss_of_each_position(write, normalization, divisor, weighted):
    def reference(x, target, weights=1.0):
        difference = np.abs(weights * (x - target))
        terms = np.where(difference < 1, difference**2 / 2, difference - 0.5)
        return terms.sum() / divisor, terms.sum(1, keepdims=True)

    settings = f"loss_param {{ normalization: {normalization} }}" if normalization else ""
    bottoms = [draw(2, 4, 3, 2, low=-3, high=3), draw(2, 4, 3, 2), draw(2, 4, 3, 2)][: 2 + weighted]
    check(write, f'type: "SmoothL1LossOHEM" {settings} loss_weight: 1 loss_weight: 0', reference, *bottoms, wrt=(0, 1))


def test_a_smooth_l1_loss_needs_no_top_for_each_position(write):
    def reference(x, target):
        difference = np.abs(x - target.reshape(x.shape))
        return np.where(difference < 1, difference**2 / 2, difference - 0.5).sum() / 5

    check(write, 'type: "SmoothL1LossOHEM"', reference, draw(5, 8, 1, 1, low=-3, high=3), draw(5, 8, low=-3, high=3))


def test_losses_of_vectors_have_the_shape_that_eltwise_adds(write):
    net = make_net(write, 'type: "SmoothL1LossOHEM"', [(6, 8), (6, 8)], tops=2)
    assert net.forward()["y1"].shape == net.blobs["y1"].shape == (6, 1, 1, 1)


@exercises("BoxAnnotatorOHEM")
def test_the_regions_with_the_largest_losses_of_each_image_are_kept(write):
    regions = np.zeros((7, 5))
    regions[:, 0] = [0, 1, 0, 1, 0, 0, 1]
    losses, labels, weights = np.array([3, 9, 5, 1, 4, 5, 2.0]), np.arange(1, 8.0), draw(7, 8)

    def reference(regions, losses, labels, weights):
        kept = set()
        for image in (0, 1):
            members = [index for index in range(7) if regions[index, 0] == image]
            kept |= set(sorted(members, key=lambda index: -losses[index])[:2])
        assert kept == {2, 5, 1, 6}
        mask = np.array([index in kept for index in range(7)])
        return np.where(mask, labels, -1)[:, None, None, None], (weights * mask[:, None])[..., None, None]

    layer = 'type: "BoxAnnotatorOHEM" box_annotator_ohem_param { roi_per_img: 2 }'
    check(write, layer, reference, regions, losses, labels, weights, wrt=())
    assert "one of each for the 7 regions" in str(layer_error(write, layer, (7, 5), (6,), (7,), (7, 8), tops=2))
    assert "roi_per_img is not given" in str(layer_error(write, 'type: "BoxAnnotatorOHEM"', (7, 5), (7,), (7,), (7, 8), tops=2))


PROPOSAL = """type: "Proposal" proposal_param { feat_stride: 8 base_size: 8 min_size: 6
  ratio: 0.5 ratio: 1 ratio: 2 scale: 2 scale: 3 pre_nms_topn: 40 post_nms_topn: 9 nms_thresh: 0.6 }"""


def overlap(a, b):
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0
    common = width * height
    return common / (sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)) - common)


def proposals(scores, offsets, size):
    """The regions of one image by loops."""
    anchors = []
    for ratio in (0.5, 1, 2):
        width = np.sqrt(np.float32(64 / ratio))
        for scale in (2, 3):
            half_width, half_height = (0.5 * int(side * scale - 1 + 0.5) for side in (width, width * ratio))
            anchors.append((3.5 - half_width, 3.5 - half_height, 3.5 + half_width, 3.5 + half_height))
    found = []
    for row, column, k in np.ndindex(*scores.shape[1:], 6):
        box = np.add(anchors[k], [column * 8, row * 8, column * 8, row * 8])
        dx, dy, dw, dh = offsets[4 * k : 4 * k + 4, row, column]
        width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
        x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
        width, height = width * math.exp(dw), height * math.exp(dh)
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        box = [min(max(side, 0), limit - 1) for side, limit in zip(box, (size[1], size[0]) * 2, strict=True)]
        large = box[2] - box[0] + 1 >= 6 * size[2:4][-1] and box[3] - box[1] + 1 >= 6 * size[2]
        found.append((float(scores[6 + k, row, column]) * large, box))
    found = sorted(found, key=lambda each: -each[0])[:40]
    kept = []
    for score, box in found:
        if all(overlap(box, other) <= 0.6 for _, other in kept):
            kept.append((score, box))
    return kept[:9]


@pytest.mark.parametrize("size", [(40, 48, 1.5), (40, 48, 1.2, 2.0), (40, 48, 1.2, 2.0, 9, 9)])
@exercises("Proposal")
def test_proposals_are_those_of_loops_over_all_anchors(write, size):
    net = make_net(write, PROPOSAL, [(2, 12, 5, 6), (2, 24, 5, 6), (2, len(size))], tops=2)
    assert net.blobs["y0"].shape == (18, 5)
    scores, offsets = rng.uniform(size=(2, 12, 5, 6)).astype(np.float32), draw(2, 24, 5, 6, low=-0.4, high=0.4).astype(np.float32)
    sizes = np.array([size, (30, 36, *size[2:])])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...], net.blobs["x2"].data[...] = scores, offsets, sizes
    net.forward()
    wanted = [(image, *each) for image in range(2) for each in proposals(scores[image], offsets[image], sizes[image])]
    assert len({image for image, *_ in wanted}) == 2
    np.testing.assert_allclose(net.blobs["y0"].data, [(image, *box) for image, _, box in wanted], atol=1e-3)
    np.testing.assert_allclose(net.blobs["y1"].data, [score for _, score, _ in wanted], rtol=1e-6)


def test_a_proposal_of_other_channels_is_refused(write):
    error = layer_error(write, PROPOSAL, (1, 18, 5, 6), (1, 24, 5, 6), (1, 3))
    assert error.expected == "6 anchors need 12 and 24 channels of the same size"
    assert "at least one of each" in str(layer_error(write, 'type: "Proposal"', (1, 18, 5, 6), (1, 36, 5, 6), (1, 3)))
