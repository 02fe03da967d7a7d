"""Losses of distances and similarities: InnerDistance and GeneralContrastiveLoss (NormFace), RankHardLoss, EuclideanLoss2."""

import math

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import BlobSpec, Layer, Shape, Tops, register
from caffe.layer_types.forks.yolo import GivenGradient
from caffe.layer_types.loss import Loss, _OfLabels
from caffe.layer_types.utility import out_of_range
from caffe.proto import caffe_pb2


@register("InnerDistance")
class InnerDistance(Layer):
    """Distances from learned or given centres: x (d_0, …, d_axis-1, K), centres (N, …), labels → (d_0, …, d_axis-1, N).

    Centres and labels may lack. distance_type L2 is Σ (x - c)², L1 Σ |x - c|. Without centres as a bottom, they are the blob (N,
    K), N being num_output; `normalize` then scales each of them to norm 1 before each pass, where they stay while they learn.
    With update_center_only the last bottom has a label for each vector, and of a distance only that from its label's centre moves
    the centre. Source: NormFace (Wang et al. 2017, "agents") and inner_distance_layer of happynear/caffe-windows.
    """

    learns = (BlobSpec("centers"),)
    bottoms = (1, 3)
    drawn_as = "inner product"

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        return cls.learns if len(param.bottom) - param.inner_distance_param.update_center_only < 2 else ()

    def setup(self, *shapes: Shape) -> None:
        p = self.param.inner_distance_param
        given = len(shapes) - p.update_center_only
        if given not in (1, 2):
            expected = "x and perhaps centres" + (", then labels (update_center_only)" if p.update_center_only else "")
            raise self.error(f"{len(shapes)} bottoms", expected)
        if p.distance_type not in ("L1", "L2"):
            raise self.error(f'distance_type "{p.distance_type}"', "L1 or L2")
        if p.transpose:
            raise self.error("transpose: true", "the fork's distances take centres as rows", "leave it out")
        self.given = given == 2
        self.first = self.axis(p.axis, len(shapes[0]))
        if not self.given:
            self.require_positive("num_output")
            self.add_blob((p.num_output, math.prod(shapes[0][self.first :])), p.weight_filler)

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        x = shapes[0]
        centres = shapes[1] if self.given else self.blobs[0].shape
        if math.prod(x[self.first :]) != math.prod(centres[1:]):
            raise self.error(f"a bottom of shape {x} and centres of shape {centres}", "vectors of one length")
        if self.param.inner_distance_param.update_center_only and math.prod(shapes[-1]) != math.prod(x[: self.first]):
            raise self.error(f"labels of shape {shapes[-1]} for a bottom of shape {x}", "there must be one for each vector")
        return [(*x[: self.first], centres[0])]

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        p = self.param.inner_distance_param
        centres = others[0].flatten(1) if self.given else self.learned()
        rows = x.reshape(-1, centres.shape[1])
        difference = rows[:, None] - centres
        if p.update_center_only:
            labels = self.checked(others[-1], len(centres))[:, None]
            own = (labels == torch.arange(len(centres), device=x.device)).to(x.dtype)[..., None]
            difference = rows[:, None] - (centres * own + (centres * (1 - own)).detach())
        distances = difference.square() if p.distance_type == "L2" else difference.abs()
        return distances.sum(2).reshape(*x.shape[: self.first], len(centres))

    def learned(self) -> Tensor:
        """The centres of the blob, normalised in place where that is asked for."""
        if self.param.inner_distance_param.normalize:
            blob = self.blobs[0].tensor
            self.blobs[0].tensor = blob / (blob.square().sum(1, keepdim=True) + 1e-6).sqrt()
        return self.parameters()[0]

    def checked(self, labels: Tensor, count: int) -> Tensor:
        """Labels as indices of centres; raises LayerError for one that is out of range."""
        indices = labels.reshape(-1).long()
        if (label := out_of_range(indices, count)) is not None:
            raise self.error(f"label {label}", f"there are {count} centres: labels go from 0 to {count - 1}")
        return indices


