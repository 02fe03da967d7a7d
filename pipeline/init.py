"""Write a project folder: a config, a Snakefile and profiles, so that `snakemake --cores all` is enough.

roastery init FOLDER                                     the embedded example, digits
roastery init FOLDER --images FOLDER/photos              your images, one folder for each class
roastery init FOLDER --list list.csv                     a list of URLs and labels
roastery init FOLDER --images photos --model resnet50 --weights ResNet-50-model.caffemodel

Nothing is overwritten.
"""

import argparse
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipeline import command, configuration, shipped
from pipeline.errors import InputError
from pipeline.files import written_whole

SNAKEFILE = """\
# Builds what config/config.yaml asks for, by the rules of the installed package roastery. Rules of your own may follow.
from pipeline import shipped


include: shipped.snakefile()


localrules:
    project,


# What `snakemake` builds if no target is given.
rule project:
    default_target: True
    input:
        rules.all.input,
"""
MAKEFILE = """\
.PHONY: all plan report check

all:  ## build everything that config/config.yaml asks for
	snakemake --cores all

plan:  ## what would be built, and why
	snakemake -n

report: all  ## one page with the curves, pictures and tables
	snakemake --report report.html

check:  ## are the results whole and unchanged since the build?
	python -m pipeline.report.verify results/manifest.json
"""
HEAD = """\
# What `snakemake --cores all` builds here. README.md beside this file explains every key; what is left out has its default.
"""
SMALL: dict[str, Any] = {"size": {"height": 64, "width": 64}}
"""A dataset for a first result in minutes, without pretrained weights."""
FROM_SCRATCH: dict[str, Any] = {"model": "cifar10_quick", "batch_size": 50}
FINE_TUNED: dict[str, Any] = {"model": "caffenet", "batch_size": 32, "rename_last": True, "last_lr_mult": 10}
SOLVER: dict[str, Any] = {"base_lr": 0.001, "max_iter": 2000, "test_interval": 200}


def main(argv: list[str] | None = None) -> None:
    parser = command.step_parser(__doc__)
    parser.add_argument("folder", type=Path, help="the project folder; made if it is not there")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, help="a folder of images, with a folder for each class")
    source.add_argument("--list", type=Path, help="a table of URLs or files, and labels (CSV, TSV, JSON, text)")
    parser.add_argument("--model", help="a template's name, or the prototxt of a net")
    parser.add_argument("--weights", type=Path, help="the caffemodel to fine-tune")
    parser.add_argument("--name", help="name of the dataset and of the experiment (default: that of the images or the list)")
    parser.add_argument("--cluster", choices=("slurm", "cluster"), help="also write profiles/slurm, or that of other schedulers")
    parser.add_argument("--makefile", action="store_true", help="also write a Makefile")
    given = parser.parse_args(argv)
    folder = given.folder
    written = {"config/config.yaml": _config(given), "Snakefile": SNAKEFILE}
    home = shipped.folder()
    profiles = ["default", *([given.cluster] if given.cluster else [])]
    copied = ["config/README.md", *(f"profiles/{name}/profile.yaml" for name in profiles)]
    written |= {path: (home / path).read_text(encoding="utf-8") for path in copied}
    written |= {"Makefile": MAKEFILE} if given.makefile else {}
    if there := [path for path in written if os.path.lexists(folder / path)]:
        raise InputError(folder / there[0], "is already there", do="move it away, or choose another folder")
    for path, text in written.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as part:
            part.write_text(text, encoding="utf-8")
    print(f"written in {folder}: {', '.join(sorted(written))}")
    change = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    print(f"next: {change}snakemake --cores all")


def _config(given: argparse.Namespace) -> str:
    """The text of config/config.yaml, checked. Raises InputError if an argument cannot be meant."""
    source = given.images or given.list
    if source is None:
        if unused := [f"--{name}" for name in ("model", "weights", "name") if getattr(given, name)]:
            raise InputError(f"roastery init {unused[0]}", "no images to train with", "--images or --list", "add one of them")
        return (shipped.folder() / "config/config.yaml").read_text(encoding="utf-8")
    kind = "folder" if given.images else "list"
    if not (source.is_dir() if given.images else source.is_file()):
        raise InputError(source, "not found" if not source.exists() else f"not a {'folder' if given.images else 'file'}")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", given.name or source.resolve().name.partition(".")[0]).strip("_") or "images"
    weights = {"weights": {"file": _from(given.folder, given.weights)}} if given.weights else {}
    experiment = {"dataset": name, **(FINE_TUNED if weights else FROM_SCRATCH), **weights, "solver": SOLVER}
    if given.model:
        is_file = Path(given.model).suffix == ".prototxt"
        experiment["model"] = _from(given.folder, Path(given.model)) if is_file else given.model
    dataset = {"source": {kind: _from(given.folder, source)}, **({} if weights or given.model else SMALL)}
    config = {"datasets": {name: dataset}, "experiments": {name: experiment}}
    text: str = HEAD + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            configuration.check_config(config, str(path))
        except InputError as error:
            raise InputError("", str(error).replace(str(path), "roastery init")) from None
    return text


def _from(folder: Path, path: Path) -> str:
    """A path as the config names it: relative to the project folder if it lies there, else absolute."""
    inside, path = folder.resolve(), Path(os.path.abspath(path))  # noqa: PTH100 # a link stays a link
    return str(path.relative_to(inside)) if path.is_relative_to(inside) else str(path)


if __name__ == "__main__":
    command.run(main)
