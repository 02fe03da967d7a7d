"""Split images into training and validation, and limit or balance the training images of each class; all by seed."""

import numpy as np

from pipeline.options.dataset import LabelOptions, Split

VAL = 0.2
"""Share of each class for validation, by default."""


def way(split: Split) -> str:
    """How images are split: column, fraction or fold; empty if the images decide between column and fraction."""
    return split.by or ("fold" if split.folds else "" if split.val is None else "fraction")


def draw_validation_images(numbers: np.ndarray, groups: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    """A mask of the validation images: a share of each class, or a fold of it. Groups are not divided.

    numbers  the images' classes
    groups   the images' groups, as numbers; a group belongs to the class of most of its images
    """
    kinds, members = np.unique(groups, return_inverse=True)
    sizes = np.bincount(members)
    classes = _majority_classes(members, numbers, len(kinds))
    validation = np.zeros(len(kinds), bool)
    per_fold = np.zeros(split.folds or 0, int)
    for number in np.unique(classes):
        of_class = rng.permutation(np.flatnonzero(classes == number))
        if way(split) == "fold":
            validation[of_class] = _folds(sizes[of_class], per_fold) == split.fold
        else:
            total = sizes[of_class].sum()
            validation[of_class] = _fill(sizes[of_class], min(round((split.val or VAL) * total), total - 1))
    return validation[members]


def _majority_classes(members: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The most frequent class of each group, the lowest of equals."""
    pairs, counts = np.unique(np.stack([members, numbers]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    first = order[np.searchsorted(pairs[0][order], np.arange(count))]
    classes: np.ndarray = pairs[1][first]
    return classes


def _fill(sizes: np.ndarray, room: int) -> np.ndarray:
    """A mask of groups with at most `room` images in all: in order, skipping those that do not fit."""
    mask = np.zeros(len(sizes), bool)
    for index, size in enumerate(sizes):
        if size <= room:
            mask[index] = True
            room -= size
    return mask


def _folds(sizes: np.ndarray, per_fold: np.ndarray) -> np.ndarray:
    """The fold of each group of a class: large groups first, each to the fold with fewest images of the class.

    per_fold  images of all classes so far, which breaks ties; updated
    """
    folds = np.zeros(len(sizes), int)
    of_class = np.zeros_like(per_fold)
    for index in np.argsort(-sizes, kind="stable"):
        folds[index] = fold = np.lexsort((per_fold, of_class))[0]
        of_class[fold] += sizes[index]
        per_fold[fold] += sizes[index]
    return folds


def draw_training_images(numbers: np.ndarray, options: LabelOptions, rng: np.random.Generator) -> np.ndarray:
    """Shuffled positions of training images of these classes, limited to max_per_class and oversampled by `repeat`."""
    order = rng.permutation(len(numbers))
    if most := options.split.max_per_class:
        import pandas as pd  # slow to import

        order = order[pd.Series(numbers[order]).groupby(numbers[order]).cumcount() < most]
    if options.repeat and len(order):
        counts = np.bincount(numbers[order])
        of_class = [order[numbers[order] == number] for number in np.flatnonzero(counts)]
        order = np.concatenate([np.resize(positions, counts.max()) for positions in of_class])
        order = order[rng.permutation(len(order))]
    return order
