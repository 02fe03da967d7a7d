"""Write results/manifest.json: what a build made, of what, with what; `pipeline.report.verify` compares it.

results      each result: the step that made it, its kind, SHA-256 and bytes; of a folder, all files together
inputs       SHA-256 of each file and folder of the user's that the config names; images are in the download tables
config       as the build had it, checked and with defaults, and its digest
accuracies   of each experiment, on the images that the config says are evaluated
machines     of each training: threads, processor, vector code, device
versions     of Python and of each installed package
not_compared files without reproducible bytes, and why
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.command import run
from pipeline.configuration import keys
from pipeline.errors import InputError
from pipeline.files import stem_of, written_whole

FORMAT = 1
"""Of the manifest; another number is another layout."""
KINDS = ("data", "nets", "weights", "predictions", "metrics", "tables", "pictures")


class Output(NamedTuple):
    """The results of a step that have one kind: paths below the results folder.

    A pattern that ends with `/` is a folder that is one result.
    """

    step: str
    kind: str
    patterns: tuple[str, ...]


OUTPUTS = (
    Output("digits", "data", ("example/digits/",)),
    Output("fetch", "data", ("datasets/*/published/",)),
    Output("shards", "data", ("datasets/*/list/",)),
    Output("download", "data", ("datasets/*/download/*.csv", "datasets/*/download/*/")),
    Output("resize", "data", ("datasets/*/resize/*/",)),
    Output("label", "data", ("datasets/*/lists/*",)),
    Output("lmdb", "data", ("datasets/*/lmdb/*.manifest.json", "datasets/*/lmdb/*/")),
    Output("mean", "data", ("datasets/*/mean.binaryproto", "datasets/*/mean.json")),
    Output("pictures", "pictures", ("datasets/*/pictures/*.*", "datasets/*/pictures/sheets/")),
    Output("augmented", "pictures", ("datasets/*/augmented.png",)),
    Output("weights", "weights", ("weights/*",)),
    Output("linear", "weights", ("experiments/*/linear/*.caffemodel",)),
    Output("linear", "tables", ("experiments/*/linear/*.csv", "experiments/*/linear/*.json")),
    Output("linear", "pictures", ("experiments/*/linear/*.png", "experiments/*/linear/*.svg")),
    Output("prototxt", "nets", ("experiments/*/prototxt/*",)),
    Output("train", "weights", ("experiments/*/train/*.caffemodel", "experiments/*/train/snapshots/")),
    Output("train", "metrics", ("experiments/*/train/metrics.csv", "experiments/*/train/best.json")),
    Output("train", "tables", ("experiments/*/train/layers.csv", "experiments/*/train/preflight.csv")),
    Output("features", "predictions", ("experiments/*/features/",)),
    Output("evaluate", "predictions", ("experiments/*/evaluate*/predictions.csv",)),
    Output("evaluate", "metrics", ("experiments/*/evaluate*/*",)),
    Output("classify", "predictions", ("experiments/*/classify.csv",)),
    *(
        Output(step, "weights", (f"experiments/*/export/{stem}.*",))
        for step, stem in (
            *(("export", "model"), ("merge", "merged"), ("convolutional", "convolutional")),
            *(("crop", "cropped"), ("average", "averaged")),
        )
    ),
    Output("plots", "pictures", ("experiments/*/report/curves.*",)),
    Output(
        "evaluated",
        "pictures",
        tuple(f"experiments/*/report/{name}*.*" for name in ("confusion", "calibration", "mistakes")),
    ),
    Output("neighbours", "pictures", ("experiments/*/report/*.png", "experiments/*/report/*.svg")),
    Output("neighbours", "tables", ("experiments/*/report/*",)),
    Output("visualize", "pictures", ("experiments/*/pictures/*.*", "experiments/*/pictures/feature_maps/")),
    Output("comparison", "tables", ("report/*.csv",)),
    Output("comparison", "pictures", ("report/*",)),
)
"""All results, in the order in which steps make them; of several patterns that match, the first one counts."""
STEPS = list(dict.fromkeys(output.step for output in OUTPUTS))
"""The steps, in their order."""
STEPS_OF_A_NET = {output.step for output in OUTPUTS if output.patterns[0].startswith(("experiments/", "report/"))}
"""Steps whose bits may depend on the machine: on its processor, threads and device."""
NOT_COMPARED = {
    "manifest.json": "this file",
    "lock.mdb": "LMDB's table of the processes that had the database open",
    "seconds.csv": "how long things took",
    "*.seconds.csv": "how long each download took",
    "machine.json": "what trained: threads, processor, device",
    "train.log": "the time of each line",
    "events.out.tfevents.*": "TensorBoard's event files have the time of each value",
    "LOG": "LevelDB's log has the time of each line",
    "LOG.old": "LevelDB's log has the time of each line",
}
"""Files whose bytes no two builds share, by name, and why."""


class Found(NamedTuple):
    """One result as it lies on the disk: the files of a folder, or one."""

    step: str
    kind: str
    files: list[Path]


def find(results: Path, config: dict) -> dict[str, Found]:
    """{path below `results`: the files there}, in the order of steps.

    config  whose results; those of other configs, and of this one before it was edited, may be in the same folder
    """
    found: dict[str, Found] = {}
    shards = {name: {path.stem for path in (results / "datasets" / name / "list").glob("*.csv")} for name in config["datasets"]}
    for path in sorted(_files(results)):
        relative = path.relative_to(results)
        if not_compared(path.name) or not _is_of(config, shards, relative.parts) or not (placed := place(relative.as_posix())):
            continue
        key, output = placed
        found.setdefault(key, Found(output.step, output.kind, [])).files.append(path)
    return dict(sorted(found.items(), key=lambda item: (STEPS.index(item[1].step), item[0])))


def _is_of(config: dict, shards: dict[str, set[str]], parts: tuple[str, ...]) -> bool:
    """Whether a file below the results folder is a result of this config.

    shards  {dataset: its shards}
    """
    if parts[0] == "datasets":
        is_of_shard = len(parts) > 3 and parts[2] in ("download", "resize")
        return parts[1] in shards and (not is_of_shard or parts[3].partition(".")[0] in shards[parts[1]])
    if parts[0] == "experiments":
        return parts[1] in config["experiments"] and _is_asked_for(config["experiments"][parts[1]], parts[2:])
    return True


def _is_asked_for(experiment: dict, parts: tuple[str, ...]) -> bool:
    """Whether an experiment's config asks for a file in the experiment's folder."""
    part, name = parts[0], parts[-1]
    if part.startswith("evaluate"):
        return (part.removeprefix("evaluate").removeprefix("_") or "val") in experiment["evaluate"]
    if part == "report" and (suffix := re.fullmatch(r"(?:confusion|calibration|mistakes)_(train|test)\..*", name)):
        return suffix[1] in experiment["evaluate"]
    if part == "report" and (blob := re.fullmatch(r"(?:map|neighbours)_(.*)\.[a-z]+", name)):
        return blob[1] in map(stem_of, experiment["features"])
    if part == "export":
        return name.replace(".prototxt", ".caffemodel") in keys.exports(experiment)
    wanted = {"features": bool(experiment["features"]), "classify.csv": "classify" in experiment}
    return wanted.get(part, part != "checkpoint")


def place(path: str) -> tuple[str, Output] | None:
    """The result that a file belongs to, a file or folder below the results folder, and its output; None for an unknown file."""
    parts = path.split("/")
    for output in OUTPUTS:
        for pattern in output.patterns:
            wanted = pattern.rstrip("/").split("/")
            is_folder = pattern.endswith("/")
            if len(parts) < len(wanted) + is_folder or (len(parts) > len(wanted) and not is_folder):
                continue
            if all(fnmatch.fnmatchcase(part, one) for part, one in zip(parts, wanted, strict=False)):
                return "/".join(parts[: len(wanted)]), output
    return None


def not_compared(name: str) -> str:
    """Why the bytes of a file of this name are not compared; empty where they are."""
    return next((reason for pattern, reason in NOT_COMPARED.items() if fnmatch.fnmatchcase(name, pattern)), "")


def digest(folder: Path, files: list[Path]) -> tuple[str, int]:
    """SHA-256 and bytes of a result: of a file, or of the names and SHA-256 of a folder's files."""
    if files == [folder]:
        with folder.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), folder.stat().st_size
    whole, size = hashlib.sha256(), 0
    for path in sorted(files):
        of_file, bytes_ = digest(path, [path])
        whole.update(f"{path.relative_to(folder).as_posix()}\0{of_file}\n".encode("utf-8", "surrogateescape"))
        size += bytes_
    return whole.hexdigest(), size


