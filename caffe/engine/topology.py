"""A net's layers before it is built: those that its state includes, and the splits between them."""

from collections.abc import Callable, Iterable

from caffe import events
from caffe.engine.graph import NetGraph
from caffe.errors import LayerError
from caffe.proto import caffe_pb2


def filtered(net: caffe_pb2.NetParameter, wheres: list[str]) -> tuple[caffe_pb2.NetParameter, list[str]]:
    """The net with the layers that its state includes, and their places."""
    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    kept = []
    for layer, where in zip(net.layer, wheres, strict=True):
        if layer.include and layer.exclude:
            raise LayerError(where, "both include and exclude rules", "a layer can have only one of them")
        met = any(meets(net.state, rule, layer.name) for rule in layer.include or layer.exclude)
        if met == bool(layer.include):
            result.layer.add().CopyFrom(layer)
            kept.append(where)
    return result, kept


def meets(state: caffe_pb2.NetState, rule: caffe_pb2.NetStateRule, layer: str) -> bool:
    """Whether a net's state meets a rule; the first reason why not is logged."""
    if rule.HasField("phase") and rule.phase != state.phase:
        events.phase_differs(state.phase, rule.phase, layer)
    elif rule.HasField("min_level") and state.level < rule.min_level:
        events.level_too_low(state.level, rule.min_level, layer)
    elif rule.HasField("max_level") and state.level > rule.max_level:
        events.level_too_high(state.level, rule.max_level, layer)
    elif missing := [stage for stage in rule.stage if stage not in state.stage]:
        events.stage_missing(missing[0], layer)
    elif excluded := [stage for stage in rule.not_stage if stage in state.stage]:
        events.stage_excluded(excluded[0], layer)
    else:
        return True
    return False


def check_bottoms(layers: Iterable[caffe_pb2.LayerParameter], wheres: Iterable[str]) -> None:
    """Raise an error for the first layer that reads a blob which no layer before it makes.

    wheres  the place of each layer, as errors name it: `caffe.layer_places`
    """
    known: dict[str, None] = {}
    for layer, where in zip(layers, wheres, strict=True):
        for name in layer.bottom:
            if name not in known:
                blobs = ", ".join(f'"{blob}"' for blob in known) or "none"
                raise LayerError(where, f'bottom "{name}" is produced by no layer before it', do=f"the blobs so far are {blobs}")
        known.update(dict.fromkeys(layer.top))


def with_splits(
    net: caffe_pb2.NetParameter, wheres: list[str], loss_weight: Callable[[caffe_pb2.LayerParameter, int], float]
) -> tuple[caffe_pb2.NetParameter, list[str]]:
    """The net with a Split layer after each top that several bottoms (or the loss and a bottom) read, and the layers' places.

    loss_weight(layer, index)  the weight of a top in the loss, given or by the layer's type; 0 if it is no loss
    """
    check_bottoms(net.layer, wheres)
    graph = NetGraph(net.layer)
    weights = {value: loss_weight(net.layer[value.layer], value.top) for tops in graph.tops for value in tops}
    # A loss top that another layer also reads is split, so that each has its own gradient.
    copies = {value: len(readers) + bool(readers and weights[value]) for value in weights for readers in [graph.readers[value]]}

    result = caffe_pb2.NetParameter()
    result.CopyFrom(net)
    del result.layer[:]
    places: list[str] = []
    for index, (layer, where) in enumerate(zip(net.layer, wheres, strict=True)):
        copy = result.layer.add()
        copy.CopyFrom(layer)
        places.append(where)
        for slot, value in enumerate(graph.bottoms[index]):
            if value and copies[value] > 1:
                reader = graph.readers[value].index((index, slot)) + bool(weights[value])
                copy.bottom[slot] = split_blob(net.layer[value.layer].name, value.blob, value.top, reader)
        for value in graph.tops[index]:
            if copies[value] > 1:
                name, slot = value.blob, value.top
                split = result.layer.add(name=split_layer(layer.name, name, slot), type="Split", bottom=[name])
                split.top.extend(split_blob(layer.name, name, slot, reader) for reader in range(copies[value]))
                if weights[value]:
                    split.loss_weight.extend([weights[value]] + [0] * (copies[value] - 1))
                    # The weight moves to the split's first top.
                    copy.loss_weight.extend(weights[other] for other in graph.tops[index][len(copy.loss_weight) :])
                    copy.loss_weight[slot] = 0
                places.append(where)
    return result, places


def is_inserted(layer: caffe_pb2.LayerParameter) -> bool:
    """Whether a layer is a split that `with_splits` inserted, by its names."""
    return layer.type == "Split" and layer.name.endswith("_split") and all(top.startswith(f"{layer.name}_") for top in layer.top)


def split_layer(layer: str, blob: str, slot: int) -> str:
    """Caffe's name for the layer that splits a blob."""
    return f"{blob}_{layer}_{slot}_split"


def split_blob(layer: str, blob: str, slot: int, reader: int) -> str:
    """Caffe's name for one of the copies of a split blob."""
    return f"{split_layer(layer, blob, slot)}_{reader}"
