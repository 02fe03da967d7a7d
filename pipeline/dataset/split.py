"""Divide images into training and validation, and list as many of each class as is wanted; all by seed."""

from __future__ import annotations

import numpy as np

from pipeline.options.dataset import LabelOptions, Split

VAL = 0.2
"""Share of each class for validation, by default."""


def way(split: Split) -> str:
    """How images are divided: column, fraction or fold; empty where the images decide between column and fraction."""
    return split.by or ("fold" if split.folds else "" if split.val is None else "fraction")


def drawn(numbers: np.ndarray, groups: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Which images are for validation: a share of each class, or a fold of it. A group is never divided.

    numbers  the images' classes
    groups   the images' groups, as numbers; a group belongs to the class that most of its images have
    """
    kinds, members = np.unique(groups, return_inverse=True)
    sizes = np.bincount(members)
    classes = _commonest(members, numbers, len(kinds))
    chosen = np.zeros(len(kinds), bool)
    per_fold = np.zeros(split.folds or 0, int)
    for number in np.unique(classes):
        mine = rng.permutation(np.flatnonzero(classes == number))
        if way(split) == "fold":
            chosen[mine] = _folds(sizes[mine], per_fold) == split.fold
        else:
            total = sizes[mine].sum()
            chosen[mine] = _filled(sizes[mine], min(round((split.val or VAL) * total), total - 1))
    return chosen[members]


def _commonest(members: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The class that most images of each group have, the lowest of several."""
    pairs, often = np.unique(np.stack([members, numbers]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -often, pairs[0]))
    first = order[np.searchsorted(pairs[0][order], np.arange(count))]
    return pairs[1][first]


def _filled(sizes: np.ndarray, room: int) -> np.ndarray:
    """Which groups are taken, in turn, so that their images fill `room`; what does not fit any more is left."""
    taken = np.zeros(len(sizes), bool)
    for index, size in enumerate(sizes):
        if size <= room:
            taken[index] = True
            room -= size
    return taken


def _folds(sizes: np.ndarray, per_fold: np.ndarray) -> np.ndarray:
    """The fold of each group of a class: large groups first, each to the fold that has fewest images of the class.

    per_fold  images of all classes so far, which decides between equals; it is brought up to date
    """
    folds = np.zeros(len(sizes), int)
    of_class = np.zeros_like(per_fold)
    for index in np.argsort(-sizes, kind="stable"):
        folds[index] = fold = np.lexsort((per_fold, of_class))[0]
        of_class[fold] += sizes[index]
        per_fold[fold] += sizes[index]
    return folds


def balanced(numbers: np.ndarray, options: LabelOptions, rng: np.random.Generator) -> np.ndarray:
    """Positions of the training images to list, of these classes: as many of each as the options say, in shuffled order."""
    order = rng.permutation(len(numbers))
    if most := options.split.max_per_class:
        order = order[_ranks(numbers[order]) < most]
    if options.repeat and len(order):
        counts = np.bincount(numbers[order])
        of_class = [order[numbers[order] == number] for number in np.flatnonzero(counts)]
        order = np.concatenate([np.resize(one, counts.max()) for one in of_class])
        order = order[rng.permutation(len(order))]
    return order


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """How many of the same class came before, for each."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    ranks = np.empty(len(numbers), int)
    ranks[order] = np.arange(len(numbers)) - np.searchsorted(ordered, ordered)
    return ranks
