"""Draw a net as a graph: an SVG whose boxes are layers, top to bottom, with the shapes of their tops.

In-place layers (ReLU, Dropout, BatchNorm and Scale of residual nets) are listed in the box of the layer whose blob they change.
Edges of labels are left out. The drawing needs no other program, so that it is the same everywhere.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.nets.models.base import in_phase
from pipeline.report.layout import Layout, laid_out

FONT, LINE = 12, 15
"""Font size and line height, in pixels."""
NARROWEST, WIDEST = 96, 168
"""Widths of a box in pixels; longer text is condensed."""

COLOURS = {
    **{"convolution": "#cfe5f5", "pooling": "#fbe3b5", "inner product": "#e3d3ee", "arrangement": "#cdebd9", "loss": "#f7d3c4"},
    "": "#eee",
}
"""Fill of a box by its layer type's `drawn_as`."""


@dataclass
class Box:
    """A layer with the in-place layers after it; `reads` has the indices of the boxes that it reads from."""

    name: str
    kind: str
    window: str
    shape: str
    reads: list[int]
    in_place: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return [text for text in (self.name, f"{self.kind} {self.window}".strip(), " · ".join(self.in_place), self.shape) if text]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        longest = max(map(_width, self.lines))
        return min(max(NARROWEST, longest + 12), WIDEST), LINE * len(self.lines) + 10


def _width(text: str) -> float:
    """Approximate width of a bold text, in pixels."""
    return 0.62 * FONT * len(text)


def of_phase(net: caffe_pb2.NetParameter, phase: int) -> caffe_pb2.NetParameter:
    """The net with the layers of one phase."""
    kept = caffe_pb2.NetParameter()
    kept.CopyFrom(net)
    del kept.layer[:]
    kept.layer.extend(layer for layer in net.layer if in_phase(layer, phase))
    return kept


def shapes_of(net: caffe_pb2.NetParameter, image: tuple[int, ...], phase: int) -> dict[str, tuple[int, ...]]:
    """{blob: shape} of a net for one image (channels, height, width); layers that read data become inputs: image and labels."""
    bare = caffe_pb2.NetParameter()
    bare.CopyFrom(net)
    for layer in bare.layer:
        for _, param in layer.ListFields():  # the weights are not used: filling them takes time
            for filler in ("weight_filler", "bias_filler"):
                if filler in getattr(getattr(param, "DESCRIPTOR", None), "fields_by_name", ()):
                    param.ClearField(filler)
        if caffe.layer_type(layer.type).reads:
            given = caffe_pb2.LayerParameter(name=layer.name, type="Input", top=layer.top)
            for number in range(len(layer.top)):
                given.input_param.shape.add().dim.extend([1] if number else [1, *image])
            layer.CopyFrom(given)
    built = caffe.Net(bare, phase)
    shapes = {name: tuple(blob.shape) for name, blob in built.blobs.items()}
    built.close()
    return shapes


def boxes(net: caffe_pb2.NetParameter, shapes: dict[str, tuple[int, ...]]) -> list[Box]:
    """The boxes of a net, each after those that it reads from."""
    made: list[Box] = []
    graph = caffe.NetGraph(net.layer)
    box_of: dict[Any, int] = {}
    labels: set[Any] = set()
    for layer, bottoms, tops in zip(net.layer, graph.bottoms, graph.tops, strict=True):
        if len(tops) == 1 and list(layer.bottom) == list(layer.top) and bottoms[0] in box_of:
            box_of[tops[0]] = box_of[bottoms[0]]
            made[box_of[tops[0]]].in_place.append(layer.type)
            labels |= set(tops) if bottoms[0] in labels else set()
            continue
        labels |= set(tops[1:]) if caffe.layer_type(layer.type).reads else set()
        reads = [box_of[value] for value in bottoms if value in box_of and value not in labels]
        shape = shapes.get(layer.top[0], ())[1:] if layer.top else ()
        box_of |= dict.fromkeys(tops, len(made))
        made.append(Box(layer.name, layer.type, _window(layer), "×".join(map(str, shape)), list(dict.fromkeys(reads))))
    return made


