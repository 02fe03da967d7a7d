"""Losses of distances compared with plain loops over their definitions, their gradients with finite differences of those."""

import math

import numpy as np
import pytest

import caffe
from tests.caffe.layer_checks import check, draw, exercises, layer_error, make_net, reseed


@pytest.fixture(autouse=True)
def _reseed(request):
    reseed(request.node.name)


LABELS = np.array([2, 0, 3, 1, 1])


# ---- InnerDistance


def distances(kind):
    def measure(x, centres, *_):
        result = np.zeros((len(x), len(centres)))
        for row, column in np.ndindex(result.shape):
            difference = x[row].ravel() - centres[column].ravel()
            result[row, column] = (difference**2).sum() if kind == "L2" else np.abs(difference).sum()
        return result

    return measure


@pytest.mark.parametrize("kind", ["L1", "L2"])
@exercises("InnerDistance")
def test_inner_distance_to_learned_and_to_given_centres(write, kind):
    layer = f'type: "InnerDistance" inner_distance_param {{ num_output: 4 distance_type: "{kind}" }}'
    net = check(write, layer, distances(kind), draw(3, 2, 2), params=[draw(4, 4)])
    assert [spec.name for spec in caffe.layer_type("InnerDistance").blob_specs(net.layers[-1].param)] == ["centers"]
    check(write, layer, distances(kind), draw(3, 5), draw(4, 5), wrt=(0, 1))


def test_only_the_distance_from_the_own_centre_moves_a_centre(write):
    layer = 'type: "InnerDistance" inner_distance_param { num_output: 4 update_center_only: true }'
    x, centres, labels = draw(5, 3), draw(4, 3), LABELS
    net = make_net(write, layer, [(5, 3), (5,)])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...], net.params["layer"][0].data[...] = x, labels, centres
    np.testing.assert_allclose(net.forward()["y0"], distances("L2")(x, centres), rtol=1e-5, atol=1e-6)
    g = draw(5, 4)
    net.blobs["y0"].diff[...] = g
    net.backward()
    of_x, of_centres = np.zeros_like(x), np.zeros_like(centres)
    for row, column in np.ndindex(5, 4):
        of_x[row] += 2 * g[row, column] * (x[row] - centres[column])
        if column == labels[row]:
            of_centres[column] += 2 * g[row, column] * (centres[column] - x[row])
    np.testing.assert_allclose(net.blobs["x0"].diff, of_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.params["layer"][0].diff, of_centres, rtol=1e-4, atol=1e-5)


def test_normalized_centres_have_norm_1_after_a_pass(write):
    layer = 'type: "InnerDistance" inner_distance_param { num_output: 4 normalize: true }'
    net = make_net(write, layer, [(2, 3)])
    net.params["layer"][0].data[...] = centres = draw(4, 3, low=0.5, high=2)
    net.blobs["x0"].data[...] = x = draw(2, 3)
    centres /= np.sqrt((centres**2).sum(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(net.forward()["y0"], distances("L2")(x, centres), rtol=1e-5)
    np.testing.assert_allclose(net.params["layer"][0].data, centres, rtol=1e-6)


def test_inner_distance_says_what_it_takes(write):
    layer = 'type: "InnerDistance" inner_distance_param { num_output: 4 %s }'
    assert layer_error(write, layer % 'distance_type: "L3"', (2, 3)).expected == "L1 or L2"
    assert layer_error(write, layer % "transpose: true", (2, 3)).found == "transpose: true"
    assert layer_error(write, layer % "", (2, 3), (4, 2)).expected == "vectors of one length"
    assert layer_error(write, layer % "update_center_only: true", (2, 3)).found == "1 bottoms"
    net = make_net(write, layer % "update_center_only: true", [(2, 3), (2,)])
    net.blobs["x1"].data[...] = 4
    with pytest.raises(caffe.LayerError, match="label 4"):
        net.forward()


# ---- GeneralContrastiveLoss

CONTRAST = 'type: "GeneralContrastiveLoss" general_contrastive_loss_param { positive_margin: 0.2 negative_margin: 0.9 %s }'


def contrast(x, labels, weights=(1.0, 1.0), thresh=4.0, hardest=False, exponential=False):
    loss = 0.0
    for row, label in zip(x, labels.astype(int), strict=True):
        loss += weights[0] * min(thresh, max(0, row[label] - 0.2))
        terms = [
            (math.exp(-d) if exponential else 0.9 - d) * weights[1] for column, d in enumerate(row) if column != label and d < 0.9
        ]
        loss += (max(terms, default=0) if hardest else sum(terms)) if terms else 0
    return loss / len(x)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("", {}),
        ("positive_weight: 2 negative_weight: 0.5", {"weights": (2, 0.5)}),
        ("max_negative_only: true", {"hardest": True}),
        ("exp_negative_weight: true", {"exponential": True}),
    ],
)
@exercises("GeneralContrastiveLoss")
def test_general_contrastive_loss(write, settings, options):
    check(write, CONTRAST % settings, lambda x, t: contrast(x, t, **options), draw(5, 4, low=0, high=1.5), LABELS)


