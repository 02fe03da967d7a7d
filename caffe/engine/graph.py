"""NetGraph: which layer makes, and which layers read, each version of each blob of a net."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from caffe.proto import caffe_pb2


class Value(NamedTuple):
    """One version of a blob: top number `top` of layer number `layer`. A layer in place makes a new version of its blob."""

    blob: str
    layer: int
    top: int


class NetGraph:
    """The layers of a net joined by their blobs, as a prototxt lists them; the net need not be built.

        graph = caffe.NetGraph(caffe.read_net("train.prototxt").layer)
        [layer.name for layer in graph.leading_to("fc8")]

    layers   LayerParameters, in order
    bottoms  for each layer, the Value that each bottom reads; None if no layer before it makes that blob
    tops     for each layer, the Value that each top makes
    last     {blob: the last Value of that name}
    readers  {value: the (layer, bottom) numbers that read it, in order}
    """

    def __init__(self, layers: Iterable[caffe_pb2.LayerParameter]):
        self.layers = list(layers)
        self.bottoms: list[list[Value | None]] = []
        self.tops: list[list[Value]] = []
        self.last: dict[str, Value] = {}
        self.readers: dict[Value, list[tuple[int, int]]] = {}
        for index, layer in enumerate(self.layers):
            self.bottoms.append([self.last.get(name) for name in layer.bottom])
            for slot, value in enumerate(self.bottoms[-1]):
                if value:
                    self.readers[value].append((index, slot))
            self.tops.append([Value(name, index, slot) for slot, name in enumerate(layer.top)])
            self.last.update((value.blob, value) for value in self.tops[-1])
            self.readers.update((value, []) for value in self.tops[-1])

    def outputs(self) -> list[Value]:
        """The last versions of the blobs whose last version no layer reads."""
        return [value for value in self.last.values() if not self.readers[value]]

    def leading_to(self, value: Value | str | None) -> list[caffe_pb2.LayerParameter]:
        """The layers that a value, or a blob's last version, depends on, directly or not, in order."""
        needed = {self.last.get(value) if isinstance(value, str) else value}
        kept = []
        for layer, bottoms, tops in zip(reversed(self.layers), reversed(self.bottoms), reversed(self.tops), strict=True):
            if needed.intersection(tops):
                kept.append(layer)
                needed.update(bottoms)
        return kept[::-1]

    def back_from(self, value: Value | None) -> Iterator[Value]:
        """The value, then the first bottom of the layer that makes it, and so on to a layer without bottoms."""
        while value:
            yield value
            value = next(iter(self.bottoms[value.layer]), None)

    def read_after(self, index: int) -> set[Value]:
        """The values made by layers up to number `index` that later layers read."""
        return {value for bottoms in self.bottoms[index + 1 :] for value in bottoms if value and value.layer <= index}
