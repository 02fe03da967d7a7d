"""`caffe.transform`: image preprocessing as `transform_param` configures it."""

from caffe.transforms.transform import Transformer, Windows, workers

__all__ = ["Transformer", "Windows", "workers"]
