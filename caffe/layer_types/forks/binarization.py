"""Binarization of documents (Tensmeyer and Martinez 2017), as of ctensmeyer/caffe: DocData, WeightedFmeasureLoss, PR."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from caffe.engine.layer import Layer, Shape, register
from caffe.errors import Error
from caffe.formats.datum import pixels_of
from caffe.formats.db import open_db
from caffe.layer_types.data import Batch, Prefetching
from caffe.layer_types.loss import Loss
from caffe.numerics.generator import Generator
from caffe.proto import caffe_pb2


@register("WeightedFmeasureLoss")
class WeightedFmeasureLoss(Loss):
    """1 - F of probabilities B and targets G: (B, G, weights R of recall, weights P of precision, (N, …)) → scalar[, F (N, 1)].

    F = 2 p r / (p + r), r = Σ R B G / Σ R G and p = Σ P B G / Σ P B, over the batch, or with avg_fm of each image, as a mean of
    the images. Where p or r is 0 or undefined, the loss is mse_lambda / 2 · Σ P (G - B)² / Σ P. With a margin below 0.5,
    probabilities right by 0.5 + margin count as their targets. The second top is there with avg_fm; it has 0 for images without
    F. Source: Pratikakis et al. 2013 (weights), weighted_fmeasure_loss_layer of ctensmeyer/caffe. The gradient is the derivative;
    that of the fork without avg_fm has twice the part of recall.
    """

    bottoms = (4, 4)
    tops = (1, 2)
    differentiable_bottoms = (0,)

    def setup(self, *shapes: Shape) -> None:
        self.require_same_images(*shapes)
        p = self.param.weighted_fmeasure_loss_param
        if len(self.param.top) > 1 and not p.avg_fm:
            raise self.error("two tops with avg_fm: false", "only with avg_fm has each image an F", "leave the second out")

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        return [(), (shapes[0][0], 1)][: len(self.param.top)]

    def batch_dependence(self) -> str:
        return "" if self.param.weighted_fmeasure_loss_param.avg_fm else "computes one F of its whole batch"

    def forward(self, x: Tensor, target: Tensor, recalled: Tensor, precise: Tensor) -> tuple[Tensor, ...]:
        p = self.param.weighted_fmeasure_loss_param
        rows = [each.reshape(len(x) if p.avg_fm else 1, -1) for each in (x, target, recalled, precise)]
        b, g, of_recall, of_precision = rows
        if 0 < p.margin < 0.5:
            right = torch.where(g > 0.5, b >= 0.5 + p.margin, b <= 0.5 - p.margin)
            b = b + (torch.where(right, g, b) - b).detach()
        recall = _share((b * g * of_recall).sum(1), (g * of_recall).sum(1))
        precision = _share((b * g * of_precision).sum(1), (b * of_precision).sum(1))
        defined = (recall != 0) & (precision != 0)
        measure = 2 * recall * precision / torch.where(defined, recall + precision, 1.0)
        weights = of_precision.sum(1)
        distance = ((g - b).square() * of_precision).sum(1) / torch.where(weights == 0, 1.0, weights)
        losses = torch.where(defined, 1 - measure, p.mse_lambda / 2 * distance)
        return (losses.mean(), torch.where(defined, measure, 0.0).detach()[:, None])[: len(self.param.top)]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))


@register("PR", "precision_recall_param")
class PR(Layer):
    """Precision, recall, accuracy, true negative rate and F: (probabilities, labels of the same count) → five scalars.

    Probabilities from `thresh` on are positive, as are labels other than 0; those that are ignore_label are left out. What would
    be divided by 0 is 0. Source: precision_recall_layer of ctensmeyer/caffe.
    """

    bottoms = (2, 2)
    tops = (5, 5)
    differentiable_bottoms = ()
    reads_out = True

    def top_shapes(self, x: Shape, labels: Shape) -> list[Shape]:
        if np.prod(x, dtype=int) != np.prod(labels, dtype=int):
            raise self.error(f"bottoms of shapes {x} and {labels}", "both must have the same number of values")
        return [()] * 5

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        p = self.param.precision_recall_param
        found, true = x.flatten() >= p.thresh, labels.flatten().long()
        if p.HasField("ignore_label"):
            counted = true != p.ignore_label
            found, true = found[counted], true[counted]
        true = true != 0
        hits, misses, alarms, rests = (
            both.sum().to(x.dtype) for both in (found & true, ~found & true, found & ~true, ~found & ~true)
        )
        precision, recall = _share(hits, hits + alarms), _share(hits, hits + misses)
        accuracy = _share(hits + rests, hits + misses + alarms + rests)
        measure = _share(2 * precision * recall, precision + recall)
        return precision, recall, accuracy, _share(rests, alarms + rests), measure


@register("DocData")
class DocData(Prefetching):
    """Images from a database of DocumentDatum records, repeated endlessly: → (N, C, H, W).

    image_transform_param's linear_params give scale · (x - shift), color_jitter_params add a normal number of mean and sigma to
    each channel, in the order of `params`. With rand_advance_skip n up to n records, at random, are left out after each. Layers
    with the same seed leave out the same. Source: doc_data_layer of ctensmeyer/caffe; its labels and other changes are not here.
    """

    tops = (1, 1)

    def setup(self, *shapes: Shape) -> None:
        super().setup()
        p = self.param.doc_data_param
        self.require_positive("batch_size")
        if len(p.sources) != 1:
            raise self.error(f"{len(p.sources)} sources", "one database")
        self.database = open_db(p.sources[0], p.backend if p.HasField("backend") else None, self.where)
        self.seed = p.seed or self.rng.seed()
        self.jitter = self.param.image_transform_param.rng_seed or self.seed
        self.image = self.pixels(0).shape
        for change in self.param.image_transform_param.params:
            if len(change.linear_params) + len(change.color_jitter_params) != 1:
                raise self.error("params with several changes or none", "one change in each")
            for linear in change.linear_params:
                if {len(linear.shift), len(linear.scale)} - {1, self.image[0]}:
                    found = f"{len(linear.shift)} shift and {len(linear.scale)} scale"
                    raise self.error(found, f"one of each, or one for each of {self.image[0]} channels")

    def top_shapes(self) -> list[Shape]:
        return [(self.batch_size, *self.image)]

    def batch_dependence(self) -> str:
        jitters = any(change.color_jitter_params for change in self.param.image_transform_param.params)
        random = jitters or self.param.doc_data_param.rand_advance_skip
        return "leaves records out or changes colours at random" if random else super().batch_dependence()

    def pixels(self, number: int) -> np.ndarray:
        """The image of a record, channels × height × width."""
        source = self.param.doc_data_param.sources[0]
        document = caffe_pb2.DocumentDatum()
        try:
            document.ParseFromString(bytes(self.database.record(number % len(self.database))))
        except Exception as error:
            raise Error(source, f"a record that is not a DocumentDatum ({error})", do="rebuild the database") from error
        image = document.image
        datum = caffe_pb2.Datum(channels=image.channels, height=image.height, width=image.width, data=image.data)
        datum.encoded = image.encoding != "none"
        return pixels_of(datum, None, source)

    def numbers(self, position: int) -> Iterator[int]:
        """Numbers of the records, over all epochs, from the position on."""
        most = self.param.doc_data_param.rand_advance_skip
        assert self.seed is not None
        number = 0
        for index in itertools.count():
            if index >= position:
                yield number
            number += 1 + (Generator(self.seed, index).integers(most + 1) if most else 0)

    def read(self, position: int) -> Iterator[Batch]:
        solvers, rank = self.share()
        numbers = enumerate(self.numbers(position * solvers), position * solvers)
        mine = (each for each in numbers if each[0] % solvers == rank)
        while True:
            batch = np.empty((self.batch_size, *self.image), np.float32)
            for target, (index, number) in zip(batch, itertools.islice(mine, self.batch_size), strict=True):
                image = self.pixels(number)
                if image.shape != self.image:
                    found = f"an image of shape {image.shape} in a batch of {self.image}"
                    raise Error(self.param.doc_data_param.sources[0], found, do="resize them to one size")
                target[...] = self.changed(image.astype(np.float32), index)
            yield (batch,)

    def changed(self, image: np.ndarray, index: int) -> np.ndarray:
        """An image as its transform_param says; `index` counts the images read."""
        rng = Generator(self.jitter, index)
        for change in self.param.image_transform_param.params:
            for linear in change.linear_params:
                shift, scale = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (linear.shift, linear.scale))
                image = scale * (image - shift)
            for jitter in change.color_jitter_params:
                image = image + np.float32(rng.normal(jitter.mean, jitter.sigma, (len(image), 1, 1)))
        return image
