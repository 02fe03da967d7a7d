"""Net surgery: turn fully connected layers into convolutions, so that a net gives a map of class scores for a larger image."""

from __future__ import annotations

import numpy as np

import caffe
from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets import graph

Map = tuple[int, ...]
"""Channels, height and width."""


def convolutional(net: caffe.Net, height: int, width: int) -> caffe.Net:
    """The net with its fully connected layers as convolutions, for images of `height` × `width`.

    A layer that reads a map gets a kernel of the map's size, one that reads a vector 1 × 1; each is called NAME-conv. A layer
    that only flattens is removed, and global pooling becomes pooling with windows of its bottom's original size. For an image of
    the net's own size the outputs are the net's, for a larger one they are maps. Layers pad the whole image, not each window: a
    map is then the classifier slid over the last map of the larger image, but not exactly the net slid over the image.
    """
    return _Surgery(net, height, width).run()


class _Surgery:
    """Converts a net layer by layer; records what became of the original's blobs."""

    def __init__(self, net: caffe.Net, height: int, width: int):
        self.net = net
        self.size = (height, width)
        self.blobs = dict(graph.blobs_of(net))
        self.renamed: dict[str, str] = {}
        self.maps: dict[str, Map] = {}
        """The map that the values of an original blob come from, if known."""

    def run(self) -> caffe.Net:
        definition = graph.definition_of(self.net)
        layers = [layer for layer in definition.layer if self.convert(layer)]
        del definition.layer[:]
        definition.layer.extend(layers)
        return graph.made(definition, self.blobs)

    def convert(self, layer: caffe_pb2.LayerParameter) -> bool:
        """Change a layer for the new net; return False if it is removed there."""
        bottoms, tops = list(layer.bottom), list(layer.top)
        flat = [name for name in bottoms if len(self.shape(name)) != 4]
        kind = caffe.layer_type(layer.type)
        if kind.is_input:
            self.resize(layer)
        elif kind.is_linear and kind.gives_maps is False:
            self.convolve(layer)
        elif kind.copies_values and not kind.keeps_shape:
            self.flatten(layer)
            return False
        elif layer.pooling_param.global_pooling:
            self.set_window(layer)
        elif flat and kind.is_elementwise and len({self.map(layer, name) for name in bottoms}) == 1:
            self.maps |= dict.fromkeys(tops, self.map(layer, bottoms[0]))
        elif flat and kind.is_channelwise:
            self.by_channel(layer)
        elif flat:
            raise self.error(layer, f"{layer.type} on a bottom of shape {self.shape(flat[0])}", "it has no equivalent for a map")
        self.maps |= {name: self.shape(name)[1:] for name in tops if len(self.shape(name)) == 4}
        layer.bottom[:] = [self.renamed.get(name, name) for name in bottoms]
        layer.top[:] = [self.renamed.get(name, name) for name in tops]
        return True

    def resize(self, layer: caffe_pb2.LayerParameter) -> None:
        (name, *others) = layer.top
        shape = self.shape(name)
        if others or len(self.net.inputs) != 1 or len(shape) != 4:
            raise self.error(layer, "several inputs" if others else f"an input of shape {shape}", "images must be the only input")
        if any(new < own for new, own in zip(self.size, shape[2:], strict=True)):
            found, expected = f"images of {shape[2]}×{shape[3]}", f"{self.size[0]}×{self.size[1]} is smaller"
            raise self.error(layer, found, expected, "give a height and a width not smaller than the net's own")
        del layer.input_param.shape[:]
        layer.input_param.shape.add(dim=[*shape[:2], *self.size])

    def convolve(self, layer: caffe_pb2.LayerParameter) -> None:
        """An InnerProduct becomes a Convolution called NAME-conv."""
        p, shape = layer.inner_product_param, self.shape(layer.bottom[0])
        if p.axis not in (1, 1 - len(shape)):
            raise self.error(layer, f"axis {p.axis}", "a layer becomes a convolution only if it reads the whole image: axis 1")
        channels, height, width = self.map(layer, layer.bottom[0])
        weight, *bias = self.blobs.pop(layer.name)
        weight = weight.T if p.transpose else weight
        param = layer.convolution_param
        param.num_output = p.num_output
        if not p.bias_term:
            param.bias_term = False
        if height == width:
            param.kernel_size.append(height)
        else:
            param.kernel_h, param.kernel_w = height, width
        (top,), name = layer.top, layer.name
        layer.ClearField("inner_product_param")
        layer.name, layer.type = f"{name}-conv", "Convolution"
        self.blobs[layer.name] = [np.ascontiguousarray(weight).reshape(-1, channels, height, width), *bias]
        self.maps[top] = (param.num_output, 1, 1)
        if top == name:
            self.renamed[top] = layer.name

    def flatten(self, layer: caffe_pb2.LayerParameter) -> None:
        """Remove a layer that turns a map into a vector, or a vector into a map."""
        (bottom,), (top,) = layer.bottom, layer.top
        places, shape = self.map(layer, bottom), self.shape(top)
        if shape[0] != self.shape(bottom)[0] or shape[1:] not in ((int(np.prod(places)),), places):
            raise self.error(layer, f"{self.shape(bottom)} becomes {shape}", "only a layer that flattens images can be removed")
        self.maps[top] = places
        self.renamed[top] = self.renamed.get(bottom, bottom)

    def set_window(self, layer: caffe_pb2.LayerParameter) -> None:
        """Global pooling becomes pooling with windows of its bottom's size and stride 1."""
        p, (height, width) = layer.pooling_param, self.shape(layer.bottom[0])[2:]
        p.ClearField("global_pooling")
        if height == width:
            p.kernel_size = height
        else:
            p.kernel_h, p.kernel_w = height, width

    def by_channel(self, layer: caffe_pb2.LayerParameter) -> None:
        """A layer over a vector's values becomes one over a map's channels."""
        for name in layer.bottom:
            if self.map(layer, name)[1:] != (1, 1):
                raise self.error(layer, f"{layer.type} on a flattened map", "it would confuse positions with channels")
        settings = caffe.layer_type(layer.type).settings_of(layer)
        if getattr(settings, "axis", 0) < 0:
            settings.axis += len(self.shape(layer.bottom[0]))
        self.maps |= {name: (self.shape(name)[1], 1, 1) for name in layer.top}

    def shape(self, blob: str) -> tuple[int, ...]:
        """The shape of a blob in the original net."""
        return tuple(self.net.blobs[blob].shape)

    def map(self, layer: caffe_pb2.LayerParameter, blob: str) -> Map:
        if blob not in self.maps:
            raise self.error(layer, f'its bottom "{blob}" of shape {self.shape(blob)}', "it comes from no map")
        return self.maps[blob]

    def error(self, layer: caffe_pb2.LayerParameter, found: str, expected: str, do: str = "") -> InputError:
        return InputError(f'{self.net.path}: layer "{layer.name}"', found, expected, do)
