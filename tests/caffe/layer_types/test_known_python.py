"""Built-in versions of Faster R-CNN's Python layers, compared with plain loops over their description; whole small nets."""

import math
import sys
import types

import numpy as np
import pytest

import caffe
from caffe.layer_types.forks.proposals import rounded_anchors
from tests.caffe.layer_checks import draw, layer_error, make_net, reseed, rng
from tests.caffe.layer_types.test_region_layers import overlap


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)
    caffe.set_random_seed(1)


def python(module, layer, settings):
    return f'type: "Python" python_param {{ module: "{module}" layer: "{layer}" param_str: "{settings}" }}'


def proposal(settings="'feat_stride': 8, 'scales': [1, 2], 'RPN_MIN_SIZE': 6, 'RPN_POST_NMS_TOP_N': 9"):
    return python("rpn.proposal_layer", "ProposalLayer", settings)


def anchor_target(settings="{'feat_stride': 8, 'scales': [1, 2]}"):
    return python("rpn.anchor_target_layer", "AnchorTargetLayer", settings)


def proposal_target(settings="'num_classes': 4"):
    return python("rpn.proposal_target_layer", "ProposalTargetLayer", settings)


def anchors(scales=(1, 2), ratios=(0.5, 1, 2)):
    made = []
    for ratio in ratios:
        width = round(math.sqrt(256 / ratio))
        height = round(width * ratio)
        for scale in scales:
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            made.append((7.5 - x, 7.5 - y, 7.5 + x, 7.5 + y))
    return made


def run(net, **values):
    for name, value in values.items():
        blob = net.blobs[name]
        blob.reshape(*np.shape(value))
        blob.data[...] = value
    net.forward()
    return [net.blobs[name].data.copy() for name in net.outputs]


# ---- ProposalLayer


def proposals(scores, offsets, size, least, most):
    """The regions of one image by loops."""
    own = anchors()
    found = []
    for row, column, k in np.ndindex(*scores.shape[1:], len(own)):
        box = np.add(own[k], [column * 8, row * 8, column * 8, row * 8])
        dx, dy, dw, dh = offsets[4 * k : 4 * k + 4, row, column]
        width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
        x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
        width, height = width * math.exp(dw), height * math.exp(dh)
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        box = [min(max(side, 0), limit - 1) for side, limit in zip(box, (size[1], size[0]) * 2, strict=True)]
        if box[2] - box[0] + 1 >= least * size[2] and box[3] - box[1] + 1 >= least * size[2]:
            found.append((float(scores[len(own) + k, row, column]), box))
    kept = []
    for score, box in sorted(found, key=lambda each: -each[0]):
        if all(overlap(box, other) <= 0.7 for _, other in kept):
            kept.append((score, box))
    return kept[:most]


def test_anchors_are_the_published_ones():
    """As the paper's MATLAB code has them, which counts pixels from 1."""
    wanted = [(-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200)]
    wanted += [(-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264)]
    wanted += [(-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360)]
    made = rounded_anchors(16, np.array([0.5, 1, 2]), np.array([8, 16, 32]))
    np.testing.assert_array_equal(made + 1, wanted)
    np.testing.assert_array_equal(anchors((8, 16, 32)), made)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_proposals_are_those_of_loops_over_all_anchors(write, scale):
    net = make_net(write, proposal(), [(1, 12, 5, 6), (1, 24, 5, 6), (1, 3)], tops=2)
    assert net.blobs["y0"].shape == (9, 5)
    assert net.blobs["y1"].shape == (9, 1)
    scores, offsets = rng.uniform(size=(1, 12, 5, 6)).astype(np.float32), draw(1, 24, 5, 6, low=-0.3, high=0.3).astype(np.float32)
    regions, best = run(net, x0=scores, x1=offsets, x2=[(40, 48, scale)])
    wanted = proposals(scores[0], offsets[0], (40, 48, scale), 6, 9)
    assert 1 < len(wanted) <= 9
    np.testing.assert_allclose(regions, [(0, *box) for _, box in wanted], atol=1e-3)
    np.testing.assert_allclose(best, [[score] for score, _ in wanted], rtol=1e-6)


