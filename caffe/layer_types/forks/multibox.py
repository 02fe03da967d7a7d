"""SSD's loss (Liu et al. 2016): MultiBoxLoss, MultiBoxFocalLoss."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from caffe.engine.layer import Shape, register
from caffe.layer_types.forks.detection import (
    COUNTS_BACKGROUND,
    as_array,
    check_counts,
    check_refinement,
    foreground,
    prior_arrays,
    refined,
)
from caffe.layer_types.forks.losses import focal_terms, focal_weights
from caffe.layer_types.loss import FLT_MIN, LOSS, Loss
from caffe.proto import caffe_pb2
from caffe.transforms import boxes
from caffe.transforms.boxes import Boxes

MULTIBOX = caffe_pb2.MultiBoxLossParameter
Matches = dict[int, tuple[np.ndarray, np.ndarray]]
"""For each trained prediction of a prior: index of its true box (P,) and greatest overlap (P,); see `boxes.match`."""


@dataclass(frozen=True)
class Truths:
    """The true boxes of a batch: images (G,), corners (G, 4) and labels (G,)."""

    images: np.ndarray
    corners: Boxes
    labels: np.ndarray


@dataclass(frozen=True)
class Positives:
    """Priors matched to a true box: image, prior, which of its predictions (a class, or 0), index of the true box."""

    image: np.ndarray
    prior: np.ndarray
    slot: np.ndarray
    truth: np.ndarray


def _class_losses(kind: int, scores: Tensor, labels: Tensor) -> Tensor:
    """Loss of each row of scores (N, C) for its label; -1, allowed for LOGISTIC only, means no class."""
    if kind == MULTIBOX.LOGISTIC:
        targets = (torch.arange(scores.shape[1], device=scores.device) == labels[:, None]).to(scores.dtype)
        return functional.binary_cross_entropy_with_logits(scores, targets, reduction="none").sum(1)
    losses = functional.cross_entropy(scores, labels, reduction="none")
    # Caffe clamps the probability to FLT_MIN in the logarithm, but not in the gradient, which is the softmax's.
    return losses + (losses.clamp_max(-math.log(FLT_MIN)) - losses).detach()


@register("MultiBoxLoss")
class MultiBoxLoss(Loss):
    """Loss of predicted boxes and classes: (offsets, scores, priors, truths) → scalar.

    offsets (N, P · 4, or P · classes · 4 where share_location is false), scores (N, P · classes) before softmax, priors
    (1, 2, P · 4), truths (1, 1, boxes, 8): image, label, instance, xmin, ymin, xmax, ymax, difficult; image -1 is
    no box. Priors are matched to truths. Matched priors learn a box and a class; the hardest unmatched ones learn background.
    Normalised as loss_param says; VALID divides by the number of matches. RefineDet's (Zhang et al. 2018) fifth bottom
    (N, P · 2) has the probabilities of background and object at each prior: where the latter is below objectness_score, a prior
    is no hard example. Its sixth, (N, P · 4), has offsets that move the priors first, for each image.
    """

    bottoms = (4, 6)
    differentiable_bottoms = (0, 1)

    def setup(self, offsets: Shape, scores: Shape, priors: Shape, truths: Shape, *more: Shape) -> None:
        p = self.param.multibox_loss_param
        self.require_positive("num_classes", expected=COUNTS_BACKGROUND)
        mines = p.mining_type != MULTIBOX.NONE
        if p.HasField("do_neg_mining") and p.do_neg_mining != mines:
            raise self.error(
                f"do_neg_mining: {str(p.do_neg_mining).lower()} and mining_type: {MULTIBOX.MiningType.Name(p.mining_type)}",
                "both must agree",
                "leave do_neg_mining out",
            )
        if mines and not p.share_location:
            raise self.error("mining with share_location: false", "only shared locations are mined", "set mining_type: NONE")
        if p.mining_type == MULTIBOX.HARD_EXAMPLE and p.sample_size < 1:
            raise self.error(f"sample_size {p.sample_size}", "it must be at least 1")
        if p.conf_loss_type == MULTIBOX.SOFTMAX and p.background_label_id >= p.num_classes:
            raise self.error(f"background_label_id {p.background_label_id}", f"a softmax has classes 0 to {p.num_classes - 1}")
        if p.map_object_to_agnostic and p.num_classes != 2:
            raise self.error(f"{p.num_classes} classes with map_object_to_agnostic", "there must be two, background and object")
        self.code = p.code_type
        self.read_loss_param()
        learns = list(self.param.propagate_down) or [True, True]
        self.learns_boxes, self.learns_classes = learns[:2]

    def batch_dependence(self) -> str:
        return "divides by the number of matches in its batch" if self.normalization == LOSS.VALID else ""

    def top_shapes(self, offsets: Shape, scores: Shape, priors: Shape, truths: Shape, *more: Shape) -> list[Shape]:
        check_counts(self, offsets, scores, priors)
        if more:
            check_refinement(self, scores[0], priors, *more)
        if math.prod(truths) % 8:
            raise self.error(f"truths of shape {truths}", "each must have 8 values: (1, 1, boxes, 8)")
        return [()]

    def forward(self, offsets: Tensor, scores: Tensor, priors: Tensor, truths: Tensor, *more: Tensor) -> Tensor:
        p = self.param.multibox_loss_param
        plain, variances = prior_arrays(self, priors)
        images, count = scores.shape[0], len(plain)
        offsets = offsets.reshape(images, count, -1, 4)
        scores = scores.reshape(images, count, p.num_classes)
        true_boxes = self.truths(as_array(truths).reshape(-1, 8))
        objects = as_array(more[0]).reshape(images, count, 2)[:, :, 1] >= np.float32(p.objectness_score) if more else None
        corners = np.broadcast_to(plain, (images, *plain.shape))
        if len(more) > 1:
            of_code = np.ones_like(variances) if p.encode_variance_in_target else variances
            corners = refined(plain, of_code, more[1], self.code)
        tables = [self.matches(image, true_boxes, offsets[image], corners[image], variances) for image in range(images)]
        positives = self.positives(tables)
        negatives = None
        if p.mining_type != MULTIBOX.NONE:
            losses = self.mining_losses(positives, true_boxes, offsets, scores, corners, variances)
            negatives = [
                self.mine(
                    table, losses[image], offsets[image], corners[image], variances, None if objects is None else objects[image]
                )
                if table
                else np.empty(0, np.int64)
                for image, table in enumerate(tables)
            ]
            positives = self.positives(tables)
        values = len(positives.image) if self.normalization == LOSS.VALID else images * count
        divisor = self.divisor(images, values, counted=None)
        loss = offsets.new_zeros(())
        if self.learns_boxes and len(positives.image):
            loss = loss + self.box_losses(positives, true_boxes, offsets, corners, variances).sum() * (p.loc_weight / divisor)
        if self.learns_classes:
            loss = loss + self.class_loss(positives, negatives, true_boxes, scores) / divisor
        return loss

    def truths(self, rows: np.ndarray) -> Truths:
        """The true boxes, from rows (boxes, 8)."""
        p = self.param.multibox_loss_param
        rows = rows[rows[:, 0] != -1]
        if not p.use_difficult_gt:
            rows = rows[rows[:, 7] == 0]
        labels = rows[:, 1].astype(np.int64)
        wrong = labels == p.background_label_id
        if not p.map_object_to_agnostic:
            wrong |= (labels < 0) | (labels >= p.num_classes)
        if wrong.any():
            raise self.error(
                f"label {labels[wrong][0]} of a true box",
                f"classes are 0 to {p.num_classes - 1}, and {p.background_label_id} is the background",
                "num_classes counts the background and all of the label map",
            )
        if p.map_object_to_agnostic:
            labels[:] = p.background_label_id + 1
        if self.code == boxes.CODES.CENTER_SIZE and (rows[:, 5:7] <= rows[:, 3:5]).any():
            raise self.error("a true box without width or height", "code_type CENTER_SIZE needs both", "leave it out of the data")
        return Truths(rows[:, 0].astype(int), rows[:, 3:7], labels)

    def matches(self, image: int, truths: Truths, offsets: Tensor, corners: Boxes, variances: Boxes) -> Matches:
        """Matches of each of a prior's predictions in an image; empty for an image without true boxes."""
        p = self.param.multibox_loss_param
        own = np.flatnonzero(truths.images == image)
        if not len(own):
            return {}
        if p.use_prior_for_matching:
            matches, greatest = self.match(corners, truths, own)
            if p.share_location:
                return {0: (matches, greatest)}
            # UNMATCHED and IGNORED priors get the appended label, -1.
            labels = np.append(truths.labels, -1)[np.maximum(matches, boxes.UNMATCHED)]
            return {slot: (np.where(labels == slot, matches, boxes.UNMATCHED), greatest) for slot in self.slots()}
        decoded = self.decoded(offsets, corners, variances)
        if p.share_location:
            return {0: self.match(decoded[:, 0], truths, own)}
        return {slot: self.match(decoded[:, slot], truths, own[truths.labels[own] == slot]) for slot in self.slots()}

    def match(self, candidates: Boxes, truths: Truths, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The result of `boxes.match` with the true boxes of the indices `own`."""
        p = self.param.multibox_loss_param
        threshold = p.overlap_threshold if p.match_type == MULTIBOX.PER_PREDICTION else None
        matches, greatest = boxes.match(candidates, truths.corners[own], threshold, p.ignore_cross_boundary_bbox)
        # As indices from the end, IGNORED and UNMATCHED give themselves.
        return np.append(own, (boxes.IGNORED, boxes.UNMATCHED))[matches], greatest

    def slots(self) -> list[int]:
        """Which predictions of a prior are trained: one for all classes, or one for each class but the background."""
        p = self.param.multibox_loss_param
        return [0] if p.share_location else foreground(p.num_classes, p.background_label_id)

    def decoded(self, offsets: Tensor, corners: Boxes, variances: Boxes) -> np.ndarray:
        """The predicted boxes of an image, (P, slots, 4)."""
        encoded = as_array(offsets).swapaxes(0, 1)
        if self.param.multibox_loss_param.encode_variance_in_target:
            variances = np.ones_like(variances)
        return boxes.decode(encoded, corners, variances, self.code).swapaxes(0, 1)

    @staticmethod
    def positives(tables: list[Matches]) -> Positives:
        """All matches of all images."""
        parts = [
            np.stack((np.full(len(priors), image), priors, np.full(len(priors), slot), matches[priors]))
            for image, table in enumerate(tables)
            for slot, (matches, _) in table.items()
            for priors in [np.flatnonzero(matches >= 0)]
        ]
        return Positives(*(np.concatenate(parts, 1) if parts else np.empty((4, 0))).astype(np.int64))

    # ---- mining

    def mining_losses(
        self, positives: Positives, truths: Truths, offsets: Tensor, scores: Tensor, corners: Boxes, variances: Boxes
    ) -> np.ndarray:
        """Loss of each prior, (N, P): of its class, and for HARD_EXAMPLE also of its box."""
        p = self.param.multibox_loss_param
        with torch.no_grad():
            labels = self.labels(positives, truths, scores.shape[:2], p.background_label_id)
            targets = torch.from_numpy(labels.reshape(-1)).to(scores.device)
            losses = as_array(_class_losses(p.conf_loss_type, scores.flatten(0, 1), targets)).reshape(labels.shape)
            if p.mining_type == MULTIBOX.HARD_EXAMPLE and len(positives.image):
                of_boxes = self.box_losses(positives, truths, offsets, corners, variances).sum(1)
                losses[positives.image, positives.prior] += as_array(of_boxes)
        return losses

    def mine(
        self,
        table: Matches,
        losses: np.ndarray,
        offsets: Tensor,
        corners: Boxes,
        variances: Boxes,
        objects: np.ndarray | None,
    ) -> np.ndarray:
        """The priors of an image that learn background; HARD_EXAMPLE also removes easy matches from the table.

        objects  whether each prior may be chosen, (P,); None if all may
        """
        p = self.param.multibox_loss_param
        matches, greatest = table[0]
        if p.mining_type == MULTIBOX.MAX_NEGATIVE:
            eligible = np.flatnonzero((matches == boxes.UNMATCHED) & (greatest < np.float32(p.neg_overlap)))
            count = int(np.float32(p.neg_pos_ratio) * np.count_nonzero(matches >= 0))
        else:
            eligible, count = np.arange(len(matches)), p.sample_size
        if objects is not None:
            eligible = eligible[objects[eligible]]
        hardest = eligible[np.argsort(-losses[eligible], kind="stable")]
        if p.nms_param.nms_threshold > 0 and p.HasField("nms_param"):
            candidates = corners if p.use_prior_for_nms else self.decoded(offsets, corners, variances)[:, 0]
            hardest = hardest[: p.nms_param.top_k] if p.nms_param.top_k > -1 else hardest
            hardest = hardest[boxes.areas(candidates[hardest]) >= 1e-5]
            hardest = hardest[boxes.suppress(candidates[hardest], p.nms_param.nms_threshold)]
        chosen = np.zeros(len(matches), bool)
        chosen[hardest[:count]] = True
        negatives = np.flatnonzero(chosen & (matches == boxes.UNMATCHED))
        if p.mining_type == MULTIBOX.HARD_EXAMPLE:
            matches[(matches >= 0) & ~chosen] = boxes.UNMATCHED
        return negatives

    # ---- losses

    @staticmethod
    def labels(positives: Positives, truths: Truths, shape: Shape, unmatched: int) -> np.ndarray:
        """Target label of each prior, (N, P); `unmatched` for those without a true box."""
        labels = np.full(shape, unmatched)
        labels[positives.image, positives.prior] = truths.labels[positives.truth]
        return labels

    def box_losses(self, positives: Positives, truths: Truths, offsets: Tensor, corners: Boxes, variances: Boxes) -> Tensor:
        """Loss of each coordinate of each match, (matches, 4), from the priors of each image, (N, P, 4)."""
        p = self.param.multibox_loss_param
        own = predicted = offsets[positives.image, positives.prior, positives.slot]
        priors, variances = corners[positives.image, positives.prior], variances[positives.prior]
        targets = torch.from_numpy(boxes.encode(truths.corners[positives.truth], priors, variances, self.code)).to(offsets)
        if p.encode_variance_in_target:
            # Predictions and targets are both divided by the variances, but only in the loss.
            predicted = predicted / torch.from_numpy(variances).to(offsets)
        if p.bp_inside:
            ends = priors if p.use_prior_for_matching else self.decoded(own[:, None], priors, variances)[:, 0]
            predicted = torch.where(torch.from_numpy((ends < 0) | (ends > 1)).to(offsets.device), targets, predicted)
        if p.loc_loss_type == MULTIBOX.SMOOTH_L1:
            return functional.smooth_l1_loss(predicted, targets, reduction="none")
        return (predicted - targets).square() / 2

    def class_loss(self, positives: Positives, negatives: list[np.ndarray] | None, truths: Truths, scores: Tensor) -> Tensor:
        """Summed class loss of all priors; with mining, of the matched priors and the mined negatives only."""
        p = self.param.multibox_loss_param
        kind, background = p.conf_loss_type, p.background_label_id
        if negatives is None:
            unmatched = -1 if kind == MULTIBOX.LOGISTIC else background
            labels = self.labels(positives, truths, scores.shape[:2], unmatched).reshape(-1)
            rows = scores.flatten(0, 1)
        else:
            images = np.concatenate([positives.image, *(np.full(len(priors), image) for image, priors in enumerate(negatives))])
            priors = np.concatenate([positives.prior, *negatives])
            labels = self.labels(positives, truths, scores.shape[:2], background)[images, priors]
            rows = scores[images, priors]
        return self.label_losses(rows, torch.from_numpy(labels).to(scores.device)).sum()

    def label_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row of scores (N, C) for its label."""
        return _class_losses(self.param.multibox_loss_param.conf_loss_type, scores, labels)


@register("MultiBoxFocalLoss", "multibox_loss_param")
class MultiBoxFocalLoss(MultiBoxLoss):
    """MultiBoxLoss whose softmax loss is FocalLoss's, by focal_loss_param (Lin et al. 2017); mining compares the plain softmax.

    As chuanqi305/FocalLoss; with conf_loss_type: LOGISTIC it is MultiBoxLoss.
    """

    def setup(self, offsets: Shape, scores: Shape, priors: Shape, truths: Shape, *more: Shape) -> None:
        super().setup(offsets, scores, priors, truths, *more)
        self.alpha = focal_weights(self, self.param.multibox_loss_param.num_classes)

    def label_losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.param.multibox_loss_param.conf_loss_type == MULTIBOX.LOGISTIC:
            return super().label_losses(scores, labels)
        chosen = torch.log_softmax(scores, 1).gather(1, labels[:, None])[:, 0]
        return focal_terms(chosen, labels, self.alpha, self.param.focal_loss_param.gamma)
