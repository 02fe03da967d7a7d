"""What a template is, and what is asked of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import caffe
from caffe.proto import caffe_pb2


@dataclass(frozen=True)
class Built:
    """A net's layers from `data` to scores.

    heads        (blob of scores, weight of its loss), of which the last counts
    classifiers  the names of the last layers
    loss_params  {blob of scores: what its loss has in loss_param}, where it has something
    """

    layers: list[caffe_pb2.LayerParameter]
    heads: list[tuple[str, float]]
    classifiers: set[str]
    loss_params: dict[str, caffe_pb2.LossParameter] = field(default_factory=dict)


@dataclass(frozen=True)
class Last:
    """The classifier at the end of a net.

    name     its layer and blob; a name that pretrained weights do not have is learned from scratch
    outputs  number of classes
    lr_mult  multiplies the learning rates that the template gives it
    """

    name: str
    outputs: int
    lr_mult: float = 1.0


def head_name(head: str, published: str, last: str) -> str:
    """What another head's last layer is called where the classifier, `published` in the published net, is called `last`."""
    return head + (last.removeprefix(published) if last.startswith(published) else f"_{last}")


def in_phase(layer: caffe_pb2.LayerParameter, phase: int) -> bool:
    """Whether a phase has the layer, by its rules of phase."""
    included = [rule.phase for rule in layer.include if rule.HasField("phase")]
    excluded = [rule.phase for rule in layer.exclude if rule.HasField("phase")]
    return (not included or phase in included) and phase not in excluded


def unfit(net: Template, model: str, shape: tuple[int, int, int]) -> tuple[str, str, str] | None:
    """What is found, expected and to be done where a net cannot take images of this shape; None where it can.

    model  what the net is called
    shape  channels, height and width
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
    """A published net.

    body         body(n, last) adds the layers from `n.data` to the classifier's scores, which it returns
    last         the classifier's name in the published net
    helpers      other heads, which only help training: {the published name of the last layer and its blob: weight of its loss}
    pairs        whether it is trained on pairs of images, and gives values to compare in the place of scores
    crop_size    side of the square that training crops; 0 for the whole image
    mirror       whether training mirrors at random
    scale        what pixel values are multiplied by
    mean         whether the mean image is subtracted
    mean_values  values of the channels to subtract in its place
    batch_size   images in a training batch
    """

    body: Callable[[caffe.NetSpec, Last], object]
    last: str
    helpers: dict[str, float] = field(default_factory=dict)
    pairs: bool = False
    crop_size: int = 0
    mirror: bool = False
    scale: float = 1.0
    mean: bool = True
    mean_values: tuple[float, ...] = ()
    batch_size: int = 64

    input = ()

    def built(self, last: Last, deploy: bool = False) -> Built:
        """The layers with `last` as the classifier; the names of the other heads' change as its own does."""
        n = caffe.NetSpec()
        n.data = caffe.layers.Input()
        self.body(n, last)
        layers = list(n.to_proto().layer)[1:]
        scores = layers[-1].top[0]
        if deploy:
            return Built(caffe.NetGraph(layers).leading_to(scores), [(scores, 1.0)], {last.name})
        helpers = {head_name(head, self.last, last.name): weight for head, weight in self.helpers.items()}
        return Built(layers, [*helpers.items(), (scores, 1.0)], {*helpers, last.name})
