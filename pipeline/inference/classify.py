"""Classify images: the most probable classes of each file, or of each image below a folder, with their names.

Images go through what the dataset's did (preprocessing.json). Printed for people, and written as CSV: path, rank (from 1), class,
probability; an image that cannot be read has a row of rank 0, and why not in the place of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import caffe
from pipeline import devices
from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import write_table, written_whole
from pipeline.formats.images import content_of, why_unreadable
from pipeline.formats.lists import read_labels
from pipeline.inference.trained import loaded
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.flags import read_flags
from pipeline.options.training import ClassifyOptions
from pipeline.progress import progress
from pipeline.sources.folders import IMAGES

BATCH = 32
"""Crops that go through the net at once."""


@dataclass(frozen=True)
class Guess:
    """What an image is taken for: (class, probability), the most probable first; or why it cannot be read."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    reason: str = ""


def image_files(paths: list[Path]) -> list[Path]:
    """The files, and the image files below the folders, sorted."""
    found = []
    for path in paths:
        if path.is_dir():
            found += sorted(one for one in path.rglob("*") if one.suffix.lower() in IMAGES and one.is_file())
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(path, "no such file or folder", do="correct the path")
    if not found:
        raise InputError(paths[0], "no images", f"images end in {', '.join(sorted(IMAGES))}")
    return found


def classify(
    net: caffe.Net, paths: list[Path], names: list[str], how: Preprocessing, oversample: bool = False, top: int = 5
) -> Iterator[Guess]:
    """What each file is taken for; of several crops, the mean of their probabilities."""
    crops = 10 if oversample else 1
    together = max(1, BATCH // crops)
    for start in range(0, len(paths), together):
        read = []
        for path in paths[start : start + together]:
            content = content_of(path)
            pixels = how.pixels(content)
            read.append((path, why_unreadable(content) if pixels is None else "", pixels))
        inputs = [how.inputs(pixels, oversample) for _, _, pixels in read if pixels is not None]
        probabilities = iter(_probabilities(net, np.concatenate(inputs), len(names)) if inputs else ())
        for path, reason, pixels in read:
            if pixels is None:
                yield Guess(path, reason=reason)
            else:
                mean = np.mean([next(probabilities) for _ in range(crops)], 0)
                best = np.argsort(-mean, kind="stable")[:top]
                yield Guess(path, tuple((names[number], float(mean[number])) for number in best))


def _probabilities(net: caffe.Net, inputs: np.ndarray, classes: int) -> np.ndarray:
    """Crops × classes."""
    net.blobs[net.inputs[0]].reshape(*inputs.shape)
    net.blobs[net.inputs[0]].data[...] = inputs
    made = net.forward()[net.outputs[0]].reshape(len(inputs), -1).copy()
    if made.shape[1] != classes:
        raise InputError("the net", f"{made.shape[1]} outputs", f"there are {classes} class names", "give the labels of this net")
    return made


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__, ClassifyOptions)
    parser.add_argument("net", type=Path, help="deploy.prototxt")
    parser.add_argument("weights", type=Path, help="the .caffemodel")
    parser.add_argument("images", type=Path, nargs="+", help="files and folders")
    parser.add_argument("--labels", type=Path, required=True, help="labels.txt")
    parser.add_argument("--preprocessing", type=Path, help="by default preprocessing.json beside the net")
    parser.add_argument("--top", type=int, default=5, help="classes named for each image (default: %(default)s)")
    parser.add_argument("--csv", type=Path, help="also write a table")
    a = parser.parse_args(argv)
    options = read_flags(a, ClassifyOptions)
    how = preprocessing.read(a.preprocessing or a.net.with_name("preprocessing.json"))
    names, paths = read_labels(a.labels), image_files(a.images)
    with devices.on_gpu(options.gpu):
        net = loaded(a.net, a.weights)
        if not net.inputs:
            raise InputError(a.net, "no input", "images are put into one", "give deploy.prototxt")
        work = classify(net, paths, names, how, options.classify.oversample, a.top)
        guesses = list(progress(work, total=len(paths), desc="classify"))
    if not any(guess.classes for guess in guesses):
        others = f", nor {len(guesses) - 1} more" if len(guesses) > 1 else ""
        raise InputError(guesses[0].path, f"{guesses[0].reason}{others}", "an image is wanted", "give one that can be read")
    for guess in guesses:
        said = ", ".join(f"{name} {probability:.1%}" for name, probability in guess.classes)
        print(f"{guess.path}: {said or guess.reason}")
    if a.csv:
        rows = [
            (guess.path, rank, name, round(probability, 6))
            for guess in guesses
            for rank, (name, probability) in enumerate(guess.classes or ((guess.reason, 0.0),), 1 if guess.classes else 0)
        ]
        with written_whole(a.csv) as part:
            write_table(part, ("path", "rank", "class", "probability"), rows)


if __name__ == "__main__":
    run(main)
