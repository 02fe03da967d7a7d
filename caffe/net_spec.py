"""Nets written in Python: `n.conv1 = L.Convolution(n.data, num_output=20, kernel_size=5)`, then `n.to_proto()`.

`layers` (as `L`) creates layers of any type; keyword arguments are fields of LayerParameter or of the type's own parameter
message. `params` (as `P`) names enum values: `P.Pooling.AVE`. The attribute names become blob and layer names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from caffe.proto import caffe_pb2

PARAMETER_FIELDS: dict[str, str] = {
    field.message_type.name.removesuffix("Parameter"): field.name
    for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields
    if field.name.endswith("_param") and field.message_type is not None and field.message_type.name.endswith("Parameter")
}
"""{layer type: its parameter field}, such as {"InnerProduct": "inner_product_param"}."""


def param_name_dict() -> dict[str, str]:
    """{layer type: its parameter field without "_param"}, as BVLC Caffe's param_name_dict."""
    return {layer_type: field.removesuffix("_param") for layer_type, field in PARAMETER_FIELDS.items()}


def assign_proto(proto: Message, name: str, value: Any) -> None:
    """Set field `name` of a message from plain Python values: dict for a message, list for a repeated field, or a scalar."""
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise AttributeError(
            f"{proto.DESCRIPTOR.name} has no field {name!r}; it has {', '.join(f.name for f in proto.DESCRIPTOR.fields)}"
        )
    for item in value if field.is_repeated and isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, dict):
            message = getattr(proto, name).add() if field.is_repeated else getattr(proto, name)
            message.SetInParent()
            for key, inner in item.items():
                assign_proto(message, key, inner)
        elif field.is_repeated:
            getattr(proto, name).append(item)
        else:
            setattr(proto, name, item)


class Top:
    """One output of a layer, which other layers take as a bottom."""

    def __init__(self, fn: Function, n: int):
        self.fn = fn
        self.n = n

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net of this top and all its ancestors."""
        return to_proto(self)


class Function:
    """A layer without a name yet: its type, bottoms and parameters."""

    def __init__(self, type_name: str, inputs: tuple[Top, ...], params: dict[str, Any]):
        self.type_name = type_name
        for index, bottom in enumerate(inputs):
            if not isinstance(bottom, Top):
                error = TypeError(f"{type_name} input {index} is not a Top (type is {type(bottom)})")  # pycaffe's words
                error.add_note("Layers with several tops (ntop=2) give a tuple, to be unpacked; those with none are no inputs.")
                raise error
        self.inputs = inputs
        self.params = dict(params)
        self.ntop: int = self.params.pop("ntop", 1)
        self.in_place = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def _name_of(self, owner: Top | Function, names: Names, autonames: Counter[str]) -> str:
        """The name of a top or, if it has no tops, of the layer itself: the given one, else the type and a number."""
        if owner not in names:
            autonames[self.type_name] += 1
            names[owner] = f"{self.type_name}{autonames[self.type_name]}"
        return names[owner]

    def _blob_name(self, top: Top, names: Names, autonames: Counter[str]) -> str:
        """The name of the blob of `top`; in place, the bottom's."""
        if self.in_place:
            return self.inputs[0].fn._blob_name(self.inputs[0], names, autonames)
        return self._name_of(top, names, autonames)

    def _to_proto(self, layers: LayerProtos, names: Names, autonames: Counter[str]) -> None:
        if self in layers:
            return
        bottoms = []
        for bottom in self.inputs:
            bottom.fn._to_proto(layers, names, autonames)
            bottoms.append(bottom.fn._blob_name(bottom, names, autonames))
        layer = caffe_pb2.LayerParameter(type=self.type_name, bottom=bottoms)
        layer.top.extend(self._blob_name(top, names, autonames) for top in self.tops)
        layer.name = self._name_of(self.tops[0] if self.tops else self, names, autonames)
        own_fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
        for key, value in self.params.items():
            if key in own_fields or self.type_name not in PARAMETER_FIELDS:
                assign_proto(layer, key, value)
            else:
                assign_proto(getattr(layer, PARAMETER_FIELDS[self.type_name]), key, value)
        layers[self] = layer


LayerProtos = dict[Function, caffe_pb2.LayerParameter]
Names = dict[Top | Function, str]


class NetSpec:
    """The tops of a net by name: set them as attributes or items, then take `to_proto()`."""

    tops: dict[str, Any]

    def __init__(self) -> None:
        super().__setattr__("tops", {})

    def __setattr__(self, name: str, top: Top | Function) -> None:
        if not isinstance(top, Top | Function):
            do = f"unpack it: n.{name}, n.other = …" if isinstance(top, tuple) else "give what caffe.layers returns"
            raise TypeError(f"n.{name} is {type(top)}, not a Top: {do}")
        self.tops[name] = top

    def __getattr__(self, name: str) -> Top:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no top is called {name!r}") from None

    __setitem__ = __setattr__

    def __getitem__(self, name: str) -> Top:
        top: Top = self.tops[name]
        return top

    def __delattr__(self, name: str) -> None:
        del self.tops[name]

    __delitem__ = __delattr__

    def keys(self) -> list[str]:
        """The tops' names, in the order of their assignment; like `vals` and `update`, from SSD's fork."""
        return list(self.tops)

    def vals(self) -> list[Top]:
        """The tops, in the order of their assignment."""
        return list(self.tops.values())

    def update(self, name: str, params: dict[str, Any]) -> None:
        """Change parameters of the layer that produces the top `name`."""
        _function_of(self.tops[name]).params.update(params)

    def to_proto(self) -> caffe_pb2.NetParameter:
        """NetParameter with the named tops' layers and all their ancestors, in dependency order."""
        return _net_of(self.tops.values(), {top: name for name, top in self.tops.items()})


def to_proto(*tops: Top | Function) -> caffe_pb2.NetParameter:
    """The net of `tops` and all their ancestors, with names generated from the layer types."""
    return _net_of(tops, None)


def _function_of(top: Top | Function) -> Function:
    """The layer of a top, or a layer without tops itself."""
    if not isinstance(top, Top | Function):
        raise TypeError(f"{type(top)} is not a Top, as caffe.layers returns")
    return top if isinstance(top, Function) else top.fn


def _net_of(tops: Iterable[Top | Function], names: Names | None) -> caffe_pb2.NetParameter:
    """The net of `tops` and all their ancestors, each named as in `names` if given."""
    autonames: Counter[str] = Counter()
    layers: LayerProtos = {}
    for top in tops:
        _function_of(top)._to_proto(layers, {} if names is None else names, autonames)
    return caffe_pb2.NetParameter(layer=layers.values())


class Layers:
    """`layers.TYPE(*bottoms, **parameters)` gives the layer's Top, a tuple of Tops (ntop > 1), or the Function (ntop=0)."""

    def __getattr__(self, type_name: str) -> Callable[..., Any]:
        def layer(*inputs: Top, **params: Any) -> Top | tuple[Top, ...] | Function:
            function = Function(type_name, inputs, params)
            if function.ntop == 0:
                return function
            return function.tops[0] if function.ntop == 1 else function.tops

        return layer


class Parameters:
    """`params.TYPE.VALUE` is an enum value of a parameter message: `params.Pooling.MAX`."""

    def __getattr__(self, type_name: str) -> Any:
        try:
            return getattr(caffe_pb2, f"{type_name}Parameter")
        except AttributeError:
            raise AttributeError(f"no layer type has parameters called {type_name}Parameter") from None


layers = Layers()
params = Parameters()
