"""What `transform_param` does to images."""

from caffe.transforms.transform import Transformer, Windows, read_mean, workers

__all__ = ["Transformer", "Windows", "read_mean", "workers"]
