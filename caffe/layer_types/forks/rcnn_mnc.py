"""Built-in versions of the Python layers pylayer.* of MNC (Dai et al. 2016).

As those of daijifeng001/MNC compute. Settings of lib/mnc_config.py have that file's defaults and may be given in param_str, as in
rcnn.py.
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape
from caffe.layer_types import param_str
from caffe.layer_types.forks import rcnn
from caffe.layer_types.forks.detection import as_array
from caffe.layer_types.param_str import Setting
from caffe.proto import caffe_pb2
from caffe.transforms.boxes import Floats


class _Limited(torch.autograd.Function):
    """x; its gradient is multiplied by a mask and cut to a limit on both sides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).clamp(-ctx.limit, ctx.limit), None, None


class MNCProposalLayer(rcnn.ProposalLayer):
    """rpn.proposal_layer's regions, with a gradient of the offsets, of those that lie inside the image as their anchors do.

    param_str: as ProposalLayer, with the 9 anchors of its defaults; use_clip (0) cuts the gradients of offsets to 1 / clip_base
    (256) on both sides; gradient_scale, which no version reads. Source: lib/pylayer/proposal_layer.py of daijifeng001/MNC,
    without MIX_INDEX, whose second top is not built in.
    """

    differentiable_bottoms = (1,)
    tops = (1, 1)

    def read_settings(self) -> caffe_pb2.ProposalParameter:
        text = self.param.python_param.param_str
        own = {
            "use_clip": Setting(param_str.WHOLE, 0),
            "clip_base": Setting(param_str.NOT_NEGATIVE, 256),
            "gradient_scale": Setting(param_str.NUMBER, 1),
        }
        given = param_str.parsed(text)
        found = {name: given.pop(name) for name in own if isinstance(given, dict) and name in given}
        for name, value in found.items():
            if not own[name].check.holds(value):
                raise self.error(f"param_str with {name} {value!r}", f"it must be {own[name].check.expected}")
        self.limit = 1 / found.get("clip_base", 256) if found.get("use_clip", 0) else math.inf
        self.param.python_param.param_str = repr(given) if found else text
        settings = super().read_settings()
        self.param.python_param.param_str = text
        return settings

    def forward(self, scores: Tensor, offsets: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        if len(scores) != 1:
            raise self.error(f"scores of shape {tuple(scores.shape)}", "ProposalLayer takes one image", "set the batch size to 1")
        (regions,) = super().forward(scores.detach(), offsets.detach(), sizes)
        height, width = scores.shape[2:]
        corners = torch.from_numpy(self.placed_anchors(height, width)[self.kept]).to(regions)
        sides = corners[:, 2:] - corners[:, :2] + 1
        rows = offsets.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)[torch.from_numpy(self.kept).to(offsets.device)]
        most = (sizes.reshape(-1)[:2].flip(0) - 1).repeat(2).to(regions)
        moved = self.decoded(rows.detach(), corners, sides)
        inside = ((moved >= 0) & (moved <= most) & (corners >= 0) & (corners <= most)).all(1)
        drawn = self.decoded(_Limited.apply(rows, inside[:, None], self.limit), corners, sides)
        return (torch.cat((regions[:, :1], regions[:, 1:] + (drawn - drawn.detach())), 1),)

    @staticmethod
    def decoded(offsets: Tensor, corners: Tensor, sides: Tensor) -> Tensor:
        """Corners of the regions that offsets (R, 4) move anchors to."""
        centres = corners[:, :2] + sides / 2 + offsets[:, :2] * sides
        half = offsets[:, 2:].exp() * sides / 2
        return torch.cat((centres - half, centres + half), 1)


