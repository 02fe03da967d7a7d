"""Run a step of the workflow and record when it has started, worked and ended; `where_time_goes.py` puts it in `python`'s place.

    ROASTERY_TIMES=FOLDER ROASTERY_BEGAN=SECONDS python timed_step.py MODULE ARGUMENT…

ROASTERY_BEGAN is the time of the process's start, in seconds since 1970. FOLDER/PID.json has the module, that time, the time at
which the step's `main` was called, the one at which it ended, the pairs of times between which it imported further modules, and
the CPU seconds of the start and of these imports.
"""

import builtins
import functools
import importlib
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Imports:
    """The times between which the main thread imports modules, and the CPU seconds that this takes it."""

    SHORT = 0.001
    """Seconds; an import that takes less is not counted, as most are of modules that are loaded already."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.cpu = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, an import, which is timed unless it is called by another one."""

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            if self._depth or threading.current_thread() is not threading.main_thread():
                return function(*arguments, **options)
            self._depth += 1
            began, cpu = time.time(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if time.time() - began > self.SHORT:
                    self.times.append((began, time.time()))
                    self.cpu += time.thread_time() - cpu

        return run


def main() -> None:
    module = sys.argv[1]
    sys.argv = ["-m", *sys.argv[2:]]  # as Python has it while it locates the module
    sys.path[0] = str(Path.cwd())  # as `python -m` has it
    from pipeline import command

    run = command.run

    def timed(step: Callable[[list[str]], None]) -> None:
        imports, cpu, working = Imports(), time.process_time(), time.time()
        builtins.__import__ = imports.timed(builtins.__import__)
        importlib.import_module = imports.timed(importlib.import_module)
        try:
            run(step)
        finally:
            record = {"module": module, "began": float(os.environ["ROASTERY_BEGAN"]), "working": working}
            record |= {"ended": time.time(), "imports": imports.times, "cpu": cpu + imports.cpu}
            Path(os.environ["ROASTERY_TIMES"], f"{os.getpid()}.json").write_text(json.dumps(record))

    command.run = timed
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
