"""Where the time goes of a workflow's start, and of each step's.

    python benchmarks/where_time_goes.py [--experiments 200] [--turns 5] [--cores all]

Three tables:

planning   CPU seconds (user and system) of `snakemake -n` for a config of so many experiments
build      a build of the example: for each step how often it ran, the seconds from the start of its process until its own work
           begins, of which modules are imported, also those that are imported later; the CPU seconds of that start; and the
           seconds of its own work. Below, the shares of the build's wall time in which a step works, in which none works but one
           starts or ends, and the rest, which is Snakemake's
nothing    CPU seconds of `snakemake` in the folder of that build, with nothing to do

The first and the last are medians of alternate turns with the floor: Snakemake with as many jobs of rules that have one input,
one output and one command.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ("--workflow-profile", str(ROOT / "profiles/default"))
OURS = ("--snakefile", str(ROOT / "Snakefile"), *PROFILE)
STEPS = ("prototxt", "train", "evaluate", "plots", "evaluated", "tables")
"""The rules of the bare workflow, each of which takes the output of the one before."""
SHIM = """#!/bin/bash
began=$EPOCHREALTIME
if [ "$1" = -m ] && [[ "$2" = pipeline.* ]]; then
  shift
  ROASTERY_BEGAN=$began "{python}" "{step}" "$@"
else
  "{python}" "$@"
fi
code=$?
echo "$began $EPOCHREALTIME" >> "$ROASTERY_TIMES/ended"
exit $code
"""
"""The `python` that the rules' commands find: it times the steps."""


