"""Nets written in Python: `n.conv1 = L.Convolution(n.data, num_output=20, kernel_size=5)`, then `n.to_proto()`.

`layers` (as `L`) makes layers of any type; keyword arguments are fields of LayerParameter or of the type's own parameter
message. `params` (as `P`) names enum values: `P.Pooling.AVE`. The names given by assignment become blob and layer names.
"""

from __future__ import annotations

from collections import Counter

from caffe.proto import caffe_pb2


def _parameter_fields() -> dict[str, str]:
    """{layer type: its parameter field}, such as {"InnerProduct": "inner_product_param"}."""
    fields = {}
    for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields:
        message = field.message_type
        if field.name.endswith("_param") and message is not None and message.name.endswith("Parameter"):
            fields[message.name.removesuffix("Parameter")] = field.name
    return fields


PARAMETER_FIELDS = _parameter_fields()


def param_name_dict() -> dict[str, str]:
    """{layer type without "Parameter": name of its parameter message without "_param"}, as BVLC Caffe has it."""
    return {layer_type: field.removesuffix("_param") for layer_type, field in PARAMETER_FIELDS.items()}


def assign_proto(proto, name: str, value) -> None:
    """Set field `name` of a message from plain Python: dicts for messages, lists for repeated fields, scalars."""
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise AttributeError(
            f"{proto.DESCRIPTOR.name} has no field {name!r}; it has {', '.join(f.name for f in proto.DESCRIPTOR.fields)}"
        )
    if field.is_repeated and not isinstance(value, (list, tuple)):
        value = [value]
    if isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, dict):
                element = getattr(proto, name).add()
                for key, inner in item.items():
                    assign_proto(element, key, inner)
            else:
                getattr(proto, name).append(item)
    elif isinstance(value, dict):
        message = getattr(proto, name)
        message.SetInParent()
        for key, inner in value.items():
            assign_proto(message, key, inner)
    else:
        setattr(proto, name, value)


class Top:
    """One output of a layer; what other layers take as a bottom."""

    def __init__(self, fn: Function, n: int):
        self.fn = fn
        self.n = n

    def to_proto(self) -> caffe_pb2.NetParameter:
        """The net of all layers that lead to this top."""
        return to_proto(self)

    def _to_proto(self, layers, names, autonames):
        return self.fn._to_proto(layers, names, autonames)


class Function:
    """A layer that has not been named yet: a type, its bottoms and its parameters."""

    def __init__(self, type_name: str, inputs: tuple, params: dict):
        self.type_name = type_name
        for index, bottom in enumerate(inputs):
            if not isinstance(bottom, Top):
                raise TypeError(
                    f"{type_name}: input {index} is {type(bottom).__name__}, not a Top; layers with several tops (ntop=2) give a"
                    " tuple, to be taken apart, and layers with none (ntop=0) cannot be inputs"
                )
        self.inputs = inputs
        self.params = dict(params)
        self.ntop = self.params.pop("ntop", 1)
        self.in_place = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def _name_of(self, names: dict, autonames: Counter) -> str:
        if self not in names:
            if self.ntop > 0:
                names[self] = self._top_name(self.tops[0], names, autonames, own=True)
            else:
                autonames[self.type_name] += 1
                names[self] = f"{self.type_name}{autonames[self.type_name]}"
        return names[self]

    def _top_name(self, top: Top, names: dict, autonames: Counter, own: bool = False) -> str:
        """The blob that `top` is; with `own`, the name that was given to `top` itself, in place or not."""
        if self.in_place and not own:
            return self.inputs[0].fn._top_name(self.inputs[0], names, autonames)
        if top not in names:
            autonames[self.type_name] += 1
            names[top] = f"{self.type_name}{autonames[self.type_name]}"
        return names[top]

    def _to_proto(self, layers: dict, names: dict, autonames: Counter) -> None:
        if self in layers:
            return
        bottoms = []
        for bottom in self.inputs:
            bottom._to_proto(layers, names, autonames)
            bottoms.append(bottom.fn._top_name(bottom, names, autonames))
        layer = caffe_pb2.LayerParameter(type=self.type_name, bottom=bottoms)
        layer.top.extend(self._top_name(top, names, autonames) for top in self.tops)
        layer.name = self._name_of(names, autonames)
        own_fields = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
        for key, value in self.params.items():
            if key in own_fields or self.type_name not in PARAMETER_FIELDS:
                assign_proto(layer, key, value)
            else:
                assign_proto(getattr(layer, PARAMETER_FIELDS[self.type_name]), key, value)
        layers[self] = layer


class NetSpec:
    """The tops of a net by name: set them as attributes or items, then take `to_proto()`."""

    def __init__(self):
        super().__setattr__("tops", {})

    def __setattr__(self, name: str, top: Top):
        self.tops[name] = top

    def __getattr__(self, name: str) -> Top:
        try:
            return self.tops[name]
        except KeyError:
            raise AttributeError(f"no top is called {name!r}") from None

    __setitem__ = __setattr__

    def __getitem__(self, name: str) -> Top:
        return self.tops[name]

    def __delattr__(self, name: str):
        del self.tops[name]

    __delitem__ = __delattr__

    def keys(self) -> list[str]:
        """The names of the tops, in the order in which they were set; SSD's, as `vals` and `update` are."""
        return list(self.tops)

    def vals(self) -> list[Top]:
        """The tops, in that order."""
        return list(self.tops.values())

    def update(self, name: str, params: dict) -> None:
        """Change parameters of the layer that gives the top `name`."""
        self.tops[name].fn.params.update(params)

    def to_proto(self) -> caffe_pb2.NetParameter:
        """NetParameter with every layer that leads to a named top, in dependency order."""
        names = {top: name for name, top in self.tops.items()}
        autonames: Counter = Counter()
        layers: dict = {}
        for top in self.tops.values():
            top._to_proto(layers, names, autonames)
        return caffe_pb2.NetParameter(layer=layers.values())


def to_proto(*tops: Top) -> caffe_pb2.NetParameter:
    """The net of all layers that lead to `tops`, with names made from the types."""
    autonames: Counter = Counter()
    layers: dict = {}
    for top in tops:
        top._to_proto(layers, {}, autonames)
    return caffe_pb2.NetParameter(layer=layers.values())


class Layers:
    """`layers.TYPE(*bottoms, **parameters)` gives the layer's Top, a tuple of Tops (ntop > 1), or the Function (ntop=0)."""

    def __getattr__(self, type_name: str):
        def layer(*inputs, **params):
            function = Function(type_name, inputs, params)
            if function.ntop == 0:
                return function
            return function.tops[0] if function.ntop == 1 else function.tops

        return layer


class Parameters:
    """`params.TYPE.VALUE` is an enum value of a parameter message: `params.Pooling.MAX`."""

    def __getattr__(self, type_name: str):
        try:
            return getattr(caffe_pb2, f"{type_name}Parameter")
        except AttributeError:
            raise AttributeError(f"no layer type has parameters called {type_name}Parameter") from None


layers = Layers()
params = Parameters()
