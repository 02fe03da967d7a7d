"""Upgrade nets of 2013 (V0: one message for all layer types, padding as a separate layer) to those of 2014 (V1)."""

from typing import Any

from google.protobuf.message import Message

from caffe.errors import FileError, nearest
from caffe.proto import caffe_pb2

V1 = caffe_pb2.V1LayerParameter

# V0's layer types whose names are not V1's in lower case.
_RENAMED = {"conv": "CONVOLUTION", "images": "IMAGE_DATA", "innerproduct": "INNER_PRODUCT", "pool": "POOLING"}
_KEPT = (
    "accuracy bnll concat data dropout euclidean_loss flatten hdf5_data hdf5_output im2col infogain_loss lrn"
    " multinomial_logistic_loss relu sigmoid softmax softmax_loss split tanh window_data"
)
_TYPES = {**{name: name.upper() for name in _KEPT.split()}, **_RENAMED}

_CONVOLUTION, _PRODUCT, _POOLING = "convolution_param", "inner_product_param", "pooling_param"
_LEARNING = {"conv": _CONVOLUTION, "innerproduct": _PRODUCT}
_WINDOWED = {"conv": _CONVOLUTION, "pool": _POOLING}
_SKIPPING = {"data": "data_param", "images": "image_data_param"}
_SOURCES = {**_SKIPPING, "hdf5_data": "hdf5_data_param", "window_data": "window_data_param"}

# {V0's field: (V1's field, {V0 type: V1's message that has it})}.
_MOVES: dict[str, tuple[str, dict[str, str]]] = {
    "num_output": ("num_output", _LEARNING),
    "biasterm": ("bias_term", _LEARNING),
    "weight_filler": ("weight_filler", _LEARNING),
    "bias_filler": ("bias_filler", _LEARNING),
    "pad": ("pad", _WINDOWED),
    "kernelsize": ("kernel_size", _WINDOWED),
    "stride": ("stride", _WINDOWED),
    "group": ("group", {"conv": _CONVOLUTION}),
    "pool": ("pool", {"pool": _POOLING}),
    "dropout_ratio": ("dropout_ratio", {"dropout": "dropout_param"}),
    **{name: (name, {"lrn": "lrn_param"}) for name in ("local_size", "alpha", "beta", "k")},
    "source": ("source", {**_SOURCES, "infogain_loss": "infogain_loss_param"}),
    "batchsize": ("batch_size", _SOURCES),
    "rand_skip": ("rand_skip", _SKIPPING),
    "shuffle_images": ("shuffle", {"images": "image_data_param"}),
    "new_height": ("new_height", {"images": "image_data_param"}),
    "new_width": ("new_width", {"images": "image_data_param"}),
    "concat_dim": ("concat_dim", {"concat": "concat_param"}),
    **{
        f"det_{name}": (name, {"window_data": "window_data_param"})
        for name in ("fg_threshold", "bg_threshold", "fg_fraction", "context_pad", "crop_mode")
    },
}
_TRANSFORMS = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_SAME = ("name", "blobs", "blobs_lr", "weight_decay")


def upgrade(net: caffe_pb2.NetParameter, path: str) -> list[str]:
    """Upgrade a V0 net to V1 in place; returns the problems: fields that were dropped."""
    _fold_padding(net, path)
    problems: list[str] = []
    for layer in net.layers:
        new = V1(bottom=layer.bottom, top=layer.top)
        if layer.HasField("layer"):
            problems += _upgrade_layer(layer.layer, new, path)
        layer.CopyFrom(new)
    # Caffe carries over only these fields of the net.
    kept = caffe_pb2.NetParameter(layers=net.layers, input=net.input, input_dim=net.input_dim)
    for field in ("name", "force_backward"):
        if net.HasField(field):
            setattr(kept, field, getattr(net, field))
    net.CopyFrom(kept)
    return problems


def _fold_padding(net: caffe_pb2.NetParameter, path: str) -> None:
    """Remove padding layers, moving their pad into the convolution or pooling that reads them."""
    producers: dict[str, V1 | None] = dict.fromkeys(net.input)
    layers: list[V1] = []
    for layer in net.layers:
        new = V1()
        new.CopyFrom(layer)
        where = f'{path}: layer "{layer.layer.name}"'
        for slot, name in enumerate(layer.bottom):
            if name not in producers:
                raise FileError(where, f'bottom "{name}" is produced by no layer before it')
            padding = producers[name]
            if padding is None or padding.layer.type != "padding":
                continue
            if layer.layer.type not in _WINDOWED:
                raise FileError(where, f'a padding layer below type "{layer.layer.type}"', "only conv and pool take padding")
            if len(layer.bottom) != 1 or len(padding.bottom) != 1 or len(padding.top) != 1:
                raise FileError(
                    where, f'several bottoms or tops around layer "{padding.layer.name}"', "each must have one bottom and one top"
                )
            new.layer.pad = padding.layer.pad
            new.bottom[slot] = padding.bottom[0]
        producers.update(dict.fromkeys(layer.top, layer))
        if layer.layer.type != "padding":
            layers.append(new)
    del net.layers[:]
    net.layers.extend(layers)


def _upgrade_layer(old: caffe_pb2.V0LayerParameter, new: V1, path: str) -> list[str]:
    where = f'{path}: layer "{old.name}"'
    if old.HasField("type"):
        if old.type not in _TYPES:
            raise FileError(
                where, f'unknown V0 type "{old.type}"', do=nearest(old.type, _TYPES) or f"there are {', '.join(_TYPES)}"
            )
        new.type = V1.LayerType.Value(_TYPES[old.type])
    problems: list[str] = []
    for field, value in old.ListFields():
        name = field.name
        if name in _SAME:
            assign(new, name, value)
        elif name in _TRANSFORMS:
            setattr(new.transform_param, _TRANSFORMS[name], value)
        elif name == "hdf5_output_param" and old.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(value)
        elif name in _MOVES and old.type in _MOVES[name][1]:
            target, messages = _MOVES[name]
            assign(getattr(new, messages[old.type]), target, value)
        elif name != "type":
            problems.append(f"Unknown parameter {name} for layer type {old.type}")
    return problems


def assign(message: Message, name: str, value: Any) -> None:
    """Set a field of any kind from a value of ListFields(); a repeated field is extended by a value or several."""
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        getattr(message, name).extend(value if hasattr(value, "__len__") else [value])
    elif field.message_type is not None:
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)
