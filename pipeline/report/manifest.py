"""Write results/manifest.json: the results of a build, its inputs and environment; `pipeline.report.verify` compares it.

results      each result: its step, its kind, SHA-256 and bytes; of a folder, all files together
inputs       SHA-256 of each of the user's files and folders in the config; images are in the download tables
config       the build's config, checked and with defaults, and its digest
accuracies   of each experiment, on the splits that the config evaluates
machines     of each training: threads, processor, vector code, device
versions     of Python and of each installed package
not_compared files without reproducible bytes, and why
"""

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
from typing import Any, NamedTuple

from pipeline.command import run, step_parser
from pipeline.configuration import keys
from pipeline.errors import InputError
from pipeline.files import stem_of, written_whole
from pipeline.formats.tables import read_json

Config = dict[str, Any]
Manifest = dict[str, Any]
FORMAT = 1
"""Version of the manifest's layout."""
KINDS = ("data", "nets", "weights", "predictions", "metrics", "tables", "pictures")


class Output(NamedTuple):
    """Results of a step and kind: patterns of paths below the results folder; a folder, ending with `/`, is one result."""

    step: str
    kind: str
    patterns: tuple[str, ...]


OUTPUTS = (
    Output("digits", "data", ("example/digits/",)),
    Output("fetch", "data", ("datasets/*/published/",)),
    Output("shards", "data", ("datasets/*/list/", "datasets/*/shards.txt")),
    Output("download", "data", ("datasets/*/download/*.csv", "datasets/*/download/*/")),
    Output("resize", "data", ("datasets/*/resize/*/",)),
    Output("label", "data", ("datasets/*/lists/*",)),
    Output("lmdb", "data", ("datasets/*/lmdb/*.manifest.json", "datasets/*/lmdb/*/")),
    Output("mean", "data", ("datasets/*/mean.binaryproto", "datasets/*/mean.json")),
    Output("pictures", "pictures", ("datasets/*/pictures/*.*", "datasets/*/pictures/sheets/")),
    Output("augmented", "pictures", ("datasets/*/augmented.png",)),
    Output("dataset_tables", "tables", ("datasets/*/tables/",)),
    Output("weights", "weights", ("weights/*",)),
    Output("linear", "weights", ("experiments/*/linear/*.caffemodel", "experiments/*/linear/SHA256SUMS")),
    Output("linear", "tables", ("experiments/*/linear/*.csv", "experiments/*/linear/*.json")),
    Output("linear", "pictures", ("experiments/*/linear/*.png", "experiments/*/linear/*.svg")),
    Output("prototxt", "nets", ("experiments/*/prototxt/*",)),
    Output("train", "weights", (*(f"experiments/*/train/{name}" for name in ("*.caffemodel", "snapshots/", "SHA256SUMS")),)),
    Output("train", "metrics", ("experiments/*/train/metrics.csv", "experiments/*/train/best.json")),
    Output("train", "tables", ("experiments/*/train/layers.csv", "experiments/*/train/preflight.csv")),
    Output("features", "predictions", ("experiments/*/features/",)),
    Output("evaluate", "predictions", ("experiments/*/evaluate*/predictions.csv",)),
    Output("evaluate", "metrics", ("experiments/*/evaluate*/*",)),
    Output("classify", "predictions", ("experiments/*/classify.csv",)),
    Output("export", "weights", ("experiments/*/export/model.*",)),
    Output("merge", "weights", ("experiments/*/export/merged.*",)),
    Output("convolutional", "weights", ("experiments/*/export/convolutional.*",)),
    Output("crop", "weights", ("experiments/*/export/cropped.*",)),
    Output("average", "weights", ("experiments/*/export/averaged.*",)),
    Output("plots", "pictures", ("experiments/*/report/curves.*",)),
    *(Output("evaluated", "pictures", (f"experiments/*/report/{name}*.*",)) for name in ("confusion", "calibration", "mistakes")),
    Output("neighbours", "pictures", ("experiments/*/report/*.png", "experiments/*/report/*.svg")),
    Output("neighbours", "tables", ("experiments/*/report/*",)),
    Output("visualize", "pictures", ("experiments/*/pictures/*.*", "experiments/*/pictures/feature_maps/")),
    Output("comparison_tables", "tables", ("report/tables/",)),
    Output("experiment_tables", "tables", ("experiments/*/tables/",)),
    Output("comparison", "tables", ("report/*.csv", "report/SHA256SUMS")),
    Output("comparison", "pictures", ("report/*",)),
)
"""All results, in the order of the steps; the first pattern that matches a path applies."""
STEPS = list(dict.fromkeys(output.step for output in OUTPUTS))
STEPS_OF_A_NET = {output.step for output in OUTPUTS if output.patterns[0].startswith(("experiments/", "report/"))}
"""Steps whose results may depend on processor, threads and device."""
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
"""Files whose bytes differ between builds, by name, and why."""


class Result(NamedTuple):
    """One result on disk: the files of a folder, or one file."""

    step: str
    kind: str
    files: list[Path]


def find(results: Path, config: Config) -> dict[str, Result]:
    """{path below `results`: result}, in the order of steps. Results of other or earlier configs in the folder are left out."""
    found: dict[str, Result] = {}
    shards = {name: {path.stem for path in (results / "datasets" / name / "list").glob("*.csv")} for name in config["datasets"]}
    for path in sorted(_files(results)):
        parts = path.relative_to(results).parts
        if _belongs_to(config, shards, parts) and (match := place("/".join(parts))):
            key, output = match
            found.setdefault(key, Result(output.step, output.kind, [])).files.append(path)
    return dict(sorted(found.items(), key=lambda item: (STEPS.index(item[1].step), item[0])))


