"""caffe.draw: draw nets with Graphviz."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffe.errors import Error
from caffe.proto import caffe_pb2

LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
# By type name, so that drawing need not load the layers' classes and PyTorch; a test compares them with `drawn_as`.
_COLORS = {"Convolution": "#FF5050", "Deconvolution": "#FF5050", "Pooling": "#FF9900", "InnerProduct": "#CC33FF"}
_TEXT_FORMATS = ("dot", "gv", "raw")


@dataclass
class Graph:
    """A directed graph in Graphviz's language. Nodes are {name: attributes}, edges (source, target, attributes).

    Like pydot's, which BVLC Caffe uses, it has `create_FORMAT()` and `write_FORMAT(path)` for every format.
    """

    name: str
    rankdir: str
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def to_string(self) -> str:
        """The graph as the text of a .dot file."""
        lines = [f"digraph {_quote(self.name)} {{", f"rankdir={self.rankdir};"]
        lines += [f"{_quote(name)} {_format_attributes(attributes)};" for name, attributes in self.nodes.items()]
        lines += [f"{_quote(start)} -> {_quote(end)} {_format_attributes(attributes)};" for start, end, attributes in self.edges]
        return "\n".join([*lines, "}", ""])

    def create(self, format: str = "png") -> bytes:
        """Render the graph in one of Graphviz's formats; `dot`, `gv` and `raw` are its text, and need no Graphviz."""
        text = self.to_string().encode()
        if format in _TEXT_FORMATS:
            return text
        program = shutil.which("dot")
        if program is None:
            raise Error(
                "draw", f"no program dot to make {format}", do="install Graphviz (package graphviz), or write a .dot file"
            )
        done = subprocess.run([program, f"-T{format}"], input=text, capture_output=True)
        if done.returncode:
            raise Error("draw", f"dot cannot make {format}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def write(self, path: str | os.PathLike[str], format: str = "raw") -> None:
        """Write the rendered graph, by default as the text of a .dot file."""
        Path(path).write_bytes(self.create(format))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        action, _, format = name.partition("_")
        if action not in ("create", "write") or not format:
            raise AttributeError(f"a graph has no attribute {name!r}")
        return functools.partial(getattr(self, action), format=format)


def _quote(text: str) -> str:
    # Backslashes stay: \n is Graphviz's line break.
    return '"' + text.replace('"', '\\"') + '"'


def _format_attributes(attributes: dict[str, str]) -> str:
    return "[" + ", ".join(f"{key}={_quote(value)}" for key, value in attributes.items()) + "]"


def get_edge_label(layer: caffe_pb2.LayerParameter) -> str:
    """The label of the edges from a layer: its batch size or its number of outputs."""
    if layer.HasField("data_param"):
        return f"Batch {layer.data_param.batch_size}"
    outputs = layer.convolution_param.num_output or layer.inner_product_param.num_output
    return str(outputs) if outputs else ""


def get_layer_lr_mult(layer: caffe_pb2.LayerParameter) -> float:
    """The lr_mult of a layer's first parameter."""
    return layer.param[0].lr_mult if layer.param else 1.0


def get_layer_label(layer: caffe_pb2.LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """Name, type and window's parameters of a layer, on separate lines if the net is drawn horizontally."""
    separator = " " if rankdir in ("TB", "BT") else "\\n"
    kind, window = layer.type, []
    if layer.HasField("convolution_param"):
        conv = layer.convolution_param
        window = [f"kernel size: {_axes(conv, 'kernel_size', 1)}", f"stride: {_axes(conv, 'stride', 1)}"]
        window += [f"pad: {_axes(conv, 'pad', 0)}", f"dilation: {_axes(conv, 'dilation', 1)}", f"group: {conv.group}"]
    elif layer.HasField("pooling_param"):
        pool = layer.pooling_param
        kind = f"{caffe_pb2.PoolingParameter.PoolMethod.Name(pool.pool)} {layer.type}"
        size = "global" if pool.global_pooling else _axes(pool, "kernel_size", 1)
        window = [f"kernel size: {size}", f"stride: {_axes(pool, 'stride', 1)}", f"pad: {_axes(pool, 'pad', 0)}"]
    if display_lrm and (layer.HasField("convolution_param") or layer.HasField("inner_product_param")):
        window.append(f"lr_mult: {get_layer_lr_mult(layer):g}")
    return separator.join([f"{layer.name}({kind})", *window])


def _axes(param: caffe_pb2.ConvolutionParameter | caffe_pb2.PoolingParameter, name: str, default: int) -> str:
    """A window parameter as text: one value, or one for each axis joined by ×."""
    stem = name.removesuffix("_size")
    sides = [f"{stem}_{side}" for side in "hw"]
    if all(side in param.DESCRIPTOR.fields_by_name for side in sides) and any(param.HasField(side) for side in sides):
        return "×".join(str(getattr(param, side)) for side in sides)
    value = getattr(param, name)
    values = [value] if isinstance(value, int) else list(value) or [default]
    return "×".join(map(str, values))


def choose_color_by_layertype(layertype: str) -> str:
    """The fill colour of a layer that is not in place."""
    return _COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def _is_in_phase(layer: caffe_pb2.LayerParameter, phase: int) -> bool:
    if any(rule.HasField("phase") for rule in layer.include):
        return any(rule.phase == phase for rule in layer.include if rule.HasField("phase"))
    return not any(rule.HasField("phase") and rule.phase == phase for rule in layer.exclude)


def get_pydot_graph(
    caffe_net: caffe_pb2.NetParameter, rankdir: str, label_edges: bool = True, phase: int | None = None, display_lrm: bool = False
) -> Graph:
    """The graph of a net: a node for each layer and each blob.

    rankdir  direction of the layout: LR, RL, TB or BT
    phase    caffe.TRAIN or caffe.TEST: only the layers of that phase
    """
    graph = Graph(caffe_net.name or "Net", rankdir)
    for layer in caffe_net.layer:
        if phase is not None and not _is_in_phase(layer, phase):
            continue
        in_place = len(layer.bottom) == 1 and list(layer.bottom) == list(layer.top)
        style = NEURON_LAYER_STYLE if in_place else {**LAYER_STYLE_DEFAULT, "fillcolor": choose_color_by_layertype(layer.type)}
        node = f"{layer.name}_{layer.type}"
        graph.nodes[node] = {**style, "label": _escape_record(get_layer_label(layer, rankdir, display_lrm))}
        for name in (*layer.bottom, *layer.top):
            graph.nodes[f"{name}_blob"] = {**BLOB_STYLE, "label": name}
        graph.edges += [(f"{name}_blob", node, {"label": ""}) for name in layer.bottom]
        label = get_edge_label(layer) if label_edges else ""
        graph.edges += [(node, f"{name}_blob", {"label": label}) for name in layer.top]
    return graph


def _escape_record(label: str) -> str:
    """Escape the characters that divide the fields of a node of shape record."""
    return "".join(f"\\{character}" if character in "{}|<>" else character for character in label)


def draw_net(
    caffe_net: caffe_pb2.NetParameter, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """Draw a net in a Graphviz format: png, svg, pdf, dot …"""
    return get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).create(format=ext)


def draw_net_to_file(
    caffe_net: caffe_pb2.NetParameter, filename: str, rankdir: str = "LR", phase: int | None = None, display_lrm: bool = False
) -> None:
    """Draw a net to a file; its suffix is the format."""
    ext = Path(filename).suffix.removeprefix(".")
    if not ext:
        raise Error(str(filename), "no suffix", "the suffix is the format", "use .png, .svg, .pdf or .dot")
    Path(filename).write_bytes(draw_net(caffe_net, rankdir, ext, phase, display_lrm))
