"""A trained net: a prototxt with the weights of its layers, all of them."""

from __future__ import annotations

from pathlib import Path

import caffe
from pipeline.errors import InputError


def loaded(net_file: Path, weights: Path) -> caffe.Net:
    """A net for testing with all of its parameters from a .caffemodel or .caffemodel.h5; what lacks there is an error."""
    net = caffe.Net(str(net_file), caffe.TEST)
    copy(net, weights, net_file)
    return net


def copy(net: caffe.Net, weights: Path, net_file: Path) -> list[str]:
    """Copy all parameters of a net, which errors call `net_file`; the names of the layers of `weights` that it does not have."""
    copied = net.copy_from(weights)
    if copied.untouched:
        raise InputError(
            weights,
            f"no weights of {named(copied.untouched)}",
            f"{net_file} has {'them' if len(copied.untouched) > 1 else 'it'}",
            caffe.nearest(copied.untouched[0], [*copied.copied, *copied.ignored]) or "give the weights of this net",
        )
    return copied.ignored


def named(layers: list[str]) -> str:
    """Layers in words: the first five of them."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(layers[:5])}" + (" …" if len(layers) > 5 else "")
