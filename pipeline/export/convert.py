"""Convert a deploy net to ONNX, a PyTorch program or safetensors, by the suffix of OUT: .onnx, .pt2 or .safetensors.

ONNX and PyTorch programs are written only if onnxruntime, or PyTorch, computes from them what the net computes for random images;
OpenCV's dnn module is tried, too. docs/leaving.md has what to do with them.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import onnx

import caffe
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.export import agreement, export, onnx_graph, opencv, torch_program
from pipeline.inference.trained import load_net
from pipeline.nets import graph, preprocessing
from pipeline.nets.known import known_net

SUFFIXES = (".onnx", ".pt2", ".safetensors")


def _batch(text: str) -> int | str:
    if text == "free":
        return text
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f'"{text}" is neither free nor a number of images')
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f'"{text}" is not a size: HEIGHTxWIDTH, such as 368x656')
    return int(height), int(width)


def with_outputs(net: caffe.Net) -> caffe.Net:
    """The net; if it discards all that it computes (Silence), one that gives that instead."""
    if net.outputs:
        return net
    definition = graph.definition_of(net)
    layers = [layer for layer in definition.layer if layer.type != "Silence"]
    del definition.layer[:]
    definition.layer.extend(layers)
    made = graph.made(definition, graph.blobs_of(net))
    made.path = net.path
    return made


def _scale(net: caffe.Net, preprocessing_file: Path | None) -> float:
    """The factor of images before they go into the net, as far as it is known."""
    if preprocessing_file:
        return preprocessing.read(preprocessing_file).transform.scale
    known = known_net(graph.definition_of(net))
    return known.scale if known else 1.0


def _shapes(values: list[onnx.ValueInfoProto]) -> str:
    dims = ([dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim] for value in values)
    return ", ".join(f"{value.name} {'×'.join(shape) or 'a number'}" for value, shape in zip(values, dims, strict=True))


def convert_onnx(net: caffe.Net, output: Path, metadata: dict[str, str], scale: float, form: onnx_graph.Form) -> list[str]:
    """Write the net as ONNX; return lines about it."""
    difference = export.write_onnx(net, output, metadata, scale, form)
    model = onnx.load(output)
    inputs, found = export.run_onnx(output, net, scale)
    limit = agreement.HALF_LIMIT if form.half else agreement.LIMIT
    _, verdict = opencv.check(output, inputs, found, limit)
    return [
        f"ONNX, opset {form.opset}{', float16' if form.half else ''}, {output.stat().st_size / 1e6:.1f} MB",
        f"inputs: {_shapes(list(model.graph.input))}",
        f"outputs: {_shapes(list(model.graph.output))}",
        f"onnxruntime {version('onnxruntime')} differs from the net by {difference:.1e} of the largest value",
        verdict,
    ]


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("net", type=Path, help="the deploy prototxt")
    parser.add_argument("weights", type=Path, help="the .caffemodel or .caffemodel.h5")
    parser.add_argument("output", type=Path, help="the file to write: .onnx, .pt2 or .safetensors")
    opsets = range(onnx_graph.OLDEST, onnx_graph.LATEST + 1)
    parser.add_argument(
        "--opset",
        type=int,
        choices=opsets,
        metavar=f"{opsets[0]}…{opsets[-1]}",
        help=f"version of ONNX's operators (default {onnx_graph.OPSET})",
    )
    parser.add_argument(
        "--batch", type=_batch, metavar="free|N", help="batch size; by default free if the net takes any, else the net's own"
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="height and width of images, for nets that take any; by default the prototxt's"
    )
    parser.add_argument("--fp16", action="store_true", help="ONNX with float16 weights; inputs and outputs remain float32")
    parser.add_argument("--preprocessing", type=Path, help="preprocessing.json, to be stored in the file")
    parser.add_argument("--labels", type=Path, help="labels.txt, to be stored in the file")
    a = parser.parse_args(argv)
    suffix = a.output.suffix
    if suffix not in SUFFIXES:
        raise InputError(a.output, f'suffix "{suffix}"', f"it must be {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    given = {"--opset": a.opset, "--fp16": a.fp16}
    if suffix == ".safetensors":
        given |= {"--batch": a.batch, "--size": a.size}
    if suffix != ".onnx" and (option := next((name for name, value in given.items() if value), None)):
        raise InputError(a.output, option, f"{suffix} has no such setting", f"leave out {option}, or write .onnx")
    caffe.init_log(2)  # errors alone: the net's description is longer than a screen
    metadata = export.metadata_of(a.preprocessing, a.labels)
    net = with_outputs(load_net(a.net, a.weights))
    if a.size:
        onnx_graph.set_size(net, *a.size)
    scale = _scale(net, a.preprocessing)
    if suffix == ".safetensors":
        lines = [f"{export.write_safetensors(net, a.output, metadata)} tensors, {a.output.stat().st_size / 1e6:.1f} MB"]
    elif suffix == ".pt2":
        difference = torch_program.write_program(net, a.output, metadata, scale, a.batch)
        lines = [
            f"a program of PyTorch {version('torch')}, {a.output.stat().st_size / 1e6:.1f} MB; inputs {', '.join(net.inputs)}",
            f"it differs from the net by {difference:.1e} of the largest value",
        ]
    else:
        lines = convert_onnx(net, a.output, metadata, scale, onnx_graph.Form(a.opset or onnx_graph.OPSET, a.batch, a.fp16))
    print(f"{a.output}: " + "\n  ".join(lines))


if __name__ == "__main__":
    run(main)
