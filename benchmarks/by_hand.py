"""Published nets, written by hand in PyTorch: the baseline of the benchmarks of `caffe`."""

import torch
from torch import nn
from torch.nn import functional


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


def frozen_body() -> nn.Module:
    """Fine-tuning: 10.5 M frozen parameters, and a trained last layer of 10 classes."""
    body = nn.Linear(1024, 10240).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), body, nn.ReLU(inplace=True), nn.Linear(10240, 10))


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
        self.middle = nn.Sequential(
            *(Inception(512, 160, 112, 224, 24, 64, 64), Inception(512, 128, 128, 256, 24, 64, 64)),
            Inception(512, 112, 144, 288, 32, 64, 64),
        )
        self.rest = nn.Sequential(
            *(Inception(528, 256, 160, 320, 32, 128, 128), _max_pool()),
            *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
            *(nn.AvgPool2d(7), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, 1000)),
        )
        self.first, self.second = self._auxiliary(512), self._auxiliary(528)

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
