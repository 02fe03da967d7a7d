"""Where the boxes of a graph go: in ranks from top to bottom, each below those that it reads from, branches side by side."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

ACROSS, DOWN, MARGIN = 14, 22, 10
"""Pixels between boxes of a rank, between ranks, and around all."""
SWEEPS = 60
"""How often boxes are moved towards those above and those below."""


PULL = 0.3
"""How strongly boxes are drawn to the middle, as a share of a line's pull."""


class Layout(NamedTuple):
    """The centre of each box, the points of each line, and the width and height of the whole."""

    centres: list[tuple[float, float]]
    lines: list[list[tuple[float, float]]]
    size: tuple[float, float]


def laid_out(sizes: list[tuple[float, float]], reads: list[list[int]]) -> Layout:
    """The layout of boxes, by their widths and heights and the numbers of the earlier boxes that each reads from.

    A line that passes ranks gets a place of its own in each of them, so that it passes beside the boxes.
    """
    rank: list[int] = []
    for sources in reads:
        rank.append(1 + max((rank[source] for source in sources), default=-1))
    widths = [width for width, _ in sizes]
    above: list[list[int]] = [[] for _ in sizes]
    chains = []
    for target, sources in enumerate(reads):
        for source in sources:
            chain = [source]
            for between in range(rank[source] + 1, rank[target]):
                rank.append(between)
                widths.append(0)
                above.append([chain[-1]])
                chain.append(len(rank) - 1)
            above[target].append(chain[-1])
            chains.append([*chain, target])
    below: list[list[int]] = [[] for _ in rank]
    for node, nodes in enumerate(above):
        for other in nodes:
            below[other].append(node)
    ranks: list[list[int]] = [[] for _ in range(1 + max(rank))]
    for node, number in enumerate(rank):
        ranks[number].append(node)
    x = _across(ranks, widths, above, below, len(sizes))

    tops, y = [], float(MARGIN)
    for nodes in ranks:
        height = max((sizes[node][1] for node in nodes if node < len(sizes)), default=0)
        tops.append((y, y + height))
        y += height + DOWN
    left = min(at - width / 2 for at, width in zip(x, widths, strict=True)) - MARGIN
    right = max(at + width / 2 for at, width in zip(x, widths, strict=True)) + MARGIN
    centres = [(x[node] - left, sum(tops[rank[node]]) / 2) for node in range(len(sizes))]
    lines = []
    for source, *passed, target in chains:
        points = [(centres[source][0], centres[source][1] + sizes[source][1] / 2)]
        for node in passed:
            points += [(x[node] - left, edge) for edge in tops[rank[node]]]
        lines.append([*points, (centres[target][0], centres[target][1] - sizes[target][1] / 2)])
    return Layout(centres, lines, (right - left, y - DOWN + MARGIN))


def _across(
    ranks: list[list[int]], widths: list[float], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]], boxes: int
) -> list[float]:
    """The x of each node: ordered by the mean of its neighbours, then as near to it as those beside it allow."""
    place = [float(number) for number in range(len(widths))]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for nodes in ranks if down else reversed(ranks):
            near = above if down else below
            nodes.sort(key=lambda node: _mean([place[other] for other in near[node]], place[node]))
            for number, node in enumerate(nodes):
                place[node] = number - (len(nodes) - 1) / 2
    x = [0.0] * len(widths)
    for sweep in range(SWEEPS):
        for nodes in ranks if sweep % 2 == 0 else reversed(ranks):
            near = [(*above[node], *below[node]) for node in nodes]
            wanted = [sum(x[other] for other in others) / (len(others) + PULL) for others in near]
            apart = [(widths[one] + widths[other]) / 2 + ACROSS for one, other in pairwise(nodes)]
            weights = [1.0 if node < boxes else 4.0 for node in nodes]
            for node, at in zip(nodes, _spread(wanted, apart, weights), strict=True):
                x[node] = at
    return x


def _spread(wanted: list[float], apart: list[float], weights: list[float]) -> list[float]:
    """The places nearest to those wanted, by weighted squares, that keep order and distances; by pooling adjacent violators."""
    shifts = [0.0]
    for distance in apart:
        shifts.append(shifts[-1] + distance)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for place, shift, weight in zip(wanted, shifts, weights, strict=True):
        mean, count = place - shift, 1
        while blocks and blocks[-1][0] >= mean:
            other, heavy, many = blocks.pop()
            mean, weight, count = (mean * weight + other * heavy) / (weight + heavy), weight + heavy, count + many
        blocks.append((mean, weight, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + shift for mean, shift in zip(means, shifts, strict=True)]


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
