"""FlowNet's augmentation of image pairs and their flow: DataAugmentation, GenerateAugmentationParameters, FlowAugmentation."""

import numpy as np
import torch
from torch import Tensor

from caffe.engine import mode
from caffe.engine.layer import BlobSpec, Layer, Shape, register
from caffe.formats.weight_files import Stored
from caffe.layer_types.forks.small import Annealed
from caffe.layer_types.normalization import stop_learning
from caffe.proto import caffe_pb2
from caffe.transforms import flow_coefficients as coefficients
from caffe.transforms.flow_coefficients import NAMES, Coefficients, Drawing
from caffe.transforms.flow_images import change_along, change_colours, warp


class _Augmenting(Layer):
    """Base of the layers that have coefficients of changes: (N, 42, 1, 1), see caffe.transforms.flow_coefficients."""

    differentiable_bottoms = ()

    def require_coefficients(self, shape: Shape, count: int) -> None:
        """Raise LayerError unless these are the coefficients of `count` images."""
        if shape[0] != count or int(np.prod(shape[1:])) != len(NAMES):
            raise self.error(f"coefficients of shape {shape}", f"they must be ({count}, {len(NAMES)}, 1, 1)")

    def drawing(self) -> Drawing:
        """What draws the coefficients."""
        if self.param.coeff_schedule_param.half_life <= 0:
            raise self.error(f"half_life {self.param.coeff_schedule_param.half_life:g}", "it must be above 0")
        return Drawing(self.param.augmentation_param, self.param.coeff_schedule_param, self.where)

    def draws(self) -> bool:
        """Whether coefficients are drawn in this phase."""
        return self.phase == caffe_pb2.TRAIN or self.param.augmentation_param.augment_during_test

    def batch_dependence(self) -> str:
        return "changes images at random" if self.draws() else ""


def _stack(rows: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32)).to(device)


