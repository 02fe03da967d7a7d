"""Caffe's schema: `caffe.proto.caffe_pb2` holds the messages."""