def test_regions_that_are_all_too_small_leave_no_proposal(write):
    net = make_net(write, proposal(), [(1, 12, 5, 6), (1, 24, 5, 6), (1, 3)])
    (regions,) = run(net, x0=rng.uniform(size=(1, 12, 5, 6)), x1=draw(1, 24, 5, 6), x2=[(40, 48, 100)])
    assert regions.shape == (0, 5)


@pytest.mark.parametrize(("phase", "most"), [(caffe.TRAIN, 2000), (caffe.TEST, 300)])
def test_the_number_of_proposals_is_the_phases(write, phase, most):
    net = make_net(write, proposal("'feat_stride': 16"), [(1, 18, 4, 4), (1, 36, 4, 4), (1, 3)], phase)
    assert net.blobs["y0"].shape == (most, 5)


# ---- AnchorTargetLayer

TRUTHS = np.array([(5, 6, 22, 20, 3), (20, 12, 44, 38, 1.0)])


def labels_by_loops(truths, height, width, size, border=0):
    """{row of an anchor: label}, before some are drawn, of the anchors inside the image; and all anchors."""
    grid = [np.add(a, [x * 8, y * 8] * 2) for y in range(height) for x in range(width) for a in anchors()]
    inside = [
        index
        for index, (x1, y1, x2, y2) in enumerate(grid)
        if x1 >= -border and y1 >= -border and x2 < size[1] + border and y2 < size[0] + border
    ]
    overlaps = {index: [overlap(grid[index], truth[:4]) for truth in truths] for index in inside}
    greatest = [max((overlaps[index][number] for index in inside), default=0) for number in range(len(truths))]
    labels = {}
    for index in inside:
        most = max(overlaps[index], default=0)
        best = any(each == limit > 0 for each, limit in zip(overlaps[index], greatest, strict=True))
        labels[index] = 1 if best or most >= 0.7 else 0 if most < 0.3 else -1
    return labels, grid, overlaps


@pytest.mark.parametrize("border", [0, 16])
@pytest.mark.parametrize("truths", [TRUTHS, TRUTHS[:1], TRUTHS[:0]], ids=len)
def test_anchors_get_the_labels_and_targets_of_loops(write, border, truths):
    settings = f"{{'feat_stride': 8, 'scales': [1, 2], 'allowed_border': {border}}}"
    net = make_net(write, anchor_target(settings), [(1, 12, 6, 7), (2, 5), (1, 3), (1, 3, 48, 56)], tops=4)
    said = [net.blobs[f"y{number}"].shape for number in range(4)]
    tops = run(net, x0=np.zeros((1, 12, 6, 7)), x1=truths, x2=[(48, 56, 1)])
    assert said == [top.shape for top in tops] == [(1, 1, 36, 7), *[(1, 24, 6, 7)] * 3]
    wanted, grid, overlaps = labels_by_loops(truths, 6, 7, (48, 56), border)
    labels = tops[0].reshape(6, 6, 7).transpose(1, 2, 0).ravel()
    targets, inside, outside = (top.reshape(6, 4, 6, 7).transpose(2, 3, 0, 1).reshape(-1, 4) for top in tops[1:])
    assert len(wanted) < 256  # none is left out by the draw
    assert labels.tolist() == [wanted.get(index, -1) for index in range(len(grid))]
    assert (labels == 1).sum() >= len(truths)
    counted = sum(label >= 0 for label in wanted.values())
    np.testing.assert_allclose(outside, np.repeat((labels >= 0)[:, None], 4, 1) / counted, rtol=1e-6)
    assert inside.tolist() == np.repeat((labels == 1)[:, None], 4, 1).tolist()
    for index, (x1, y1, x2, y2) in enumerate(grid):
        target = np.zeros(4)
        if index in wanted and len(truths):
            truth = truths[int(np.argmax(overlaps[index]))]
            width, height, own = x2 - x1 + 1, y2 - y1 + 1, (truth[2] - truth[0] + 1, truth[3] - truth[1] + 1)
            target[:2] = (
                (truth[0] + own[0] / 2 - x1 - width / 2) / width,
                (truth[1] + own[1] / 2 - y1 - height / 2) / height,
            )
            target[2:] = math.log(own[0] / width), math.log(own[1] / height)
        np.testing.assert_allclose(targets[index], target, atol=1e-5)


