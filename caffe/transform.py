"""`caffe.transform`: image preprocessing as `transform_param` configures it."""

from caffe.formats.stored import read_mean
from caffe.transforms.transform import Transformer, Windows, workers

__all__ = ["Transformer", "Windows", "read_mean", "workers"]
