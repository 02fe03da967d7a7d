"""`caffe.datum`: fields and pixels of serialised Datum records."""

from caffe.formats.datum import Record, parse_datum, pixels_of

__all__ = ["Record", "parse", "parse_datum", "pixels_of"]

parse = parse_datum