def test_a_sample_of_anchors_has_the_numbers_asked_for_and_depends_on_the_seed(write):
    settings = "'feat_stride': 8, 'scales': [1, 2], 'RPN_BATCHSIZE': 10, 'RPN_POSITIVE_OVERLAP': 0.4, 'RPN_POSITIVE_WEIGHT': 0.3"
    drawn = []
    for seed in (1, 1, 2):
        caffe.set_random_seed(seed)
        net = make_net(write, anchor_target(settings), [(1, 12, 6, 7), (2, 5), (1, 3)], tops=4)
        labels, _, _, outside = run(net, x0=np.zeros((1, 12, 6, 7)), x1=TRUTHS, x2=[(48, 56, 1)])
        assert ((labels == 1).sum(), (labels == 0).sum()) == (5, 5)
        weights = outside.reshape(6, 4, 6, 7)[:, 0].reshape(-1)
        np.testing.assert_allclose(weights[labels.ravel() == 1], 0.3 / 5, rtol=1e-6)
        np.testing.assert_allclose(weights[labels.ravel() == 0], 0.7 / 5, rtol=1e-6)
        drawn.append(labels.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_background_wins_with_rpn_clobber_positives(write):
    """The small true box overlaps each anchor by less than 0.3."""
    for clobber, objects in ((False, True), (True, False)):
        settings = f"'feat_stride': 8, 'scales': [1, 2], 'RPN_CLOBBER_POSITIVES': {clobber}"
        net = make_net(write, anchor_target(settings), [(1, 12, 6, 7), (1, 5), (1, 3)], tops=4)
        labels = run(net, x0=np.zeros((1, 12, 6, 7)), x1=[(20, 20, 24, 24, 1)], x2=[(48, 56, 1)])[0]
        assert (labels == 1).any() == objects


# ---- ProposalTargetLayer

REGIONS = np.array([(0, 6, 6, 23, 20), (0, 20, 12, 44, 38), (0, 0, 0, 12, 12), (0, 18, 20, 30, 38), (0, 45, 0, 55, 9.0)])


def check_sample(tops, truths, count, agnostic=False, mean=0.0, deviation=1.0):
    """Each region's class, targets and weights are those of the true box that overlaps it most."""
    rois, classes, targets, inside, outside = tops
    assert classes.shape == (len(rois), 1, 1, 1)
    assert targets.shape == inside.shape == outside.shape == (len(rois), 4 * count)
    for roi, label, target, weight in zip(rois, classes.ravel(), targets, inside, strict=True):
        overlaps = [overlap(roi[1:], truth[:4]) for truth in truths]
        most = max(overlaps, default=0)
        wanted, weights = np.zeros((count, 4)), np.zeros((count, 4))
        if most >= 0.5:
            truth = truths[int(np.argmax(overlaps))]
            assert label == truth[4]
            _, x1, y1, x2, y2 = roi
            width, height = x2 - x1 + 1, y2 - y1 + 1
            own = truth[2] - truth[0] + 1, truth[3] - truth[1] + 1
            offsets = [(truth[0] + own[0] / 2 - x1 - width / 2) / width, (truth[1] + own[1] / 2 - y1 - height / 2) / height]
            offsets += [math.log(own[0] / width), math.log(own[1] / height)]
            column = 1 if agnostic else int(label)
            wanted[column], weights[column] = (np.array(offsets) - mean) / deviation, 1
        else:
            assert label == 0
        np.testing.assert_allclose(target, wanted.ravel(), atol=1e-5)
        assert weight.tolist() == weights.ravel().tolist()
    assert outside.tolist() == (inside > 0).tolist()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("'num_classes': 4", {"count": 4}),
        ("'num_classes': 2", {"count": 2, "agnostic": True}),
        (
            "{'num_classes': 4, 'BBOX_NORMALIZE_TARGETS_PRECOMPUTED': True, 'BBOX_NORMALIZE_MEANS': [0.1, 0, 0, 0]}",
            {"count": 4, "mean": np.array([0.1, 0, 0, 0]), "deviation": np.array([0.1, 0.1, 0.2, 0.2])},
        ),
    ],
)
def test_regions_get_the_classes_and_targets_of_loops(write, settings, options):
    net = make_net(write, proposal_target(settings), [REGIONS.shape, TRUTHS.shape], tops=5)
    assert net.blobs["y0"].shape == (7, 5)
    tops = run(net, x0=REGIONS, x1=TRUTHS)
    # Objects first: regions 0 and 1 and both true boxes; 3 overlaps a true box by more than 0.1.
    assert tops[0].tolist() == [*REGIONS[:2].tolist(), *np.insert(TRUTHS[:, :4], 0, 0, 1).tolist(), *REGIONS[2:4].tolist()]
    assert tops[1].ravel().tolist() == [3, 1, 3, 1, 0, 0]
    check_sample(tops, TRUTHS, **options)


