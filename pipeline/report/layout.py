"""Lay out the boxes of a graph: in ranks from top to bottom, each below those that it reads from, branches side by side."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import NamedTuple

ACROSS, DOWN, MARGIN = 14, 22, 10
"""Pixels between boxes of a rank, between ranks, and around the whole."""
SWEEPS = 60
"""Number of times that boxes are moved towards those above and below."""
PULL = 0.3
"""Strength of the pull towards the middle, as a share of a line's pull."""


class Layout(NamedTuple):
    """The centre of each box, the points of each line, and the width and height of the whole."""

    centres: list[tuple[float, float]]
    lines: list[list[tuple[float, float]]]
    size: tuple[float, float]


def laid_out(sizes: list[tuple[float, float]], reads: list[list[int]]) -> Layout:
    """The layout of boxes, by their widths and heights and the indices of the earlier boxes that each reads from.

    In each rank that a line crosses it gets a node of width 0, so that it passes beside the boxes.
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
    """The x of each node: ordered by the mean of its neighbours, then as close to that as the nodes beside it allow."""
    place = [float(number) for number in range(len(widths))]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for nodes in ranks if down else reversed(ranks):
            near = above if down else below
            nodes.sort(key=lambda node: fmean([place[other] for other in near[node]] or [place[node]]))
            for number, node in enumerate(nodes):
                place[node] = number - (len(nodes) - 1) / 2
    x = [0.0] * len(widths)
    for sweep in range(SWEEPS):
        for nodes in ranks if sweep % 2 == 0 else reversed(ranks):
            near = [(*above[node], *below[node]) for node in nodes]
            ideal = [sum(x[other] for other in others) / (len(others) + PULL) for others in near]
            distances = [(widths[left] + widths[right]) / 2 + ACROSS for left, right in pairwise(nodes)]
            weights = [1.0 if node < boxes else 4.0 for node in nodes]
            for node, at in zip(nodes, _spread(ideal, distances, weights), strict=True):
                x[node] = at
    return x


def _spread(ideal: list[float], distances: list[float], weights: list[float]) -> list[float]:
    """Positions with at least these distances, in order, by weighted least squares from the ideal: pool adjacent violators."""
    shifts = list(accumulate(distances, initial=0.0))
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for place, shift, weight in zip(ideal, shifts, weights, strict=True):
        mean, count = place - shift, 1
        while blocks and blocks[-1][0] >= mean:
            other, heavy, many = blocks.pop()
            mean, weight, count = (mean * weight + other * heavy) / (weight + heavy), weight + heavy, count + many
        blocks.append((mean, weight, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + shift for mean, shift in zip(means, shifts, strict=True)]
