"""Write CSV tables as pages in HTML that sort and filter.

Each page is one file, works without network, and is a plain table where scripts are off.
"""

import base64
import html
import math
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.command import run, step_parser
from pipeline.errors import InputError
from pipeline.files import written_whole
from pipeline.formats.digests import AGAIN
from pipeline.formats.tables import read_cells
from pipeline.report.table_texts import TableText, page_name, text_of

ROWS = 1000
"""Most rows on a page, which a phone sorts at once."""
CSV_BYTES = 500_000
"""Size of the largest CSV file that is part of its page."""
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?|-?inf|nan|", re.IGNORECASE)
LONG_NUMBER = re.compile(r"-?\d+\.\d{5,}(e[-+]?\d+)?", re.IGNORECASE)
STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: #fff; color: #111; font: 1rem/1.45 system-ui, sans-serif }
h1 { font-size: 1.3rem; margin: 0 0 .4rem; overflow-wrap: anywhere }
p { margin: .4rem 0; max-width: 46rem }
a { color: #1f5a8a }
.tools { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; margin: .8rem 0 }
.tools input { font: inherit; padding: .4rem .6rem; border: 1px solid #888; border-radius: 4px; flex: 0 1 20rem; min-width: 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; unicode-bidi: isolate }
td { max-width: 24rem; overflow-wrap: anywhere; min-width: 8rem }
th { background: #f2f4f6; white-space: nowrap }
.n { text-align: right; white-space: nowrap; min-width: 3rem }
th button { all: unset; cursor: pointer; padding: .3rem .7rem; margin: -.3rem -.7rem }
th button:focus-visible { outline: 2px solid #1f5a8a; outline-offset: -2px }
th button::after { content: "\\2195"; display: inline-block; width: 1.1em; text-align: right; opacity: .35 }
th[aria-sort] button::after { opacity: 1 }
th[aria-sort=ascending] button::after { content: "\\2191" }
th[aria-sort=descending] button::after { content: "\\2193" }
tbody tr:hover { background: #f7f9fb }
@media (max-width: 640px) { body { padding: .6rem } th, td { padding: .3rem .45rem } td { max-width: 14rem } }
"""
# Columns of numbers are sorted as numbers, rows without a value last. A filter's words may be in any column.
SCRIPT = """
(() => {
  const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
  const rows = [...body.rows].map((row) => {
    const values = [...row.cells].map((cell) => cell.title || cell.textContent);
    return { row, values, text: values.join("\\n").toLowerCase() };
  });
  const collator = new Intl.Collator(undefined, { numeric: true });
  const number = (text) => Number(text.replace(/inf$/i, "Infinity"));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const numeric = head.classList.contains("n");
    const empty = (text) => text === "" || (numeric && /^nan$/i.test(text));
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const order = now ? (now === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      rows.sort((a, b) => {
        const x = a.values[column], y = b.values[column];
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        const difference = numeric ? number(x) - number(y) : collator.compare(x, y);
        return sign * (difference || 0);
      });
      body.append(...rows.map((item) => item.row));
    });
  });
  const names = heads.map((head) => head.textContent.toLowerCase());
  const matches = (item, word) => {
    const at = word.indexOf("="), column = names.indexOf(word.slice(0, at));
    if (at > 0 && column >= 0) return item.values[column].toLowerCase() === word.slice(at + 1);
    return item.text.includes(word);
  };
  const filter = document.createElement("input"), count = document.createElement("output");
  filter.type = "search";
  filter.placeholder = "Filter: words, or column=value";
  filter.setAttribute("aria-label", "Filter rows by words");
  const show = () => {
    const words = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const item of rows) {
      item.row.hidden = !words.every((word) => matches(item, word));
      shown += !item.row.hidden;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  filter.addEventListener("input", show);
  show();
  document.querySelector(".tools").prepend(filter, count);
})();
"""


def main(argv: list[str] | None = None) -> None:
    parser = step_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder that is written, with a page for each table")
    parser.add_argument("tables", type=Path, nargs="+", help="CSV files of other steps")
    parser.add_argument("--of", required=True, help="what the tables are of, for their titles")
    a = parser.parse_args(argv)
    with written_whole(a.folder) as part:
        part.mkdir()
        for path in a.tables:
            name = page_name(path)
            (part / f"{name}.html").write_text(page(path, text_of(name), a.of), encoding="utf-8")


def page(path: Path, about: TableText, of: str) -> str:
    """A page in HTML with the rows of a CSV file, at most ROWS; with the whole file to save, if it is small.

    Raises InputError if the file is not a table, or lacks the column whose largest values come first.
    """
    columns, rows = read_cells(path)
    first = ""
    if about.largest:
        if about.largest not in columns:
            raise InputError(path, f"no column {about.largest}", f"it has {', '.join(columns)}", AGAIN)
        largest = columns.index(about.largest)
        rows.sort(key=lambda row: _downwards(row[largest]))
        first = f" The rows with the largest {about.largest} come first."
    shown = rows[:ROWS]
    title = _escape(f"{of}: {about.title}")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n<p>{_escape(about.text + first)}</p>\n"
        f'<div class="tools">{_source(path, len(shown), len(rows))}</div>\n'
        f'<div class="wide"><table>\n{_rows(columns, shown)}</table></div>\n<script>{SCRIPT}</script>\n</html>\n'
    )


def _escape(text: str) -> str:
    """Text for HTML; bytes of a file name that are not UTF-8 become U+FFFD."""
    return html.escape(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _source(path: Path, shown: int, rows: int) -> str:
    """Where all rows are: a link that saves the file, or the path of a file that is too large to be part of the page."""
    some = f"The first {shown:,} of {rows:,} rows; all are in " if shown < rows else ""
    if path.stat().st_size > CSV_BYTES:
        return f"<span>{some or 'The table is in '}{_escape(str(path))}</span>"
    encoded = base64.b64encode(path.read_bytes()).decode()
    link = f'<a href="data:text/csv;base64,{encoded}" download="{_escape(path.name)}">{_escape(path.name)}</a>'
    return f"<span>{some or 'Save as '}{link}</span>"


def _downwards(cell: str) -> float:
    """What sorts cells by their numbers, the largest first, and those without one last."""
    value = float(cell) if cell and NUMBER.fullmatch(cell) else math.nan
    return math.inf if math.isnan(value) else -value


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows of a table, its head first; columns of numbers alone have the class `n`."""
    marks = []
    for number in range(len(columns)):
        values = [row[number] for row in rows]
        marks.append(' class="n"' if any(values) and all(map(NUMBER.fullmatch, values)) else "")
    lines = ["".join(f"<th{mark}>{_escape(name)}</th>" for name, mark in zip(columns, marks, strict=True))]
    for row in rows:
        lines.append("".join(_cell(value, mark) for value, mark in zip(row, marks, strict=True)))
    head, *body = (f"<tr>{line}</tr>\n" for line in lines)
    return f"<thead>{head}</thead>\n<tbody>\n{''.join(body)}</tbody>\n"


def _cell(value: str, mark: str) -> str:
    """A cell; of a number with many digits five are shown, and the title has all."""
    if mark and LONG_NUMBER.fullmatch(value):
        return f'<td{mark} title="{value}">{float(value):.5g}</td>'
    return f"<td{mark}>{_escape(value)}</td>"


if __name__ == "__main__":
    run(main)
