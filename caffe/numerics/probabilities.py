"""Probabilities of classes, outside of nets."""

import numpy as np
import torch

from caffe.numerics import elementary, exact


def softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their natural logarithms, float64, of scores: rows × classes.

    Their bits depend on nothing but the scores: NumPy's and SciPy's exponentials round differently on processors with AVX-512.
    """
    shifted = torch.from_numpy((scores - scores.max(1, keepdims=True)).astype(np.float64))  # in the precision of the scores
    powers = elementary.exp(shifted)
    total = exact.in_order(powers)[:, None]
    return (powers / total).numpy(), (shifted - elementary.log(total)).numpy()
