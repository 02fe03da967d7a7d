"""Run a command while four other processes keep the processor busy: python -m tests.under_load pytest tests/caffe"""

import multiprocessing
import subprocess
import sys

PROCESSES = 4


def spin() -> None:
    """Compute forever."""
    while True:
        sum(range(1_000_000))


if __name__ == "__main__":
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(PROCESSES)]
    for process in busy:
        process.start()
    try:
        code = subprocess.call(sys.argv[1:])
    finally:
        for process in busy:
            process.kill()
    sys.exit(code)
