"""Build a net from its definition: its layers, blobs and shared parameters, and which of them need gradients."""

import torch

from caffe import events
from caffe.engine import layer as layers
from caffe.engine import memory, topology
from caffe.engine.blob import Blob
from caffe.engine.graph import NetGraph
from caffe.engine.parameter import Parameter
from caffe.engine.plan import BuiltNet, Step
from caffe.errors import LayerError
from caffe.formats import forks, prototxt
from caffe.proto import caffe_pb2


def build(definition: caffe_pb2.NetParameter, places: list[str], device: torch.device) -> BuiltNet:
    """Set up the layers that the definition's state includes, and the splits between them.

    places  where each layer is defined, as errors name it: `caffe.layer_places`
    """
    included, places = topology.filtered(definition, places)
    events.net_described(prototxt.text_of(included).rstrip("\n"))
    forks.log_hints(included, included.name or "net")
    included, places = topology.with_splits(included, places, loss_weight)
    net = BuiltNet(included, device)
    builder = _Builder(net)
    for param, place in zip(included.layer, places, strict=True):
        with memory.explained(place):
            net.steps.append(builder.add(param, place))
    net.graph = NetGraph(included.layer)
    _decide_backward(net)
    net.outputs = sorted(value.blob for value in net.graph.outputs())
    for name in net.outputs:
        events.output_produced(name)
    for name, weight in net.blob_loss_weights.items():
        if weight:
            net.blobs[name].gradient = torch.full(net.blobs[name].shape, weight, device=device)
    events.net_initialized()
    return net


def loss_weight(param: caffe_pb2.LayerParameter, slot: int) -> float:
    """The weight of a top in the objective: the one given, else 1 for the first top of a loss layer."""
    if slot < len(param.loss_weight):
        return float(param.loss_weight[slot])
    layer_type = layers.known_types().get(param.type)
    return float(slot == 0 and layer_type is not None and layer_type.is_loss)


class _Builder:
    """Adds layers to a net in order."""

    def __init__(self, net: BuiltNet):
        self._net = net
        self._owners: dict[str, tuple[Parameter, str, int]] = {}
        """{name of a shared parameter: its owner, the owner's layer, and its index among that layer's parameters}."""
        self._copied: dict[str, str] = {}
        """{top of an inserted split: its bottom}."""
        self._count = 0
        """Number of values of all tops so far."""

    def add(self, param: caffe_pb2.LayerParameter, place: str) -> Step:
        """Create a layer, its tops and its parameters."""
        net = self._net
        if not param.HasField("phase"):
            param.phase = net.definition.state.phase
        if param.propagate_down and len(param.propagate_down) != len(param.bottom):
            found = f"{len(param.propagate_down)} values of propagate_down"
            raise LayerError(place, found, f"there are {len(param.bottom)} bottoms")
        events.layer_found(param.name)
        kind = layers.layer_type(param.type, place).implementation(param, place)
        layer = kind(param, net.definition.state.phase, place, net.device)
        layer.bottom_names = [self._copied.get(name, name) for name in param.bottom]
        if topology.is_inserted(param):
            self._copied |= dict.fromkeys(param.top, param.bottom[0])
        events.layer_created(param.name)
        _check_counts(layer)
        for name in param.bottom:
            events.layer_reads(param.name, name)
        shapes = [net.blobs[name].shape for name in param.bottom]
        if layer.is_loss and not param.top:
            param.top.append("(automatic)")
        self._check_tops(param, place)
        propagates = list(param.propagate_down) or [net.blob_needs_backward[name] for name in param.bottom]
        layer.setup(*shapes)
        specs = layer.blob_specs(param)
        assert specs is None or len(specs) == len(layer.blobs), f"{layer.type}.blob_specs does not describe its blobs"
        for name, shape in zip(param.top, layer.top_shapes(*shapes), strict=True):
            net.blobs.setdefault(name, Blob(shape, net.device)).reshape(*shape)
            net.blob_needs_backward.setdefault(name, False)
        self._weigh_tops(param)
        learned = [self._add_parameter(layer, index) for index in range(len(layer.blobs))]
        needs_backward = any(propagates) or any(learned)
        for name in param.top:
            net.blob_needs_backward[name] |= needs_backward
        return Step(layer, list(param.bottom), list(param.top), needs_backward, propagates)

    def _check_tops(self, param: caffe_pb2.LayerParameter, place: str) -> None:
        for slot, name in enumerate(param.top):
            if slot < len(param.bottom) and param.bottom[slot] == name:
                events.layer_writes_in_place(param.name, name)
                continue
            events.layer_writes(param.name, name)
            if name in self._net.blobs and name != "(automatic)":
                raise LayerError(place, f'top "{name}" is already produced by another layer', do="give it another name")

    def _weigh_tops(self, param: caffe_pb2.LayerParameter) -> None:
        """Store the tops' loss weights, and log their shapes."""
        events.layer_set_up(param.name)
        weights = self._net.blob_loss_weights
        for slot, name in enumerate(param.top):
            blob = self._net.blobs[name]
            events.top_shaped("".join(f"{axis} " for axis in blob.shape), blob.count)
            weight = loss_weight(param, slot)
            if name not in weights or weight:
                weights[name] = weight
            if weight:
                events.loss_weighted(weight)
            self._count += blob.count
        events.memory_required(self._count * 4)

    def _add_parameter(self, layer: layers.Layer, index: int) -> bool:
        """Give a parameter its multipliers, and the memory of an earlier one of the same name; returns whether it is learned."""
        blob = layer.blobs[index]
        spec = layer.param.param[index] if index < len(layer.param.param) else caffe_pb2.ParamSpec()
        blob.lr_mult, blob.decay_mult, blob.name = spec.lr_mult, spec.decay_mult, spec.name
        if spec.name in self._owners:
            self._share(layer, blob, spec)
        elif spec.name:
            self._owners[spec.name] = blob, layer.param.name, index
        return blob.lr_mult != 0

    def _share(self, layer: layers.Layer, blob: Parameter, spec: caffe_pb2.ParamSpec) -> None:
        owner, owning, index = self._owners[spec.name]
        events.parameter_shared(spec.name, owning, index)
        if owner.count != blob.count or (spec.share_mode == caffe_pb2.ParamSpec.STRICT and owner.shape != blob.shape):
            found = f'parameter "{spec.name}" has shape {blob.shape} here and {owner.shape} in layer "{owning}"'
            do = "share_mode: PERMISSIVE allows another shape of the same count"
            raise layer.error(found, "shared parameters have one shape", do)
        for field in ("lr_mult", "decay_mult"):
            mine, owned = getattr(spec, field), getattr(owner, field)
            if spec.HasField(field) and mine != owned:
                found = f'parameter "{spec.name}" has {field} {mine:g} here and {owned:g} in layer "{owning}"'
                raise layer.error(found, f"shared parameters have one {field}")
            setattr(blob, field, owned)
        blob.share(owner)


