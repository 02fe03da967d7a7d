"""Classify images: print the most probable classes of each file, or of each image below a folder.

Images are preprocessed like the dataset's (preprocessing.json). With --csv a table is written: path, rank (from 1), class,
probability; an image that cannot be decoded has a row of rank 0, with the reason as its class.
"""

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
from pipeline.inference.trained import load_net, outputs_of
from pipeline.nets import preprocessing
from pipeline.nets.preprocessing import Preprocessing
from pipeline.options.flags import read_flags
from pipeline.options.training import ClassifyOptions
from pipeline.progress import progress
from pipeline.sources.folders import IMAGES

BATCH = 32
"""Batch size, in crops."""


@dataclass(frozen=True)
class Prediction:
    """The classes of an image, (class, probability), the most probable first; or why it cannot be decoded."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    reason: str = ""


def image_files(paths: list[Path]) -> list[Path]:
    """The files, and the image files below the folders, sorted."""
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(path, "no such file or folder", do="correct the path")
    if not files:
        raise InputError(paths[0], "no images", f"the suffix of an image is one of {', '.join(sorted(IMAGES))}")
    return files


def classify(
    net: caffe.Net, paths: list[Path], names: list[str], how: Preprocessing, oversample: bool = False, top: int = 5
) -> Iterator[Prediction]:
    """The `top` classes of each file, with `oversample` by the mean probabilities of ten crops."""
    crops = 10 if oversample else 1
    images_per_batch = max(1, BATCH // crops)
    for start in range(0, len(paths), images_per_batch):
        batch = [(path, content_of(path)) for path in paths[start : start + images_per_batch]]
        images = [how.pixels(content) for _, content in batch]
        inputs = [how.inputs(pixels, oversample) for pixels in images if pixels is not None]
        probabilities = iter(outputs_of(net, "the net", np.concatenate(inputs), len(names)) if inputs else ())
        for (path, content), pixels in zip(batch, images, strict=True):
            if pixels is None:
                yield Prediction(path, reason=why_unreadable(content))
            else:
                mean = np.mean([next(probabilities) for _ in range(crops)], 0)
                best = np.argsort(-mean, kind="stable")[:top]
                yield Prediction(path, tuple((names[number], float(mean[number])) for number in best))


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
    with devices.computing(options):
        net = load_net(a.net, a.weights)
        if not net.inputs:
            raise InputError(a.net, "no input", "an input takes the images", "give deploy.prototxt")
        work = classify(net, paths, names, how, options.classify.oversample, a.top)
        guesses = list(progress(work, total=len(paths), desc="classify"))
    if not any(guess.classes for guess in guesses):
        others = f", nor {len(guesses) - 1} more" if len(guesses) > 1 else ""
        raise InputError(guesses[0].path, f"{guesses[0].reason}{others}", "it must be an image", "give one that can be read")
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
