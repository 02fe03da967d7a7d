"""Export a net as a PyTorch program: `torch.export.load("net.pt2").module()(images)` needs PyTorch alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import caffe
from pipeline.errors import InputError
from pipeline.export import agreement, onnx_detection, onnx_graph
from pipeline.export.onnx_layers import NOT_EXPORTED
from pipeline.files import written_whole
from pipeline.nets import graph

_OF_NUMPY = "its boxes are suppressed one after another, outside PyTorch"
NOT_TRACED = NOT_EXPORTED | {
    **dict.fromkeys((*onnx_detection.DETECTIONS, "Proposal"), _OF_NUMPY),
    "CTCGreedyDecoder": "its sequences are spelled one after another, outside PyTorch",
    "Filter": "how many images it keeps depends on values",
    "ROIPooling": "how its bins are combined depends on values",
}
"""Types that no PyTorch program is made of, and why; most of them are exported to ONNX."""


class _Tensor:
    """A blob of a layer as a tensor of the module, in place of the engine's."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def graph_tensor(self) -> torch.Tensor:
        return self.tensor


class _Program(torch.nn.Module):
    """The net's layers one after another; the tensors are called LAYER_0, LAYER_1 … in the order of the layers' blobs.

    Dots in names are underscores; if that makes two names alike, the second one ends in another underscore.
    """

    def __init__(self, net: caffe.Net):
        super().__init__()
        self.net = net
        self.outputs = list(net.outputs)
        self.of_layers: dict[str, list[str]] = {}
        for name, blobs in net.params.items():
            self.of_layers[name] = []
            for number, blob in enumerate(blobs):
                called = f"{name.replace('.', '_')}_{number}"
                while hasattr(self, called):
                    called += "_"
                self.register_buffer(called, torch.from_numpy(blob.data.copy()))
                self.of_layers[name].append(called)

    def forward(self, *images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(zip(self.net.inputs, images, strict=True))
        for name, layer in self.net.layer_dict.items():
            if caffe.layer_type(layer.type).is_input:
                continue
            stand_ins: list[Any] = [_Tensor(getattr(self, called)) for called in self.of_layers.get(name, [])]
            layer.blobs = stand_ins
            layer.overwrites = False
            tops = layer.forward(*[values[blob] for blob in self.net.bottom_names[name]])
            tops = (tops,) if isinstance(tops, torch.Tensor) else tops
            values.update(zip(self.net.top_names[name], tops, strict=True))
        return tuple(values[name] for name in self.outputs)


@contextmanager
def _layers_unchanged(net: caffe.Net) -> Iterator[None]:
    """Give the layers back their blobs at the end, and what `forward` has set."""
    kept = {name: dict(vars(layer)) for name, layer in net.layer_dict.items()}
    try:
        yield
    finally:
        for name, attributes in kept.items():
            vars(net.layer_dict[name]).clear()
            vars(net.layer_dict[name]).update(attributes)


def program(net: caffe.Net, batch: int | str | None = None) -> torch.export.ExportedProgram:
    """The net as an exported program of its inputs, in order, that gives its outputs.

    batch  as in onnx_graph.Form
    Raises InputError for layers that cannot be traced, all of them named.
    """
    if isinstance(batch, int):
        onnx_graph.set_batch(net, batch)
    joined = caffe.NetGraph(graph.exported_of(net).layer)
    onnx_graph.refuse_missing(net, joined, NOT_EXPORTED)
    onnx_graph.refuse_missing(net, joined, NOT_TRACED, f"convert it to .onnx, or {onnx_graph.CROP}")
    free = batch in (None, "free") and onnx_graph.takes_any_batch(net)
    if batch == "free" and not free:
        raise onnx_graph.fixed_batch(net)
    inputs = agreement.random_inputs(net, 2 if free else None)
    images = tuple(torch.from_numpy(inputs[name]) for name in net.inputs)
    shapes: Any = {"images": tuple({0: torch.export.Dim("N", min=1)} if free else {} for _ in images)}
    with _layers_unchanged(net), torch.no_grad():
        try:
            return torch.export.export(_Program(net).eval(), images, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # PyTorch raises many kinds
            if free and batch is None:
                return program(net, net.blobs[net.inputs[0]].shape[0])
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(net.path, f"PyTorch cannot export it ({reason})", do="convert it to .onnx") from error


def write_program(net: caffe.Net, output: Path, metadata: Mapping[str, str], scale: float, batch: int | str | None) -> float:
    """Write the net as a PyTorch program (.pt2); return the largest relative difference of what is read back from it.

    Raises InputError if rounding does not explain the difference.
    """
    with written_whole(output) as part:
        said = {"net": net.name, "inputs": json.dumps(list(net.inputs)), "outputs": json.dumps(list(net.outputs)), **metadata}
        with part.open("wb") as file:
            torch.export.save(program(net, batch), file, extra_files=said)
        with part.open("rb") as file:
            loaded = torch.export.load(file)
        # A free batch size is checked with another than the net's.
        inputs = agreement.random_inputs(net, 3 if loaded.range_constraints else None, scale)
        with torch.no_grad():
            found = loaded.module()(*[torch.from_numpy(inputs[name]) for name in net.inputs])
        values = {name: np.asarray(value) for name, value in zip(net.outputs, found, strict=True)}
        return agreement.compare(str(output), net, inputs, inputs | values, {})
