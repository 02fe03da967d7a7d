"""Caffe's schema: `caffe.proto.caffe_pb2` holds the messages, with `import caffe` alone, as in BVLC Caffe."""

from caffe.proto import caffe_pb2

__all__ = ["caffe_pb2"]
