"""When lr_policy "plateau" of SSD's fork (weiliu89/caffe, sgd_solver.cpp) lowers the rate."""

import math
from collections.abc import Sequence


class Plateau:
    """Watches the smoothed loss for iterations in which it finds no new minimum.

    windows  plateau_winsize: the iterations without one after which each step is taken
    least    the smallest loss so far
    last     the iteration of the last minimum or step
    """

    def __init__(self, windows: Sequence[int]):
        self.windows = windows
        self.least = math.inf
        self.last = 0

    def ends(self, iteration: int, loss: float, steps: int) -> bool:
        """Note the loss of an iteration; returns whether the rate is to be lowered, of which there were `steps` so far."""
        if loss < self.least:
            self.least, self.last = loss, iteration
        if steps >= len(self.windows) or iteration < self.last + self.windows[steps]:
            return False
        self.last = iteration
        return True
