"""Setting of the C library's allocator."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocations, if it is glibc.

    A pass frees its activations all at once, as a reader its pixels, and the next one needs as much. Memory that is returned to
    the system is mapped again page by page, each cleared first: LeNet's training step took a third longer, VGG-16's and
    SqueezeNet's a fifth. By default glibc returns each array of more than 32 MB, whatever the threshold, and those of other
    threads than the first. What is kept is the process's most, and is returned when it ends.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
        mallopt(mmap_max, 0)
        mallopt(arena_max, 1)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 << 20)
