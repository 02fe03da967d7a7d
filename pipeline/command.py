"""How a step is run as a command: its options as flags or as JSON; it exits with 0, or with 1 and one line on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence

import caffe
from caffe.allocator import keep_freed_memory
from pipeline.errors import InputError


def run(main: Callable[[list[str]], None]) -> None:
    """Call a step's `main` with the command line; an Error becomes its one line, without a traceback, and exit code 1."""
    keep_freed_memory()
    try:
        main(expand_options(sys.argv[1:]))
    except caffe.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def expand_options(argv: Sequence[str]) -> list[str]:
    """A command line with each `--options JSON` replaced by the flags that the JSON object holds.

    That is how rules hand over what a config says: one argument, quoted once, that holds any text. A text or number becomes
    --key=value, true becomes --key, an object --key=JSON, a list the same flag for each of its items; false, null and "" are left
    out. Underscores in keys become dashes.

    Raises InputError where the JSON is not an object.
    """
    words = iter(argv)
    expanded: list[str] = []
    for word in words:
        if word == "--options":
            expanded += _flags(next(words, ""))
        elif word.startswith("--options="):
            expanded += _flags(word.removeprefix("--options="))
        else:
            expanded.append(word)
    return expanded


def _flags(text: str) -> Iterator[str]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise InputError("--options", f"not JSON ({error})", "a JSON object of the step's flags") from None
    if not isinstance(options, dict):
        raise InputError("--options", text, "a JSON object of the step's flags")
    for key, given in options.items():
        flag = f"--{key.replace('_', '-')}"
        for value in given if isinstance(given, list) else [given]:
            if value is True:
                yield flag
            elif value is not None and value is not False and value != "":
                yield f"{flag}={json.dumps(value, sort_keys=True) if isinstance(value, dict) else value}"
