"""How a step ends when it is run as a command: 0, or one line on standard error and 1."""

from __future__ import annotations

import sys
from collections.abc import Callable

import caffe
from caffe.allocator import keep_freed_memory


def run(main: Callable[[], None]) -> None:
    """Call a step's `main`; an Error becomes its one line, without a traceback, and exit code 1."""
    keep_freed_memory()
    try:
        main()
    except caffe.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
