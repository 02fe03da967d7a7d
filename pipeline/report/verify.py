"""Compare two builds by their manifests, or a manifest with the files beside it: the first step that differs, and why.

    python -m pipeline.report.verify results/manifest.json                 has anything been truncated, changed or lost since?
    python -m pipeline.report.verify a/results/manifest.json b/results/manifest.json

Nothing is built. Exit code 1 if something differs.
"""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.report import manifest
from pipeline.report.manifest import Manifest

SHOWN = 5
"""Most differences of a kind that are listed."""


@dataclass(frozen=True)
class Difference:
    """A result that differs: its path, step and kind, and how it differs."""

    path: str
    step: str
    kind: str
    what: str


def compare(first: Manifest, second: Manifest, kinds: tuple[str, ...] = manifest.KINDS) -> list[Difference]:
    """The differences between two manifests' results of these kinds, in the order of steps."""
    ours, theirs = first["results"], second["results"]
    differences = []
    for path, result in {**ours, **theirs}.items():
        own, other = ours.get(path), theirs.get(path)
        if result["kind"] not in kinds or (own and other and own["sha256"] == other["sha256"]):
            continue
        if not own or not other:
            what = f"only in the {'first' if own else 'second'}"
        else:
            what = "other content" if own["bytes"] == other["bytes"] else f"{own['bytes']} bytes against {other['bytes']}"
        differences.append(Difference(path, result["step"], result["kind"], what))
    return _in_order(differences)


def check(recorded: Manifest, results: Path) -> list[Difference]:
    """The results of a manifest that are missing, truncated or changed in a folder, in the order of steps."""
    found = manifest.find(results, recorded["config"])
    measured = manifest.digests(results, {path: found[path] for path in found if path in recorded["results"]})
    differences = []
    for path, result in recorded["results"].items():
        sha256, size = measured.get(path, ("", 0))
        if sha256 == result["sha256"]:
            continue
        change = f"truncated: {size} bytes of {result['bytes']}" if size < result["bytes"] else "changed"
        differences.append(Difference(path, result["step"], result["kind"], change if path in measured else "missing"))
    return _in_order(differences)


def _in_order(differences: list[Difference]) -> list[Difference]:
    return sorted(differences, key=lambda difference: (manifest.STEPS.index(difference.step), difference.path))


def reasons(first: Manifest, second: Manifest, step: str) -> list[str]:
    """Why two builds may differ from a step on, the likeliest first: inputs, config, versions, machines; empty if unexplained."""
    found = [f"input {path}" for path in _differing(first["inputs"], second["inputs"])]
    found += [f"config {key}: {values}" for key, values in _leaves(first["config"], second["config"])]
    of_packages = _differing(first["versions"], second["versions"])
    found += [f"version of {name}: {_both(first['versions'], second['versions'], name)}" for name in _most_likely(of_packages)]
    if step not in manifest.STEPS_OF_A_NET:
        return found
    for name in sorted({*first["machines"], *second["machines"]}):
        ours, theirs = (build["machines"].get(name, {}) for build in (first, second))
        found += [f"{key} of {name}: {_both(ours, theirs, key)}" for key in _differing(ours, theirs)]
    return found


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def _both(first: dict[str, Any], second: dict[str, Any], key: str) -> str:
    return f"{first.get(key, 'none')} against {second.get(key, 'none')}"


def _most_likely(packages: list[str]) -> list[str]:
    """Packages that compute results first, then the others."""
    computing = ["roastery", "torch", "numpy", "opencv-python-headless", "simplejpeg", "scikit-learn", "scipy", "python", "lmdb"]
    return [name for name in computing if name in packages] + [name for name in packages if name not in computing]


def _leaves(first: object, second: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, both values) of each value in which two configs differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted({*first, *second}):
            yield from _leaves(first.get(name), second.get(name), f"{key}.{name}" if key else name)
    elif first != second:
        yield key, f"{first!r} against {second!r}"


def report(differences: list[Difference], why: list[str] | None) -> str:
    """A text about the differences: the first step, the reasons (None: compared with files), and what to rebuild."""
    step = differences[0].step
    here = [difference for difference in differences if difference.step == step]
    lines = [f"{len(differences)} results differ, first at the step {step}:"]
    lines += [f"  results/{difference.path} ({difference.kind}): {difference.what}" for difference in here[:SHOWN]]
    lines += [f"  and {len(here) - SHOWN} more of this step"] if len(here) > SHOWN else []
    if why:
        lines += ["may be caused by:", *(f"  {reason}" for reason in why[:SHOWN])]
        lines += [f"  and {len(why) - SHOWN} more"] if len(why) > SHOWN else []
    elif why is not None:
        lines.append("unexplained: inputs, config, versions, threads and devices are the same")
    targets = shlex.join(f"results/{difference.path}" for difference in here[:SHOWN])
    lines.append(f"to build them again, and what depends on them: snakemake --cores all --forcerun {targets}")
    return "\n".join(lines)


def accuracies(recorded: Manifest, built: Manifest) -> str:
    """Each experiment's accuracy and the recorded one, a line each."""
    lines = []
    for name, parts in recorded["accuracies"].items():
        for part, value in parts.items():
            own = built["accuracies"].get(name, {}).get(part)
            was, here = ("none" if accuracy is None else f"{accuracy:.2%}" for accuracy in (value, own))
            points = "" if own is None or value is None else f", {100 * (own - value):+.2f} points"
            lines.append(f"{name}, {part}: recorded {was}, here {here}{points}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
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
        differences, why = [changed for changed in check(first, a.manifest.parent) if changed.kind in a.kinds], None
    if differences:
        print(report(differences, why))
        sys.exit(1)
    compared = sum(result["kind"] in a.kinds for result in first["results"].values())
    if not compared:
        raise InputError(a.manifest, f"no results of the kinds {', '.join(a.kinds)}", do="build again, or give other --kinds")
    print(f"all {compared} results are the same, byte for byte ({', '.join(a.kinds)})")


if __name__ == "__main__":
    run(main)
