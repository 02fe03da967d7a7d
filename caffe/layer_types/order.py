"""Orders of records: a new one for each epoch, or drawn from a pool."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from caffe.events import Event
from caffe.numerics.generator import Generator


def positions(count: int, numbers: Iterable[int], seed: int | None, restarted: Event) -> Iterator[int]:
    """Positions among `count` records of records that are numbered over all epochs.

    seed       determines, with the epoch, each epoch's order; None is the given order
    restarted  called at each further epoch
    """
    last: int | None = None
    order: Sequence[int] | np.ndarray = range(count)
    for number in numbers:
        epoch, index = divmod(number, count)
        if epoch != last:
            if last is not None:
                restarted()
            if seed is not None:
                order = Generator(seed, epoch).permutation(count)
            last = epoch
        yield int(order[index])


def pooled(position: int, batch_size: int, batches: int, seed: int) -> Iterator[int]:
    """Numbers of records, over all epochs, drawn from a pool of so many batches, from the one at `position` on.

    The records of the first batches come in order; then each batch is drawn from the pool, without replacement, and the next
    records take the places. The seed determines the order, so that any position can be continued from.
    """
    pool = np.arange(batches * batch_size)
    for first in itertools.count(0, batch_size):
        chosen = following = np.arange(first, first + batch_size)
        if first >= len(pool):
            places = Generator(seed, first).permutation(len(pool))[:batch_size]
            chosen = pool[places]
            pool[places] = following
        if first > position - batch_size:
            yield from map(int, chosen[max(0, position - first) :])
