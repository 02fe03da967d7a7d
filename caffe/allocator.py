"""`caffe.allocator`: settings of the C library's memory allocator."""

from caffe.engine.allocator import keep_freed_memory

__all__ = ["keep_freed_memory"]
