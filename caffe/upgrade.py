"""Older formats of nets and solvers made into today's: V1 layers (2014), data transforms, input fields, solver enums."""

from __future__ import annotations

from caffe.errors import FileError
from caffe.proto import caffe_pb2

V1 = caffe_pb2.V1LayerParameter

# Names of V1's layer types whose spelling does not follow from the enum's.
_SPELLED = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "IM2COL": "Im2col",
    "LRN": "LRN",
    "MVN": "MVN",
    "NONE": "",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}

_TRANSFORMED = ("data_param", "image_data_param", "window_data_param")
_SOLVERS = {0: "SGD", 1: "Nesterov", 2: "AdaGrad", 3: "RMSProp", 4: "AdaDelta", 5: "Adam"}


def v1_type(value: int) -> str:
    """Today's name of a V1 layer type: 14 (INNER_PRODUCT) is InnerProduct."""
    name = V1.LayerType.Name(value)
    return _SPELLED.get(name, "".join(part.capitalize() for part in name.split("_")))


def upgrade_net(net: caffe_pb2.NetParameter, path: str) -> None:
    """Bring a net of any version to today's form, in place."""
    if net.layers and net.layer:
        raise FileError(
            path, "both layer and layers", "a net has one or the other", "rename layers to layer and write types as strings"
        )
    if any(layer.HasField("layer") for layer in net.layers):
        raise FileError(path, "a net in the V0 format of 2013", "V1 and later are read")
    for layer in net.layers:
        _upgrade_v1(layer, net.layer.add(), path)
    del net.layers[:]
    for layer in net.layer:
        _upgrade_transform(layer)
        _upgrade_batch_norm(layer)
    if net.input:
        _upgrade_inputs(net, path)


def upgrade_solver(solver: caffe_pb2.SolverParameter, path: str) -> None:
    """Replace the solver_type enum by `type`, in place."""
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise FileError(path, "both type and solver_type", "one of them is wanted", "keep type")
        solver.type = _SOLVERS[solver.solver_type]
        solver.ClearField("solver_type")


def _upgrade_v1(old: V1, new: caffe_pb2.LayerParameter, path: str) -> None:
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    if old.HasField("name"):
        new.name = old.name
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    if old.HasField("type"):
        new.type = v1_type(old.type)
    new.blobs.extend(old.blobs)
    new.loss_weight.extend(old.loss_weight)
    settings = max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))
    for index in range(settings):
        spec = new.param.add()
        for values, field in (
            (old.param, "name"),
            (old.blob_share_mode, "share_mode"),
            (old.blobs_lr, "lr_mult"),
            (old.weight_decay, "decay_mult"),
        ):
            if index < len(values):
                setattr(spec, field, values[index])
    for field, value in old.ListFields():
        if field.name.endswith("_param"):
            getattr(new, field.name).CopyFrom(value)


def _upgrade_transform(layer: caffe_pb2.LayerParameter) -> None:
    """scale, mean_file, crop_size and mirror moved from the data parameters to transform_param."""
    for name in _TRANSFORMED:
        if layer.HasField(name):
            param = getattr(layer, name)
            for field in ("scale", "mean_file", "crop_size", "mirror"):
                if param.HasField(field):
                    setattr(layer.transform_param, field, getattr(param, field))
                    param.ClearField(field)


def _upgrade_batch_norm(layer: caffe_pb2.LayerParameter) -> None:
    """The statistics of BatchNorm are never learned: three settings with lr_mult other than 0 become 0."""
    if layer.type == "BatchNorm" and len(layer.param) == 3:
        for spec in layer.param:
            spec.lr_mult = 0
            spec.decay_mult = 0


def _upgrade_inputs(net: caffe_pb2.NetParameter, path: str) -> None:
    """input, input_shape and input_dim became an Input layer."""
    if net.input_dim and len(net.input_dim) != 4 * len(net.input):
        raise FileError(path, f"{len(net.input_dim)} input_dim for {len(net.input)} inputs", "there are four for each")
    if net.input_shape and len(net.input_shape) not in (1, len(net.input)):
        raise FileError(path, f"{len(net.input_shape)} input_shape for {len(net.input)} inputs", "there is one for each")
    layer = caffe_pb2.LayerParameter(name="input", type="Input", top=net.input)
    for index in range(len(net.input)):
        if net.input_shape:
            layer.input_param.shape.add().CopyFrom(net.input_shape[index if len(net.input_shape) > 1 else 0])
        elif net.input_dim:
            layer.input_param.shape.add().dim.extend(net.input_dim[4 * index : 4 * index + 4])
    rest = list(net.layer)
    del net.layer[:]
    net.layer.append(layer)
    net.layer.extend(rest)
    for field in ("input", "input_shape", "input_dim"):
        net.ClearField(field)