def environment(**more: str) -> dict[str, str]:
    """Environment in which the commands of this folder's environment are found, and its packages."""
    path = os.pathsep.join([*filter(None, [more.pop("first", "")]), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}


def snakemake(folder: Path, *arguments: str, **more: str) -> float:
    """Run Snakemake in a folder, which must succeed; return its CPU seconds, user and system, with those of its jobs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "snakemake", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment(**more), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def jobs(folder: Path, *arguments: str) -> int:
    """How many jobs Snakemake plans."""
    words = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", *arguments]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    return next(int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("total "))


def write_config(path: Path, experiments: int) -> None:
    """Write a config of so many experiments on the embedded digits, which differ in their learning rates."""
    lines = [
        "datasets:",
        "  digits: {source: {list: results/example/digits/base.csv, allow_file: true}, color: gray}",
        "experiments:",
    ]
    for number in range(experiments):
        solver = f"{{base_lr: {0.0001 * (number + 1):.4f}, max_iter: 250}}"
        lines.append(f"  rate_{number}: {{dataset: digits, model: lenet, pictures: {{count: 0}}, solver: {solver}}}")
    path.write_text("\n".join(lines) + "\n")


def write_bare_workflow(path: Path, total: int) -> None:
    """Write a Snakefile of `total` jobs: `all`, chains of STEPS, and jobs without input for the rest."""
    chains, rest = divmod(total - 1, len(STEPS))
    last, single = f'expand("bare/{{n}}.{STEPS[-1]}", n=range({chains}))', f'expand("bare/{{n}}.single", n=range({rest}))'
    rules = [
        f"rule all:\n    input: {last}, {single}",
        'rule single:\n    output: "bare/{n}.single"\n    shell: "touch {output}"',
    ]
    for before, step in zip(("", *STEPS), STEPS, strict=False):
        source = f'    input: "bare/{{n}}.{before}"\n' if before else ""
        rules.append(f'rule {step}:\n{source}    output: "bare/{{n}}.{step}"\n    shell: "touch {{output}}"')
    path.write_text("\n\n".join(rules) + "\n")


def alternate(turns: int, **measured: Callable[[], float]) -> dict[str, float]:
    """The median of each measurement, all of them made in turn."""
    figures: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(turns):
        for name, measure in measured.items():
            figures[name].append(measure())
    return {name: statistics.median(values) for name, values in figures.items()}


def against_bare(folder: Path, title: str, turns: int, *arguments: str, is_built: bool) -> None:
    """Measure the workflow in a folder, and a bare one of as many jobs; print a line.

    is_built  nothing is to be done by either; else both are dry runs
    """
    rest = ("--cores", "all") if is_built else ("-n",)
    total = jobs(folder, *OURS, "--forceall", *arguments)
    bare = folder / "bare"
    bare.mkdir()
    write_bare_workflow(bare / "Snakefile", total)
    if is_built:
        snakemake(bare, *PROFILE, *rest)
    figures = alternate(
        turns,
        ours=lambda: snakemake(folder, *OURS, *rest, *arguments),
        bare=lambda: snakemake(bare, *PROFILE, *rest),
    )
    print(f"{title}, {total:,} jobs: {figures['ours']:.2f} s of CPU; bare Snakemake {figures['bare']:.2f} s", flush=True)


# ---- the build


def build(folder: Path, cores: str, *arguments: str) -> tuple[list[dict], tuple[float, float]]:
    """Build the example in a folder; return the record of each step, with the time at which its process ended, and the build's
    begin and end."""
    shims, times = folder / "shims", folder / "times"
    for made in (shims, times):
        made.mkdir()
    shim = shims / "python"
    shim.write_text(SHIM.format(python=sys.executable, step=ROOT / "benchmarks/timed_step.py"))
    shim.chmod(0o755)
    began = time.time()
    snakemake(folder, *OURS, "--cores", cores, *arguments, first=str(shims), ROASTERY_TIMES=str(times))
    ended = time.time()
    exits = dict(map(float, line.split()) for line in (times / "ended").read_text().splitlines())
    records = [json.loads(path.read_text()) for path in times.glob("*.json")]
    return [record | {"exit": exits[record["began"]]} for record in records], (began, ended)


def print_steps(records: list[dict]) -> None:
    """Print a line for each step: means over its jobs, and the own work of all of them."""
    by_module: dict[str, list[dict]] = defaultdict(list)
    for record in records:
        by_module[record["module"].removeprefix("pipeline.")].append(record)
    print(f"{'step':32}{'jobs':>6}{'start, s':>10}{'CPU, s':>8}{'own work, s':>13}{'exit, s':>9}")
    for module, held in sorted(by_module.items()):
        imports = [sum(end - begin for begin, end in record["imports"]) for record in held]
        starts = [record["working"] - record["began"] + extra for record, extra in zip(held, imports, strict=True)]
        works = [record["ended"] - record["working"] - extra for record, extra in zip(held, imports, strict=True)]
        cells = [statistics.mean(starts), statistics.mean(record["cpu"] for record in held), statistics.mean(works)]
        exit_time = statistics.mean(record["exit"] - record["ended"] for record in held)
        print(f"{module:32}{len(held):6}{cells[0]:10.2f}{cells[1]:8.2f}{cells[2]:13.2f}{exit_time:9.2f}")


def shares(records: list[dict], whole: tuple[float, float]) -> dict[str, float]:
    """Shares of the time between two moments: a step works; none works, but one starts or ends; none runs at all."""
    changes: list[tuple[float, str, int]] = []
    for record in records:
        states = [("starts", record["began"], record["working"])]
        at = record["working"]
        for begin, end in record["imports"]:
            states += [("works", at, begin), ("starts", begin, end)]
            at = end
        states += [("works", at, record["ended"]), ("ends", record["ended"], record["exit"])]
        for state, begin, end in states:
            changes += [(begin, state, 1), (end, state, -1)]
    totals, running, at = Counter[str](), Counter[str](), whole[0]
    for moment, state, change in [*sorted(changes), (whole[1], "", 0)]:
        now = next((name for name in ("works", "starts", "ends") if running[name]), "Snakemake")
        totals[now] += moment - at
        running[state] += change
        at = moment
    return {name: totals[name] / (whole[1] - whole[0]) for name in ("works", "starts", "ends", "Snakemake")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=200, help="of the config that is planned (default: 200)")
    parser.add_argument("--turns", type=int, default=5, help="of each measurement of CPU seconds (default: 5)")
    parser.add_argument("--cores", default="all", help="that the build uses (default: all)")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        planned, built = Path(name, "planned"), Path(name, "built")
        for folder in (planned, built):
            folder.mkdir()
        write_config(planned / "config.yaml", a.experiments)
        title = f"planning {a.experiments} experiments"
        against_bare(planned, title, a.turns, "--configfile", "config.yaml", is_built=False)
        example = ("--configfile", str(ROOT / "config/config.yaml"))
        records, whole = build(built, a.cores, *example)
        print(f"\nbuild of the example, {a.cores} cores: {whole[1] - whole[0]:.1f} s")
        print_steps(records)
        print("of the wall time: " + ", ".join(f"{name} {share:.0%}" for name, share in shares(records, whole).items()) + "\n")
        against_bare(built, "nothing to do in the example", a.turns, *example, is_built=True)


if __name__ == "__main__":
    main()
