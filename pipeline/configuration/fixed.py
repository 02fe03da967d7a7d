"""The config of a build, fixed when it starts: later jobs do not see an edit of the config file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import written_whole


def write(config: dict[str, Any], folder: Path) -> str:
    """Write a checked config to `folder`/DIGEST.json; return the digest, 16 hexadecimal digits of the file's SHA-256."""
    content = json.dumps(config, indent=1).encode()
    digest = _digest(content)
    with written_whole(folder / f"{digest}.json") as part:
        part.write_bytes(content)
    return digest


def read(digest: str, folder: Path) -> dict[str, Any]:
    """The config that `write` wrote with this digest.

    digest  which the build's main process gives its jobs; empty if a job did not get it

    Raises InputError if the digest or the file is missing, or the file has been changed.
    """
    if not digest:
        found = "this job was not given the digest of its build's config"
        raise InputError("config", found, "its executor passes ROASTERY_CONFIG_… on", "let it pass the environment to jobs")
    path = folder / f"{digest}.json"
    if not path.is_file():
        raise InputError(path, "no such file", "the config of this build", "start the build again")
    content = path.read_bytes()
    if _digest(content) != digest:
        raise InputError(path, f"changed: its digest is {_digest(content)}", digest, "remove it, and start the build again")
    config: dict[str, Any] = json.loads(content)
    return config


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