def test_a_sample_of_regions_has_the_numbers_asked_for_and_depends_on_the_seed(write):
    regions = np.concatenate(
        [np.insert(TRUTHS[0, :4] + draw(20, 4), 0, 0, 1), np.insert(draw(20, 4) + np.array([8, 8, 40, 40]), 0, 0, 1)]
    )
    settings = "'num_classes': 4, 'BATCH_SIZE': 12, 'BG_THRESH_LO': 0.0"
    drawn = []
    for seed in (1, 1, 2):
        caffe.set_random_seed(seed)
        net = make_net(write, proposal_target(settings), [regions.shape, TRUTHS.shape], tops=5)
        tops = run(net, x0=regions, x1=TRUTHS)
        assert (tops[1] > 0).ravel().tolist() == [True] * 3 + [False] * 9
        check_sample(tops, TRUTHS, 4)
        drawn.append(tops[0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    net = make_net(write, proposal_target("'num_classes': 4, 'BATCH_SIZE': -1, 'BG_THRESH_LO': 0"), [(40, 5), (2, 5)], tops=5)
    assert len(run(net, x0=regions, x1=TRUTHS)[0]) == 42


def test_an_image_without_true_boxes_gives_background(write):
    net = make_net(write, proposal_target(), [REGIONS.shape, (1, 5)], tops=5)
    tops = run(net, x0=REGIONS, x1=np.zeros((0, 5)))
    assert tops[0].tolist() == REGIONS.tolist()
    assert not any(top.any() for top in tops[1:])
    check_sample(tops, [], 4)


def test_one_proposal_and_one_true_box_are_enough(write):
    net = make_net(write, proposal_target(), [(1, 5), (1, 5)], tops=5)
    tops = run(net, x0=REGIONS[:1], x1=TRUTHS[:1])
    assert tops[1].ravel().tolist() == [3, 3]
    check_sample(tops, TRUTHS[:1], 4)


def test_true_boxes_of_a_class_that_is_not_there_and_second_images_are_refused(write):
    net = make_net(write, proposal_target("'num_classes': 3"), [REGIONS.shape, TRUTHS.shape], tops=5)
    with pytest.raises(caffe.LayerError, match="num_classes 3 has the classes 0 to 2"):
        run(net, x0=REGIONS, x1=TRUTHS)
    with pytest.raises(caffe.LayerError, match="a region of image 1"):
        run(net, x0=REGIONS + np.array([1, 0, 0, 0, 0]), x1=TRUTHS)


# ---- param_str, and which implementation is used

SHAPES = [(1, 18, 4, 4), (1, 36, 4, 4), (1, 3)]


@pytest.mark.parametrize(
    "text", ["'feat_stride': 16", "{'feat_stride': 16}", "feat_stride: 16", "{feat_stride: 16, scales: [8, 16, 32]}"]
)
def test_param_str_is_a_dictionary_or_yaml(write, text):
    net = make_net(write, proposal(text), SHAPES)
    assert net.layers[-1].type == "Python"
    assert net.layers[-1].settings.feat_stride == 16


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("", "param_str '' without feat_stride", "it must have feat_stride, an integer of at least 1"),
        ("16", "param_str '16'", "settings by name: \"'feat_stride': …\""),
        ("{'feat_stride': [16", "param_str \"{'feat_stride': [16\"", "settings by name"),
        ("'feat_stride': 0", "feat_stride 0", "an integer of at least 1"),
        ("'feat_stride': 16.5", "feat_stride 16.5", "an integer of at least 1"),
        ("'feat_stride': 16, 'scales': 8", "scales 8", "a list of numbers larger than 0"),
        ("'feat_stride': 16, 'scales': []", "scales []", "a list of numbers larger than 0"),
        ("'feat_stride': 16, 'RPN_NMS_THRESH': 7", "RPN_NMS_THRESH 7", "a number from 0 to 1"),
        ("'feat_strides': 16", "the setting 'feat_strides'", "the built-in layer has feat_stride, scales"),
    ],
)
def test_a_bad_param_str_is_one_clear_error(write, text, found, expected):
    error = layer_error(write, proposal(text), *SHAPES)
    assert found in error.found
    assert expected in error.expected
    assert 'layer "layer"' in error.where


