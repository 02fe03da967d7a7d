"""Read strategy.json of pipeline.training.linear; not in `strategies`, so that training imports no templates of nets."""

from pathlib import Path

from pipeline.errors import InputError
from pipeline.formats.tables import read_json


def read_strategy(path: Path) -> tuple[str, str]:
    """(strategy, features_from). Raises InputError if the file is not a strategy.json."""
    try:
        content = read_json(path)
        return content["strategy"], content["features_from"]
    except (ValueError, KeyError, TypeError) as error:
        expected = "it is strategy.json of pipeline.training.linear"
        raise InputError(path, f"no strategy ({error})", expected, "correct the path") from None
