"""Uses of PyTorch that cover the operations with a reproducible implementation; run as a module, prints a digest of each result.

Each case takes a source of arrays and returns tensors; inputs that are drawn with `learn` get gradients.
"""

import hashlib
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe.numerics.dispatch import Reproducible


class Source:
    """Arrays drawn from a seed: the same in float32 and float64."""

    def __init__(self, dtype: torch.dtype, seed: int = 5):
        self._draw = np.random.default_rng(seed)
        self._dtype = dtype
        self.learned: list[Tensor] = []

    def __call__(self, *shape: int, low: float = -3.0, high: float = 3.0, learn: bool = True) -> Tensor:
        values = self._draw.integers(0, 1 << 24, shape) / (1 << 24) * (high - low) + low
        x = torch.from_numpy(np.asarray(values, np.float32)).to(self._dtype)
        if learn:
            self.learned.append(x.requires_grad_())
        return x


CASES: dict[str, Callable[[Source], list[Tensor]]] = {
    "add": lambda s: [torch.add(s(7, 5), s(5), alpha=0.3), torch.sub(s(7, 5), s(7, 1), alpha=-2.5), 2.5 - s(4)],
    "mul": lambda s: [s(7, 5) * s(7, 5), s(9) * 0.1, 0.1 * s(9)],
    "div": lambda s: [s(7, 5) / s(7, 5, low=1), s(9) / 3.0, 1 / s(9, low=0.5)],
    "addcmul": lambda s: [torch.addcmul(s(9), s(9), s(9), value=0.7), torch.addcdiv(s(9), s(9), s(9, low=1), value=0.7)],
    "powers": lambda s: [s(99, low=0.1) ** e for e in (2, 0.5, -0.75, 2.2, 3)] + [s(99, low=0.1).rsqrt(), s(99, low=0.1).sqrt()],
    "exp": lambda s: [s(999).exp(), s(999, low=0.01).log(), torch.sigmoid(s(999)), torch.tanh(s(999)), torch.tanh(s(99) * 0.01)],
    "sum": lambda s: [s(30, 40).sum(), s(3, 40, 5).sum((0, 2)), s(3, 40).mean(1, keepdim=True), s(3, 40).mean()],
    "mm": lambda s: [s(20, 300) @ s(300, 7), F.linear(s(8, 5000), s(6, 5000), s(6)), torch.bmm(s(3, 4, 50), s(3, 50, 2))],
    "vectors": lambda s: [torch.mv(s(20, 300), s(300)), torch.dot(s(300), s(300))],
    "convolution": lambda s: [F.conv2d(s(5, 4, 19, 17), s(6, 2, 3, 5), s(6), (2, 1), (1, 2), (1, 2), 2)],
    "convolution of many": lambda s: [F.conv2d(s(70, 1, 12, 12), s(8, 1, 5, 5), s(8))],
    "convolution padded by more than its kernel": lambda s: [F.conv2d(s(2, 4, 5, 6), s(4, 2, 1, 2), None, 1, (3, 2), (1, 2), 2)],
    "convolution of signals": lambda s: [F.conv1d(s(3, 2, 50), s(4, 2, 7), None, 3)],
    "convolution of volumes": lambda s: [F.conv3d(s(2, 2, 6, 7, 5), s(3, 2, 2, 3, 3), s(3), 1, (0, 1, 1))],
    "deconvolution": lambda s: [F.conv_transpose2d(s(3, 4, 9, 8), s(4, 3, 4, 4), s(6), 2, 1, 0, 2)],
    "softmax": lambda s: [torch.softmax(s(9, 50), 1), torch.log_softmax(s(4, 7, 6), 1)],
    "batch_norm": lambda s: [
        F.batch_norm(s(6, 5, 4, 3), s(5, learn=False), s(5, low=1, learn=False), s(5), s(5), True, 0.1, 1e-5)
    ],
    "batch_norm of running statistics": lambda s: [
        F.batch_norm(s(6, 5, 4), s(5, learn=False), s(5, low=1, learn=False), s(5), s(5), False, 0.1, 1e-5)
    ],
    "max_pool2d": lambda s: [F.max_pool2d(s(3, 4, 13, 12), 3, 2, 1, 1, True), F.max_pool2d(s(2, 2, 9, 9), (2, 3), (1, 2))],
    "avg_pool2d": lambda s: [
        F.avg_pool2d(s(3, 4, 13, 12), 3, 2, 1, True),
        F.avg_pool2d(s(2, 2, 9, 9), (2, 3), (1, 2), 1, False, False),
        F.avg_pool2d(s(2, 2, 9, 9), 3, divisor_override=5),
    ],
    "scatter": lambda s: [
        torch.scatter(s(5, 9, learn=False), 1, torch.arange(15).view(5, 3) % 4, -1.0, reduce="add"),
        torch.scatter_add(s(5, 4), 1, torch.arange(45).view(5, 9) % 4, s(5, 9)),
    ],
    "losses": lambda s: [
        F.nll_loss(s(9, 5), torch.arange(9) % 5),
        F.nll_loss(
            s(4, 5, 3, 2), torch.arange(24).view(4, 3, 2) % 5, s(5, low=0.1, learn=False), ignore_index=2, reduction="none"
        ),
        F.binary_cross_entropy_with_logits(s(9, 5), s(9, 5, low=0, high=1, learn=False), reduction="none"),
        F.smooth_l1_loss(s(9, 5), s(9, 5), reduction="none", beta=0.7),
        F.smooth_l1_loss(s(9, 5), s(9, 5), reduction="sum", beta=0.3),
        F.smooth_l1_loss(s(9, 5), s(9, 5)),
    ],
    "subnormal": lambda s: [
        s(9) * torch.tensor([1e-40, -1e-39, 1e-45] * 3),
        torch.stack([s(9) * 1e-38, s(9) * 3e-38]) @ (s(9, 4) * 1e-39),
        F.linear(torch.full((2, 3), 1e30), torch.full((2, 3), 1e-39)),
        torch.full((9,), 1e-40).cumsum(0) * 1e30,
        torch.full((2, 9), 1e-40).sum(1) * 1e30,
    ],
    "activations": lambda s: [
        F.silu(s(99)),
        F.softplus(s(99), 2.0, 3.0),
        F.elu(s(99), 0.7),
        F.leaky_relu(s(99), 0.1),
        F.prelu(s(4, 5, 3), s(5)),
        torch.maximum(s(99), s(99)) - torch.minimum(s(99), s(99)),
        s(9, low=0.5).reciprocal(),
        -s(9).round(),
    ],
    "places": lambda s: [
        torch.index_add(s(5, 4), 0, torch.tensor([0, 3, 0, 4, 0]), s(5, 4), alpha=0.3),
        torch.index_put(s(5, 4), (torch.tensor([1, 1, 2]),), s(4), True),
        s(5, 4)[:, torch.tensor([0, 0, 3])],
        F.embedding(torch.tensor([[0, 3, 3], [1, 0, 0]]), s(6, 4)),
        F.fold(s(2, 12, 20), (6, 5), (2, 2), stride=(1, 1), padding=0),
        torch.baddbmm(s(2, 3, 4), s(2, 3, 5), s(2, 5, 4), beta=0.3, alpha=0.7),
        s(5, 9).topk(3).values,
        s(5, 9).sort(1).values,
    ],
    "small and large": lambda s: [
        torch.scatter_add(s(4), 0, torch.tensor([0, 1, 1, 2]), s(4) * torch.tensor([1.0, 1e-10, 1e-20, 1e-30])),
        (s(3, 40) * torch.tensor([10.0 ** -(place % 20) for place in range(40)])).cumsum(1),
    ],
    "windows": lambda s: [s(5, 40).unfold(1, 5, 3), s(9, 4, 3).unfold(0, 2, 1)],
    "running sums": lambda s: [s(5, 40).cumsum(1), s(5, 40).cumsum(0)],
    "norms": lambda s: [torch.linalg.vector_norm(s(40)), torch.linalg.vector_norm(s(4, 5, 3), dim=(0, 2))],
    "interpolation": lambda s: [
        F.interpolate(s(2, 3, 7, 5), size=(11, 9), mode="bilinear", align_corners=True),
        F.interpolate(s(2, 3, 7, 5), size=(3, 12), mode="bilinear", align_corners=False),
        F.interpolate(s(2, 3, 4, 5), scale_factor=1.7, mode="bilinear"),
    ],
    "in place": lambda s: [s(9, learn=False).mul_(0.9).add_(s(9, learn=False), alpha=0.3).div_(3.0).sub_(0.1)],
    "lists": lambda s: [
        *torch._foreach_add([s(9, learn=False), s(5, learn=False)], [s(9, learn=False), s(5, learn=False)], alpha=0.1),
        *torch._foreach_sqrt([s(9, low=0.1, learn=False)]),
        *torch._foreach_addcmul([s(9, learn=False)], [s(9, learn=False)], [s(9, learn=False)], value=0.1),
    ],
}


def results(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A case's results, and the gradients of a weighted sum of them."""
    source = Source(dtype)
    values = CASES[name](source)
    seeds = [Source(dtype, 6)(*value.shape, learn=False) for value in values]
    pairs = [(value, seed) for value, seed in zip(values, seeds, strict=True) if value.requires_grad]
    gradients = torch.autograd.grad([v for v, _ in pairs], source.learned, [g for _, g in pairs]) if source.learned else []
    return [*(value.detach() for value in values), *gradients]


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    torch.set_flush_denormal(bool(int(sys.argv[2])))
    for case in CASES:
        with Reproducible():
            print(case, digest(results(case)), sep="\t")
