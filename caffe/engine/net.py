"""Net: layers joined by named blobs, as pycaffe shows it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection

import numpy as np
import torch

from caffe import glog
from caffe.engine import debug, machine, mode, topology
from caffe.engine import layer as layers
from caffe.engine import weights as weight_copying
from caffe.engine.blob import Blob, Parameter
from caffe.engine.executor import Executor, Step
from caffe.errors import Error, LayerError
from caffe.formats import prototxt
from caffe.proto import caffe_pb2


class Net:
    """A network, from its prototxt.

        net = caffe.Net("deploy.prototxt", caffe.TEST, weights="lenet.caffemodel")
        net = caffe.Net("deploy.prototxt", "lenet.caffemodel", caffe.TEST)      the constructor of 2014

    phase    caffe.TRAIN or caffe.TEST; with level and stages it decides which layers are included
    weights  a .caffemodel or .caffemodel.h5 whose layers of the same names are copied

    blobs    {name: Blob} in the order in which layers produce them; data and diff are NumPy arrays
    params   {layer name: [weights, bias, …]}; of layers with one name, those of the last
    layers   the layers, with `type` and `blobs`
    inputs, outputs  names of blobs
    """

    def __init__(self, network_file, *args, phase=None, level=None, stages=None, weights=None):
        if len(args) == 2 and not isinstance(args[0], int):
            weights, phase = args
        elif args:
            phase, *rest = args
            level, stages, weights = (*rest, *(level, stages, weights)[len(rest) :])
        if phase not in (caffe_pb2.TRAIN, caffe_pb2.TEST):
            raise TypeError(f"a net's phase is caffe.TRAIN or caffe.TEST, not {phase!r}: caffe.Net(net, weights, caffe.TEST)")
        if isinstance(network_file, caffe_pb2.NetParameter):
            definition = caffe_pb2.NetParameter()
            definition.CopyFrom(network_file)
            self.path, lines = definition.name or "net", []
        else:
            self.path = os.fsdecode(network_file)
            definition, lines = prototxt.read_net(self.path), prototxt.layer_lines(self.path)
        definition.state.phase = phase
        if level is not None:
            definition.state.level = level
        definition.state.stage.extend(stages or [])
        self._init(definition, lines)
        if weights is not None:
            self.copy_from(weights)

    # ---- making

    def _init(self, definition: caffe_pb2.NetParameter, lines: list[int]) -> None:
        machine.prepare()
        self.phase = definition.state.phase
        self.device = mode.device()
        included, wheres = topology.filtered(definition, prototxt.places_at(self.path, definition, lines))
        glog.info("net.cpp:53", "Initializing net from parameters: \n" + prototxt.text_of(included).rstrip("\n"))
        self.definition, wheres = topology.with_splits(included, wheres, _loss_weight)
        self.name = definition.name

        self.blobs: OrderedDict[str, Blob] = OrderedDict()
        self.params: OrderedDict[str, list[Parameter]] = OrderedDict()
        self.layers: list[layers.Layer] = []
        self._layer_names: list[str] = []
        self.bottom_names: OrderedDict[str, list[str]] = OrderedDict()
        self.top_names: OrderedDict[str, list[str]] = OrderedDict()
        self.inputs: list[str] = []
        self.blob_loss_weights: OrderedDict[str, float] = OrderedDict()
        self.blob_needs_backward: dict[str, bool] = {}
        self._owners: dict[str, Parameter] = {}
        self._memory = 0
        steps = [self._append(param, where) for param, where in zip(self.definition.layer, wheres, strict=True)]
        self.input_names = frozenset(self.inputs)
        self._decide_backward(steps)
        available = {name for step in steps for name in step.tops}
        consumed = set()
        for step in steps:
            consumed.difference_update(name for name in step.tops if name not in step.bottoms)
            consumed.update(name for name in step.bottoms if name not in step.tops)
        self.outputs = sorted(available - consumed)
        for name in self.outputs:
            glog.info("net.cpp:244", f"This network produces output {name}")
        self._steps = steps
        self._diffs = [blob.diff_side for blob in self.blobs.values()]
        passing = [name for name, needs in self.blob_needs_backward.items() if needs and not self.blob_loss_weights.get(name)]
        self._passing = [self.blobs[name].diff_side for name in passing]
        self._executor = Executor(self, steps)
        self.debug_info = self.definition.debug_info
        moments = ("before_forward", "after_forward", "before_backward", "after_backward")
        self._callbacks: dict[str, list] = {moment: [] for moment in moments}
        for name, weight in self.blob_loss_weights.items():
            if weight:
                self.blobs[name].gradient = torch.full(self.blobs[name].shape, weight, device=self.device)
        glog.info("net.cpp:257", "Network initialization done.")

    def _append(self, param: caffe_pb2.LayerParameter, where: str) -> Step:
        """Make one layer, its tops and its parameters."""
        if not param.HasField("phase"):
            param.phase = self.phase
        if param.propagate_down and len(param.propagate_down) != len(param.bottom):
            raise LayerError(
                where, f"{len(param.propagate_down)} values of propagate_down", f"there are {len(param.bottom)} bottoms"
            )
        glog.info("layer_factory.hpp:77", f"Creating layer {param.name}")
        layer = layers.create(param, self.phase, where, self.device)
        glog.info("net.cpp:86", f"Creating Layer {param.name}")
        self._check_counts(layer)
        shapes = []
        for name in param.bottom:
            glog.info("net.cpp:408", f"{param.name} <- {name}")
            shapes.append(self.blobs[name].shape)
        if layer.is_loss and not param.top:
            param.top.append("(automatic)")
        for slot, name in enumerate(param.top):
            in_place = slot < len(param.bottom) and param.bottom[slot] == name
            glog.info(
                "net.cpp:369" if in_place else "net.cpp:382", f"{param.name} -> {name}" + (" (in-place)" if in_place else "")
            )
            if name in self.blobs and not in_place and name != "(automatic)":
                raise LayerError(where, f'top "{name}" is already produced by another layer', do="give it a name of its own")
        propagates = [self.blob_needs_backward[name] for name in param.bottom]
        if param.propagate_down:
            propagates = list(param.propagate_down)
        layer.setup(*shapes)
        specs = layer.blob_specs(param)
        assert specs is None or len(specs) == len(layer.blobs), f"{layer.type}.blob_specs does not describe its blobs"
        for name, shape in zip(param.top, layer.top_shapes(*shapes), strict=True):
            if name in self.blobs:
                self.blobs[name].reshape(*shape)
            else:
                self.blobs[name] = Blob(shape, self.device)
            self.blob_needs_backward.setdefault(name, False)
        if layer.is_input:
            self.inputs.extend(param.top)
        self._log_tops(param)
        if layer.blobs:
            self.params[param.name] = layer.blobs
        needs_backward = any(propagates)
        for index in range(len(layer.blobs)):
            needs_backward |= self._append_param(layer, index)
        for name in param.top:
            self.blob_needs_backward[name] = self.blob_needs_backward[name] or needs_backward
        self.layers.append(layer)
        self._layer_names.append(param.name)
        self.bottom_names[param.name] = list(param.bottom)
        self.top_names[param.name] = list(param.top)
        return Step(layer, list(param.bottom), list(param.top), needs_backward, propagates)

    def _check_counts(self, layer: layers.Layer) -> None:
        counts = (
            ("bottom", len(layer.param.bottom), layer.bottoms),
            ("top", max(len(layer.param.top), int(layer.is_loss)), layer.tops),
        )
        for kind, count, (least, most) in counts:
            if count < least or (most is not None and count > most):
                allowed = f"{least}" if least == most else (f"at least {least}" if most is None else f"{least} to {most}")
                raise layer.error(f"{count} {kind}{'s' * (count != 1)}", f"{layer.type} takes {allowed}")
        if len(layer.param.loss_weight) not in (0, len(layer.param.top)):
            raise layer.error(f"{len(layer.param.loss_weight)} values of loss_weight", f"there are {len(layer.param.top)} tops")

    def _log_tops(self, param: caffe_pb2.LayerParameter) -> None:
        glog.info("net.cpp:124", f"Setting up {param.name}")
        for slot, name in enumerate(param.top):
            blob = self.blobs[name]
            glog.info("net.cpp:131", "Top shape: " + "".join(f"{axis} " for axis in blob.shape) + f"({blob.count})")
            weight = _loss_weight(param, slot)
            if name not in self.blob_loss_weights or weight:
                self.blob_loss_weights[name] = weight
            if weight:
                glog.info("net.cpp:134", f"    with loss weight {weight:g}")
            self._memory += blob.count
        glog.info("net.cpp:139", f"Memory required for data: {self._memory * 4}")

    def _append_param(self, layer: layers.Layer, index: int) -> bool:
        """Give a parameter its multipliers, and the memory of its namesake where there is one; True if it is learned."""
        blob = layer.blobs[index]
        spec = layer.param.param[index] if index < len(layer.param.param) else caffe_pb2.ParamSpec()
        blob.lr_mult, blob.decay_mult, blob.name = spec.lr_mult, spec.decay_mult, spec.name
        owner = self._owners.get(spec.name) if spec.name else None
        if owner is None:
            if spec.name:
                self._owners[spec.name] = blob
        else:
            glog.info(
                "net.cpp:484",
                f"Sharing parameters '{spec.name}' owned by layer '{owner.layer_name}', param index {owner.layer_index}",
            )
            if owner.count != blob.count or (spec.share_mode == caffe_pb2.ParamSpec.STRICT and owner.shape != blob.shape):
                raise layer.error(
                    f'parameter "{spec.name}" has shape {blob.shape} here and {owner.shape} in layer "{owner.layer_name}"',
                    "shared parameters have one shape",
                    "share_mode: PERMISSIVE allows another shape of the same count",
                )
            for field in ("lr_mult", "decay_mult"):
                mine, owned = getattr(spec, field), getattr(owner, field)
                if spec.HasField(field) and mine != owned:
                    raise layer.error(
                        f'parameter "{spec.name}" has {field} {mine:g} here and {owned:g} in layer "{owner.layer_name}"',
                        "shared parameters have one",
                    )
                setattr(blob, field, owned)
            blob.share(owner)
        blob.layer_name, blob.layer_index = layer.param.name, index
        return blob.lr_mult != 0

    def _decide_backward(self, steps: list[Step]) -> None:
        """Which layers compute gradients, and for which bottoms: those between a learned parameter and a loss."""
        under_loss: set[str] = set()
        skipped: set[str] = set()
        force = self.definition.force_backward
        for step in reversed(steps):
            name = step.layer.param.name
            contributes = any(_loss_weight(step.layer.param, slot) or top in under_loss for slot, top in enumerate(step.tops))
            if step.needs_backward and all(top in skipped for top in step.tops):
                step.needs_backward = False
                step.propagates = [False] * len(step.propagates)
            if not contributes:
                step.needs_backward = False
            if step.needs_backward:
                glog.info("net.cpp:200", f"{name} needs backward computation.")
            else:
                glog.info("net.cpp:202", f"{name} does not need backward computation.")
            for slot, bottom in enumerate(step.bottoms):
                if contributes:
                    under_loss.add(bottom)
                else:
                    step.propagates[slot] = False
                if not step.propagates[slot]:
                    skipped.add(bottom)
        for step in steps:
            layer = step.layer
            reachable = layer.differentiable_bottoms
            for slot, bottom in enumerate(step.bottoms):
                allowed = reachable is None or slot in reachable
                if force:
                    step.propagates[slot] = step.propagates[slot] or allowed
                    self.blob_needs_backward[bottom] = self.blob_needs_backward[bottom] or step.propagates[slot]
                step.propagates[slot] = step.propagates[slot] and allowed
            if force and not layer.is_source:
                step.needs_backward = reachable is None or bool(reachable) or bool(layer.blobs)
            for blob in layer.blobs:
                if blob.owner is blob:
                    blob.leaf.requires_grad_(step.needs_backward and (force or blob.lr_mult != 0))

    # ---- running

    def forward(self, blobs=None, start=None, end=None, **kwargs):
        """Compute from layer `start` to layer `end` (names, both included; all by default).

        blobs   names of blobs to return besides the outputs
        kwargs  values of input blobs: net.forward(data=images)
        Returns {name: array}: the net's outputs, or the tops of `end`.
        """
        first = self._layer_index(start) if start is not None else 0
        last = self._layer_index(end) if end is not None else len(self.layers) - 1
        names = list(self.top_names[end]) if end is not None else list(self.outputs)
        names += [name for name in blobs or [] if name not in names]
        if kwargs:
            if set(kwargs) != set(self.inputs):
                raise Error(self.path, f"inputs {sorted(kwargs)}", f"the net takes {sorted(self.inputs)}")
            for name, values in kwargs.items():
                if values.shape[0] != self.blobs[name].shape[0]:
                    raise Error(
                        self.path, f'{values.shape[0]} images for input "{name}"', f"its batch is {self.blobs[name].shape[0]}"
                    )
                self.blobs[name].data[...] = values
        self._compute(first, last)
        return {name: self.blobs[name].data for name in names}

    def backward(self, diffs=None, start=None, end=None, **kwargs):
        """Compute gradients from layer `start` down to layer `end` (names, both included; all by default).

        diffs   names of blobs whose gradient to return besides those of the inputs
        kwargs  gradients of output blobs: net.backward(prob=gradient)
        Returns {name: array}: gradients of the net's inputs, or of the bottoms of `end`.
        """
        last = self._layer_index(start) if start is not None else len(self.layers) - 1
        first = self._layer_index(end) if end is not None else 0
        names = list(self.bottom_names[end]) if end is not None else list(self.inputs)
        names += [name for name in diffs or [] if name not in names]
        if kwargs:
            tops = list(self.top_names[start]) if start is not None else list(self.outputs)
            if set(kwargs) != set(tops):
                raise Error(self.path, f"gradients of {sorted(kwargs)}", f"those of {sorted(tops)} are wanted")
            for name, values in kwargs.items():
                self.blobs[name].diff[...] = values
        self._backward(last, first)
        return {name: self.blobs[name].diff for name in names}

    def _forward(self, first: int, last: int) -> float:
        """Compute layers `first` to `last`, at once, or one by one where somebody watches each; the sum of their losses."""
        self._compute(first, last)
        names = dict.fromkeys(name for step in self._steps[first : last + 1] for name in step.tops)
        losses = [(self.blobs[name].tensor, self.blob_loss_weights[name]) for name in names if self.blob_loss_weights[name]]
        return sum(float(value.sum()) * weight for value, weight in losses)

    def _compute(self, first: int, last: int) -> None:
        if not self._watched("forward"):
            self._executor.forward(first, last)
            return
        for index in range(first, last + 1):
            self._call("before_forward", index)
            self._executor.forward(index, index)
            if self.debug_info:
                debug.log_forward(self, index)
            self._call("after_forward", index)

    def _backward(self, last: int, first: int) -> None:
        """Gradients of layers `last` down to `first`: at once, or one by one where somebody watches each."""
        if not self._watched("backward"):
            self._executor.backward(last, first)
            return
        for index in range(last, first - 1, -1):
            self._call("before_backward", index)
            self._executor.backward(index, index)
            if self.debug_info:
                debug.log_backward(self, index, self._steps[index].propagates)
            self._call("after_backward", index)
        if self.debug_info and first == 0:
            debug.log_parameters(self)

    def _watched(self, direction: str) -> bool:
        return self.debug_info or bool(self._callbacks[f"before_{direction}"] or self._callbacks[f"after_{direction}"])

    def _call(self, moment: str, index: int) -> None:
        for function in self._callbacks[moment]:
            function(index)

    def before_forward(self, function) -> None:
        """Call `function(layer index)` before each layer computes."""
        self._callbacks["before_forward"].append(function)

    def after_forward(self, function) -> None:
        """Call `function(layer index)` after each layer has computed."""
        self._callbacks["after_forward"].append(function)

    def before_backward(self, function) -> None:
        """Call `function(layer index)` before each layer's gradient is computed."""
        self._callbacks["before_backward"].append(function)

    def after_backward(self, function) -> None:
        """Call `function(layer index)` after each layer's gradient was computed.

        A caffe.NCCL asks autograd to be called instead: layers would have to be computed one by one for it.
        """
        if hasattr(function, "exchange_during_backward"):
            function.exchange_during_backward()
        else:
            self._callbacks["after_backward"].append(function)

    def _layer_index(self, name: str) -> int:
        try:
            return self._layer_names.index(name)
        except ValueError:
            raise Error(self.path, f'no layer "{name}"', do="net.top_names lists the layers") from None

    def forward_loss(self) -> torch.Tensor:
        """One full forward pass, to be followed by `backward_params`; the weighted sum of all losses, as a scalar tensor."""
        callbacks = self._callbacks.values()
        self._training_shows = self.debug_info or any(callbacks) or any(side.seen for side in self._diffs)
        if self._training_shows:
            self._compute(0, len(self.layers) - 1)
        else:
            self._executor.train_forward()
        total = None
        for name, weight in self.blob_loss_weights.items():
            if weight:
                value = self.blobs[name].tensor
                value = value if value.dim() == 0 and weight == 1 else value.sum() * weight
                total = value if total is None else total + value
        return torch.zeros(()) if total is None else total

    def backward_params(self) -> None:
        """One full backward pass for the parameters, and for other blobs only where somebody has looked at a diff."""
        if self._training_shows:
            self._backward(len(self.layers) - 1, 0)
        else:
            self._executor.train_backward()
            for side in self._passing:
                side.forgotten = True

    def forward_all(self, blobs=None, **kwargs):
        """Forward over more inputs than a batch holds: {name: array} of outputs with one row for each input."""
        results: dict[str, list] = {name: [] for name in {*self.outputs, *(blobs or [])}}
        count = len(next(iter(kwargs.values())))
        for batch in self._batch(kwargs):
            for name, values in self.forward(blobs=blobs, **batch).items():
                results[name].extend(values.copy())
        return {name: np.asarray(values[:count]) for name, values in results.items()}

    def forward_backward_all(self, blobs=None, diffs=None, **kwargs):
        """Forward and backward over more inputs than a batch holds: ({name: outputs}, {name: gradients})."""
        forward_values: dict[str, list] = {name: [] for name in {*self.outputs, *(blobs or [])}}
        backward_values: dict[str, list] = {name: [] for name in {*self.inputs, *(diffs or [])}}
        count = len(next(iter(kwargs.values())))
        forward_batches = self._batch({name: kwargs[name] for name in self.inputs if name in kwargs})
        backward_batches = self._batch({name: kwargs[name] for name in self.outputs if name in kwargs})
        for values in forward_batches:
            for name, array in self.forward(blobs=blobs, **values).items():
                forward_values[name].extend(array.copy())
            for name, array in self.backward(diffs=diffs, **next(backward_batches, {})).items():
                backward_values[name].extend(array.copy())
        cut = {name: np.asarray(values[:count]) for name, values in forward_values.items()}
        return cut, {name: np.asarray(values[:count]) for name, values in backward_values.items()}

    def _batch(self, inputs: dict[str, np.ndarray]):
        """Inputs in pieces of the net's batch size, the last one filled up with zeros."""
        if not inputs:
            return
        batch = self.blobs[next(iter(inputs))].shape[0]
        count = len(next(iter(inputs.values())))
        for first in range(0, count, batch):
            piece = {name: np.asarray(values[first : first + batch]) for name, values in inputs.items()}
            missing = batch - len(next(iter(piece.values())))
            if missing:
                piece = {
                    name: np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
                    for name, values in piece.items()
                }
            yield piece

    def reshape(self) -> None:
        """Give every blob the shape that follows from the inputs' shapes, without computing."""
        for layer, param in zip(self.layers, self.definition.layer, strict=True):
            if layer.is_source:  # what the caller made of its tops stays
                continue
            shapes = [self.blobs[name].shape for name in param.bottom]
            for name, shape in zip(param.top, layer.top_shapes(*shapes), strict=True):
                self.blobs[name].reshape(*shape)

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to 0."""
        for layer in self.layers:
            for blob in layer.blobs:
                blob.clear_gradient()

    # ---- parameters

    def learnable_params(self) -> list[Parameter]:
        """Every parameter once, in the order of the layers; shared ones at their owner."""
        return [blob for layer in self.layers for blob in layer.blobs if blob.owner is blob]

    def named_params(self) -> dict[str, list[Parameter]]:
        """{layer name: parameters} as files and other nets know them: layers of one name count as one."""
        named: dict[str, list[Parameter]] = {}
        for name, layer in zip(self._layer_names, self.layers, strict=True):
            if layer.blobs:
                named.setdefault(name, []).extend(layer.blobs)
        return named

    def copy_from(self, path, skip: Collection[str] = ()) -> weight_copying.Copied:
        """Copy parameters by layer name from a .caffemodel or .caffemodel.h5, but those of `skip`; see `engine.weights.copy`."""
        return weight_copying.copy(self, os.fsdecode(path), skip)

    def share_with(self, other: Net) -> None:
        """Use the memory of another net's parameters in the layers of the same names."""
        sources = other.named_params()
        for name, blobs in self.named_params().items():
            for blob, source in zip(blobs, sources.get(name, []), strict=False):
                if blob.shape != source.shape:
                    raise Error(f'layer "{name}"', f"parameters of shape {source.shape}", f"this net has {blob.shape}")
                blob.share(source)

    def save(self, path, diff: bool = False) -> None:
        """Write the net's parameters as a .caffemodel; whole or not at all."""
        weight_copying.save(self, os.fsdecode(path), diff)

    def save_hdf5(self, path, diff: bool = False) -> None:
        """Write the net's parameters as a .caffemodel.h5; whole or not at all."""
        weight_copying.save_hdf5(self, os.fsdecode(path), diff)

    def load_hdf5(self, path) -> weight_copying.Copied:
        """Copy parameters by layer name from a .caffemodel.h5."""
        return weight_copying.copy(self, os.fsdecode(path))

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Feed the MemoryData layer that the net begins with; the arrays are kept, not copied.

        data (N, C, H, W) and labels (N,), float32, N a multiple of the layer's batch size
        """
        if not hasattr(self.layers[0], "reset"):
            raise Error(self.path, f"a first layer of type {self.layers[0].type}", "set_input_arrays feeds a MemoryData layer")
        self.layers[0].reset(data, labels)

    # ---- names of BVLC's binding that scripts use for want of public ones

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
        return [self._blob_names.index(name) for name in self._steps[layer].bottoms]

    def _top_ids(self, layer: int) -> list[int]:
        return [self._blob_names.index(name) for name in self._steps[layer].tops]

    @property
    def layer_dict(self) -> OrderedDict[str, layers.Layer]:
        """{layer name: layer}."""
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    def close(self) -> None:
        """Stop the threads that read ahead."""
        for layer in self.layers:
            layer.close()


def _loss_weight(param: caffe_pb2.LayerParameter, slot: int) -> float:
    """The weight of a top in the objective: as given, else 1 for the first top of a loss layer."""
    if slot < len(param.loss_weight):
        return param.loss_weight[slot]
    layer_type = layers.known_types().get(param.type)
    return float(slot == 0 and layer_type is not None and layer_type.is_loss and not param.loss_weight)