def test_other_channels_and_batches_are_refused(write):
    assert (
        "9 anchors need 18 and 36 channels"
        in layer_error(write, proposal("'feat_stride': 16"), (1, 12, 4, 4), *SHAPES[1:]).expected
    )
    assert "height, width and scale" in layer_error(write, proposal("'feat_stride': 16"), *SHAPES[:2], (1, 4)).expected
    assert "one image" in layer_error(write, anchor_target(), (2, 12, 4, 4), (1, 5), (1, 3), tops=4).expected
    assert "(G, 5)" in layer_error(write, anchor_target(), (1, 12, 4, 4), (1, 4), (1, 3), tops=4).expected
    assert "(R, 5)" in layer_error(write, proposal_target(), (3, 4), (1, 5), tops=5).expected


def test_the_log_says_that_a_built_in_layer_is_used(write, capfd, monkeypatch):
    monkeypatch.setenv("GLOG_minloglevel", "0")
    make_net(write, proposal("'feat_stride': 16"), SHAPES)
    lines = [line for line in capfd.readouterr().err.splitlines() if "built-in" in line]
    assert len(lines) == 1
    assert 'layer "layer": no module "rpn.proposal_layer"; the built-in ProposalLayer is used' in lines[0]


class ProposalLayer(caffe.Layer):
    def reshape(self, bottom, top):
        top[0].reshape(1, 5)

    def forward(self, bottom, top):
        top[0].data[...] = 7