def _belongs_to(config: Config, shards: dict[str, set[str]], parts: tuple[str, ...]) -> bool:
    """Whether a file below the results folder is a result of this config; shards: {dataset: its shards}."""
    if parts[0] == "datasets":
        is_of_shard = len(parts) > 3 and parts[2] in ("download", "resize")
        return parts[1] in shards and (not is_of_shard or parts[3].partition(".")[0] in shards[parts[1]])
    if parts[0] == "experiments":
        return parts[1] in config["experiments"] and _is_enabled(config["experiments"][parts[1]], parts[2:])
    return True


def _is_enabled(experiment: Config, parts: tuple[str, ...]) -> bool:
    """Whether a file in an experiment's folder is a result of the experiment's config."""
    part, name = parts[0], parts[-1]
    if part.startswith("evaluate"):
        return (part.removeprefix("evaluate").removeprefix("_") or "val") in experiment["evaluate"]
    if part == "report" and (suffix := re.fullmatch(r"(?:confusion|calibration|mistakes)_(train|test)\..*", name)):
        return suffix[1] in experiment["evaluate"]
    if part == "report" and (blob := re.fullmatch(r"(?:map|neighbours)_(.*)\.[a-z]+", name)):
        return blob[1] in map(stem_of, experiment["features"])
    if part == "export":
        return name.replace(".prototxt", ".caffemodel") in keys.exports(experiment)
    enabled = {"features": bool(experiment["features"]), "classify.csv": "classify" in experiment}
    return enabled.get(part, part != "checkpoint")


def place(path: str) -> tuple[str, Output] | None:
    """(result, output) that a file below the results folder belongs to, the result a file or a folder; None if unknown."""
    parts = path.split("/")
    for output in OUTPUTS:
        for pattern in output.patterns:
            names = pattern.rstrip("/").split("/")
            fits = len(parts) > len(names) if pattern.endswith("/") else len(parts) == len(names)
            if fits and all(map(fnmatch.fnmatchcase, parts, names)):
                return "/".join(parts[: len(names)]), output
    return None


def not_compared(name: str) -> str:
    """Why a file of this name is not compared; empty if it is."""
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


def digests(results: Path, found: dict[str, Result], threads: int = 1) -> dict[str, tuple[str, int]]:
    """`digest` of each result."""
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(found, pool.map(lambda key: digest(results / key, found[key].files), found), strict=True))


def make(results: Path, config: Config, config_digest: str, kinds: tuple[str, ...] = KINDS, threads: int = 1) -> Manifest:
    """The manifest of a build: its results of these kinds, below the folder `results`, by the checked config."""
    found = {path: result for path, result in find(results, config).items() if result.kind in kinds}
    measured = digests(results, found, threads)
    return {
        "format": FORMAT,
        "config_digest": config_digest,
        "config": config,
        "accuracies": {name: _accuracies(results / "experiments" / name, it) for name, it in config["experiments"].items()},
        "machines": {name: _json(results / "experiments" / name / "train/machine.json") for name in config["experiments"]},
        "versions": versions(),
        "inputs": {path: digest(Path(path), _files_at(Path(path)))[0] for path in sorted(named_files(config))},
        "results": {
            key: {"step": result.step, "kind": result.kind, "sha256": measured[key][0], "bytes": measured[key][1]}
            for key, result in found.items()
        },
        "not_compared": NOT_COMPARED,
    }


def read(path: Path) -> Manifest:
    """Read a manifest. Raises InputError for any other file, and for one of another format."""
    try:
        manifest: Manifest = json.loads(path.read_text())
        form, _, _ = (manifest[key] for key in ("format", "results", "config"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"not a manifest ({error})", "results/manifest.json of a build", "correct the path") from None
    if form != FORMAT:
        do = "build again, or use the version that wrote it"
        raise InputError(path, f"format {form}", f"this version reads format {FORMAT}", do)
    return manifest


def versions() -> dict[str, str]:
    """{package: version} of all installed packages, and of Python."""
    named = [(package.metadata["Name"], package.version) for package in importlib.metadata.distributions()]
    installed = {name.lower(): version for name, version in named if name}  # an aborted installation leaves one without
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def named_files(config: Config) -> set[str]:
    """The user's existing files and folders in a config, without those that the build writes."""
    paths: list[str | None] = []
    for dataset in config["datasets"].values():
        source = dataset["source"]
        paths += [source.get("list"), source.get("val_labels"), dataset.get("names"), *source.get("database", {}).values()]
    for experiment in config["experiments"].values():
        paths += [experiment["model"], experiment["export"].get("crop"), experiment["pictures"].get("images")]
        paths += [experiment.get("classify", {}).get("images"), *(origin.get("file") for origin in keys.origins(experiment))]
    return {path for path in paths if path and Path(path).exists() and not path.startswith("results/")}


def _files(folder: Path) -> Iterator[Path]:
    """The compared files in a folder and below, following links, except hidden ones, which interrupted steps left."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_loop(root, name)]
        yield from (Path(root) / name for name in names if not name.startswith(".") and not not_compared(name))


def _is_loop(root: str, name: str) -> bool:
    """Whether a folder is a link to one that contains it."""
    return Path(root).resolve().is_relative_to(Path(root, name).resolve())


def _files_at(path: Path) -> list[Path]:
    return sorted(_files(path)) if path.is_dir() else [path]


def _accuracies(folder: Path, experiment: Config) -> dict[str, float | None]:
    """{split: accuracy} of each evaluation in an experiment's config."""
    paths = {part: folder / f"evaluate{'' if part == 'val' else '_' + part}" / "summary.json" for part in experiment["evaluate"]}
    return {part: _json(path).get("accuracy") for part, path in paths.items()}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
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
