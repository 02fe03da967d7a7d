"""For the profiles of clusters: which rules are one job, and what a Slurm cluster says of itself."""

import re
import shutil
import subprocess

GROUPS = {
    "shard_{dataset}_{shard}": ("download", "resize"),
    "dataset_{dataset}": ("label", "lmdb", "mean", "pictures", "augmented", "dataset_tables"),
    "training_{experiment}": ("prototxt", "train"),
    "results_{experiment}": (
        *("features", "evaluate", "classify", "plots", "evaluated", "neighbours", "visualize", "experiment_tables"),
        *("export", "merge", "convolutional", "crop", "average"),
    ),
    "summary": ("comparison", "overview", "comparison_tables", "manifest"),
}
"""{group: rules whose jobs are submitted as one}: small steps that follow one another or read the same files."""
NETS = ("linear", *GROUPS["training_{experiment}"], *GROUPS["results_{experiment}"])
"""Rules that run a net, or are in a group with one that does."""


def groups() -> dict[str, str]:
    """{rule: group}, as Snakemake's option `--groups` takes it."""
    return {rule: group for group, rules in GROUPS.items() for rule in rules}


def group_components() -> list[str]:
    """Jobs of a group are one, also those that do not depend on one another, as `--group-components` takes it."""
    return [f"{group}=1000" for group in GROUPS if "{" in group]


def has_accounting() -> bool:
    """Whether `sacct` answers: it is installed also where jobs are not recorded, and then never knows one."""
    return _said("sacct", "--noheader", "--allocations", "--starttime", "now") is not None


def status_command() -> str:
    """Which command tells the state of jobs: `sacct`, or `squeue` on clusters without accounting."""
    return "sacct" if has_accounting() else "squeue"


def processors(most: int = 8) -> int:
    """How many processors a job may ask for: those of the largest node, at most `most`. A job that asks for more never starts."""
    counts = [int(count) for count in re.findall(r"^\d+", _said("sinfo", "--noheader", "--format=%c") or "", re.MULTILINE)]
    return min(most, max(counts, default=most))


def _said(*words: str) -> str | None:
    """What a command prints; None where it fails, is missing, or does not answer within 10 s."""
    if not shutil.which(words[0]):
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout
