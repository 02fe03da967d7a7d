"""What the C library is told of memory."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is allocated next, where that can be said (glibc).

    A pass frees its activations all at once, as a batch of images its pixels; given back to the system, they would come back page
    by page, which made LeNet's training step a third slower.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)
