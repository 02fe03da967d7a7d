"""The sides of a measurement: passes of a net by `caffe`, by hand in PyTorch, by torch.compile and by onnxruntime."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import by_hand
import nets
import numpy as np
import onnxruntime
import torch
from torch import nn

import caffe
from pipeline.export import onnx_graph

SIDES = ("by hand", "torch.compile", "onnxruntime", "floor")
"""What `caffe` is compared with; by hand in both memory layouts."""
SOLVER = """net: "{net}"
base_lr: 1e-9 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 max_iter: 1000000 random_seed: 1 solver_mode: {mode}
"""
Make = Callable[[], Callable[[], object]]
"""Makes a side's pass; what it raises is the reason why the side is not measured."""


class NotMeasuredError(Exception):
    """A side that this machine or this installation does not have."""


@dataclass(frozen=True)
class Subject:
    """A net to measure.

    weights  a net in training whose parameters and statistics all sides get
    module   the same by hand, with these parameters, on the device that computes
    """

    name: str
    measured: nets.Measured
    weights: caffe.Net
    module: nn.Module

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return next(self.module.parameters()).device


def write_solver(name: str, measured: nets.Measured, folder: Path, gpu: bool, filled: bool = True) -> Path:
    """Write the solver of the net in training, and the net, to a folder; return the solver's path."""
    net, path = folder / f"{name}.prototxt", folder / f"{name}_solver.prototxt"
    definition = nets.training(name, measured)
    caffe.write_prototxt(net, definition if filled else nets.without_fillers(definition))
    path.write_text(SOLVER.format(net=net, mode="GPU" if gpu else "CPU"))
    return path


def images(measured: nets.Measured) -> np.ndarray:
    """A Gaussian batch, always the same."""
    return nets.STD * np.random.default_rng(2).standard_normal(measured.shape, np.float32)


def in_training(subject: Subject, sides: tuple[str, ...]) -> dict[str, Make]:
    """Makers of forward, backward and update, by side."""

    def by_caffe() -> Callable[[], object]:
        with tempfile.TemporaryDirectory() as folder:
            path = write_solver(subject.name, subject.measured, Path(folder), subject.device.type == "cuda", filled=False)
            solver = caffe.get_solver(str(path))
        solver.net.copy_from(subject.weights)
        solver.net.blobs["data"].data[...] = images(subject.measured)
        solver.net.blobs["label"].data[...] = 1
        return lambda: solver.step(1)

    def hand(layout: torch.memory_format, compiled: bool = False) -> Callable[[], object]:
        return by_hand.training_step(copy.deepcopy(subject.module), subject.measured.shape, layout, compiled)

    return {"caffe": by_caffe} | _by_hand(hand, sides)


def in_forward(subject: Subject, sides: tuple[str, ...]) -> dict[str, Make]:
    """Makers of forward of one batch, whose passes return the scores."""
    data = images(subject.measured)
    net = caffe.Net(nets.without_fillers(nets.forward(subject.name, subject.measured)), caffe.TEST)
    net.copy_from(subject.weights)
    net.blobs["data"].data[...] = data
    (scores,) = net.outputs

    def hand(layout: torch.memory_format, compiled: bool = False) -> Callable[[], object]:
        return by_hand.forward_step(copy.deepcopy(subject.module), torch.from_numpy(data).to(subject.device), layout, compiled)

    makers: dict[str, Make] = {"caffe": lambda: lambda: net.forward()[scores]}
    makers |= _by_hand(hand, sides)
    if "onnxruntime" in sides:
        makers["onnxruntime"] = lambda: _by_onnxruntime(net, data, subject.device)
    return makers


def _by_hand(hand: Callable[..., Callable[[], object]], sides: tuple[str, ...]) -> dict[str, Make]:
    makers: dict[str, Make] = {}
    if "by hand" in sides:
        makers |= {name: lambda layout=layout: hand(layout) for name, layout in by_hand.LAYOUTS.items()}
    if "torch.compile" in sides:
        compiled = {f"torch.compile{name.removeprefix('by hand')}": layout for name, layout in by_hand.LAYOUTS.items()}
        makers |= {name: lambda layout=layout: hand(layout, compiled=True) for name, layout in compiled.items()}
    return makers


def _by_onnxruntime(net: caffe.Net, data: np.ndarray, device: torch.device) -> Callable[[], object]:
    """The project's own export, in a session of as many threads as PyTorch has."""
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotMeasuredError(f"this onnxruntime has no {provider}")
    model = onnx_graph.model(net, form=onnx_graph.Form(batch=len(data)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    return lambda: session.run(None, {"data": data})[0]


def scores_of(result: object) -> np.ndarray:
    """The scores that a pass of `in_forward` returned, one row per image."""
    values = result.cpu().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
    return values.reshape(len(values), -1)
