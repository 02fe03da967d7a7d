"""`caffe.augmentation`: random image augmentation, as `augmentation_param` configures it."""

from caffe.transforms.augmentation import Augmentation, Changes

__all__ = ["Augmentation", "Changes"]