def test_distances_of_outliers_are_truncated_and_have_no_gradient(write):
    net = make_net(write, CONTRAST % "positive_outlier_thresh: 0.5", [(3, 2), (3,)])
    net.blobs["x0"].data[...] = [[0.45, 1], [0.6, 1], [1.3, 1]]  # the fork compares the distance itself with the threshold
    np.testing.assert_allclose(net.forward()["y0"], (0.25 + 0.4 + 0.5) / 3, rtol=1e-5)
    net.backward()
    np.testing.assert_allclose(net.blobs["x0"].diff, [[1 / 3, 0], [0, 0], [0, 0]], rtol=1e-6)


def test_the_second_top_has_the_mean_distances_and_no_gradient(write):
    net = make_net(write, f"loss_weight: 1 loss_weight: 1 {CONTRAST % ''}", [(2, 3), (2,)], tops=2)
    net.blobs["x0"].data[...] = [[0.5, 0.4, 1.2], [0.1, 0.3, 0.6]]
    net.blobs["x1"].data[...] = [0, 1]
    net.forward()
    # Of the labels 0.3 and 0.1; of the others 0.5, 0, 0.8 and 0.3.
    np.testing.assert_allclose(net.blobs["y1"].data, [0.2, 0.4], rtol=1e-5)
    np.testing.assert_allclose(net.blobs["y0"].data, 0.3 / 2 + 0.1 / 2 + 1.6 / 2, rtol=1e-5)
    net.backward()
    np.testing.assert_allclose(net.blobs["x0"].diff, [[0.5, -0.5, 0], [-0.5, 0.5, -0.5]], rtol=1e-6)


def test_far_images_count_their_own_class_alone_and_negatives_are_normalized(write):
    net = make_net(write, CONTRAST % "positive_first: true positive_upper_bound: 0.4 normalize_negative: 0.5", [(2, 3), (2,)])
    net.blobs["x0"].data[...] = [[0.5, 0.4, 1.2], [0.1, 0.3, 0.6]]
    net.blobs["x1"].data[...] = [0, 1]
    np.testing.assert_allclose(net.forward()["y0"], (0.3 + 0.1 + 0.8 + 0.3) / 2, rtol=1e-5)
    net.backward()
    # Two negatives of slope 1 sum to 2, and 2 / (0.5 · 2) exceeds 1.
    np.testing.assert_allclose(net.blobs["x0"].diff, [[0.5, 0, 0], [-0.25, 0.5, -0.25]], rtol=1e-6)


def test_contrasts_need_two_classes(write):
    assert layer_error(write, CONTRAST % "", (2, 1), (2,)).expected == "at least 2 classes"


# ---- RankHardLoss

RANK = 'type: "RankHardLoss" rank_param { pair_size: 2 margin: 1 %s }'


def rank(x, labels, count=9):
    rows = x.reshape(len(x), -1)
    loss = 0.0
    for a in range(0, len(rows), 2):
        for n in range(len(rows)):
            first = 1 - rows[a] @ rows[a + 1] + rows[a] @ rows[n]
            if labels[n] != labels[a] and first > 0:
                loss += first + max(0, 1 - rows[a] @ rows[a + 1] + rows[a + 1] @ rows[n])
    return loss / (2 * count * (len(rows) // 2))


@exercises("RankHardLoss")
def test_few_negatives_are_all_ranked(write):
    labels = np.array([0, 0, 1, 1, 2, 2])
    check(write, RANK % "neg_num: 9 hard_ratio: 0.5 rand_ratio: 0.5", rank, draw(6, 2, 2), labels)


def test_of_many_negatives_the_hard_ones_and_random_others_are_ranked(write):
    x = np.zeros((10, 2))
    x[:, 0], x[0] = np.arange(10) / 10, [1, 0]
    net = make_net(write, RANK % "neg_num: 4 hard_ratio: 0.5 rand_ratio: 0.25", [(10, 2), (10,)])
    net.blobs["x0"].data[...], net.blobs["x1"].data[...] = x, [0, 0, *range(1, 9)]
    similar = x @ x.T
    layer = net.layers[-1]
    candidates = np.ones((1, 10), bool)
    candidates[0, :2] = False
    seen = set()
    for _ in range(60):
        chosen = np.flatnonzero(layer.chosen(candidates, similar[:1])[0])
        assert len(chosen) == 3  # two of the four greatest, and one of all the others
        assert (chosen >= 6).sum() >= 2
        seen.add(tuple(chosen))
    assert {each for row in seen for each in row} == set(range(2, 10))


def test_ranking_needs_whole_groups(write):
    assert "groups of pair_size 2" in layer_error(write, RANK % "", (3, 2), (3,)).expected
    assert "pair_size 1" in layer_error(write, 'type: "RankHardLoss"', (2, 2), (2,)).found


# ---- EuclideanLoss2


@exercises("EuclideanLoss2")
def test_euclidean_loss_2_divides_by_the_first_distance(write):
    inputs = draw(3, 2, 2), draw(3, 4), np.array([0.5, 7, 7])
    check(
        write,
        'type: "EuclideanLoss2"',
        lambda x, t, d: ((x - t.reshape(x.shape)) ** 2).sum() / (2 * 3 * d[0]),
        *inputs,
        wrt=(0, 1),
    )
    assert "same number of values" in layer_error(write, 'type: "EuclideanLoss2"', (3, 4), (3, 5), (3,)).expected
