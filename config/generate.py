"""Write schema.yaml and the table of keys in README.md from the models of pipeline/options: `python config/generate.py`."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.options.base import resolved, schema_of
from pipeline.options.config import Config

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- table of keys: written by generate.py from pipeline/options -->\n", "<!-- end of the table of keys -->\n"
FIRST = ("source", "dataset", "model", "weights")
"""Keys at the head of the table; the others are in the models' order."""


def schema() -> str:
    """The text of schema.yaml."""
    head = "# What a config may say, for editors. Written by config/generate.py from pipeline/options; edit it there.\n"
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_of(Config)}
    return head + yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=130)


def readme(text: str) -> str:
    """The text of README.md with the table of today's keys."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


def table() -> str:
    """A row for each key."""
    root = schema_of(Config)
    lines = ["| key | what | default |", "|---|---|---|"]
    for key, part in root["properties"].items():
        if "additionalProperties" in part:
            lines += [f"| **`{key}.NAME`** | | |", *_rows(part["additionalProperties"], root, "")]
        else:
            lines.append(_row(key, part, False))
    return "\n".join(lines) + "\n"


def _rows(part: dict[str, Any], root: dict[str, Any], prefix: str) -> list[str]:
    """Rows of the keys of a mapping, at every depth; of a mapping with a description, the mapping's own."""
    part = resolved(part, root)
    rows = []
    for name, inner in sorted(part["properties"].items(), key=lambda item: item[0] not in FIRST):
        nested = resolved(inner.get("else", inner), root)
        if "description" in inner:
            rows.append(_row(prefix + name, inner, name in part.get("required", [])))
        if "properties" in nested and ("else" in inner or "description" not in inner):
            rows += _rows(nested, root, f"{prefix}{name}.")
    return rows


def _row(key: str, part: dict[str, Any], required: bool) -> str:
    default = part.get("default", {})
    written = yaml.safe_dump(default, default_flow_style=True).splitlines()[0]
    text = "required" if required else "" if default == {} else f"`{written}`"
    return f"| `{key}` | {part['description']} | {text} |"


def main() -> None:
    page = FOLDER / "README.md"
    (FOLDER / "schema.yaml").write_text(schema(), encoding="utf-8")
    page.write_text(readme(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
