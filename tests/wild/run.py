"""Run the sample of Caffe files in the wild: what part of it works, and what the rest needs.

python -m tests.wild.run --collect FOLDER --mirror MIRROR     copy the sample's files out of git directories
python -m tests.wild.run FOLDER --csv results.csv             run them, each in a process of its own
"""

import argparse
import csv
import multiprocessing
import os
import resource
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.wild import python_layers

os.environ.setdefault("GLOG_minloglevel", "2")

SAMPLE = Path(__file__).with_name("sample.csv")
KINDS = ("solver", "deploy", "train")
MESSAGE = 200
"""Characters of an error that a row keeps."""


class Entry(NamedTuple):
    """A file of the sample: where it is public, what it is, and the fork of Caffe that it was written for."""

    repository: str
    commit: str
    path: str
    kind: str
    fork: str

    @property
    def folder(self) -> str:
        """The repository as one name, as its files lie in a folder: owner+name."""
        return self.repository.replace("/", "+")


class Row(NamedTuple):
    """Result of a file: runs, refused (an error of ours), failed (any other, or a crash) or time."""

    repository: str
    path: str
    kind: str
    fork: str
    result: str
    cause: str
    message: str


class Limits(NamedTuple):
    """What the check of one file may take: seconds, and GiB of memory."""

    seconds: float = 120
    memory: float = 8


def read_sample(path: Path = SAMPLE) -> list[Entry]:
    """The files of the sample, in its order."""
    with path.open(newline="") as file:
        return [Entry(**row) for row in csv.DictReader(file)]


# ---- collecting


def collect(sample: Iterable[Entry], folder: Path, mirror: Path) -> list[Entry]:
    """Copy the sample's files from git directories MIRROR/owner+name to FOLDER/owner+name; returns those that are not there.

    With them go all Python files of a repository that has nets with layers in Python, translated to Python 3.
    """
    absent, translated = [], set()
    for entry in sample:
        git = _git_directory(entry, mirror)
        content = git and _content(entry, git)
        if not git or content is None:
            absent.append(entry)
            continue
        target = folder / entry.folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        if b"python_param" in content and entry.repository not in translated:
            translated.add(entry.repository)
            python_layers.collect(git, entry.commit, folder / entry.folder)
    return absent


def _git_directory(entry: Entry, mirror: Path) -> Path | None:
    places = [mirror / entry.folder / below for below in (".", ".git", "repo", "repo/.git")]
    return next((place for place in places if (place / "HEAD").is_file()), None)


def _content(entry: Entry, git: Path) -> bytes | None:
    shown = subprocess.run(["git", f"--git-dir={git}", "show", f"{entry.commit}:{entry.path}"], capture_output=True)
    return None if shown.returncode else shown.stdout


# ---- running


def run(sample: Sequence[Entry], folder: Path, limits: Limits, progress: Callable[[Row], object] = lambda row: None) -> list[Row]:
    """Check each file in a process of its own, one after the other; returns their rows, sorted."""
    # Children of the server are forked after it has imported the engine once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.wild.check"])
    rows = []
    for entry in sample:
        result, cause, message = _checked(context, folder / entry.folder, entry, limits)
        message = message.replace(f"{folder / entry.folder}/", "")[:MESSAGE]
        rows.append(Row(entry.repository, entry.path, entry.kind, entry.fork, result, cause, message))
        progress(rows[-1])
    return sorted(rows)


def _checked(
    context: multiprocessing.context.ForkServerContext, root: Path, entry: Entry, limits: Limits
) -> tuple[str, str, str]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check, args=(sender, root, entry, limits.memory))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limits.seconds):
            return "time", "time", f"not done after {limits.seconds:g} seconds"
        outcome: tuple[str, str, str] = receiver.recv()
        return outcome
    except EOFError:
        process.join()
        return "failed", "crash", f"the process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _check(sender: Connection, root: Path, entry: Entry, memory: float) -> None:
    from tests.wild import check

    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    sender.send(tuple(check.check(root / entry.path, entry.kind, root)))


# ---- reporting


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of a table: for each kind and for all, the files, those that run, and their share."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
        kinds["all"].append(row)
    lines = [f"{'kind':8}{'files':>7}{'run':>7}{'%':>8}"]
    for kind in (*KINDS, "all"):
        if files := kinds[kind]:
            working = sum(row.result == "runs" for row in files)
            lines.append(f"{kind:8}{len(files):7}{working:7}{100 * working / len(files):8.1f}")
    return lines


def causes(rows: Iterable[Row]) -> list[str]:
    """Lines of causes, most frequent first: files with the cause, files with no other, the cause, an example."""
    counts: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in rows:
        if row.result == "runs":
            continue
        given = row.cause.split("; ")
        counts.update(given)
        alone.update(given if len(given) == 1 else ())
        for cause in given:
            examples.setdefault(cause, f"{row.repository}/{row.path}")
    ordered = sorted(counts, key=lambda cause: (-counts[cause], cause))
    return ["files  alone  cause", *(f"{counts[each]:5}  {alone[each]:5}  {each}   ({examples[each]})" for each in ordered)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="files of the sample, as FOLDER/owner+name/path")
    parser.add_argument("--collect", action="store_true", help="fill FOLDER from the git directories of --mirror")
    parser.add_argument("--mirror", type=Path, help="folder of git directories owner+name")
    parser.add_argument("--kind", choices=KINDS, help="only files of this kind")
    parser.add_argument("--only", default="", metavar="TEXT", help="only files whose repository/path contains this text")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="write a row for each file")
    parser.add_argument("--seconds", type=float, default=Limits().seconds, help="time limit for a file (%(default)s)")
    parser.add_argument("--memory", type=float, default=Limits().memory, help="memory limit for a file in GiB (%(default)s)")
    args = parser.parse_args(argv)
    sample = [each for each in read_sample() if args.kind in (None, each.kind) and args.only in f"{each.repository}/{each.path}"]
    if args.collect:
        if not args.mirror:
            parser.error("--collect needs --mirror")
        absent = collect(sample, args.folder, args.mirror)
        print(f"{len(sample) - len(absent)} of {len(sample)} files are in {args.folder}")
        print("".join(f"not in {args.mirror}: {each.repository} {each.path}\n" for each in absent), end="")
        return
    here = [each for each in sample if (args.folder / each.folder / each.path).is_file()]
    rows = run(
        here,
        args.folder,
        Limits(args.seconds, args.memory),
        lambda row: print(f"{row.result:8} {row.repository}/{row.path}", flush=True),
    )
    if args.csv:
        write_rows(args.csv, rows)
    print(
        "", *table(rows), "", *causes(rows), f"\n{len(sample) - len(here)} files of the sample are not in {args.folder}", sep="\n"
    )


if __name__ == "__main__":
    main()
