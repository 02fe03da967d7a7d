"""MkDocs hook: `::: caffe.Net` documents a public name of `caffe`, under the heading `caffe.Net`, wherever it is defined.

`caffe` loads its public names when they are first used, so a reader of its source alone, as mkdocstrings is, does not see them.
"""

from __future__ import annotations

import re
import types

import caffe


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each line `::: caffe.NAME` of a page by a heading and the directive for the place where NAME is defined."""
    return re.sub(r"^::: caffe\.(\w+)$", _documented, markdown, flags=re.MULTILINE)


def _documented(found: re.Match[str]) -> str:
    value = getattr(caffe, found[1])
    home = value.__name__ if isinstance(value, types.ModuleType) else f"{value.__module__}.{value.__name__}"
    options = "{show_root_heading: false, show_root_toc_entry: false, heading_level: 4}"
    return f"### caffe.{found[1]}\n\n::: {home}\n    options: {options}"
