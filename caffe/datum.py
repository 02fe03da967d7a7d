"""Records of databases: fields and images of serialised Datum messages."""

from caffe.formats.datum import Record, parse, pixels_of

__all__ = ["Record", "parse", "pixels_of"]
