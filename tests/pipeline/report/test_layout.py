"""The layout of graphs: boxes below what they read and without overlap, edges beside boxes."""

import itertools

import pytest

from pipeline.report.layout import laid_out

CHAIN = [[], [0], [1], [2]]
SHORTCUT = [[], [0], [1], [2, 0]]
INCEPTION = [[], [0], [0], [0], [0], [2], [3], [4], [1, 5, 6, 7]]
HEADS = [[], [0], [1], [1], [2], [4]]
TWO_INPUTS = [[], [], [0, 1]]


@pytest.mark.parametrize("reads", [CHAIN, SHORTCUT, INCEPTION, HEADS, TWO_INPUTS, [[]]])
def test_boxes_are_below_what_they_read_and_do_not_overlap(reads):
    sizes = [(80 + 7 * (number % 3), 30 + 5 * (number % 2)) for number in range(len(reads))]
    layout = laid_out(sizes, reads)
    width, height = layout.size
    edges = []
    for (x, y), (wide, high) in zip(layout.centres, sizes, strict=True):
        edges.append((x - wide / 2, y - high / 2, x + wide / 2, y + high / 2))
        assert edges[-1][0] >= 0
        assert edges[-1][1] >= 0
        assert edges[-1][2] <= width
        assert edges[-1][3] <= height
    for one, other in itertools.combinations(edges, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    for target, sources in enumerate(reads):
        assert all(edges[source][3] < edges[target][1] for source in sources)
    assert len(layout.lines) == sum(map(len, reads))


def test_a_chain_is_straight():
    centres = laid_out([(100, 30), (60, 30), (90, 30), (100, 30)], CHAIN).centres
    assert len({round(x, 3) for x, _ in centres}) == 1


def test_a_shortcut_passes_beside_the_boxes():
    sizes = [(100, 30)] * 4
    layout = laid_out(sizes, SHORTCUT)
    (shortcut,) = (line for line in layout.lines if len(line) > 2)
    for x, y in shortcut[1:-1]:
        for (middle, center), (wide, high) in zip(layout.centres, sizes, strict=True):
            assert abs(x - middle) > wide / 2 or abs(y - center) > high / 2


def test_branches_are_centred():
    layout = laid_out([(100, 30)] * len(INCEPTION), INCEPTION)
    xs = [x for x, _ in layout.centres]
    assert min(xs[1:5]) < xs[0] < max(xs[1:5])
    assert min(xs[1:5]) < xs[8] < max(xs[1:5])
