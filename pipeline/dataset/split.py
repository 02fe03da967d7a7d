"""Divide images into training and validation, and list as many of each class as is wanted; all by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """How images are divided: by their `split` column; or a share of each class; or one of several folds.

    val            share of each class for validation; None takes the column, where there are no folds
    seed           what all is drawn by
    folds, fold    every class is divided into so many parts, and this one, from 0, is for validation
    min_per_class  the least training images that a class may have
    max_per_class  how many training images of a class are taken, drawn by seed; 0 takes all
    repeat         list the training images of every class as often as the largest class has images, in turn (label shuffling)
    own            take the column in the place of all that where each image has a split, and not all are for training
    """

    val: float | None
    seed: int
    folds: int = 0
    fold: int = 0
    min_per_class: int = 1
    max_per_class: int = 0
    repeat: bool = False
    own: bool = False


def drawn(numbers: np.ndarray, groups: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Which images are for validation: a share of each class, or a fold of it. A group is never divided.

    numbers  the images' classes
    groups   the images' groups, as numbers; a group belongs to the class that most of its images have
    """
    kinds, members = np.unique(groups, return_inverse=True)
    sizes = np.bincount(members)
    classes = _commonest(members, numbers, len(kinds))
    chosen = np.zeros(len(kinds), bool)
    per_fold = np.zeros(split.folds, int)
    for number in np.unique(classes):
        mine = rng.permutation(np.flatnonzero(classes == number))
        if split.folds:
            chosen[mine] = _folds(sizes[mine], per_fold) == split.fold
        else:
            total = sizes[mine].sum()
            chosen[mine] = _filled(sizes[mine], min(round(split.val * total), total - 1))
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


def balanced(numbers: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Positions of the training images to list, of these classes: as many of each as `split` says, in shuffled order."""
    order = rng.permutation(len(numbers))
    if split.max_per_class:
        order = order[_ranks(numbers[order]) < split.max_per_class]
    if split.repeat and len(order):
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
