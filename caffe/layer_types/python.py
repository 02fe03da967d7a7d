"""Layers that people write in Python, as the engine runs them."""

from __future__ import annotations

import importlib

import torch
from torch.autograd.function import once_differentiable

from caffe.engine import python_layer
from caffe.engine.blob import Blob
from caffe.engine.layer import Layer, register
from caffe.errors import nearest
from caffe.layer_types.data import Source


class _Written(torch.autograd.Function):
    """The user's forward and backward.

    Parameters are inputs so that backward is called where only they are learned; it adds to their diffs itself.
    """

    @staticmethod
    def forward(ctx, layer, bottoms, tops, *_tensors):
        layer.call("reshape", bottoms, tops)
        layer.call("forward", bottoms, tops)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.bottoms, ctx.tops = layer, bottoms, tops
        # A top keeps its memory from pass to pass, as the user expects; what leaves it must not change with it.
        return tuple(top.tensor if top in bottoms else top.tensor.clone() for top in tops)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        propagate = list(ctx.needs_input_grad[3 : 3 + len(ctx.bottoms)])
        for blob in ctx.bottoms:
            blob.gradient = None
        for blob, gradient in zip(ctx.tops, gradients, strict=True):
            blob.gradient = None if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
        ctx.layer.call("backward", ctx.tops, propagate, ctx.bottoms)
        below = [blob.gradient if wanted else None for blob, wanted in zip(ctx.bottoms, propagate, strict=True)]
        return None, None, None, *below, *(None for _ in ctx.needs_input_grad[3 + len(below) :])


@register("Python")
class Python(Layer):
    """What the class `layer` of the module `module` computes; it derives from caffe.Layer.

    bottoms, tops  any number and shape; the class decides
    written        the user's object. In pycaffe `net.layers[i]` is this object, so what is no attribute of an engine's layer is
                   read from it and set on it.
    """

    bottoms = (0, None)
    tops = (0, None)
    keeps_output = False
    runs_user_code = True

    def __new__(cls, param, *_arguments):
        return super().__new__(cls if param.bottom else _WrittenSource)

    @classmethod
    def blob_specs(cls, param):
        return None

    def __getattr__(self, name):
        if name == "written" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.written, name)

    def __setattr__(self, name, value):
        own = "written" not in self.__dict__ or name in self.__dict__ or hasattr(type(self), name)
        object.__setattr__(self if own else self.written, name, value)

    def seek_batch(self, number):
        self.written.seek(number * self.written.batch_size)

    def close(self):
        self.written.close()

    def setup(self, *shapes):
        self.top_blobs = [Blob((), self.device) for _ in self.param.top]
        bottom_names = list(self.param.bottom)
        self.in_place = [bottom_names.index(name) if name in bottom_names else None for name in self.param.top]
        written = self._made()
        self.blobs = written.blobs = python_layer.BlobVec(self.device)
        self.written = written
        bottoms = [Blob(shape, self.device) for shape in shapes]
        self.call("setup", bottoms, self._tops(bottoms))

    def _made(self) -> python_layer.Layer:
        p = self.param.python_param
        try:
            module = importlib.import_module(p.module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{p.module}.".startswith(f"{error.name}."):
                error.add_note(f"{self.where}: in module {p.module}")
                raise
            raise self.error(f'no module "{p.module}"', do="add the folder that holds it to PYTHONPATH") from error
        except Exception as error:
            error.add_note(f"{self.where}: in module {p.module}")
            raise
        kind = getattr(module, p.layer, None)
        if not (isinstance(kind, type) and issubclass(kind, python_layer.Layer)):
            known = [
                name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, python_layer.Layer)
            ]
            found = f'module "{p.module}" has no "{p.layer}"' if kind is None else f'"{p.layer}" of module "{p.module}"'
            raise self.error(found, "a class derived from caffe.Layer is wanted", nearest(p.layer, known))
        try:
            written = kind(self.param)
        except Exception as error:
            error.add_note(f"{self.where}: in {kind.__name__}")
            raise
        written.phase = python_layer.Phase(self.phase)
        # param_str_ is its name of early 2015.
        written.param_str = written.param_str_ = p.param_str
        return written

    def _tops(self, bottoms: list[Blob]) -> list[Blob]:
        return [top if index is None else bottoms[index] for top, index in zip(self.top_blobs, self.in_place, strict=True)]

    def call(self, method: str, *arguments) -> None:
        """Call a method of the user's object; what it raises also names the layer."""
        try:
            getattr(self.written, method)(*arguments)
        except Exception as error:
            error.add_note(f"{self.where}: in {type(self.written).__name__}.{method}")
            raise

    def forward(self, *bottoms):
        blobs = [Blob(x.shape, x.device) for x in bottoms]
        for slot, (blob, x) in enumerate(zip(blobs, bottoms, strict=True)):
            blob.tensor = x.detach().clone() if slot in self.in_place else x.detach()
        tops = self._tops(blobs)
        if not tops:
            self.call("reshape", blobs, tops)
            self.call("forward", blobs, tops)
            return ()
        return _Written.apply(self, blobs, tops, *bottoms, *self.parameters())

    def top_shapes(self, *shapes):
        """By the user's reshape."""
        bottoms = [Blob(shape, self.device) for shape in shapes]
        tops = self._tops(bottoms)
        self.call("reshape", bottoms, tops)
        return [top.shape for top in tops]


class _WrittenSource(Python, Source):
    """A Python layer without bottoms."""

    def batch_dependence(self):
        return "may give every process the same records, unless its code reads caffe.solver_rank()"