def test_the_users_own_module_wins(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "rpn", types.ModuleType("rpn"))
    monkeypatch.setitem(sys.modules, "rpn.proposal_layer", sys.modules[__name__])
    net = make_net(write, proposal("'feat_stride': 16"), SHAPES)
    net.forward()
    assert net.blobs["y0"].data.tolist() == [[7] * 5]


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        ("print 'hello'\n", SyntaxError, "This is Python 2"),
        ("import cPickle\n", ModuleNotFoundError, "write `import pickle`"),
        ("from fast_rcnn.config import cfg\n", ModuleNotFoundError, ""),
    ],
)
def test_an_error_of_the_users_own_module_stays_one(write, monkeypatch, tmp_path, code, kind, advice):
    (tmp_path / "rpn").mkdir()
    (tmp_path / "rpn/__init__.py").write_text("")
    (tmp_path / "rpn/proposal_layer.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(kind) as error:
            make_net(write, proposal("'feat_stride': 16"), SHAPES)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "rpn"]:
            del sys.modules[name]
    notes = "\n".join(error.value.__notes__)
    assert 'layer "layer": in module rpn.proposal_layer' in notes
    assert advice in notes
    assert "Without a module rpn.proposal_layer on PYTHONPATH the built-in ProposalLayer is used." in notes


# ---- whole nets

INPUTS = """input: "data" input_shape { dim: 1 dim: 3 dim: 64 dim: 80 }
input: "im_info" input_shape { dim: 1 dim: 3 }
"""
CONV = 'weight_filler { type: "xavier" } bias_filler { type: "constant" }'
RPN = f"""
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 6 kernel_size: 8 stride: 8 {CONV} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "rpn_cls_score" type: "Convolution" bottom: "conv" top: "rpn_cls_score"
  convolution_param {{ num_output: 12 kernel_size: 1 {CONV} }} }}
layer {{ name: "rpn_bbox_pred" type: "Convolution" bottom: "conv" top: "rpn_bbox_pred"
  convolution_param {{ num_output: 24 kernel_size: 1 weight_filler {{ type: "gaussian" std: 0.001 }} }} }}
layer {{ name: "rpn_cls_score_reshape" type: "Reshape" bottom: "rpn_cls_score" top: "rpn_cls_score_reshape"
  reshape_param {{ shape {{ dim: 0 dim: 2 dim: -1 dim: 0 }} }} }}
layer {{ name: "rpn_cls_prob" type: "Softmax" bottom: "rpn_cls_score_reshape" top: "rpn_cls_prob" }}
layer {{ name: "rpn_cls_prob_reshape" type: "Reshape" bottom: "rpn_cls_prob" top: "rpn_cls_prob_reshape"
  reshape_param {{ shape {{ dim: 0 dim: 12 dim: -1 dim: 0 }} }} }}
layer {{ name: "proposal" bottom: "rpn_cls_prob_reshape" bottom: "rpn_bbox_pred" bottom: "im_info" top: "REGIONS" {proposal()} }}
"""
RPN_LOSSES = f"""
layer {{ name: "rpn_data" bottom: "rpn_cls_score" bottom: "gt_boxes" bottom: "im_info" bottom: "data"
  top: "rpn_labels" top: "rpn_bbox_targets" top: "rpn_inside" top: "rpn_outside" {anchor_target()} }}
layer {{ name: "rpn_loss_cls" type: "SoftmaxWithLoss" bottom: "rpn_cls_score_reshape" bottom: "rpn_labels" top: "rpn_loss_cls"
  propagate_down: 1 propagate_down: 0 loss_param {{ ignore_label: -1 normalize: true }} }}
layer {{ name: "rpn_loss_bbox" type: "SmoothL1Loss" bottom: "rpn_bbox_pred" bottom: "rpn_bbox_targets" bottom: "rpn_inside"
  bottom: "rpn_outside" top: "rpn_loss_bbox" loss_weight: 1 smooth_l1_loss_param {{ sigma: 3 }} }}
layer {{ name: "roi_data" bottom: "rpn_rois" bottom: "gt_boxes" top: "rois" top: "labels" top: "bbox_targets" top: "inside"
  top: "outside" {proposal_target()} }}
"""
HEAD = f"""
layer {{ name: "pool" type: "ROIPooling" bottom: "conv" bottom: "rois" top: "pool"
  roi_pooling_param {{ pooled_w: 3 pooled_h: 3 spatial_scale: 0.125 }} }}
layer {{ name: "cls_score" type: "InnerProduct" bottom: "pool" top: "cls_score" inner_product_param {{ num_output: 4 {CONV} }} }}
layer {{ name: "bbox_pred" type: "InnerProduct" bottom: "pool" top: "bbox_pred" inner_product_param {{ num_output: 16 {CONV} }} }}
"""
HEAD_LOSSES = """
layer { name: "loss_cls" type: "SoftmaxWithLoss" bottom: "cls_score" bottom: "labels" top: "loss_cls" }
layer { name: "accuracy" type: "Accuracy" bottom: "cls_score" bottom: "labels" top: "accuracy" }
layer { name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox_pred" bottom: "bbox_targets" bottom: "inside" bottom: "outside"
  top: "loss_bbox" loss_weight: 1 }
"""
TRAIN = (
    INPUTS
    + 'input: "gt_boxes" input_shape { dim: 2 dim: 5 }'
    + RPN.replace("REGIONS", "rpn_rois")
    + RPN_LOSSES
    + HEAD
    + HEAD_LOSSES
)
DEPLOY = (
    INPUTS + RPN.replace("REGIONS", "rois") + HEAD + 'layer { name: "p" type: "Softmax" bottom: "cls_score" top: "cls_prob" }'
)


