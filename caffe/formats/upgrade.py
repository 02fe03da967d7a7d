"""Upgrade nets and solvers to the current format: V1 layers (2014), data transforms, input fields, solver enums."""

import itertools

from google.protobuf.message import Message

from caffe import events
from caffe.errors import FileError
from caffe.formats import upgrade_v0
from caffe.proto import caffe_pb2

V1 = caffe_pb2.V1LayerParameter

# Type names that are not the words of V1's enum, and those whose capitals do not follow from its underscores.
_RENAMED = {"NONE": "", "SOFTMAX_LOSS": "SoftmaxWithLoss"}
_CAPITALS = {
    name.upper(): name
    for name in (
        *("AbsVal", "ArgMax", "BN", "BNLL", "Convolution3D", "Deconvolution3D", "HDF5Data", "HDF5Output", "LRN", "MVN"),
        *("Pooling3D", "PReLU", "ReLU", "ReLU6", "TanH"),
    )
}

_SAME = ("name", "bottom", "top", "include", "exclude", "blobs", "loss_weight", "strict_dim")
_TRANSFORMED = {
    V1.DATA: "data_param",
    V1.IMAGE_DATA: "image_data_param",
    V1.VIDEO_DATA: "image_data_param",
    V1.WINDOW_DATA: "window_data_param",
}
# C3D 1.0's types: the messages that they share with other types, and those that they have of their own in the current format.
_OF_C3D = {
    "Convolution3D": ("convolution_param", "convolution3d_param"),
    "Deconvolution3D": ("convolution_param", "convolution3d_param"),
    "Pooling3D": ("pooling_param", "pooling3d_param"),
    "VideoData": ("image_data_param", "video_data_param"),
}
V1_TYPES: dict[str, int] = dict(V1.LayerType.items())
_SOLVERS = {0: "SGD", 1: "Nesterov", 2: "AdaGrad", 3: "RMSProp", 4: "AdaDelta", 5: "Adam"}


def v1_type(value: int) -> str:
    """Current name of a V1 layer type: 14 (INNER_PRODUCT) is InnerProduct."""
    name = V1.LayerType.Name(value)
    words = name.split("_")
    return _RENAMED.get(name, _CAPITALS.get("".join(words), "".join(word.capitalize() for word in words)))


def upgrade_net(net: caffe_pb2.NetParameter, path: str) -> list[str]:
    """Upgrade a net of any version in place; returns, and logs like Caffe, the problems: fields that were dropped."""
    if net.layers and net.layer:
        raise FileError(
            path, "both layer and layers", "a net has one or the other", "rename layers to layer and write types as strings"
        )
    problems: list[str] = []
    if any(layer.HasField("layer") for layer in net.layers):
        events.v0_net_upgraded(path)
        problems = upgrade_v0.upgrade(net, path)
        for problem in problems:
            events.upgrade_problem(problem)
        if problems:
            events.upgrade_incomplete()
    if net.layers:
        events.v1_net_upgraded(path)
    for layer in net.layers:
        if layer.type in _TRANSFORMED:
            _upgrade_transform(layer, getattr(layer, _TRANSFORMED[layer.type]))
        _upgrade_v1(layer, net.layer.add())
        if net.layer[-1].type in _OF_C3D:
            _upgrade_c3d(net.layer[-1], path)
    del net.layers[:]
    if net.input:
        events.inputs_upgraded(path)
        _upgrade_inputs(net, path)
    for layer in net.layer:
        _upgrade_batch_norm(layer)
    _upgrade_text_boxes(net)
    return problems


def _upgrade_text_boxes(net: caffe_pb2.NetParameter) -> None:
    """Set vertical_offsets where the prior boxes are TextBoxes': the net predicts two boxes for each that SSD has at a place.

    Its layer has SSD's name and settings. What decides are the convolutions, of the priors' maps, whose tops the boxes are
    decoded from or compared with.
    """
    priors = {layer.bottom[0]: layer.prior_box_param for layer in net.layer if layer.type == "PriorBox" and layer.bottom}
    if not priors or any(p.HasField("vertical_offsets") for p in priors.values()):
        return
    makers = {top: layer for layer in net.layer for top in layer.top if top not in layer.bottom}
    names = [layer.bottom[0] for layer in net.layer if layer.type in ("DetectionOutput", "MultiBoxLoss") and layer.bottom]
    outputs: dict[str, int] = {}
    while names:
        maker = makers.pop(names.pop(), None)
        if maker is not None and maker.type in ("Concat", "Flatten", "Permute", "Reshape"):
            names += maker.bottom
        elif maker is not None and maker.type == "Convolution":
            outputs[maker.bottom[0]] = maker.convolution_param.num_output
    if all(outputs.get(name) == 8 * _boxes_at_a_place(p) for name, p in priors.items()):
        for p in priors.values():
            p.vertical_offsets = True


