"""Digest of the modules that a step imports, by which rules detect a change of its code."""

import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent
PACKAGE = ROOT.name
OPTIONS = f"{PACKAGE}.options"
"""Options models are not part of a step's code: their values, defaults included, are params that Snakemake records."""
STATEMENT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n;]*)|import[ \t]+([^\n;]*))", re.MULTILINE)
"""An import at the beginning of a line: the module and its names, or the modules."""
COMMENT = re.compile(r"#.*")


def code_of(module: str) -> str:
    """Digest of a step's module and of all modules of pipeline/ that it imports, directly or not: 16 hexadecimal digits.

    An edit of any of them changes it, a touch does not. The engine is left out on purpose, so that upgrading it does not repeat
    all trainings; its version is in the manifest of results.
    """
    return _digest({name: _content(name) for name in imported_by(module)})


def code_of_package(folder: Path) -> str:
    """Digest of all modules in a folder: 16 hexadecimal digits."""
    return _digest({path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")})


def _digest(files: dict[str, bytes]) -> str:
    """Digest of the names and contents of files."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


def imported_by(module: str) -> set[str]:
    """`module` and the modules of pipeline/ that it imports, directly or not, also inside functions."""
    seen, pending = set[str](), [module]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += _imports(name)
    return seen


@functools.cache
def _content(module: str) -> bytes:
    """A module of pipeline/; each is read once, though most rules ask for it."""
    return _path(module).read_bytes()


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of pipeline/ that a module imports directly, with their packages."""
    imports = set[str]()
    for name in _candidates(_content(module).decode()):
        parts = name.split(".")
        if parts[0] == PACKAGE and not f"{name}.".startswith(f"{OPTIONS}."):
            imports.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return tuple(name for name in sorted(imports) if _path(name).is_file())


def _candidates(text: str) -> Iterator[str]:
    """Modules that a module's text may import: for `from a import b`, a.b, which may be a function of a.

    Only lines are read, as parsing all modules takes a third of a second at each start of a workflow.
    """
    for origin, names, modules in STATEMENT.findall(text):
        for part in COMMENT.sub("", names or modules).strip("() \n").split(","):
            if words := part.split():  # the first of `name as other`
                yield f"{origin}.{words[0]}" if origin else words[0]


def _path(module: str) -> Path:
    """The file of a module of pipeline/, which need not exist."""
    folder = ROOT.joinpath(*module.split(".")[1:])
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
