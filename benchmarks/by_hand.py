"""Published nets, written by hand in PyTorch: the baseline of the benchmarks. Parameters are in the order of Caffe's layers."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Step = Callable[[], torch.Tensor]
LAYOUTS = {"by hand": torch.contiguous_format, "by hand, channels-last": torch.channels_last}
"""The two memory layouts in which the nets by hand are measured."""


def lenet() -> nn.Module:
    """LeNet as Caffe's MNIST example has it."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(800, 500), nn.ReLU(inplace=True), nn.Linear(500, 10)),
    )


def cifar10_quick() -> nn.Module:
    """Caffe's quick net for CIFAR-10."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), _max_pool(), nn.ReLU(inplace=True)),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(inplace=True), nn.AvgPool2d(3, 2, ceil_mode=True)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(inplace=True), nn.AvgPool2d(3, 2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10)),
    )


def caffenet() -> nn.Module:
    """BVLC's reference net for ImageNet, 1000 classes."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True), _max_pool(), _norm()),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), _max_pool(), _norm()),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), _max_pool(), nn.Flatten()),
        *(nn.Linear(9216, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(4096, 1000),
    )


def vgg16() -> nn.Module:
    """VGG's net of 16 layers (Simonyan & Zisserman 2014), 1000 classes."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        *(nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(4096, 1000),
    )


def mobilenet() -> nn.Module:
    """MobileNet (Howard et al. 2017), 1000 classes."""
    layers, inputs = [_normalised(3, 32, 3, 2), nn.ReLU(inplace=True)], 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)):
        layers += [_normalised(inputs, inputs, 3, stride, inputs), nn.ReLU(inplace=True)]
        layers += [_normalised(inputs, outputs, 1), nn.ReLU(inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(1024, 1000, 1), nn.Flatten())


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016), 1000 classes."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), _max_pool()),
        *(Fire(64, 16, 64), Fire(128, 16, 64), _max_pool()),
        *(Fire(128, 32, 128), Fire(256, 32, 128), _max_pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        *(nn.Dropout(0.5), _conv(512, 1000, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def resnet50() -> nn.Module:
    """ResNet-50 as its authors published it for Caffe (He et al. 2015), 1000 classes."""
    layers = [_normalised(3, 64, 7, 2, bias=True), nn.ReLU(inplace=True), _max_pool()]
    inputs = 64
    for outputs, count, first in ((256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2)):
        for number in range(count):
            layers.append(Bottleneck(inputs, outputs, 1 if number else first))
            inputs = outputs
    return nn.Sequential(*layers, nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(2048, 1000))


def _normalised(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, momentum=0.001))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions, added to the input or to its projection; the first has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        projected = inputs != outputs or stride != 1
        self.shortcut = _normalised(inputs, outputs, 1, stride) if projected else nn.Identity()
        narrow = outputs // 4
        self.branch = nn.Sequential(
            *(_normalised(inputs, narrow, 1, stride), nn.ReLU(inplace=True)),
            *(_normalised(narrow, narrow, 3), nn.ReLU(inplace=True), _normalised(narrow, outputs, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.shortcut(x) + self.branch(x), inplace=True)


class Fire(nn.Module):
    """A 1 × 1 convolution, then a 1 × 1 and a 3 × 3 convolution in parallel."""

    def __init__(self, inputs: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = _conv(inputs, squeezed, 1)
        self.one, self.three = _conv(squeezed, expanded, 1), _conv(squeezed, expanded, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squeezed = self.squeeze(x)
        return torch.cat((self.one(squeezed), self.three(squeezed)), 1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), nn.ReLU(inplace=True))


def _max_pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, 1e-4, 0.75)


class Inception(nn.Module):
    """Four parallel branches (Szegedy et al. 2014)."""

    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int):
        super().__init__()
        self.one = _conv(inputs, one, 1)
        self.three = nn.Sequential(_conv(inputs, reduce3, 1), _conv(reduce3, three, 3))
        self.five = nn.Sequential(_conv(inputs, reduce5, 1), _conv(reduce5, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(inputs, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pool(x)), 1)


class GoogLeNet(nn.Module):
    """BVLC's GoogLeNet, 1000 classes; in training with its two auxiliary classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(_conv(3, 64, 7, stride=2), _max_pool(), _norm(), _conv(64, 64, 1)),
            *(_conv(64, 192, 3), _norm(), _max_pool()),
            *(Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), _max_pool()),
            Inception(480, 192, 96, 208, 16, 48, 64),
        )
        self.first = self._auxiliary(512)
        self.middle = nn.Sequential(
            *(Inception(512, 160, 112, 224, 24, 64, 64), Inception(512, 128, 128, 256, 24, 64, 64)),
            Inception(512, 112, 144, 288, 32, 64, 64),
        )
        self.second = self._auxiliary(528)
        self.rest = nn.Sequential(
            *(Inception(528, 256, 160, 320, 32, 128, 128), _max_pool()),
            *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
            *(nn.AvgPool2d(7), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, 1000)),
        )

    @staticmethod
    def _auxiliary(inputs: int) -> nn.Sequential:
        return nn.Sequential(
            *(nn.AvgPool2d(5, 3, ceil_mode=True), _conv(inputs, 128, 1), nn.Flatten()),
            *(nn.Linear(2048, 1024), nn.ReLU(inplace=True), nn.Dropout(0.7), nn.Linear(1024, 1000)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        early = self.stem(x)
        later = self.middle(early)
        last: torch.Tensor = self.rest(later)
        return (last, self.first(early), self.second(later)) if self.training else last


def loss_of(scores: torch.Tensor | tuple[torch.Tensor, ...], label: torch.Tensor) -> torch.Tensor:
    """The training loss; auxiliary classifiers have weight 0.3."""
    if isinstance(scores, tuple):
        last, first, second = (functional.cross_entropy(each, label) for each in scores)
        return last + 0.3 * (first + second)
    return functional.cross_entropy(scores, label)


def training_step(module: nn.Module, shape: tuple[int, ...], layout: torch.memory_format, compiled: bool = False) -> Step:
    """Forward, backward and an update by SGD with momentum, on a Gaussian batch that all passes see.

    The learning rate is almost 0: weights do not grow, and no number becomes subnormal.
    """
    module.train().to(memory_format=layout)  # type: ignore[call-overload] # missing in PyTorch's annotations
    device = next(module.parameters()).device
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-9, momentum=0.9, weight_decay=0.0005)
    data = torch.empty(shape, device=device).normal_(0, 50).contiguous(memory_format=layout)
    label = torch.ones(shape[0], dtype=torch.long, device=device)
    compute = torch.compile(module, dynamic=False) if compiled else module

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(compute(data), label)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def forward_step(module: nn.Module, data: torch.Tensor, layout: torch.memory_format, compiled: bool = False) -> Step:
    """Forward of a batch, without a graph for backward; the step returns the scores."""
    module.eval().to(memory_format=layout)  # type: ignore[call-overload]
    data = data.contiguous(memory_format=layout)
    compute = torch.compile(module, dynamic=False) if compiled else module

    def step() -> torch.Tensor:
        with torch.inference_mode():
            scores: torch.Tensor = compute(data)
            return scores

    return step


NETS: dict[str, Callable[[], nn.Module]] = {
    "lenet": lenet,
    "cifar10_quick": cifar10_quick,
    "caffenet": caffenet,
    "googlenet": GoogLeNet,
    "resnet50": resnet50,
    "squeezenet": squeezenet,
    "mobilenet": mobilenet,
    "vgg16": vgg16,
}