@register("GeneralContrastiveLoss")
class GeneralContrastiveLoss(_OfLabels, Loss):
    """NormFace's contrastive loss of distances from each class: (distances (N, C), labels (N,)) → scalar[, means (2,)].

    For the label's class the term is positive_weight · min(max(0, d - positive_margin), positive_outlier_thresh), without
    gradient from d = positive_outlier_thresh on; for another with d < negative_margin, negative_weight · (negative_margin - d),
    or with exp_negative_weight · exp(-d). The loss is Σ |term| / N. max_negative_only keeps of each image's negative terms the
    largest. With positive_first, images whose own distance exceeds positive_upper_bound count their own class alone, always with
    the gradient positive_weight. With normalize_negative r, gradients of negatives whose sum over the batch / (r · N) exceeds
    positive_weight are divided by it. The second top has the means of the truncated distances of both kinds before weights; no
    gradient passes through it. Source: Wang et al. 2017, and general_contrastive_loss_layer of happynear/caffe-windows.
    """

    tops = (1, 2)
    compares_labels = False

    def setup(self, distances: Shape, labels: Shape) -> None:
        self.find_classes((distances[0], math.prod(distances[1:])), labels, 1)
        if math.prod(distances[1:]) < 2:
            raise self.error(f"distances of shape {distances}", "at least 2 classes")

    def top_shapes(self, distances: Shape, labels: Shape) -> list[Shape]:
        return [(), (2,)][: len(self.param.top)]

    def batch_dependence(self) -> str:
        normalizes = self.param.general_contrastive_loss_param.HasField("normalize_negative")
        return "divides gradients by their sum over the batch (normalize_negative)" if normalizes else ""

    def forward(self, distances: Tensor, labels: Tensor) -> Tops:
        return super().forward(distances.flatten(1), labels)

    def compare(self, scores: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, ...]:
        p = self.param.general_contrastive_loss_param
        d = scores.detach()
        own = torch.zeros_like(d, dtype=torch.bool).scatter(1, target, True)
        near = (d - p.positive_margin).clamp(0, p.positive_outlier_thresh)
        far = (p.negative_margin - d).clamp_min(0)
        means = torch.stack((near[own].mean(), far[~own].mean()))
        negative = ~own & (d < p.negative_margin)
        strengths = d.neg().exp() if p.exp_negative_weight else far
        if p.max_negative_only:
            hardest = torch.where(negative, strengths, -math.inf).argmax(1, keepdim=True)
            negative &= torch.zeros_like(negative).scatter(1, hardest, True)
        beyond = (d.gather(1, target) > p.positive_upper_bound) & p.positive_first
        negative &= ~beyond
        terms = torch.where(own, near * p.positive_weight, torch.where(negative, strengths * p.negative_weight, 0.0))
        slopes = strengths if p.exp_negative_weight else torch.ones_like(d)
        pushes = torch.where(negative, -slopes * p.negative_weight, 0.0)
        if p.HasField("normalize_negative"):
            total = pushes.sum().abs() / p.normalize_negative / len(d)
            pushes = torch.where(total > p.positive_weight, pushes / total, pushes)
        pulled = (d > p.positive_margin) & (d < p.positive_outlier_thresh) | beyond
        gradient = torch.where(own, p.positive_weight * pulled.to(d.dtype), pushes) / len(d)
        loss: Tensor = GivenGradient.apply(scores, terms.abs().sum() / len(d), gradient)
        return (loss, means)[: len(self.param.top)]


