"""Setting of the C library's allocator."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocations, if it is glibc.

    A pass frees its activations all at once, as a batch of images its pixels; memory returned to the system would be mapped again
    page by page, which made LeNet's training step a third slower.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)