def _boxes_at_a_place(p: caffe_pb2.PriorBoxParameter) -> int:
    """Number of SSD's prior boxes at each position of a map."""
    ratios: list[float] = [1.0]
    for ratio in p.aspect_ratio:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if p.flip and ratio else [ratio]
    return len(p.width) or len(p.min_size) * len(ratios) + len(p.max_size)


def upgrade_solver(solver: caffe_pb2.SolverParameter, path: str) -> None:
    """Replace the solver_type enum by `type` and upgrade the nets inside the solver; in place."""
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise FileError(path, "both type and solver_type", "only one may be given", "keep type")
        events.solver_type_upgraded(path)
        solver.type = _SOLVERS[solver.solver_type]
        solver.ClearField("solver_type")
    given = [getattr(solver, field) for field in ("net_param", "train_net_param") if solver.HasField(field)]
    for net in (*given, *solver.test_net_param):
        upgrade_net(net, path)


def _upgrade_v1(old: V1, new: caffe_pb2.LayerParameter) -> None:
    for field, value in old.ListFields():
        if field.name == "type":
            new.type = v1_type(value)
        elif field.name in _SAME or field.name.endswith("_param"):
            upgrade_v0.assign(new, field.name, value)
    specs = itertools.zip_longest(old.param, old.blob_share_mode, old.blobs_lr, old.weight_decay)
    for name, share_mode, lr_mult, decay_mult in specs:  # None leaves a field unset
        new.param.add(name=name, share_mode=share_mode, lr_mult=lr_mult, decay_mult=decay_mult)


def _upgrade_transform(layer: V1, param: Message) -> None:
    """Move scale, mean_file, crop_size and mirror from a V1 data layer's own parameters to transform_param.

    In the current format Caffe ignores them in the data layer's own parameters.
    """
    for field in ("scale", "mean_file", "crop_size", "mirror"):
        if param.HasField(field):
            setattr(layer.transform_param, field, getattr(param, field))
            param.ClearField(field)


def _upgrade_c3d(layer: caffe_pb2.LayerParameter, path: str) -> None:
    """Move the parameters of a layer of C3D 1.0 to those of its type in C3D 1.1."""
    before, after = _OF_C3D[layer.type]
    old, new = getattr(layer, before), getattr(layer, after)
    for field, value in old.ListFields():
        if field.name == "mean_value":
            layer.transform_param.mean_value.append(value)
        elif field.name not in new.DESCRIPTOR.fields_by_name:
            raise FileError(path, f'{before}.{field.name} in layer "{layer.name}"', f"{layer.type} has no {field.name}")
        elif field.is_repeated and len(value) != 1:
            raise FileError(path, f'{len(value)} values of {field.name} in layer "{layer.name}"', "give one")
        else:
            upgrade_v0.assign(new, field.name, value[0] if field.is_repeated else value)
    layer.ClearField(before)


def _upgrade_batch_norm(layer: caffe_pb2.LayerParameter) -> None:
    """Set lr_mult and decay_mult of BatchNorm's three statistics to 0: they are never learned."""
    if layer.type == "BatchNorm" and len(layer.param) == 3:
        for spec in layer.param:
            spec.lr_mult = 0
            spec.decay_mult = 0


def _upgrade_inputs(net: caffe_pb2.NetParameter, path: str) -> None:
    """Replace input with input_shape or input_dim by an Input layer; drop input without a shape."""
    inputs, shapes, dims = len(net.input), list(net.input_shape), net.input_dim
    if shapes and len(shapes) not in (1, inputs):
        raise FileError(path, f"{len(shapes)} input_shape for {inputs} inputs", "give one for each")
    if dims and not shapes:
        if len(dims) < 4 * inputs:
            raise FileError(path, f"{len(dims)} input_dim for {inputs} inputs", "give four for each")
        shapes = [caffe_pb2.BlobShape(dim=dims[start : start + 4]) for start in range(0, 4 * inputs, 4)]
    if shapes:
        param = caffe_pb2.InputParameter(shape=shapes if len(shapes) == inputs else shapes * inputs)
        net.layer.insert(0, caffe_pb2.LayerParameter(name="input", type="Input", top=net.input, input_param=param))
    else:
        events.inputs_without_shape(path)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)
