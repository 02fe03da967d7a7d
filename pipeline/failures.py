"""What failed in a run of the workflow: one line for each step, and where its log is."""

import re
from collections.abc import Iterable
from pathlib import Path

LAST = 1 << 16
"""Bytes at the end of a log in which its error is looked for."""

NO_MESSAGE = "ended without a message: was it killed, or out of memory?"


def describe(logs: Iterable[tuple[str, Path]], since: float) -> str:
    """A heading and a line for each job that has begun and not ended well, for the end of a run; empty if there is none.

    logs   (rule, log) of each job that has not ended well
    since  when the run began, seconds since the epoch: older logs are of other runs
    """
    lines = [f"  {rule}: {error}\n    log: {log}" for rule, log in sorted(set(logs)) if (error := _error_in(log, since))]
    return "\n".join([f"{len(lines)} {'step' if len(lines) == 1 else 'steps'} failed:", *lines]) if lines else ""


def _error_in(log: Path, since: float) -> str:
    """The error that a log ends with, without `error:`; empty if the log is older than the run."""
    try:
        if log.stat().st_mtime < since - 1:  # some file systems know only seconds
            return ""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    errors = re.findall(r"^(?:error: |(?=[\w.]+(?:Error|Exception|Interrupt): ))(.+)", text, re.MULTILINE)
    return errors[-1] if errors else NO_MESSAGE
