"""Any classifier's prototxt, for training or deployment, of any version of the format, as a template for another dataset.

Its data layers, losses and accuracies are removed. The rest has one or more heads: blobs of scores, each made by a last
convolution or fully connected layer, which gets the dataset's number of classes and, if trained from scratch, another name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets.models.base import Built, Last, Template, head_name, in_phase


@dataclass(frozen=True)
class Head:
    """A classifier: its layer, the blob of its scores, and the weight and loss_param of its loss, if it has one."""

    layer: str
    scores: str
    weight: float
    loss_param: caffe_pb2.LossParameter | None = None


@dataclass(frozen=True)
class Adapted(Template):
    """A user's net, with crop_size … batch_size of its own data layer.

    layers  from the images, a blob called `data`, to the scores
    heads   the last is the main one, whose layer is `last`; the others are auxiliary
    """

    layers: tuple[caffe_pb2.LayerParameter, ...]
    heads: tuple[Head, ...]

    def with_all_heads(self, last: Last) -> Built:
        names = {head.layer: head_name(head.layer, self.last, last.name) for head in self.heads} | {self.last: last.name}
        layers: list[caffe_pb2.LayerParameter] = []
        renamed: dict[str, str] = {}
        for layer in self.layers:
            copy = caffe_pb2.LayerParameter()
            copy.CopyFrom(layer)
            copy.bottom[:] = [renamed.get(blob, blob) for blob in copy.bottom]
            if layer.name in names:
                _make_last(copy, names[layer.name], last)
                renamed |= dict(zip(layer.top, copy.top, strict=True))
            else:
                copy.top[:] = [renamed.get(blob, blob) if blob in layer.bottom else blob for blob in copy.top]
            caffe.layer_type(copy.type).choose_statistics(copy, stored=None)
            layers.append(copy)
        heads = [(renamed.get(head.scores, head.scores), head.weight) for head in self.heads]
        params = {scores: head.loss_param for (scores, _), head in zip(heads, self.heads, strict=True) if head.loss_param}
        return Built(layers, heads, set(names.values()), params)


def read(path: Path) -> Adapted:
    """The net in a prototxt. Raises an error with file and line if it cannot be adapted."""
    net = caffe.read_net(path)
    placed = zip(net.layer, caffe.layer_places(path, net), strict=True)
    places = [(layer, place) for layer, place in placed if in_phase(layer, caffe.TRAIN)]
    layers = [layer for layer, _ in places]
    if not layers:
        raise InputError(path, "no layers", "a net for training or deployment is expected")
    sources = [layer for layer in layers if not layer.bottom]
    if not sources or not sources[0].top:
        raise InputError(path, "no data layer and no input", "a net's images come from one of them")
    images = sources[0].top[0]
    labels = {"label", *sources[0].top[1:], *(top for layer in sources[1:] for top in layer.top)}
    kept: list[tuple[caffe_pb2.LayerParameter, str]] = []
    losses: dict[str, tuple[float, caffe_pb2.LossParameter | None]] = {}  # by the blob of scores: weight and loss_param
    graph = caffe.NetGraph(layers)
    kinds = [caffe.layer_type(layer.type, place) for layer, place in places]
    for number, (layer, place) in enumerate(places):
        kind = kinds[number]
        readers = [kinds[reader] for value in graph.tops[number] for reader, _ in graph.readers[value]]
        if not layer.bottom:
            kept.append((layer, place))
        elif kind.is_loss:
            if layer.type != "SoftmaxWithLoss":
                expected = "a classifier ends in SoftmaxWithLoss or Softmax"
                raise InputError(place, f"a {layer.type}", expected, "give the net of a classifier")
            loss_param = layer.loss_param if layer.HasField("loss_param") else None
            losses[layer.bottom[0]] = (layer.loss_weight[0] if layer.loss_weight else 1.0, loss_param)
        elif kind.applies_softmax and all(reader.reads_out for reader in readers):
            losses.setdefault(layer.bottom[0], (1.0, None))  # unless a loss reads the same blob
        elif not kind.reads_out and not labels & set(layer.bottom):
            kept.append((layer, place))
    caffe.check_bottoms(*zip(*kept, strict=True))
    body = [_with_data(layer, images) for layer, _ in kept if layer.bottom]
    losses = losses or {layer.top[0]: (1.0, None) for layer in body[-1:]}
    heads = [Head(_classifier(path, body, blob), blob, *loss) for blob, loss in losses.items() if loss[0]]
    heads.sort(key=lambda head: head.weight)  # stable: of equals, the last is the main head
    if not heads:
        raise InputError(path, "no scores", "a net for training or deployment is expected")
    return Adapted(heads[-1].layer, tuple(body), tuple(heads), **_transformation(sources[0]))


def _with_data(layer: caffe_pb2.LayerParameter, images: str) -> caffe_pb2.LayerParameter:
    """A copy for all phases, whose blob of images is called `data`."""
    copy = caffe_pb2.LayerParameter()
    copy.CopyFrom(layer)
    for blobs in (copy.bottom, copy.top):
        blobs[:] = ["data" if blob == images else blob for blob in blobs]
    copy.ClearField("include")
    copy.ClearField("exclude")
    return copy


def _classifier(path: Path, body: list[caffe_pb2.LayerParameter], blob: str) -> str:
    """The name of the classifier that makes a blob of scores."""
    graph = caffe.NetGraph(body)
    for value in graph.back_from(graph.last.get(blob)):
        layer = body[value.layer]
        if caffe.layer_type(layer.type).is_classifier:
            return layer.name
        if len(layer.bottom) != 1:
            break
    raise InputError(
        path, f'no last layer for the scores "{blob}"', "they are made by a layer of type InnerProduct or Convolution"
    )


def _make_last(layer: caffe_pb2.LayerParameter, name: str, last: Last) -> None:
    """Give a classifier its name, its number of classes and its learning rates."""
    layer.top[:] = [name if top == layer.name else f"{top}{name.removeprefix(layer.name)}" for top in layer.top]
    layer.name = name
    kind = caffe.layer_type(layer.type)
    param = kind.settings_of(layer)
    param.num_output = last.outputs
    if last.lr_mult != 1:
        layer.param.extend([caffe_pb2.ParamSpec()] * (len(kind.blob_specs(layer) or ()) - len(layer.param)))
        for spec in layer.param:
            spec.lr_mult *= last.lr_mult
    if not param.HasField("weight_filler"):  # a deploy net has none, and a layer of zeros does not learn
        param.weight_filler.type, param.weight_filler.std = "gaussian", 0.01


def _transformation(source: caffe_pb2.LayerParameter) -> dict[str, Any]:
    """The fields of a Template that a data layer or an input determines."""
    kind = caffe.layer_type(source.type)
    if kind.is_input:
        shape = source.input_param.shape[0].dim if source.input_param.shape else []
        if len(shape) != 4:
            return {}
        channels, height, width = map(int, shape[1:])
        return {"crop_size": height if height == width else 0, "input": (channels, height, width)}
    transform = source.transform_param
    return {
        "crop_size": transform.crop_size,
        "mirror": transform.mirror,
        "scale": transform.scale,
        "mean": bool(transform.mean_file),
        "mean_values": tuple(transform.mean_value),
        "batch_size": getattr(kind.settings_of(source), "batch_size", 0) or Template.batch_size,
    }
