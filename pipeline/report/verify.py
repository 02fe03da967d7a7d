"""Compare two builds by their manifests, or a manifest with the files beside it: the first step at which they differ, and why.

    python -m pipeline.report.verify results/manifest.json                 has anything been truncated, changed or lost since?
    python -m pipeline.report.verify a/results/manifest.json b/results/manifest.json

Nothing is built. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.command import run
from pipeline.errors import InputError
from pipeline.report import manifest

SHOWN = 5
"""How many differences of a kind are named."""


@dataclass(frozen=True)
class Difference:
    """A result that differs: its path, step and kind, and how it differs."""

    path: str
    step: str
    kind: str
    what: str


def compare(first: dict, second: dict, kinds: tuple[str, ...] = manifest.KINDS) -> list[Difference]:
    """What differs between two manifests' results of these kinds, in the order of steps."""
    ours, theirs = (one["results"] for one in (first, second))
    differences = []
    for path, one in {**ours, **theirs}.items():
        if one["kind"] not in kinds:
            continue
        if path not in ours or path not in theirs:
            what = f"only in the {'first' if path in ours else 'second'}"
        elif ours[path]["sha256"] != theirs[path]["sha256"]:
            what = f"{ours[path]['bytes']} bytes against {theirs[path]['bytes']}"
            what = "other content" if ours[path]["bytes"] == theirs[path]["bytes"] else what
        else:
            continue
        differences.append(Difference(path, one["step"], one["kind"], what))
    return _in_order(differences)


def check(recorded: dict, results: Path) -> list[Difference]:
    """What of a manifest's results is missing, truncated or changed in a folder, in the order of steps."""
    found = manifest.find(results, recorded["config"])
    measured = manifest.digests(results, {path: one for path, one in found.items() if path in recorded["results"]})
    differences = []
    for path, one in recorded["results"].items():
        sha256, size = measured.get(path, ("", 0))
        if sha256 == one["sha256"]:
            continue
        shorter = f"truncated: {size} bytes of {one['bytes']}" if size < one["bytes"] else "changed"
        differences.append(Difference(path, one["step"], one["kind"], shorter if path in measured else "missing"))
    return _in_order(differences)


def _in_order(differences: list[Difference]) -> list[Difference]:
    return sorted(differences, key=lambda one: (manifest.STEPS.index(one.step), one.path))


def reasons(first: dict, second: dict, step: str) -> list[str]:
    """Why two builds may differ from a step on: what differs between what they were made of, the most likely reason first.

    Empty where nothing does: then the difference is unexplained.
    """
    found = [f"input {path}" for path in _differing(first["inputs"], second["inputs"])]
    found += [f"config {key}: {said}" for key, said in _leaves(first["config"], second["config"])]
    of_packages = _differing(first["versions"], second["versions"])
    found += [f"version of {name}: {_both(first['versions'], second['versions'], name)}" for name in _most_likely(of_packages)]
    if step not in manifest.STEPS_OF_A_NET:
        return found
    for name in sorted({*first["machines"], *second["machines"]}):
        ours, theirs = (one["machines"].get(name, {}) for one in (first, second))
        found += [f"{key} of {name}: {_both(ours, theirs, key)}" for key in _differing(ours, theirs)]
    return found


def _differing(first: dict, second: dict) -> list[str]:
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def _both(first: dict, second: dict, key: str) -> str:
    return f"{first.get(key, 'none')} against {second.get(key, 'none')}"


def _most_likely(packages: list[str]) -> list[str]:
    """Packages that compute first, then the others."""
    computing = ["roastery", "torch", "numpy", "opencv-python-headless", "simplejpeg", "scikit-learn", "scipy", "python", "lmdb"]
    return [name for name in computing if name in packages] + [name for name in packages if name not in computing]


def _leaves(first: object, second: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, what both say) of each value in which two configs differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted({*first, *second}):
            yield from _leaves(first.get(name), second.get(name), f"{key}.{name}" if key else name)
    elif first != second:
        yield key, f"{first!r} against {second!r}"


def report(differences: list[Difference], why: list[str] | None) -> str:
    """The differences in words: the first step, why, and what to rebuild.

    why  what may have caused them; None where two builds are not compared
    """
    step = differences[0].step
    here = [one for one in differences if one.step == step]
    lines = [f"{len(differences)} results differ, first at the step {step}:"]
    lines += [f"  results/{one.path} ({one.kind}): {one.what}" for one in here[:SHOWN]]
    lines += [f"  and {len(here) - SHOWN} more of this step"] if len(here) > SHOWN else []
    if why:
        lines += ["may be caused by:", *(f"  {one}" for one in why[:SHOWN])]
        lines += [f"  and {len(why) - SHOWN} more"] if len(why) > SHOWN else []
    elif why is not None:
        lines.append("unexplained: inputs, config, versions, threads and devices are the same")
    targets = shlex.join(f"results/{one.path}" for one in here[:SHOWN])
    lines.append(f"to build them again, and what depends on them: snakemake --cores all --forcerun {targets}")
    return "\n".join(lines)


def accuracies(recorded: dict, made: dict) -> str:
    """Each experiment's accuracy beside the recorded one, a line each."""
    lines = []
    for name, parts in recorded["accuracies"].items():
        for part, value in parts.items():
            own = made["accuracies"].get(name, {}).get(part)
            both = own is not None and value is not None
            was, here = ("none" if one is None else f"{one:.2%}" for one in (value, own))
            lines.append(
                f"{name}, {part}: recorded {was}, here {here}" + (f", {100 * (own - value):+.2f} points" if both else "")
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("other", type=Path, nargs="?", help="another build's manifest; without it, the results beside the first")
    parser.add_argument("--kinds", nargs="+", choices=manifest.KINDS, default=manifest.KINDS, help="what is compared")
    parser.add_argument("--accuracies", action="store_true", help="also show each experiment's accuracy in both")
    a = parser.parse_args(argv)
    first = manifest.read(a.manifest)
    if a.other:
        second = manifest.read(a.other)
        differences = compare(first, second, tuple(a.kinds))
        why = reasons(first, second, differences[0].step) if differences else []
        if a.accuracies:
            print(accuracies(first, second))
    else:
        differences, why = [one for one in check(first, a.manifest.parent) if one.kind in a.kinds], None
    if differences:
        print(report(differences, why))
        sys.exit(1)
    compared = sum(one["kind"] in a.kinds for one in first["results"].values())
    if not compared:
        raise InputError(a.manifest, f"no results of the kinds {', '.join(a.kinds)}", do="build again, or give other --kinds")
    print(f"all {compared} results are the same, to the byte ({', '.join(a.kinds)})")


if __name__ == "__main__":
    run(main)
