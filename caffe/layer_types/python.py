"""Python: the layer type that runs users' classes derived from caffe.Layer."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caffe import events
from caffe.engine import mode, python2, python_layer
from caffe.engine.blob import Blob
from caffe.engine.layer import Layer, LayerClass, Shape, Tops, register
from caffe.errors import nearest
from caffe.layer_types import known_python
from caffe.layer_types.data import Source
from caffe.proto import caffe_pb2


class _Written(torch.autograd.Function):
    """The user's forward and backward.

    Parameters are inputs so that backward also runs when only they need a gradient; it adds to their diffs itself.
    """

    @staticmethod
    def forward(ctx: Any, layer: Python, bottoms: list[Blob], tops: list[Blob], *_tensors: Tensor) -> tuple[Tensor, ...]:
        layer.call("reshape", bottoms, tops)
        layer.call("forward", bottoms, tops)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.bottoms, ctx.tops = layer, bottoms, tops
        # A top keeps its memory from pass to pass, as users expect; the returned tensor must not change with it.
        return tuple(top.tensor if top in bottoms else top.tensor.clone() for top in tops)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
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
    """Runs the class `layer` of the module `module`, which derives from caffe.Layer.

    bottoms, tops  any number and shape, as the class decides
    written        the user's object. In pycaffe `net.layers[i]` is this object, so attributes that the engine's layer lacks are
                   read from it and set on it.
    """

    bottoms = (0, None)
    tops = (0, None)
    keeps_output = False
    runs_user_code = True

    @classmethod
    def implementation(cls, param: caffe_pb2.LayerParameter, where: str) -> LayerClass:
        """The class for the user's object; the built-in version of a known layer where its module is missing."""
        p = param.python_param
        known = known_python.KNOWN.get((p.module, p.layer))
        if known is not None and known_python.is_missing(p.module):
            events.built_in_used(where, p.module, p.layer)
            return known
        return cls if param.bottom else _WrittenSource

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name == "written" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.written, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = "written" not in self.__dict__ or name in self.__dict__ or hasattr(type(self), name)
        object.__setattr__(self if own else self.written, name, value)

    def seek_batch(self, number: int) -> None:
        self.written.seek(number * self.written.batch_size)

    def close(self) -> None:
        self.written.close()

    def setup(self, *shapes: Shape) -> None:
        self.top_blobs = [Blob((), self.device) for _ in self.param.top]
        bottom_names = list(self.param.bottom)
        self.in_place = [bottom_names.index(name) if name in bottom_names else None for name in self.param.top]
        written = self._create()
        self.blobs = written.blobs = python_layer.BlobVec(self.device)
        self.written = written
        bottoms = [Blob(shape, self.device) for shape in shapes]
        self.call("setup", bottoms, self._tops(bottoms))

    def _create(self) -> python_layer.Layer:
        p = self.param.python_param
        try:
            with self._noting(f"module {p.module}"), self._noting_built_in():
                module = importlib.import_module(p.module)
        except ModuleNotFoundError as error:
            if not known_python.names_part(error, p.module):
                raise
            raise self.error(f'no module "{p.module}"', do="add the folder that holds it to PYTHONPATH") from error
        kind = getattr(module, p.layer, None)
        if not (isinstance(kind, type) and issubclass(kind, python_layer.Layer)):
            classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
            known = [name for name, value in classes.items() if issubclass(value, python_layer.Layer)]
            found = f'module "{p.module}" has no "{p.layer}"' if kind is None else f'"{p.layer}" of module "{p.module}"'
            raise self.error(found, "it must be a class derived from caffe.Layer", nearest(p.layer, known))
        with self._noting(kind.__name__):
            written = kind(self.param)
        written.phase = python_layer.Phase(self.phase)
        # param_str_ is what Caffe of early 2015 calls it.
        written.param_str = written.param_str_ = p.param_str
        return written

    def _tops(self, bottoms: list[Blob]) -> list[Blob]:
        return [top if index is None else bottoms[index] for top, index in zip(self.top_blobs, self.in_place, strict=True)]

    @contextmanager
    def _noting(self, code: str) -> Iterator[None]:
        """Add a note with the layer and the user's code that runs to an exception."""
        try:
            yield
        except Exception as error:
            error.add_note(f"{self.where}: in {code}")
            if advice := python2.advice(error):
                error.add_note(advice)
            raise

    @contextmanager
    def _noting_built_in(self) -> Iterator[None]:
        """Add a note on the built-in version of a known layer to an exception of its module."""
        p = self.param.python_param
        try:
            yield
        except Exception as error:
            if (p.module, p.layer) in known_python.KNOWN:
                error.add_note(f"Without a module {p.module} on PYTHONPATH the built-in {p.layer} is used.")
            raise

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of the user's object."""
        with self._noting(f"{type(self.written).__name__}.{method}"):
            getattr(self.written, method)(*arguments)

    def forward(self, *bottoms: Tensor) -> Tops:
        if mode.numerics() == "reproducible" and not self.written.reproducible:
            found = f"{type(self.written).__name__} is written in Python: what it computes with NumPy is not seen"
            do = "set `reproducible = True` in its class if it computes the same on every machine, or use another numerics"
            raise self.error(found, "numerics: reproducible", do)
        blobs = [Blob(x.shape, x.device) for x in bottoms]
        for slot, (blob, x) in enumerate(zip(blobs, bottoms, strict=True)):
            blob.tensor = x.detach().clone() if slot in self.in_place else x.detach()
        tops = self._tops(blobs)
        if not tops:
            self.call("reshape", blobs, tops)
            self.call("forward", blobs, tops)
            return ()
        return _Written.apply(self, blobs, tops, *bottoms, *self.parameters())

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        """As the user's reshape sets them."""
        bottoms = [Blob(shape, self.device) for shape in shapes]
        tops = self._tops(bottoms)
        self.call("reshape", bottoms, tops)
        return [top.shape for top in tops]


class _WrittenSource(Python, Source):  # type: ignore[misc] # both declare bottoms; Python's are meant
    """A Python layer without bottoms."""

    def batch_dependence(self) -> str:
        return "may give every process the same records, unless its code reads caffe.solver_rank()"
