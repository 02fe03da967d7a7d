"""MkDocs hook: `::: caffe.Net` documents a public name of `caffe`, and `::: pipeline.nets.*` the steps of a stage.

`caffe` loads its public names when they are first used, so a reader of its source alone, as mkdocstrings is, does not see them.
"""

import re
import types

import caffe
from pipeline import cli


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each line `::: caffe.NAME` by where NAME is defined, with a heading; `::: pipeline.STAGE.*` by its steps."""
    markdown = re.sub(r"^::: caffe\.(\w+)$", _documented, markdown, flags=re.MULTILINE)
    return re.sub(r"^::: pipeline\.(\w+)\.\*$", _steps, markdown, flags=re.MULTILINE)


def _documented(found: re.Match[str]) -> str:
    value = getattr(caffe, found[1])
    home = value.__name__ if isinstance(value, types.ModuleType) else f"{value.__module__}.{value.__name__}"
    options = "{show_root_heading: false, show_root_toc_entry: false, heading_level: 4}"
    return f"### caffe.{found[1]}\n\n::: {home}\n    options: {options}"


def _steps(found: re.Match[str]) -> str:
    return "\n\n".join(f"::: pipeline.{found[1]}.{path.stem}" for path in cli.commands()[found[1]].values())
