"""A small disk: a tmpfs in a mount namespace of its own, which a test fills up and sets to read-only."""

import os
import subprocess
import time
from pathlib import Path


def missing() -> str:
    """Why there can be no small disk on this machine; empty if there can."""
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(words, capture_output=True, text=True).stderr.strip()
    except FileNotFoundError as error:
        return str(error)


class SmallDisk:
    """A disk at a folder, seen by the commands that it runs.

    path  the folder, which exists
    size  bytes
    """

    def __init__(self, path: Path, size: int):
        self.path = path
        mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && touch "$3" && exec sleep infinity'
        ready = path.with_name(f"{path.name}.mounted")
        self._holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", mount, "sh", str(size), str(path), str(ready)])
        while not ready.exists():
            assert self._holder.poll() is None
            time.sleep(0.01)
        ready.unlink()

    @property
    def inside(self) -> Path:
        """The folder as other processes reach it."""
        return Path(f"/proc/{self._holder.pid}/root{self.path}")

    def run(self, words: list[str], **options) -> subprocess.CompletedProcess[str]:
        """Run a command that sees the disk."""
        enter = ["nsenter", "--preserve-credentials", "--user", "--mount", "--target", str(self._holder.pid)]
        there = ["env", f"--chdir={options.pop('cwd')}"]  # nsenter's own option would be the folder below the disk
        return subprocess.run([*enter, "--", *there, *words], capture_output=True, text=True, **options)

    def set(self, option: str) -> None:
        """Set the mount's option: ro or rw."""
        done = self.run(["mount", "-o", f"remount,{option}", str(self.path)], cwd="/")
        assert done.returncode == 0, done.stderr

    def fill(self, left: int) -> None:
        """Leave so many bytes, of whole pages."""
        found = os.statvfs(self.inside)
        with (self.inside / ".filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (found.f_bavail - left // found.f_frsize) * found.f_frsize)

    def empty(self) -> None:
        """Take back what `fill` took."""
        (self.inside / ".filler").unlink()

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