@register("DataAugmentation", "augmentation_param")
class DataAugmentation(_Augmenting):
    """Images changed at random: (x (N, C, H, W)[, coefficients]) → (N, C, crop_height, crop_width)[, coefficients (N, 42, 1, 1)].

    With coefficients as second bottom those are applied; else they are drawn, in training or with augment_during_test. In this
    order: the affine map of the crop, bilinear; colours along chromatic_eigvec; colour factors, gamma, brightness and contrast;
    shadow and noise. Fog and motion blur are drawn and, as in the fork, not applied. Without crop_width and crop_height the
    images are not changed. Then a mean is subtracted: with recompute_mean, that of the first so many passes, of each pixel
    (mean_per_pixel) or each channel; else `mean`, of three channels, without mean_per_pixel.
    Blobs: the number of passes (1, 1, 1, 1), and with recompute_mean the means (1, C, H', W') and (1, C, 1, 1), which the passes
    change in both phases. Weights of other extents are taken with the channels' means. No gradient passes.
    Source: data_augmentation_layer.cu of lmb-freiburg/flownet2.
    """

    bottoms = (1, 2)
    tops = (1, 2)

    @classmethod
    def blob_specs(cls, param: caffe_pb2.LayerParameter) -> tuple[BlobSpec, ...]:
        names = ("passes", "mean", "channel_mean") if param.augmentation_param.recompute_mean else ("passes",)
        return tuple(BlobSpec(name, learned=False) for name in names)

    @classmethod
    def has_statistics(cls, param: caffe_pb2.LayerParameter) -> bool:
        return False  # none that can be frozen: they end after recompute_mean passes

    def setup(self, x: Shape, *given: Shape) -> None:
        p = self.param.augmentation_param
        self.require_maps(x)
        for shape in given:
            self.require_coefficients(shape, x[0])
        self.draw_from = self.drawing()
        self.crops = p.HasField("crop_width") and p.HasField("crop_height")
        changes_colours = any(self.draw_from.fields[group] for group in ("chromatic", "eigen", "effects"))
        if self.crops and x[1] != 3 and changes_colours and not given:
            raise self.error(f"colours or effects of {x[1]} channels", "they change images of 3 channels")
        if (self.draw_from.fields["eigen"] or p.chromatic_eigvec) and len(p.chromatic_eigvec) != 9:
            raise self.error(f"{len(p.chromatic_eigvec)} values of chromatic_eigvec", "three vectors of three values are needed")
        ((_, channels, height, width), *_) = self.top_shapes(x)
        shapes = [(1, 1, 1, 1), (1, channels, height, width), (1, channels, 1, 1)]
        for shape in shapes[: 3 if p.recompute_mean else 1]:
            self.add_blob(shape, caffe_pb2.FillerParameter())
        stop_learning(self.param, *range(len(self.blobs)))
        self.fixed_mean: Tensor | None = None
        if not p.recompute_mean and p.mean:
            if len(p.mean) != 3 or x[1] != 3 or p.mean_per_pixel:
                found = f"{len(p.mean)} values of mean for {x[1]} channels"
                raise self.error(found, "3 are subtracted from 3 channels", "set mean_per_pixel: false, or leave mean out")
            self.fixed_mean = torch.tensor(list(p.mean), device=self.device).view(1, 3, 1, 1)

    def top_shapes(self, x: Shape, *given: Shape) -> list[Shape]:
        p = self.param.augmentation_param
        size = (p.crop_height, p.crop_width) if self.crops else x[2:]
        if size[0] > x[2] or size[1] > x[3] or min(size) < 1:
            raise self.error(f"a crop of {size[0]}×{size[1]} on images of {x[2]}×{x[3]}", "the crop must fit")
        return [(*x[:2], *size), (x[0], len(NAMES), 1, 1)][: len(self.param.top)]

    def convert_blobs(self, stored: list[Stored]) -> list[Stored]:
        if len(stored) != 3 or len(self.blobs) != 3 or stored[1].values.size == self.blobs[1].count:
            return stored
        count = self.blobs[2].count
        if stored[2].values.size != count or stored[1].values.size % count:
            return stored
        of_pixels = self.param.augmentation_param.mean_per_pixel
        means = stored[1].values.reshape(count, -1).mean(1) if of_pixels else stored[2].values.reshape(count)
        shape = self.blobs[1].shape
        whole = np.broadcast_to(means[:, None, None], shape[1:]).reshape(shape).astype(np.float32)
        return [stored[0], Stored(shape, whole), Stored(self.blobs[2].shape, means.reshape(1, count, 1, 1).astype(np.float32))]

    def forward(self, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        p = self.param.augmentation_param
        passes = int(self.blobs[0].tensor) + 1
        self.blobs[0].tensor = self.blobs[0].tensor + 1
        stored = given[0].detach().cpu().numpy().reshape(-1, len(NAMES)) if given else self.drawn(x, passes)
        top = self.changed(x.detach(), [coefficients.from_blob(row) for row in stored]) if self.crops else x.detach().clone()
        if p.recompute_mean:
            if passes <= p.recompute_mean:
                mean = self.blobs[1].tensor + (top.mean(0, keepdim=True) - self.blobs[1].tensor) / passes
                self.blobs[1].tensor, self.blobs[2].tensor = mean, mean.mean((2, 3), keepdim=True)
            top = top - self.blobs[1 if p.mean_per_pixel else 2].tensor
        elif self.fixed_mean is not None:
            top = top - self.fixed_mean
        return (top, _stack(list(stored), x.device).view(len(x), -1, 1, 1))[: len(self.param.top)]

    def drawn(self, x: Tensor, passes: int) -> np.ndarray:
        """Coefficients of the images, as they are stored."""
        if not (self.crops and self.draws()):
            return np.zeros((len(x), len(NAMES)), np.float32)
        p, rng, share = self.param.augmentation_param, mode.generator, self.draw_from.share(passes)
        rows = []
        for _ in range(len(x)):
            drawn: Coefficients = {}
            if self.draw_from.fields["spatial"]:
                size, crop = (x.shape[2], x.shape[3]), (p.crop_height, p.crop_width)
                drawn = self.draw_from.draw_place(rng, share, drawn, size, crop)
            for group in ("chromatic", "eigen", "effects"):
                drawn |= self.draw_from.draw(group, rng, share)
            rows.append(coefficients.to_blob(drawn))
        return np.stack(rows)

    def changed(self, x: Tensor, changes: list[Coefficients]) -> Tensor:
        """The images with their changes, not yet without the mean."""
        p = self.param.augmentation_param
        size = (p.crop_height, p.crop_width)
        matrices = _stack([coefficients.affine(each, (x.shape[2], x.shape[3]), size) for each in changes], x.device)
        top = warp(x, matrices, size)
        groups = {"eigen": coefficients.EIGEN, "chromatic": coefficients.CHROMATIC}
        changed = [
            name for name, group in groups.items() if any(each[key] != value for each in changes for key, value in group.items())
        ]
        has_effects = any(each["shadow_strength"] > 0 or each["noise"] > 0 for each in changes)
        if x.shape[1] != 3 and (changed or has_effects):
            raise self.error(f"colours or effects of {x.shape[1]} channels", "they change images of 3 channels")

        def values(name: str) -> Tensor:
            return torch.tensor([each[name] for each in changes], device=x.device).view(-1, 1, 1)

        if "eigen" in changed:
            if len(p.chromatic_eigvec) != 9:
                raise self.error(f"{len(p.chromatic_eigvec)} values of chromatic_eigvec", "coefficients along them are given")
            axes = torch.tensor(list(p.chromatic_eigvec), device=x.device).view(3, 3)
            top = change_along(axes, x, top, {name: values(name) for name in coefficients.EIGEN}).clamp(0, p.max_multiplier)
        if "chromatic" in changed:
            top = change_colours(top, {name: values(name) for name in coefficients.CHROMATIC}).clamp(0, p.max_multiplier)
        if has_effects:
            angle = values("shadow_angle")
            across = torch.arange(size[1], device=x.device) - size[1] // 2
            down = torch.arange(size[0], device=x.device)[:, None] - size[0] // 2
            in_shadow = across * angle.cos() + down * angle.sin() - values("shadow_distance") > 0
            top = (top - (in_shadow * values("shadow_strength"))[:, None]).clamp(0, p.max_multiplier)
            noise = torch.from_numpy(mode.generator.normal(0, 1, tuple(top.shape))).to(x.device)
            top = top + noise * values("noise")[:, None]
        return top


@register("GenerateAugmentationParameters", "augmentation_param")
class GenerateAugmentationParameters(_Augmenting, Annealed):
    """Coefficients of changes, drawn: (coefficients or images[, images, their crops]) → (N, 42, 1, 1).

    mode add: drawn changes are composed with the given coefficients; replace: those that are drawn replace the given ones;
    regenerate, or images as the first bottom: there are none besides. The place of a crop is drawn so that its corners lie inside
    the image; sizes are those of the second and the third bottom, or crop_width, crop_height, and those of the first bottom's
    images or bottomwidth and bottomheight. In testing nothing is drawn, unless augment_during_test.
    Source: generate_augmentation_parameters_layer.cu of lmb-freiburg/flownet2.
    """

    bottoms = (1, 3)

    def setup(self, first: Shape, *others: Shape) -> None:
        p = self.param.augmentation_param
        if len(others) == 1:
            raise self.error("2 bottoms", "1 or 3: coefficients, images and their crops")
        for shape in others:
            self.require_maps(shape)
        is_image = len(first) == 4 and max(first[2:]) > 1
        self.mode = "regenerate" if is_image and not others else p.mode
        if self.mode not in ("add", "replace", "regenerate"):
            raise self.error(f'mode "{p.mode}"', "it must be add, replace or regenerate")
        if self.mode != "regenerate":
            self.require_coefficients(first, first[0])
        self.draw_from = self.drawing()
        sizes = [(p.bottomheight, p.bottomwidth), (p.crop_height, p.crop_width)]
        if others:
            sizes = [(shape[2], shape[3]) for shape in others]
        elif is_image:
            sizes[0] = (first[2], first[3])
        if self.draw_from.fields["spatial"] and min(map(min, sizes)) < 1:
            names = "crop_width, crop_height" + ("" if is_image else ", bottomwidth and bottomheight")
            raise self.error(f"sizes of {sizes[0]} and {sizes[1]}", f"{names} must be given", "or give 3 bottoms")
        self.size, self.crop = sizes

    def top_shapes(self, first: Shape, *others: Shape) -> list[Shape]:
        return [(first[0], len(NAMES), 1, 1)]

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        self.passes += 1
        given = np.zeros((len(first), len(NAMES)), np.float32)
        if self.mode != "regenerate":
            given = first.detach().cpu().numpy().reshape(given.shape)
        if not self.draws():
            return _stack(list(given), first.device).view(len(first), -1, 1, 1)
        share = self.draw_from.share(self.passes)
        return _stack([self.drawn(row, share) for row in given], first.device).view(len(first), -1, 1, 1)

    def drawn(self, stored: np.ndarray, share: float) -> np.ndarray:
        """The coefficients of one image, as they are stored, from given ones."""
        rng = mode.generator
        known = coefficients.from_stored(stored)
        if self.draw_from.fields["spatial"]:
            if self.mode == "replace":
                known |= coefficients.SPATIAL
            known = self.draw_from.draw_place(rng, share, known, self.size, self.crop)
        result = coefficients.to_blob(known)
        for group in ("chromatic", "eigen", "effects"):
            drawn = self.draw_from.draw(group, rng, share)
            if self.mode == "add":
                result = result + coefficients.to_blob(drawn)
            else:
                result = coefficients.to_blob(coefficients.from_stored(result) | drawn)
        return result


@register("FlowAugmentation", "augmentation_param")
class FlowAugmentation(_Augmenting):
    """The flow between two changed images: (flow (N, 2, H, W), coefficients of both) → (N, 2, crop_height, crop_width).

    A pixel of the first crop is mapped to the first image, moved by the flow of the nearest pixel there, and mapped to the second
    crop; the difference is its flow. Source: flow_augmentation_layer.cu of lmb-freiburg/flownet2.
    """

    bottoms = (3, 3)

    def setup(self, flow: Shape, first: Shape, second: Shape) -> None:
        self.require_maps(flow)
        if flow[1] != 2:
            raise self.error(f"a flow of shape {flow}", "it has 2 channels")
        for shape in (first, second):
            self.require_coefficients(shape, flow[0])
        self.require_positive("crop_width", "crop_height")

    def draws(self) -> bool:
        return False

    def top_shapes(self, flow: Shape, first: Shape, second: Shape) -> list[Shape]:
        p = self.param.augmentation_param
        return [(flow[0], 2, p.crop_height, p.crop_width)]

    def forward(self, flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
        (_, _, height, width) = flow.shape
        ((_, _, *crop),) = self.top_shapes(tuple(flow.shape), tuple(first.shape), tuple(second.shape))
        size = (crop[0], crop[1])
        maps = []
        for given in (first, second):
            rows = given.detach().cpu().numpy().reshape(-1, len(NAMES))
            maps.append([coefficients.affine(coefficients.from_stored(row), (height, width), size) for row in rows])
        to_first = _stack(maps[0], flow.device)
        back = [np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2] for matrix in maps[1]]
        from_second = _stack(back, flow.device)
        across, down = (torch.arange(extent, device=flow.device, dtype=torch.float32) for extent in size[::-1])
        grid = torch.stack([across.expand(size), down[:, None].expand(size), torch.ones(size, device=flow.device)]).flatten(1)
        places = to_first @ grid
        column, row = ((places[:, axis] + 0.5).trunc().long().clamp(0, extent - 1) for axis, extent in ((0, width), (1, height)))
        index = (row * width + column)[:, None].expand(-1, 2, -1)
        moved = places + flow.detach().flatten(2).gather(2, index)
        arrived = from_second[:, :, :2] @ moved + from_second[:, :, 2:]
        return (arrived - grid[:2]).view(len(flow), 2, *size)
