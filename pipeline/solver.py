"""A solver for a dataset: tests that cover the validation set, and iterations worked out from epochs, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import caffe
from caffe.proto import caffe_pb2
from pipeline import solver_fields
from pipeline.errors import InputError

TEST_BATCH = 256
"""Most images in a test batch; the batch is the largest divisor of the validation set's size up to this."""


@dataclass(frozen=True)
class Sizes:
    """Images for training and validation, and in a batch of each."""

    train_images: int
    val_images: int
    batch_size: int
    test_batch: int


@dataclass(frozen=True)
class Run:
    """Where a solver's nets are and its snapshots go, whether it trains on a GPU, and what is not the default.

    nets       the folder of train.prototxt and test.prototxt
    snapshots  what their paths begin with
    given      fields of SolverParameter by name, and epochs and step_epochs
    fitted     whether all weights are there already, so that the net is only tested
    """

    nets: Path
    snapshots: Path
    gpu: bool
    given: dict
    fitted: bool = False


def test_batch(images: int) -> int:
    """Images in a test batch, so that test_iter whole batches are the validation set, each image once."""
    return max(size for size in range(1, min(images, TEST_BATCH) + 1) if images % size == 0)


def solver(sizes: Sizes, run: Run, where: str) -> tuple[caffe_pb2.SolverParameter, dict[str, str]]:
    """The solver, and {field: why it has this value} for what was worked out from the dataset.

    where  what errors call the fields that are given
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
        "solver_mode": "GPU" if run.gpu else "CPU",
    }
    reasons = {
        "test_iter": f"{sizes.val_images} validation images in batches of {sizes.test_batch}, each image once",
        "test_interval": f"an epoch: {sizes.train_images} training images in {batches}"
        if end >= epoch
        else f"the whole training, shorter than an epoch of {epoch} iterations",
        "display": "four times an epoch",
        "max_iter": f"{epochs:g} epochs of {epoch} iterations",
    }
    if steps is not None:
        values |= _steps(steps, epoch)
        places = ", ".join(f"{step:g}" for step in steps) if isinstance(steps, list) else f"every {steps:g}"
        reasons |= dict.fromkeys(("stepsize", "stepvalue"), f"{places} epochs of {epoch} iterations")
        reasons |= {"lr_policy": "the rate falls at these steps", "gamma": "to a tenth at each step"}
    if run.fitted:
        given.pop("max_iter", None)
        values["max_iter"], reasons["max_iter"] = 0, "the classifier is fitted to the features before: nothing is left to learn"
    values |= given
    param = caffe_pb2.SolverParameter()
    for field, value in values.items():
        solver_fields.assign(param, field, value)
    return param, {field: reason for field, reason in reasons.items() if field not in given}


def _steps(steps: float | list[float], epoch: int) -> dict:
    """The solver's fields that lower the rate after so many epochs, again and again, or after each of several."""
    if isinstance(steps, list):
        return {"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [max(1, round(step * epoch)) for step in steps]}
    return {"lr_policy": "step", "gamma": 0.1, "stepsize": max(1, round(steps * epoch))}


def write(path: Path, param: caffe_pb2.SolverParameter, reasons: dict[str, str]) -> None:
    """Write a solver with its reasons as comments, each before the first line of its field."""
    caffe.write_prototxt(path, param)
    lines, left = [], dict(reasons)
    for line in path.read_text().splitlines():
        reason = left.pop(line.split(":")[0], None)
        lines += [f"# {reason}", line] if reason else [line]
    path.write_text("\n".join(lines) + "\n")
