"""caffe.Layer: the base class of layers that users write in Python."""

import enum

import torch

from caffe.engine.blob import Blob
from caffe.engine.parameter import Parameter
from caffe.proto import caffe_pb2


class Phase(enum.IntEnum):
    """A number, as in Caffe; as text its name, by which R-CNN's layers look up settings."""

    TRAIN = caffe_pb2.TRAIN
    TEST = caffe_pb2.TEST

    def __str__(self) -> str:
        return self.name


class BlobVec(list[Parameter]):
    """The parameters that a layer learns."""

    def __init__(self, device: torch.device | None = None):
        super().__init__()
        self._device = device

    def add_blob(self, *shape: int) -> None:
        """Append a parameter of that shape, filled with zeros."""
        self.append(Parameter(shape, self._device))


class Layer:
    """A layer written in Python; a prototxt names its module, which Python must be able to import, and its class:

        layer { name: "loss" type: "Python" bottom: "scores" bottom: "label" top: "loss" loss_weight: 1
                python_param { module: "my_layers" layer: "MyLoss" param_str: "{'margin': 1}" } }

    `bottom` and `top` are lists of blobs; `data` and `diff` are writable NumPy arrays. An in-place top is the bottom's blob.

    param_str  the text of the prototxt's param_str
    phase      caffe.TRAIN or caffe.TEST; as text "TRAIN" or "TEST"
    blobs      learned parameters: self.blobs.add_blob(10, 3) in `setup` appends one; `backward` adds to their diffs

    batch_size    records per batch, of a layer that reads records and implements `seek`
    reproducible  whether its results are the same to the byte on every machine, as `numerics: reproducible` demands
    """

    type = "Python"
    batch_size = 0
    reproducible = False
    param_str = ""
    param_str_ = ""
    phase = Phase.TEST
    blobs: BlobVec

    def __init__(self, param: caffe_pb2.LayerParameter, *_arguments: object):
        self.layer_param = param

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read `param_str` and check the bottoms; called once."""

    def seek(self, position: int) -> None:
        """Continue at record number `position`, counted over all epochs; a restored solver calls it."""

    def close(self) -> None:
        """Stop threads and close files; net.close() calls it."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Give the tops their shapes, `top[0].reshape(10, 3)`; called before every `forward`."""
        raise NotImplementedError(f"{type(self).__name__} has no reshape(self, bottom, top)")

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Write the tops' data."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(self, bottom, top)")

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Write the bottoms' diffs from the tops', if propagate_down asks for them, and add to the diffs of `self.blobs`."""
        raise NotImplementedError(f"{type(self).__name__} has no backward(self, top, propagate_down, bottom)")
