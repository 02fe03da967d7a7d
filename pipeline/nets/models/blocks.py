"""Building blocks that templates of several families share."""

from typing import Any

from caffe import layers as L
from caffe.net_spec import NetSpec, Top

STATISTICS = [{"lr_mult": 0, "decay_mult": 0}] * 3
"""Mean, variance and their weight are not learned by gradient."""


def rates(lr_mult: float = 1.0, decay_mult: float | None = 1) -> list[dict[str, float]]:
    """Multipliers of a layer's weights and biases, `param`: biases learn twice as fast.

    decay_mult  weight decay of the weights, and none of the biases; None: both decay, as by default
    """
    weights, biases = {"lr_mult": lr_mult}, {"lr_mult": 2 * lr_mult}
    return [weights, biases] if decay_mult is None else [weights | {"decay_mult": decay_mult}, biases | {"decay_mult": 0}]


def fillers(kind: str, bias: float | None = None, **weights: float) -> dict[str, Any]:
    """Fillers of weights, of this type with these fields, and of biases: a constant, 0 by default."""
    constant = {} if bias is None else {"value": bias}
    return {"weight_filler": {"type": kind, **weights}, "bias_filler": {"type": "constant", **constant}}


def rectified(n: NetSpec, name: str, relu: str, layer: Top) -> Top:
    """A layer by its name, and its ReLU in place."""
    n[name] = layer
    n[relu] = L.ReLU(layer, in_place=True)
    return n[relu]


def dropped(n: NetSpec, number: int, layer: Top) -> Top:
    """A hidden layer as fcNUMBER, its ReLU and dropout."""
    top = rectified(n, f"fc{number}", f"relu{number}", layer)
    n[f"drop{number}"] = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    return n[f"drop{number}"]


def normalised(n: NetSpec, bottom: Top, names: tuple[str, str, str], in_place: bool = True, **convolution: Any) -> Top:
    """A convolution, batch normalisation, and scale and shift of each channel, by these names.

    in_place     whether the normalisation overwrites the convolution's top; the scale always overwrites its bottom
    convolution  its fields; it learns no bias unless they say so
    """
    convolved, norm, scale = names
    learned = {"param": [{"lr_mult": 1, "decay_mult": 1}], "weight_filler": {"type": "msra"}, "bias_term": False}
    n[convolved] = L.Convolution(bottom, **(learned | convolution))
    n[norm] = L.BatchNorm(n[convolved], in_place=in_place, param=STATISTICS)
    n[scale] = L.Scale(n[norm], in_place=True, bias_term=True, param=[{"lr_mult": 1, "decay_mult": 0}] * 2)
    return n[scale]
