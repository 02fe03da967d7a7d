"""Templates of nets: the fields and functions that published and user nets share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import caffe
from caffe.proto import caffe_pb2


@dataclass(frozen=True)
class Built:
    """A net's layers from `data` to scores.

    heads        (blob of scores, weight of its loss), of which the last is the main head
    classifiers  the names of the heads' last layers
    loss_params  {blob of scores: loss_param of its loss}, of losses that have one
    """

    layers: list[caffe_pb2.LayerParameter]
    heads: list[tuple[str, float]]
    classifiers: set[str]
    loss_params: dict[str, caffe_pb2.LossParameter] = field(default_factory=dict)


@dataclass(frozen=True)
class Last:
    """The classifier at the end of a net.

    name     of its layer; under a name that pretrained weights do not have, it is learned from scratch
    outputs  number of classes
    lr_mult  multiplies the template's learning rates
    """

    name: str
    outputs: int
    lr_mult: float = 1.0


def head_name(head: str, published: str, last: str) -> str:
    """The new name of an auxiliary head's last layer, when the classifier is renamed from `published` to `last`."""
    return head + (last.removeprefix(published) if last.startswith(published) else f"_{last}")


def in_phase(layer: caffe_pb2.LayerParameter, phase: int) -> bool:
    """Whether a phase has the layer, by the phases of its include and exclude rules."""
    included = [rule.phase for rule in layer.include if rule.HasField("phase")]
    excluded = [rule.phase for rule in layer.exclude if rule.HasField("phase")]
    return (not included or phase in included) and phase not in excluded


def unfit(net: Template, model: str, shape: tuple[int, int, int]) -> tuple[str, str, str] | None:
    """(found, expected, do) if a net cannot take images of this shape, (channels, height, width); else None.

    model  the net's name for messages
    """
    channels, height, width = shape
    own, *size = net.input or (channels, height, width)
    if own != channels:
        color = {1: "the dataset's color: gray", 3: "the dataset's color: color"}.get(own)
        do = f"set {color}, or the prototxt's input" if color else "change the prototxt's input"
        return f"{model} takes images of {own} channel{'s' * (own != 1)}", f"they have {channels}", do
    if len(net.mean_values) not in (0, 1, channels):
        said = f"{model} subtracts a value from each of {len(net.mean_values)} channels"
        return said, f"the images have {channels}", "choose another model, or images of that many"
    if net.crop_size > min(height, width):
        said = f"{model} crops {net.crop_size}×{net.crop_size}"
        return said, f"the images are {height}×{width}", "give the dataset a larger size"
    if not net.crop_size and size != [height, width]:
        do = f"set the dataset's size: {{height: {size[0]}, width: {size[1]}}}"
        return f"{model} takes {size[0]}×{size[1]}", f"the images are {height}×{width}", do
    return None


@dataclass(frozen=True)
class Template:
    """A net for another dataset's classes, and how its inputs are made.

    last         the name of the classifier's layer before it is renamed
    pairs        whether it is trained on pairs of images, and gives values to compare instead of scores
    crop_size    side of the square that training crops; 0 for the whole image
    mirror       whether training mirrors at random
    scale        multiplies pixel values
    mean         whether the mean image is subtracted
    mean_values  values of the channels to subtract instead
    batch_size   images in a training batch
    input        (channels, height, width) that the net is fixed to; empty: any
    """

    last: str
    _: KW_ONLY
    pairs: bool = False
    crop_size: int = 0
    mirror: bool = False
    scale: float = 1.0
    mean: bool = True
    mean_values: tuple[float, ...] = ()
    batch_size: int = 32
    input: tuple[int, ...] = ()

    def built(self, last: Last, deploy: bool = False) -> Built:
        """The layers with `last` as the classifier; auxiliary heads are renamed as it is, or left out of a net to deploy."""
        built = self.with_all_heads(last)
        if not deploy:
            return built
        main = built.heads[-1:]
        return Built(caffe.NetGraph(built.layers).leading_to(main[0][0]), main, {last.name})

    def with_all_heads(self, last: Last) -> Built:
        """The layers with `last` as the classifier, and with auxiliary heads."""
        raise NotImplementedError


@dataclass(frozen=True)
class Published(Template):
    """A published net.

    body     body(n, last) adds the layers from `n.data` to the classifier's scores
    helpers  auxiliary heads, which only help training: {the published name of the last layer and its blob: weight of its loss}
    """

    body: Callable[[caffe.NetSpec, Last], None]
    helpers: dict[str, float] = field(default_factory=dict)

    def with_all_heads(self, last: Last) -> Built:
        n = caffe.NetSpec()
        n.data = caffe.layers.Input()
        self.body(n, last)
        layers = list(n.to_proto().layer)[1:]
        helpers = {head_name(head, self.last, last.name): weight for head, weight in self.helpers.items()}
        return Built(layers, [*helpers.items(), (layers[-1].top[0], 1.0)], {*helpers, last.name})