class MNCProposalTargetLayer(rcnn.ProposalTargetLayer):
    """A sample of regions with classes and targets, as ProposalTargetLayer's, drawn from several intervals of overlap.

    (regions (R, 5), true boxes (G, 5), image size (1, 3)) → as ProposalTargetLayer. Of BATCH_SIZE (64) regions, FG_FRACTION
    ([0.3]) have an overlap from FG_THRESH_LO ([0.5]) to FG_THRESH_HI ([1.0]), and of the others BG_FRACTION ([0.85, 0.15]) from
    BG_THRESH_LO ([0.1, 0.0]) to BG_THRESH_HI ([0.5, 0.1]). Targets are normalised. Regions get the gradient of those that are
    taken; with bp_all 0, of the objects. Source: lib/pylayer/proposal_target_layer.py of daijifeng001/MNC with MNC_MODE and
    MIX_INDEX False, as experiments/cfgs/VGG16 sets for Faster R-CNN; masks are not built in.
    """

    bottoms = (3, 3)
    differentiable_bottoms = (0,)

    def read_settings(self) -> SimpleNamespace:
        known = {
            "num_classes": Setting(param_str.COUNT),
            "bp_all": Setting(param_str.WHOLE, 1),
            "BATCH_SIZE": Setting(param_str.COUNT, 64),
            "FG_FRACTION": Setting(param_str.FRACTIONS, [0.3]),
            "FG_THRESH_LO": Setting(param_str.FRACTIONS, [0.5]),
            "FG_THRESH_HI": Setting(param_str.FRACTIONS, [1.0]),
            "BG_FRACTION": Setting(param_str.FRACTIONS, [0.85, 0.15]),
            "BG_THRESH_LO": Setting(param_str.FRACTIONS, [0.1, 0.0]),
            "BG_THRESH_HI": Setting(param_str.FRACTIONS, [0.5, 0.1]),
            "BBOX_INSIDE_WEIGHTS": Setting(param_str.FOUR, (1, 1, 1, 1)),
            "BBOX_NORMALIZE_MEANS": Setting(param_str.FOUR, (0, 0, 0, 0)),
            "BBOX_NORMALIZE_STDS": Setting(param_str.FOUR_POSITIVE, (0.1, 0.1, 0.2, 0.2)),
        }
        p = param_str.settings(self, known)
        for kind in ("FG", "BG"):
            lists = [getattr(p, f"{kind}_{name}") for name in ("FRACTION", "THRESH_LO", "THRESH_HI")]
            if len(set(map(len, lists))) > 1:
                found = f"{kind}_FRACTION, {kind}_THRESH_LO and {kind}_THRESH_HI of {', '.join(str(len(each)) for each in lists)}"
                raise self.error(f"{found} numbers", "as many of each")
        p.BBOX_NORMALIZE_TARGETS_PRECOMPUTED = True
        return p

    def forward(self, regions: Tensor, truths: Tensor, *_size: Tensor) -> tuple[Tensor, ...]:
        rows, *others = super().forward(regions.detach(), truths)
        taken = self.kept if self.settings.bp_all else self.kept[: self.objects]
        places = torch.from_numpy(np.flatnonzero(taken < len(regions))).to(regions.device)
        chosen = regions.reshape(-1, 5)[torch.from_numpy(taken[taken < len(regions)]).to(regions.device)]
        return rows.index_add(0, places, chosen - chosen.detach()), *others

    def _drawn(self, greatest: Floats) -> tuple[np.ndarray, np.ndarray]:
        objects = self._of_intervals("FG", greatest, self.settings.BATCH_SIZE)
        return objects, self._of_intervals("BG", greatest, self.settings.BATCH_SIZE - len(objects))

    def _of_intervals(self, kind: str, greatest: Floats, count: int) -> np.ndarray:
        """Numbers of regions, in their order, of the intervals of FG or BG."""
        names = (f"{kind}_FRACTION", f"{kind}_THRESH_LO", f"{kind}_THRESH_HI")
        chosen = [
            rcnn.sampled(np.flatnonzero((greatest >= low) & (greatest <= high)), round(count * share))
            for share, low, high in zip(*(getattr(self.settings, name) for name in names), strict=True)
        ]
        return np.unique(np.concatenate(chosen))


class _OfTesting(Layer):
    """Base of MNC's layers that are built in for testing only; in training they need the masks of MNC's data."""

    type = "Python"

    def require_testing(self) -> None:
        """Raise LayerError in training."""
        if self.phase == caffe_pb2.TRAIN:
            raise self.error(f"{self.param.python_param.layer} in training", "the built-in layer computes in testing only")


class MaskLayer(_OfTesting):
    """Masks as maps: (probabilities (R, S²)) → (R, 1, S, S). Source: lib/pylayer/mask_layer.py of daijifeng001/MNC."""

    def setup(self, masks: Shape) -> None:
        self.require_testing()

    def top_shapes(self, masks: Shape) -> list[Shape]:
        side = math.isqrt(math.prod(masks[1:]))
        if not side or side * side != math.prod(masks[1:]):
            raise self.error(f"masks of shape {masks}", "as many values of each as a square has")
        return [(masks[0], 1, side, side)]

    def forward(self, masks: Tensor) -> Tensor:
        return masks.reshape(self.top_shapes(tuple(masks.shape))[0])


class StageBridgeLayer(_OfTesting):
    """Regions moved by their best class's offsets: (regions (R, 5), offsets (R, 4 C), scores (R, C), image size (1, 3)) → (R, 5).

    They are cut at the image's edges. Source: lib/pylayer/stage_bridge_layer.py of daijifeng001/MNC, in testing.
    """

    bottoms = (4, 4)
    differentiable_bottoms = ()

    def setup(self, regions: Shape, offsets: Shape, scores: Shape, size: Shape) -> None:
        self.require_testing()

    def top_shapes(self, regions: Shape, offsets: Shape, scores: Shape, size: Shape) -> list[Shape]:
        count = regions[0]
        if math.prod(regions) != 5 * count or math.prod(offsets) != 4 * math.prod(scores) or scores[0] != count:
            found = f"regions of shape {regions}, offsets of shape {offsets} and scores of shape {scores}"
            raise self.error(found, "5 values, 4 offsets of each class and a score of each class for each region")
        return [(count, 5)]

    def forward(self, regions: Tensor, offsets: Tensor, scores: Tensor, size: Tensor) -> Tensor:
        corners = as_array(regions).reshape(-1, 5)[:, 1:]
        moves = as_array(offsets).reshape(len(corners), -1, 4)[np.arange(len(corners)), as_array(scores).argmax(1)]
        rows, columns = as_array(size).ravel()[:2]
        moved = np.clip(rcnn.ProposalLayer.moved(corners, moves), 0, np.array([columns, rows] * 2, np.float32) - 1)
        return torch.from_numpy(np.insert(moved, 0, 0, 1).astype(np.float32)).to(regions.device)
