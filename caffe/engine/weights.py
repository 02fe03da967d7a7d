"""Copy parameters between nets and weight files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from caffe import glog
from caffe.engine.blob import Parameter
from caffe.errors import WeightsError
from caffe.formats import weight_files
from caffe.formats.stored import write_whole
from caffe.proto import caffe_pb2

if TYPE_CHECKING:
    from caffe.engine.net import Net


@dataclass
class Copied:
    """What became of the layers of a weights file."""

    copied: list[str] = field(default_factory=list)
    """Layers whose parameters the net took."""
    ignored: list[str] = field(default_factory=list)
    """Layers with parameters that the net does not have."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Layers that were to be left as they are, and why they could not have been copied; empty where they could."""
    untouched: list[str] = field(default_factory=list)
    """Layers with parameters of the net that the file does not have; they keep their values."""


def copy(net: Net, path: str, skip: Collection[str] = ()) -> Copied:
    """Copy parameters into `net` from the layers of the same names, but for those of `skip`; layers of one name count as one.

    Layers that only one side has are left alone and logged. Layers of the same name with other shapes are a WeightsError that
    names all of them and says what to do, and leaves the net as it was.
    """
    stored = weight_files.read(path)
    result = Copied()
    arrays: list[tuple[Parameter, np.ndarray]] = []
    wrong: dict[str, tuple[str, str, str]] = {}
    known, params = set(net._layer_names), net.named_params()
    for name, blobs in stored.items():
        if name not in known:
            glog.info("net.cpp:744", f"Ignoring source layer {name}")
            if blobs:
                result.ignored.append(name)
            continue
        targets = params.get(name, [])
        if not targets and not blobs:
            continue
        unfit = _unfit(net, name, targets, blobs)
        if name in skip:
            result.skipped[name] = f"{unfit[0]}, but {unfit[1]}" if unfit else ""
        elif unfit:
            wrong[name] = unfit
        else:
            arrays += [(target, blob.values) for target, blob in zip(targets, blobs, strict=True)]
            result.copied.append(name)
    if wrong:
        raise _refusal(path, wrong)
    with torch.no_grad():
        for target, values in arrays:
            target.tensor.copy_(torch.from_numpy(values.reshape(target.shape)))
    result.untouched = [name for name in params if name not in stored or name in skip]
    return result


def _unfit(net: Net, name: str, targets: list[Parameter], blobs: list[weight_files.Stored]) -> tuple[str, str, str] | None:
    """Why a layer's parameters cannot be copied: what was found, what was expected, what to do; None where they can."""
    if len(targets) != len(blobs):
        nvidias = len(blobs) == 5 and net.layer_dict[name].type == "BatchNorm"
        do = (
            "give the net's layer batch_norm_param { scale_bias: true }"
            if nvidias
            else "rename the layer to train it from scratch"
        )
        return f"{len(blobs)} parameters", f"the net has {len(targets)}", do
    for index, (target, blob) in enumerate(zip(targets, blobs, strict=True)):
        if not blob.fits(target.shape) or blob.values.size != target.count:
            return (
                f"parameter {index} has shape {blob.shape}",
                f"the net's has {target.shape}",
                "give the layer a new name in the net, so that its parameters are learned from scratch and not copied",
            )
    return None


def _refusal(path: str, wrong: dict[str, tuple[str, str, str]]) -> WeightsError:
    """The error for layers that do not fit."""
    (name, (found, expected, do)), *others = wrong.items()
    if not others:
        return WeightsError(f'{path}: layer "{name}"', found, expected, do, wrong)
    each = "; ".join(f'layer "{name}": {found}, but {expected}' for name, (found, expected, _) in wrong.items())
    return WeightsError(path, f"{len(wrong)} layers do not fit: {each}", do=do, layers=wrong)


def save(net: Net, path: str, diff: bool = False) -> None:
    """Write a .caffemodel: the net's layers with their blobs."""
    glog.info("solver.cpp:464", f"Snapshotting to binary proto file {path}")
    proto = caffe_pb2.NetParameter(name=net.name)
    for layer in net.layers:
        stored = proto.layer.add()
        stored.CopyFrom(layer.param)
        stored.ClearField("blobs")
        stored.blobs.extend(blob.to_proto(diff) for blob in layer.blobs)
    write_whole(path, proto.SerializeToString())


def save_hdf5(net: Net, path: str, diff: bool = False) -> None:
    """Write a .caffemodel.h5: data/LAYER/INDEX, and diff/LAYER/INDEX on request; shared parameters once."""
    import h5py

    glog.info("solver.cpp:475", f"Snapshotting to HDF5 file {path}")
    part = Path(f"{path}.part")
    with h5py.File(part, "w") as file:
        for group in ("data", "diff") if diff else ("data",):
            file.create_group(group)
            for name, blobs in net.named_params().items():
                layer = file[group].create_group(name)
                for index, blob in enumerate(blobs):
                    if blob.owner is blob:
                        layer.create_dataset(str(index), data=blob.peek(group == "diff"))
    part.replace(path)