@pytest.mark.parametrize("truths", [TRUTHS, TRUTHS[:0]], ids=len)
def test_a_whole_faster_rcnn_runs_forward_and_backward(write, truths):
    net = caffe.Net(write("train.prototxt", TRAIN), caffe.TRAIN)
    net.blobs["gt_boxes"].reshape(*truths.shape)
    net.blobs["gt_boxes"].data[...] = truths
    net.blobs["data"].data[...], net.blobs["im_info"].data[...] = draw(1, 3, 64, 80), (64, 80, 1)
    losses = net.forward()
    assert all(np.isfinite(value).all() for value in losses.values())
    assert losses["rpn_loss_cls"] > 0
    assert losses["loss_cls"] > 0
    assert net.blobs["rois"].shape[0] == net.blobs["labels"].shape[0] == net.blobs["cls_score"].shape[0]
    assert (net.blobs["labels"].data > 0).any() == (losses["loss_bbox"] > 0) == bool(len(truths))
    net.backward()
    learning = ["conv", "rpn_cls_score", "cls_score", *(["rpn_bbox_pred", "bbox_pred"] if len(truths) else [])]
    for name in learning:
        assert np.isfinite(net.params[name][0].diff).all()
        assert np.abs(net.params[name][0].diff).max() > 0


def test_its_solver_learns(write):
    net = write("train.prototxt", TRAIN)
    solver = caffe.get_solver(write("solver.prototxt", f'net: "{net}" base_lr: 0.02 lr_policy: "fixed" momentum: 0.9 display: 0'))
    blobs = solver.net.blobs
    blobs["data"].data[...], blobs["im_info"].data[...], blobs["gt_boxes"].data[...] = draw(1, 3, 64, 80), (64, 80, 1), TRUTHS
    losses = []
    for _ in range(15):
        solver.step(1)
        losses.append(float(blobs["rpn_loss_cls"].data))
    assert losses[-1] < losses[0]


def test_its_deploy_net_runs(write):
    net = caffe.Net(write("deploy.prototxt", DEPLOY), caffe.TEST)
    net.blobs["data"].data[...], net.blobs["im_info"].data[...] = draw(1, 3, 64, 80), (64, 80, 1)
    tops = net.forward()
    count = len(net.blobs["rois"].data)
    assert 1 <= count <= 9
    assert (tops["cls_prob"].shape, tops["bbox_pred"].shape) == ((count, 4), (count, 16))
    np.testing.assert_allclose(tops["cls_prob"].sum(1), 1, rtol=1e-5)
