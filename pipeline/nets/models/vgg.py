"""VGG's nets of 16 and 19 layers (Simonyan & Zisserman 2014), with the names of the weights they published."""

from collections.abc import Callable
from typing import Any

from caffe import layers as L
from caffe import params as P
from caffe.net_spec import NetSpec, Top
from pipeline.nets.models.base import Last

LAST = "fc8"
CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""3 × 3 convolutions of each stage, by the number of layers with weights."""
OUTPUTS = (64, 128, 256, 512, 512)


def _learned(std: float, lr_mult: float = 1.0) -> dict[str, Any]:
    return {
        "param": [{"lr_mult": lr_mult, "decay_mult": 1}, {"lr_mult": 2 * lr_mult, "decay_mult": 0}],
        "weight_filler": {"type": "gaussian", "std": std},
        "bias_filler": {"type": "constant"},
    }


def body(layers: int) -> Callable[[NetSpec, Last], Top]:
    """The net of so many layers: five stages of 3 × 3 convolutions, each halved, and three fully connected layers."""

    def build(n: NetSpec, last: Last) -> Top:
        top = n.data
        for stage, (count, outputs) in enumerate(zip(CONVOLUTIONS[layers], OUTPUTS, strict=True), 1):
            for number in range(1, count + 1):
                name = f"conv{stage}_{number}"
                n[name] = L.Convolution(top, num_output=outputs, pad=1, kernel_size=3, **_learned(0.01))
                top = n[f"relu{stage}_{number}"] = L.ReLU(n[name], in_place=True)
            top = n[f"pool{stage}"] = L.Pooling(top, pool=P.Pooling.MAX, kernel_size=2, stride=2)
        for number in (6, 7):
            n[f"fc{number}"] = L.InnerProduct(top, num_output=4096, **_learned(0.005))
            n[f"relu{number}"] = L.ReLU(n[f"fc{number}"], in_place=True)
            top = n[f"drop{number}"] = L.Dropout(n[f"relu{number}"], dropout_ratio=0.5, in_place=True)
        n[last.name] = L.InnerProduct(top, num_output=last.outputs, **_learned(0.01, last.lr_mult))
        return n[last.name]

    return build
