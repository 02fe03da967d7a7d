"""Net: pycaffe's interface to a network of layers and named blobs."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from caffe.engine import batches, early, machine, mode
from caffe.engine import weights as parameters
from caffe.engine.blob import Blob
from caffe.engine.builder import build
from caffe.engine.layer import Layer
from caffe.engine.names import ByName
from caffe.engine.parameter import Parameter
from caffe.engine.runner import Runner
from caffe.errors import Error
from caffe.formats import prototxt
from caffe.proto import caffe_pb2


class Net(early.EarlyCalls):
    """A network, built from its prototxt.

        net = caffe.Net("deploy.prototxt", caffe.TEST, weights="lenet.caffemodel")
        net = caffe.Net("deploy.prototxt", "lenet.caffemodel", caffe.TEST)      the constructor of 2015

    phase    caffe.TRAIN or caffe.TEST; with level and stages it decides which layers are included
    weights  a .caffemodel or .caffemodel.h5 whose layers of the same names are copied

    blobs    {name: Blob} in the order in which layers produce them; data and diff are NumPy arrays
    params   {layer name: [weights, bias, …]}; of layers with one name, those of the last
    layers   the layers, with `type` and `blobs`
    graph    which layers make and read the blobs: a NetGraph of `definition`, the layers with the inserted splits
    inputs, outputs  names of blobs
    """

    def __init__(
        self,
        network_file: os.PathLike[str] | str | caffe_pb2.NetParameter,
        *args: Any,
        phase: int | None = None,
        level: int | None = None,
        stages: Iterable[str] | None = None,
        weights: os.PathLike[str] | str | None = None,
    ) -> None:
        if len(args) == 2 and not isinstance(args[0], int):
            weights, phase = args
        elif len(args) == 1 and phase is None and isinstance(args[0], (str, os.PathLike)):
            weights, phase = args[0], early.phase_of(network_file, args[0])
        elif args:
            options: list[Any] = [phase, level, stages, weights]
            options[: len(args)] = args
            phase, level, stages, weights = options
        if phase not in (caffe_pb2.TRAIN, caffe_pb2.TEST):
            raise TypeError(f"a net's phase is caffe.TRAIN or caffe.TEST, not {phase!r}: caffe.Net(net, weights, caffe.TEST)")
        if isinstance(network_file, caffe_pb2.NetParameter):
            definition = caffe_pb2.NetParameter()
            definition.CopyFrom(network_file)
            self.path, lines = definition.name or "net", []
        else:
            self.path = os.fsdecode(network_file)
            definition, lines = prototxt.read_net(self.path), prototxt.layer_lines(self.path)
        definition.state.phase = caffe_pb2.TRAIN if phase == caffe_pb2.TRAIN else caffe_pb2.TEST
        if level is not None:
            definition.state.level = level
        definition.state.stage.extend(stages or [])
        self._init(definition, lines)
        if weights is not None:
            self.copy_from(weights)

    def _init(self, definition: caffe_pb2.NetParameter, lines: list[int]) -> None:
        machine.prepare()
        self.phase = definition.state.phase
        self.device = mode.device()
        net = build(definition, prototxt.places_at(self.path, definition, lines), self.device)
        self._runner = Runner(net)
        self.graph = net.graph
        self.definition, self.name = net.definition, net.definition.name
        self.blobs, self.outputs = net.blobs, net.outputs
        self.blobs.where = self.path
        self.blob_loss_weights, self.blob_needs_backward = net.blob_loss_weights, net.blob_needs_backward
        self.layers: list[Layer] = [step.layer for step in net.steps]
        self._layer_names: list[str] = [layer.param.name for layer in self.layers]
        named = ((layer.param.name, layer.blobs) for layer in self.layers if layer.blobs)
        self.params = ByName(named, self.path, "layer with parameters")
        self.bottom_names = OrderedDict((layer.param.name, list(layer.param.bottom)) for layer in self.layers)
        self.top_names = OrderedDict((layer.param.name, list(layer.param.top)) for layer in self.layers)
        self.inputs = [name for step in net.steps if step.layer.is_input for name in step.tops]

    # ---- running

    def forward(
        self, blobs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute from layer `start` to layer `end` (names, both included; all by default).

        blobs   names of blobs to return besides the outputs
        kwargs  values of input blobs: net.forward(data=images)
        Returns {name: array}: the net's outputs, or the tops of `end`.
        """
        first = self._layer_index(start) if start is not None else 0
        last = self._layer_index(end) if end is not None else len(self.layers) - 1
        names = dict.fromkeys([*(self.outputs if end is None else self.top_names[end]), *(blobs or [])])
        self._set_inputs(kwargs)
        self._runner.forward(first, last)
        return {name: self.blobs[name].data for name in names}

    def _set_inputs(self, inputs: Mapping[str, np.ndarray]) -> None:
        if inputs and set(inputs) != set(self.inputs):
            raise Error(self.path, f"inputs {sorted(inputs)}", f"the net takes {sorted(self.inputs)}")
        for name, values in inputs.items():
            size = self.blobs[name].shape[0]
            if values.shape[0] != size:
                raise Error(self.path, f'{values.shape[0]} images for input "{name}"', f"its batch is {size}")
            self.blobs[name].data[...] = values

    def backward(
        self, diffs: Iterable[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Compute gradients from layer `start` down to layer `end` (names, both included; all by default).

        diffs   names of blobs whose gradient to return besides those of the inputs
        kwargs  gradients of output blobs: net.backward(prob=gradient)
        Returns {name: array}: gradients of the net's inputs, or of the bottoms of `end`.
        """
        last = self._layer_index(start) if start is not None else len(self.layers) - 1
        first = self._layer_index(end) if end is not None else 0
        names = dict.fromkeys([*(self.inputs if end is None else self.bottom_names[end]), *(diffs or [])])
        self._set_gradients(self.outputs if start is None else self.top_names[start], kwargs)
        self._runner.backward(last, first)
        return {name: self.blobs[name].diff for name in names}

    def _set_gradients(self, tops: Collection[str], gradients: Mapping[str, np.ndarray]) -> None:
        if gradients and set(gradients) != set(tops):
            raise Error(self.path, f"gradients of {sorted(gradients)}", f"those of {sorted(tops)} are needed")
        for name, values in gradients.items():
            self.blobs[name].diff[...] = values

    @property
    def debug_info(self) -> bool:
        """Whether each layer's mean magnitudes are logged."""
        return self._runner.debug_info

    @debug_info.setter
    def debug_info(self, value: bool) -> None:
        self._runner.debug_info = value

    def before_forward(self, function: Callable[[int], object]) -> None:
        """Call `function(layer index)` before each layer computes."""
        self._runner.callbacks["before_forward"].append(function)

    def after_forward(self, function: Callable[[int], object]) -> None:
        """Call `function(layer index)` after each layer has computed."""
        self._runner.callbacks["after_forward"].append(function)

    def before_backward(self, function: Callable[[int], object]) -> None:
        """Call `function(layer index)` before each layer's gradient is computed."""
        self._runner.callbacks["before_backward"].append(function)

    def after_backward(self, function: Callable[[int], object]) -> None:
        """Call `function(layer index)` after each layer's gradient was computed.

        A caffe.NCCL is called by autograd instead, since for callbacks layers are computed one by one.
        """
        if hasattr(function, "exchange_during_backward"):
            function.exchange_during_backward()
        else:
            self._runner.callbacks["after_backward"].append(function)

    def _layer_index(self, name: str) -> int:
        if name not in self.top_names:
            raise Error(self.path, f'no layer "{name}"', do="net.top_names lists the layers")
        return self._layer_names.index(name)

    def forward_loss(self) -> torch.Tensor:
        """One full forward pass, to be followed by `backward_params`; the weighted sum of all losses, as a scalar tensor."""
        return self._runner.forward_loss()

    def backward_params(self) -> None:
        """One full backward pass for the parameters; other blobs' diffs are kept only if some `diff` was read before."""
        self._runner.backward_params()

    def check_deferred(self) -> None:
        """Raise the errors that a GPU has found in the values of `forward_loss`, if no `backward_params` follows."""
        self._runner.check_deferred()

    def forward_all(self, blobs: Collection[str] | None = None, **kwargs: np.ndarray) -> dict[str, np.ndarray]:
        """Forward over more inputs than a batch holds: {name: array} of outputs with one row for each input."""
        values = []
        for batch in self._batch(kwargs):
            self._set_inputs(batch)
            values.append(copy.deepcopy(self.forward(blobs=blobs)))
        return batches.join(values, [*self.outputs, *(blobs or [])], batches.count_of(kwargs))

    def forward_backward_all(
        self, blobs: Collection[str] | None = None, diffs: Collection[str] | None = None, **kwargs: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Forward and backward over more inputs than a batch holds: ({name: outputs}, {name: gradients})."""
        values, gradients = [], []
        backward = self._batch({name: kwargs[name] for name in self.outputs if name in kwargs})
        for batch in self._batch({name: kwargs[name] for name in self.inputs if name in kwargs}):
            self._set_inputs(batch)
            values.append(copy.deepcopy(self.forward(blobs=blobs)))
            self._set_gradients(self.outputs, next(backward, {}))
            gradients.append(copy.deepcopy(self.backward(diffs=diffs)))
        count = batches.count_of(kwargs)
        outputs = batches.join(values, [*self.outputs, *(blobs or [])], count)
        return outputs, batches.join(gradients, [*self.inputs, *(diffs or [])], count)

    def reshape(self) -> None:
        """Give every blob the shape that follows from the inputs' shapes, without computing."""
        for layer, param in zip(self.layers, self.definition.layer, strict=True):
            if layer.is_source:  # the caller has set the shapes of its tops
                continue
            shapes = [self.blobs[name].shape for name in param.bottom]
            for name, shape in zip(param.top, layer.top_shapes(*shapes), strict=True):
                self.blobs[name].reshape(*shape)

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to 0."""
        for layer in self.layers:
            for blob in layer.blobs:
                blob.gradient = None

    # ---- parameters

    def learnable_params(self) -> list[Parameter]:
        """Every parameter once, in the order of the layers; shared ones at their owner."""
        return [blob for layer in self.layers for blob in layer.blobs if blob.owner is blob]

    def copy_from(self, source: os.PathLike[str] | str | Net, skip: Collection[str] = ()) -> parameters.Copied:
        """Copy parameters by layer name, except those of `skip`; see `copy_weights`.

        source  a .caffemodel or .caffemodel.h5, or another net
        """
        return parameters.copy_weights(self.layers, source.layers if isinstance(source, Net) else os.fsdecode(source), skip)

    def share_with(self, other: Net) -> None:
        """Use the memory of another net's parameters in the layers of the same names; both nets must be on one device."""
        if self.device != other.device:
            found, expected = f"share_with a net on {other.device}", f"this net is on {self.device}"
            raise Error(f'net "{self.name}"', found, expected, "make both after the same set_device, or use copy_from")
        parameters.share_weights(self.layers, other.layers)
        self._runner.follow(other._runner)

    def save(self, path: os.PathLike[str] | str, diff: bool = False) -> None:
        """Write the net's parameters as a .caffemodel; whole or not at all."""
        parameters.save_weights(self.name, self.layers, os.fsdecode(path), diff)

    def save_hdf5(self, path: os.PathLike[str] | str, diff: bool = False) -> None:
        """Write the net's parameters as a .caffemodel.h5; whole or not at all."""
        parameters.save_weights_hdf5(self.layers, os.fsdecode(path), diff)

    def load_hdf5(self, path: os.PathLike[str] | str) -> parameters.Copied:
        """Copy parameters by layer name from a .caffemodel.h5, whatever its name."""
        return parameters.copy_weights(self.layers, os.fsdecode(path))

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Set the data of the MemoryData layer that the net begins with; the arrays are kept, not copied.

        data (N, C, H, W) and labels (N,), float32, N a multiple of the layer's batch size
        """
        self.layers[0].set_arrays(data, labels)

    # ---- private names of BVLC's binding that scripts use

    _set_input_arrays = set_input_arrays

    def _forward(self, first: int, last: int) -> float:
        self._runner.forward(first, last)
        return self._runner.loss_of(first, last)

    def _backward(self, last: int, first: int) -> None:
        self._runner.backward(last, first)

    def _batch(self, inputs: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        return batches.split(inputs, self.blobs[next(iter(inputs))].shape[0]) if inputs else iter(())

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_loss_weights(self) -> list[float]:
        return [self.blob_loss_weights.get(name, 0.0) for name in self.blobs]

    @property
    def _inputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.outputs]

    def _bottom_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.bottom]

    def _top_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self.layers[layer].param.top]

    @property
    def layer_dict(self) -> OrderedDict[str, Layer]:
        """{layer name: layer}."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for layer in self.layers:
            layer.close()
