"""Detections of YOLOv2 and YOLOv3: YoloDetectionOutput, Yolov3DetectionOutput, as of eric612's MobileNet-YOLO."""

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.layer_types.forks.detection import as_array
from caffe.transforms import boxes


class _YoloOutput(Layer):
    """Base of both: maps of predictions → (1, 1, boxes, 7).

    A row is image, class from 1 on, score, xmin, ymin, xmax, ymax, the box in fractions of the image, not clipped; by image,
    the best score first. A box is left out if one of a better score, of whatever class, overlaps it by nms_threshold or more.
    Without any detection, the top has one row for each image: its index, then -1. No gradient passes. (The fork takes all
    images of a batch for one image, of index 0.)
    """

    bottoms: tuple[int, int | None] = (1, None)
    differentiable_bottoms = ()

    def check_maps(self, values: int, *shapes: Shape) -> None:
        """Raise LayerError unless all maps have `values` channels for each of num_box anchors, of the same images."""
        p = self.settings_of(self.param)
        if p.num_classes < 1 or p.num_box < 1:
            raise self.error(f"num_classes {p.num_classes} and num_box {p.num_box}", "both must be at least 1")
        for shape in shapes:
            self.require_maps(shape)
            if shape[1] != p.num_box * values:
                raise self.error(
                    f"{shape[1]} channels", f"{p.num_box} boxes of {p.num_classes} classes need {p.num_box} · {values}"
                )
            if shape[0] != shapes[0][0]:
                raise self.error(f"maps of {shapes[0][0]} and {shape[0]} images", "they must be of the same images")
        if len(p.biases) % 2 or min(p.biases, default=1) <= 0:
            raise self.error(f"biases {list(p.biases)}", "width and height of each anchor, larger than 0")
        self.anchors = np.array(p.biases, np.float32).reshape(-1, 2)

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        return [(1, 1, 1, 7)]  # a placeholder: `forward` knows how many there are

    def candidates(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centres and sides (N, boxes, 4), scores and labels (N, boxes, …) of all predictions; a score of -1 counts as none."""
        raise NotImplementedError

    @staticmethod
    def cells(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions (N, count, H, W, values), column and row of each cell (H, W, 2), and width and height of the map (2,)."""
        images, _, height, width = x.shape
        values = x.detach().reshape(images, count, -1, height, width).permute(0, 1, 3, 4, 2)
        places = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
        return values, places.to(x), torch.tensor([width, height]).to(x)

    def forward(self, *maps: Tensor) -> Tensor:
        corners, scores, labels = self.candidates(*maps)
        limit = self.settings_of(self.param).nms_threshold
        if limit <= 1:
            # The same box as another class would be left out anyway.
            scores, best = scores.max(-1, keepdim=True)
            labels = labels.gather(-1, best)
        # Strictly below the threshold, where `suppress` keeps what is up to it; the number before 0 counts as 0 for processors
        # that flush denormals.
        threshold = float(np.nextafter(np.float32(limit), np.float32(-1))) if limit > 0 else -1.0
        by_image = [np.empty((0, 7), np.float32)]
        for image in range(len(scores)):
            found, which = (scores[image] >= 0).nonzero(as_tuple=True)
            score = as_array(scores[image, found, which])
            order = np.argsort(-score, kind="stable")
            own = as_array(corners[image, found])[order]
            own = np.concatenate((own[:, :2] - own[:, 2:] / 2, own[:, :2] + own[:, 2:] / 2), 1)
            kept = boxes.suppress(own, threshold)
            label = as_array(labels[image, found, which])[order] + 1
            by_image.append(np.hstack((np.full((len(kept), 1), image), label[kept, None], score[order][kept, None], own[kept])))
        rows = np.concatenate(by_image).astype(np.float32)
        if not len(rows):
            rows = np.full((len(scores), 7), -1, np.float32)
            rows[:, 0] = np.arange(len(scores))
        return torch.from_numpy(rows[None, None]).to(maps[0])


@register("YoloDetectionOutput")
class YoloDetectionOutput(_YoloOutput):
    """Detections of YOLOv2: one or two maps (N, num_box · (5 + classes), H, W) → (1, 1, boxes, 7).

    The score of a box, at least confidence_threshold, is its confidence times the probability of its most probable class.
    biases are the anchors' widths and heights in cells. The rows are those of the base class.
    """

    bottoms = (1, 2)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.yolo_detection_output_param
        if p.coords != 4:
            raise self.error(f"coords {p.coords}", "a box has 4")
        self.check_maps(5 + p.num_classes, *shapes)
        if len(self.anchors) != p.num_box:
            raise self.error(f"{len(p.biases)} biases", f"{p.num_box} boxes need {2 * p.num_box}")

    def candidates(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.param.yolo_detection_output_param
        corners: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        for x in maps:
            values, places, size = self.cells(x, p.num_box)
            anchors = torch.from_numpy(self.anchors).to(x)[:, None, None]
            centre, sides = (places + values[..., :2].sigmoid()) / size, values[..., 2:4].exp() * anchors / size
            best, label = values[..., 5:].softmax(-1).max(-1)
            score = values[..., 4].sigmoid() * best
            score = torch.where(score >= p.confidence_threshold, score, -1.0)
            # In the order of the positions, so that of equal scores the first is the one of the fork's scan.
            for parts, part in (
                (corners, torch.cat((centre, sides), -1)),
                (scores, score[..., None]),
                (labels, label[..., None]),
            ):
                parts.append(part.permute(0, 2, 3, 1, 4).flatten(1, 3))
        return torch.cat(corners, 1), torch.cat(scores, 1), torch.cat(labels, 1)


@register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(_YoloOutput):
    """Detections of YOLOv3: mask_group_num maps (N, num_box · (5 + classes), H, W) → (1, 1, boxes, 7).

    A box is detected as each class whose probability times the box's confidence is above confidence_threshold. `mask` has the
    num_box anchors of each map, anchors_scale the pixels of its cells, biases the anchors' widths and heights in pixels. With
    gaussian_box, a prediction is each of x, y, w and h with its variance, confidence and classes, and the confidence is
    multiplied by 1 - the mean variance (Choi et al. 2019). The rows are those of the base class.
    """

    def setup(self, *shapes: Shape) -> None:
        p = self.param.yolov3_detection_output_param
        self.check_maps((9 if p.gaussian_box else 5) + p.num_classes, *shapes)
        maps = len(shapes)
        if (p.mask_group_num, len(p.anchors_scale)) != (maps, maps):
            found = f"mask_group_num {p.mask_group_num} and {len(p.anchors_scale)} values of anchors_scale"
            raise self.error(found, f"there are {maps} bottoms, each a map with its own anchors and scale")
        if len(p.mask) != maps * p.num_box or max(p.mask) >= len(self.anchors):
            found = f"mask {list(p.mask)} with {len(self.anchors)} anchors"
            raise self.error(found, f"indices of the {p.num_box} anchors of each of {maps} maps")
        if min(p.anchors_scale) < 1:
            raise self.error("anchors_scale 0", "it must be at least 1 pixel")

    def candidates(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.param.yolov3_detection_output_param
        corners: list[Tensor] = []
        scores: list[Tensor] = []
        for index, x in enumerate(maps):
            values, places, size = self.cells(x, p.num_box)
            own = self.anchors[list(p.mask[index * p.num_box : (index + 1) * p.num_box])]
            anchors = torch.from_numpy(own).to(x)[:, None, None] / (size * p.anchors_scale[index])
            if p.gaussian_box:
                box, variances = values[..., 0:8:2], values[..., 1:8:2].sigmoid()
                confidence = values[..., 8].sigmoid() * (4 - variances.sum(-1)) / 4
            else:
                box, confidence = values[..., :4], values[..., 4].sigmoid()
            centre, sides = (places + box[..., :2].sigmoid()) / size, box[..., 2:].exp() * anchors
            score = values[..., -p.num_classes :].sigmoid() * confidence[..., None]
            score = torch.where(score > p.confidence_threshold, score, -1.0)
            for parts, part in ((corners, torch.cat((centre, sides), -1)), (scores, score)):
                parts.append(part.permute(0, 2, 3, 1, 4).flatten(1, 3))
        joined = torch.cat(scores, 1)
        return torch.cat(corners, 1), joined, torch.arange(p.num_classes, device=joined.device).expand_as(joined)
