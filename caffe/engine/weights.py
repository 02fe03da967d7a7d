"""Copy, share and save parameters: between the layers of nets, and from and to weight files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from caffe import events
from caffe.engine.layer import Layer
from caffe.engine.parameter import Parameter
from caffe.errors import Error, WeightsError
from caffe.formats import prototxt, weight_files
from caffe.formats.files import written_whole
from caffe.proto import caffe_pb2


@dataclass
class Copied:
    """The outcome of copying a weights file."""

    copied: list[str] = field(default_factory=list)
    """Layers whose parameters were copied."""
    ignored: list[str] = field(default_factory=list)
    """Layers of the file with parameters that the net does not have."""
    skipped: dict[str, str] = field(default_factory=dict)
    """{layer that was to be skipped: why it could not have been copied, or "" if it could}."""
    untouched: list[str] = field(default_factory=list)
    """Layers of the net with parameters that were not copied; they keep their values."""


def parameters_by_layer(layers: Sequence[Layer]) -> dict[str, list[Parameter]]:
    """{layer name: parameters} of the layers that have some; layers of the same name count as one."""
    named: dict[str, list[Parameter]] = {}
    for layer in layers:
        if layer.blobs:
            named.setdefault(layer.param.name, []).extend(layer.blobs)
    return named


def copy_weights(layers: Sequence[Layer], source: str | Sequence[Layer], skip: Collection[str] = ()) -> Copied:
    """Copy parameters from a file, or from another net's layers, into a net's layers of the same names, except those of `skip`.

    Layers of the same name count as one; those that only one side has are left alone. Raises WeightsError, which names all layers
    of other shapes and says what to do, before anything is copied.
    """
    stored = weight_files.read(source) if isinstance(source, str) else _stored(source)
    path = source if isinstance(source, str) else "the other net"
    # HDF5 stores shared parameters only at their owner.
    owners_only = isinstance(source, str) and weight_files.is_hdf5(source)
    result = Copied()
    arrays: list[tuple[Parameter, np.ndarray]] = []
    wrong: dict[str, tuple[str, str, str]] = {}
    named, params = {layer.param.name: layer for layer in layers}, parameters_by_layer(layers)
    for name, blobs in stored.items():
        if name not in named:
            events.source_layer_ignored(name)
            if blobs:
                result.ignored.append(name)
            continue
        targets = params.get(name, [])
        if owners_only and len(blobs) < len(targets):
            targets = [target for target in targets if target.owner is target]
        if not targets and not blobs:
            continue
        blobs = named[name].convert_blobs(blobs)
        unfit = _unfit(named[name], targets, blobs)
        if name in skip:
            result.skipped[name] = f"{unfit[0]}, but {unfit[1]}" if unfit else ""
        elif unfit:
            wrong[name] = unfit
        else:
            arrays += [(target, blob.values) for target, blob in zip(targets, blobs, strict=True)]
            result.copied.append(name)
    if wrong:
        raise _refusal(path, wrong)
    for target, values in arrays:
        target.tensor = torch.from_numpy(values.reshape(target.shape))
    result.untouched = [name for name in params if name not in stored or name in skip]
    return result


def _stored(layers: Sequence[Layer]) -> dict[str, list[weight_files.Stored]]:
    """A net's parameters, as if read from a file."""
    named = parameters_by_layer(layers)
    return {name: [weight_files.Stored(blob.shape, blob.peek().copy()) for blob in blobs] for name, blobs in named.items()}


def _unfit(layer: Layer, targets: list[Parameter], blobs: list[weight_files.Stored]) -> tuple[str, str, str] | None:
    """Why a layer's parameters cannot be copied: found, expected, do; None if they can."""
    if len(targets) != len(blobs):
        return f"{len(blobs)} parameters", f"the net has {len(targets)}", layer.advice_for_blobs(len(blobs))
    for index, (target, blob) in enumerate(zip(targets, blobs, strict=True)):
        if not blob.fits(target.shape) or blob.values.size != target.count:
            return (
                f"parameter {index} has shape {blob.shape}",
                f"the net's has {target.shape}",
                "give the layer a new name in the net, so that its parameters are learned from scratch and not copied",
            )
    return None


def _refusal(path: str, wrong: dict[str, tuple[str, str, str]]) -> WeightsError:
    (name, (found, expected, do)), *others = wrong.items()
    if not others:
        return WeightsError(f'{path}: layer "{name}"', found, expected, do, wrong)
    each = "; ".join(f'layer "{name}": {found}, but {expected}' for name, (found, expected, _) in wrong.items())
    return WeightsError(path, f"{len(wrong)} layers do not fit: {each}", do=do, layers=wrong)


def share_weights(layers: Sequence[Layer], owners: Sequence[Layer]) -> None:
    """Let layers use the memory of the parameters of other layers of the same names."""
    sources = parameters_by_layer(owners)
    for name, blobs in parameters_by_layer(layers).items():
        for blob, source in zip(blobs, sources.get(name, []), strict=False):
            if blob.shape != source.shape:
                raise Error(f'layer "{name}"', f"parameters of shape {source.shape}", f"this net has {blob.shape}")
            blob.share(source)


def save_weights(net: str, layers: Sequence[Layer], path: str, diff: bool = False) -> None:
    """Write a .caffemodel: the net's name and its layers with their blobs; whole or not at all."""
    events.weights_saved(path)
    proto = caffe_pb2.NetParameter(name=net)
    for layer in layers:
        stored = proto.layer.add()
        stored.CopyFrom(layer.param)
        stored.ClearField("blobs")
        stored.blobs.extend(blob.to_proto(diff) for blob in layer.blobs)
    prototxt.write_binary(path, proto)


def save_weights_hdf5(layers: Sequence[Layer], path: str, diff: bool = False) -> None:
    """Write a .caffemodel.h5, whole or not at all: data/LAYER/INDEX, diff/LAYER/INDEX on request; shared parameters once."""
    import h5py

    events.weights_saved_hdf5(path)
    with written_whole(path) as part, h5py.File(part, "w") as file:
        for group in ("data", "diff") if diff else ("data",):
            file.create_group(group)
            for name, blobs in parameters_by_layer(layers).items():
                layer = file[group].create_group(name)
                for index, blob in enumerate(blobs):
                    if blob.owner is blob:
                        layer.create_dataset(str(index), data=blob.peek(group == "diff"))
