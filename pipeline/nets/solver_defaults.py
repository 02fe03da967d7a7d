"""A solver for a dataset: tests that cover the validation set, and iterations computed from epochs, each with its reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe.proto import caffe_pb2
from pipeline.errors import InputError
from pipeline.nets import solver_fields
from pipeline.options.base import Device

TEST_BATCH = 256
"""Largest number of images in a test batch."""
TEST_PIXELS = 32 * 227**2
"""Largest number of pixels in a test batch: 32 images of 227 × 227, for which ResNet-50 needs 2 GB in testing."""
FEW, MANY = 8, 100
"""Tests in batches of fewer than FEW images are slow; for MANY images there is a warning."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of images: for training and validation, in a training batch, and at most in a test batch."""

    train_images: int
    val_images: int
    batch_size: int
    most_tested: int

    @property
    def test_batch(self) -> int:
        """Images in a test batch."""
        return test_batch(self.val_images, self.most_tested)


@dataclass(frozen=True)
class Run:
    """What a solver needs to know besides the sizes.

    nets       the folder of train.prototxt and test.prototxt
    snapshots  prefix of their paths
    device     where and how it trains
    given      fields of SolverParameter that are not the defaults, by name, and epochs and step_epochs
    fitted     whether all weights are fitted already, so that the net is only tested
    """

    nets: Path
    snapshots: Path
    device: Device
    given: dict[str, Any]
    fitted: bool = False


def most_tested(pixels: int) -> int:
    """Largest number of images of so many pixels in a test batch."""
    return max(1, min(TEST_BATCH, TEST_PIXELS // pixels))


def test_batch(images: int, most: int) -> int:
    """Images in a test batch, at most `most`, so that whole batches cover the validation set, each image once."""
    return max(size for size in range(1, min(images, most) + 1) if images % size == 0)


def slow_test(images: int, batch: int, most: int) -> tuple[str, str] | None:
    """(found, do) if a test is slow because its batches are smaller than they need be, else None."""
    if images < MANY or batch >= min(FEW, most):
        return None
    found = f"a test is {images // batch} batches of {batch}, which is slow"
    best = test_batch(images, most)
    if best > batch:
        return found, f"set batch_size: {best} and test_iter: {images // best}"
    others = (other for far in range(1, FEW + 1) for other in (images - far, images + far))
    near = next(other for other in others if test_batch(other, most) >= min(FEW, most))
    why = f"no number from {batch + 1} to {most} divides {images}"
    return f"{found}: {why}", f"hold out {near} images, of which {test_batch(near, most)} make a batch"


def _step_schedule(steps: float | list[float], epoch: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of a schedule by `step_epochs`, and why they have these values; an epoch is so many iterations."""
    if isinstance(steps, list):
        fields: dict[str, Any] = {"lr_policy": "multistep", "stepvalue": [max(1, round(step * epoch)) for step in steps]}
        return fields, {"stepvalue": f"{', '.join(f'{step:g}' for step in steps)} epochs of {epoch} iterations"}
    fields = {"lr_policy": "step", "stepsize": max(1, round(steps * epoch))}
    return fields, {"stepsize": f"every {steps:g} epochs of {epoch} iterations"}


def solver(sizes: Sizes, run: Run, where: str) -> tuple[caffe_pb2.SolverParameter, dict[str, str]]:
    """The solver, and {field: why it has this value} for fields that were computed from the dataset.

    where  prefix of the given fields' names in errors
    """
    given = dict(run.given)
    if problems := solver_fields.problems(given):
        raise InputError("", "\n".join(f"{where}.{problem}" for problem in problems))
    accumulated = given.get("iter_size", 1)
    batches = f"batches of {sizes.batch_size}" + (f" × {accumulated}" if accumulated > 1 else "")
    epoch = max(1, round(sizes.train_images / (sizes.batch_size * accumulated)))
    epochs, steps = given.pop("epochs", solver_fields.DEFAULT_EPOCHS), given.pop("step_epochs", None)
    end = given.get("max_iter", max(1, round(epochs * epoch)))
    values = {
        "train_net": str(run.nets / "train.prototxt"),
        "test_net": [str(run.nets / "test.prototxt")],
        "test_iter": [sizes.val_images // sizes.test_batch],
        "test_interval": max(1, min(epoch, end)),
        "base_lr": 0.01,
        "lr_policy": "fixed",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "display": max(1, epoch // 4),
        "max_iter": end,
        "snapshot_prefix": str(run.snapshots),
        "random_seed": 1,
        "solver_mode": "GPU" if run.device.gpu else "CPU",
    }
    if run.device.numerics != Device().numerics:  # a field that BVLC Caffe does not know
        values["numerics"] = run.device.numerics
    reasons = {
        "test_iter": f"{sizes.val_images} validation images in batches of {sizes.test_batch}, each image once",
        "test_interval": f"an epoch: {sizes.train_images} training images in {batches}"
        if end >= epoch
        else f"the whole training, shorter than an epoch of {epoch} iterations",
        "display": "four times an epoch",
        "max_iter": f"{epochs:g} epochs of {epoch} iterations",
    }
    if slow := slow_test(sizes.val_images, sizes.test_batch, sizes.most_tested):
        reasons["test_iter"] = "; ".join((reasons["test_iter"], *slow))
    if steps is not None:
        schedule, reason = _step_schedule(steps, epoch)
        values |= schedule | {"gamma": 0.1}
        reasons |= reason | {"lr_policy": "the rate falls at these steps", "gamma": "to a tenth at each step"}
    if run.fitted:
        given.pop("max_iter", None)
        values["max_iter"], reasons["max_iter"] = 0, "the classifier is fitted to the features before: nothing is left to learn"
    values |= given
    param = caffe_pb2.SolverParameter()
    for field, value in values.items():
        solver_fields.assign(param, field, value)
    return param, {field: reason for field, reason in reasons.items() if field not in given}
