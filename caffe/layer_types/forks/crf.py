"""CRF-RNN (Zheng et al. 2015): MultiStageMeanfield, a conditional random field as a layer."""

from pathlib import Path

import torch
from torch import Tensor

from caffe.engine.layer import BlobSpec, Layer, Shape, register
from caffe.errors import FileError
from caffe.layer_types.forks.permutohedral import Lattice
from caffe.layer_types.loss import FLT_MIN
from caffe.proto import caffe_pb2


@register("MultiStageMeanfield")
class MultiStageMeanfield(Layer):
    """Mean-field iterations of a dense CRF: (unary scores, first scores (N, C, H, W), image (N, 3, H, W)) → shape of the scores.

    q = softmax of the scores over the channels; scores = unary - M (S · spatial(q) + B · bilateral(q)), num_iterations times.
    The filters are Gaussians divided by what they make of ones: of the position, with theta_gamma pixels; and of the position,
    with theta_alpha pixels, and the colour, with theta_beta. As in the fork they are computed on the permutohedral lattice
    (Adams et al. 2010), of which its trained weights are, and not exactly, which takes (H · W)² operations.
    Blobs, (1, 1, C, C) each: S and B, initially diagonal, of the numbers in the files spatial.par and bilateral.par where the
    process runs or, if there are none, spatial_filter_weight and bilateral_filter_weight; and M, initially -1 on its diagonal.
    Sources: multi_stage_meanfield.cpp and meanfield_iteration.cpp of torrvision/caffe.
    """

    learns = (BlobSpec("spatial_weight"), BlobSpec("bilateral_weight"), BlobSpec("compatibility"))
    bottoms = (3, 3)
    differentiable_bottoms = (0, 1)

    def setup(self, unary: Shape, first: Shape, image: Shape) -> None:
        p = self.param.multi_stage_meanfield_param
        for shape in (unary, first, image):
            self.require_maps(shape)
        if p.num_iterations < 2:
            raise self.error(f"num_iterations {p.num_iterations}", "it must be at least 2")
        if min(p.theta_alpha, p.theta_beta, p.theta_gamma) <= 0:
            thetas = f"theta_alpha {p.theta_alpha:g}, theta_beta {p.theta_beta:g}, theta_gamma {p.theta_gamma:g}"
            raise self.error(thetas, "they must be above 0")
        channels = unary[1]
        files = (("spatial.par", p.spatial_filter_weight), ("bilateral.par", p.bilateral_filter_weight))
        diagonals = [self._weights(name, channels, weight) for name, weight in files]
        for diagonal in (*diagonals, torch.full((channels,), -1.0)):
            self.add_blob((1, 1, channels, channels), caffe_pb2.FillerParameter())
            self.blobs[-1].tensor = diagonal.diag().view(1, 1, channels, channels)
        self.spatial: tuple[tuple[int, int], Lattice, Tensor] | None = None

    def _weights(self, name: str, channels: int, default: float) -> Tensor:
        if not Path(name).exists():
            return torch.full((channels,), default)
        try:
            numbers = [float(word) for word in Path(name).read_text().split()]
        except (ValueError, UnicodeDecodeError):
            raise FileError(name, "not a list of numbers", f"it has the first weights of {self.param.name}") from None
        if len(numbers) < channels:
            raise FileError(name, f"{len(numbers)} numbers", f"there are {channels} classes")
        return torch.tensor(numbers[:channels])

    def top_shapes(self, unary: Shape, first: Shape, image: Shape) -> list[Shape]:
        self.require_same_shape(unary, first)
        if unary[1] != self.blobs[0].shape[3]:
            raise self.error(f"scores of {unary[1]} classes", f"the weights are of {self.blobs[0].shape[3]}")
        if image != (unary[0], 3, *unary[2:]):
            raise self.error(f"images of shape {image} for scores of shape {unary}", f"they must be {(unary[0], 3, *unary[2:])}")
        return [unary]

    def places(self, height: int, width: int) -> Tensor:
        """x and y of each pixel, (H · W, 2)."""
        rows, columns = (torch.arange(extent, device=self.device, dtype=torch.float32) for extent in (height, width))
        return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1).view(-1, 2)

    def lattice(self, features: Tensor) -> tuple[Lattice, Tensor]:
        """The lattice of these features, and what divides its results: (P, 1)."""
        try:
            lattice = Lattice(features)
        except OverflowError as error:
            raise self.error(str(error), do="give larger theta_alpha, theta_beta and theta_gamma") from None
        return lattice, lattice.filter(features.new_ones(len(features), 1)) + FLT_MIN

    def forward(self, unary: Tensor, first: Tensor, image: Tensor) -> Tensor:
        p = self.param.multi_stage_meanfield_param
        self.top_shapes(tuple(unary.shape), tuple(first.shape), tuple(image.shape))
        size = (unary.shape[2], unary.shape[3])
        places = self.places(*size)
        if self.spatial is None or self.spatial[0] != size:
            self.spatial = (size, *self.lattice(places / p.theta_gamma))
        colours = image.detach().float().flatten(2).mT / p.theta_beta
        spatial, bilateral, compatibility = (weight.view(weight.shape[2:]) for weight in self.parameters())
        tops = []
        for scores, start, colour in zip(unary.flatten(2), first.flatten(2), colours, strict=True):
            of_colour = self.lattice(torch.cat([places / p.theta_alpha, colour], 1))
            now = start
            for _ in range(p.num_iterations):
                share = torch.softmax(now, 0).t()
                near, alike = (lattice.filter(share) / divisor for lattice, divisor in (self.spatial[1:], of_colour))
                now = scores - compatibility @ (spatial @ near.t() + bilateral @ alike.t())
            tops.append(now)
        return torch.stack(tops).view_as(unary)
