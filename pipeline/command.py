"""Run a step as a command: its arguments, errors and exit codes.

Exit codes: 0; 1 after an error, with one line on standard error; 128 + N where signal N interrupted it (130 for Ctrl-C, 143 for
SIGTERM, 141 where the reader of its output has ended), as shells have it.
"""

import argparse
import contextlib
import gc
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import caffe
from caffe.allocator import keep_freed_memory
from pipeline.interruption import Interrupted, ignore_signals
from pipeline.options.base import Options
from pipeline.options.flags import add_flags


def step_parser(description: str | None, model: type[Options] | None = None) -> argparse.ArgumentParser:
    """A parser of a step's command line, with the flags of its options; `read_flags` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        add_flags(parser, model)
    return parser


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _exit_if_unread() -> None:
    """Exit without a message if whoever read the output, such as `head`, has ended."""
    output = select.poll()
    with contextlib.suppress(OSError):  # an output that is no file
        output.register(sys.stdout, 0)  # errors alone, which a pipe without a reader has
    if output.poll(0):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(128 + signal.SIGPIPE)


def run(main: Callable[[list[str]], None]) -> None:
    """Call a step's `main` with the command line; an Error becomes its one line, without a traceback, and exit code 1.

    What was imported before is kept from garbage collections, which would walk through it in vain; at the end everything is, as
    Python's last collection takes as long as the imports' half.
    """
    keep_freed_memory()
    gc.freeze()
    gc.enable()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError as error:
        _exit_if_unread()
        _fail(str(error))
    except caffe.Error as error:
        _fail(str(error))
    except OSError as error:  # a file that may not be read, a folder that may not be written
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except Interrupted as interrupted:
        ignore_signals()
        with contextlib.suppress(OSError):  # the signal may have ended the reader of the output, too
            print(interrupted, file=sys.stderr, flush=True)
        sys.exit(128 + interrupted.number)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        gc.freeze()