@register("RankHardLoss", "rank_param")
class RankHardLoss(Loss):
    """Ranking of image pairs by dot products of features: (x (N, …), labels (N,)) → scalar (Wang and Gupta 2015).

    Images come in groups of pair_size, of which the first two, a and p, show one thing. With s the dot product, the terms
    max(0, margin - s(a, p) + s(a, n)) and max(0, margin - s(a, p) + s(p, n)) of each chosen negative n are summed and divided by
    2 · neg_num · N / pair_size. Negatives are images of other labels whose first term is above 0: all of them if there are at
    most neg_num; else hard_ratio · neg_num at random of the neg_num of greatest s, and rand_ratio · neg_num of all the others.
    Source: rank_hard_loss_layer of xiaolonw/caffe-video_triplet, whose gradient ignores the loss weight; here it does not.
    """

    bottoms = (2, 2)
    differentiable_bottoms = (0,)

    def setup(self, x: Shape, labels: Shape) -> None:
        self.require_positive("neg_num")
        p = self.param.rank_param
        if p.pair_size < 2 or min(p.hard_ratio, p.rand_ratio) < 0:
            found = f"pair_size {p.pair_size}, hard_ratio {p.hard_ratio:g}, rand_ratio {p.rand_ratio:g}"
            raise self.error(found, "pair_size must be at least 2, and the ratios at least 0")

    def top_shapes(self, x: Shape, labels: Shape) -> list[Shape]:
        if x[0] % self.param.rank_param.pair_size or math.prod(labels) != x[0]:
            found = f"{x[0]} images with labels of shape {labels}"
            raise self.error(found, f"groups of pair_size {self.param.rank_param.pair_size}, and a label for each image")
        return [()]

    def batch_dependence(self) -> str:
        return "draws negatives from its batch"

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        p = self.param.rank_param
        rows = x.flatten(1)
        similar = rows @ rows.t()
        anchors = torch.arange(0, len(rows), p.pair_size, device=x.device)
        wanted = p.margin - similar[anchors, anchors + 1][:, None]
        first, second = (torch.relu(wanted + similar[each]) for each in (anchors, anchors + 1))
        others = labels.reshape(-1)[anchors][:, None] != labels.reshape(1, -1)
        candidates = others & (first.detach() > 0)
        chosen = self.chosen(candidates.cpu().numpy(), similar.detach()[anchors].cpu().numpy())
        terms = (first + second) * torch.from_numpy(chosen).to(x)
        return terms.sum() / (2 * p.neg_num * len(anchors))

    def chosen(self, candidates: np.ndarray, similar: np.ndarray) -> np.ndarray:
        """Which negatives of each group count (groups, N), by which of them may and by their similarity to the first image."""
        p = self.param.rank_param
        result = candidates.copy()
        for row, values in zip(result, similar, strict=True):
            there = np.flatnonzero(row)
            if len(there) <= p.neg_num:
                continue
            ordered = there[np.argsort(-values[there], kind="stable")]
            hard = ordered[: p.neg_num][mode.generator.permutation(p.neg_num)]
            count = int(p.neg_num * p.hard_ratio)
            rest = np.concatenate((ordered[p.neg_num :], hard[count:]))
            drawn = rest[mode.generator.permutation(len(rest))][: int(p.neg_num * p.rand_ratio)]
            row[:] = False
            row[np.concatenate((hard[:count], drawn))] = True
        return result


@register("EuclideanLoss2")
class EuclideanLoss2(Loss):
    """EuclideanLoss over one distance: (x, t (N, …), distances (…)) → Σ (x - t)² / (2 N d), d the first of the distances.

    JÂA-Net (Shao et al. 2018): of facial landmarks, by the distance between the eyes; euclidean_loss_layer of ZhiwenShao/JAANet
    takes the first image's for all, too.
    """

    bottoms = (3, 3)
    differentiable_bottoms = (0, 1)

    def setup(self, x: Shape, target: Shape, distances: Shape) -> None:
        self.require_same_images(x, target)
        if not math.prod(distances):
            raise self.error(f"distances of shape {distances}", "at least one value")

    def batch_dependence(self) -> str:
        return "divides by the distance of its first image"

    def forward(self, x: Tensor, target: Tensor, distances: Tensor) -> Tensor:
        difference = x - target.reshape(x.shape)
        return difference.square().sum() / (2 * x.shape[0] * distances.detach().flatten()[0])
