"""`caffe.datum`: fields and pixels of serialised Datum records."""

from caffe.formats.datum import Record, parse, pixels_of

__all__ = ["Record", "parse", "pixels_of"]