def _check_counts(layer: layers.Layer) -> None:
    bottoms, tops = len(layer.param.bottom), max(len(layer.param.top), int(layer.is_loss))
    for kind, count, (least, most) in (("bottom", bottoms, layer.bottoms), ("top", tops, layer.tops)):
        if count < least or (most is not None and count > most):
            allowed = f"{least}" if least == most else (f"at least {least}" if most is None else f"{least} to {most}")
            raise layer.error(f"{count} {kind}{'s' * (count != 1)}", f"{layer.type} takes {allowed}")
    if len(layer.param.loss_weight) not in (0, tops):
        raise layer.error(f"{len(layer.param.loss_weight)} values of loss_weight", f"there are {tops} tops")


def _decide_backward(net: BuiltNet) -> None:
    """Decide which layers compute gradients, and for which bottoms: those between a learned parameter and a loss."""
    under_loss: set[str] = set()
    skipped: set[str] = set()
    force = net.definition.force_backward
    for step in reversed(net.steps):
        contributes = any(loss_weight(step.layer.param, slot) or top in under_loss for slot, top in enumerate(step.tops))
        if not contributes or skipped.issuperset(step.tops):
            step.needs_backward = False
            step.propagates = [False] * len(step.bottoms)
        (events.backward_needed if step.needs_backward else events.backward_not_needed)(step.layer.param.name)
        if contributes:
            under_loss.update(step.bottoms)
        skipped.update(bottom for bottom, passes in zip(step.bottoms, step.propagates, strict=True) if not passes)
    for step in net.steps:
        layer = step.layer
        reachable = layer.differentiable_bottoms
        for slot, bottom in enumerate(step.bottoms):
            allowed = reachable is None or slot in reachable
            if force:
                net.blob_needs_backward[bottom] |= step.propagates[slot] or allowed
            step.propagates[slot] = allowed and (force or step.propagates[slot])
        if force and not layer.is_source:
            step.needs_backward = reachable is None or bool(reachable) or bool(layer.blobs)
        for blob in layer.blobs:
            if blob.owner is blob:
                blob.learn(step.needs_backward and (force or blob.lr_mult != 0))