def digests(results: Path, found: dict[str, Found], threads: int = 1) -> dict[str, tuple[str, int]]:
    """`digest` of each result that was found."""
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(found, pool.map(lambda key: digest(results / key, found[key].files), found), strict=True))


def make(results: Path, config: dict, config_digest: str, kinds: tuple[str, ...] = KINDS, threads: int = 1) -> dict:
    """The manifest of a build.

    results  the folder of its results
    config   the checked config
    kinds    of the results that it lists
    """
    found = find(results, config)
    found = {path: one for path, one in found.items() if one.kind in kinds}
    measured = digests(results, found, threads)
    return {
        "format": FORMAT,
        "config_digest": config_digest,
        "config": config,
        "accuracies": {name: _accuracies(results / "experiments" / name, one) for name, one in config["experiments"].items()},
        "machines": {name: _json(results / "experiments" / name / "train/machine.json") for name in config["experiments"]},
        "versions": versions(),
        "inputs": {path: digest(Path(path), _files_at(Path(path)))[0] for path in sorted(set(named_files(config)))},
        "results": {
            key: {"step": one.step, "kind": one.kind, "sha256": measured[key][0], "bytes": measured[key][1]}
            for key, one in found.items()
        },
        "not_compared": NOT_COMPARED,
    }


def read(path: Path) -> dict:
    """Read a manifest. Raises InputError for any other file, and for one of another format."""
    try:
        manifest = json.loads(path.read_text())
        form, _, _ = (manifest[key] for key in ("format", "results", "config"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"not a manifest ({error})", "results/manifest.json of a build", "correct the path") from None
    if form != FORMAT:
        do = "build again, or use the version that wrote it"
        raise InputError(path, f"format {form}", f"this version reads format {FORMAT}", do)
    return manifest


def versions() -> dict[str, str]:
    """{package: version} of all that is installed, with Python's."""
    named = [(one.metadata["Name"], one.version) for one in importlib.metadata.distributions()]
    installed = {name.lower(): version for name, version in named if name}  # an aborted installation leaves one without
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def named_files(config: dict) -> Iterator[str]:
    """The user's files that a config names, but for those that do not exist and those that the build makes."""
    for dataset in config["datasets"].values():
        source = dataset["source"]
        yield from _existing(source.get("list"), source.get("val_labels"), dataset.get("names"))
        yield from _existing(*source.get("database", {}).values())
    for experiment in config["experiments"].values():
        files = [origin.get("file") for origin in keys.origins(experiment)]
        yield from _existing(*files, experiment["model"], experiment["export"].get("crop"))
        yield from _existing(experiment["pictures"].get("images"), experiment.get("classify", {}).get("images"))


def _existing(*paths: str | None) -> Iterator[str]:
    for path in paths:
        if path and Path(path).exists() and not path.startswith("results/"):
            yield path


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those in it, links followed; none that are hidden, which are of steps that were cut off."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_loop(root, name)]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _is_loop(root: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    return Path(root).resolve().is_relative_to(Path(root, name).resolve())


def _files_at(path: Path) -> list[Path]:
    return [one for one in sorted(_files(path)) if not not_compared(one.name)] if path.is_dir() else [path]


def _accuracies(folder: Path, experiment: dict) -> dict[str, float | None]:
    """{part: accuracy} of each evaluation that an experiment's config asks for."""
    paths = {part: folder / f"evaluate{'' if part == 'val' else '_' + part}" / "summary.json" for part in experiment["evaluate"]}
    return {part: _json(path).get("accuracy") for part, path in paths.items()}


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of the results")
    parser.add_argument("manifest", type=Path, help="the file to write")
    parser.add_argument("--config", type=Path, required=True, help="the checked config, as JSON")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of the results that are listed")
    parser.add_argument("--threads", type=int, default=1, help="files hashed at once (default: %(default)s)")
    a = parser.parse_args(argv)
    made = make(a.results, json.loads(a.config.read_text()), a.config.stem, tuple(a.kinds), a.threads)
    with written_whole(a.manifest) as part:
        part.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{a.manifest}: {len(made['results'])} results")


if __name__ == "__main__":
    run(main)
