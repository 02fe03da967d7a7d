"""Random changes of images, as `augmentation_param` describes them."""

from caffe.transforms.augmentation import Augmentation, Changes

__all__ = ["Augmentation", "Changes"]