def _window(layer: caffe_pb2.LayerParameter) -> str:
    """Kernel and stride of a convolution or pooling: `3×3 /2`."""
    if layer.pooling_param.global_pooling:
        return "global"
    fields = [name for name in ("convolution_param", "pooling_param") if layer.HasField(name)]
    if not fields:
        return ""
    param = getattr(layer, fields[0])
    sides = [param.kernel_h, param.kernel_w] if param.HasField("kernel_h") else np.ravel(param.kernel_size).tolist()
    stride = param.stride_h if param.HasField("stride_h") else np.max(param.stride, initial=1)
    sides = sides * 2 if len(sides) == 1 else sides
    return "×".join(map(str, sides)) + (f" /{stride}" if stride > 1 else "")


def svg(shown: list[Box], layout: Layout) -> str:
    """The drawing. The text of a box is searchable; its title (tooltip) has all of it."""
    width, height = map(round, layout.size)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="DejaVu Sans, Verdana, sans-serif" font-size="{FONT}" text-anchor="middle">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        '<g fill="none" stroke="#888" stroke-width="1.5">',
    ]
    for points in layout.lines:
        path = "M{:.1f} {:.1f}".format(*points[0])
        for (x, y), (right, down) in pairwise(points):
            middle = (y + down) / 2
            path += f"C{x:.1f} {middle:.1f} {right:.1f} {middle:.1f} {right:.1f} {down:.1f}"
        parts.append(f'<path d="{path}"/>')
    parts.append("</g>")
    for box, (x, y) in zip(shown, layout.centres, strict=True):
        wide, high = box.size
        parts.append(f"<g><title>{escape(', '.join(box.lines))}</title>")
        parts.append(
            f'<rect x="{x - wide / 2:.1f}" y="{y - high / 2:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="5"'
            f' fill="{COLOURS[caffe.layer_type(box.kind).drawn_as]}" stroke="#777"/>'
        )
        for number, line in enumerate(box.lines):
            at = y - high / 2 + 5 + LINE * (number + 0.78)
            bold = ' font-weight="bold"' if number == 0 else ""
            room = wide - 12
            pressed = f' textLength="{room:.0f}" lengthAdjust="spacingAndGlyphs"' if _width(line) > room else ""
            parts.append(f'<text x="{x:.1f}" y="{at:.1f}"{bold}{pressed}>{escape(line)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def drawn(path: Path, image: tuple[int, ...] | None = None, phase: int = caffe.TRAIN) -> str:
    """The SVG of a prototxt's net; `image` is the channels, height and width of the data that it reads, if it reads any."""
    net = of_phase(caffe.read_net(path), phase)
    if image is None and any(caffe.layer_type(layer.type).reads for layer in net.layer):
        raise InputError(path, "no Input layer with the images' shape", "the net reads a database", "give --image")
    shown = boxes(net, shapes_of(net, image or (), phase))
    if not shown:
        raise InputError(path, "no layers", do="give a net's prototxt")
    return svg(shown, laid_out([box.size for box in shown], [box.reads for box in shown]))


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("net", type=Path, help="a prototxt")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("--image", type=int, nargs=3, metavar=("CHANNELS", "HEIGHT", "WIDTH"), help="of a net that reads data")
    parser.add_argument("--phase", choices=["train", "test"], default="train", help="whose layers (default: %(default)s)")
    a = parser.parse_args(argv)
    picture = drawn(a.net, a.image and tuple(a.image), caffe.TRAIN if a.phase == "train" else caffe.TEST)
    with written_whole(a.picture) as part:
        part.write_text(picture, encoding="utf-8")
    print(a.picture)


if __name__ == "__main__":
    run(main)
