"""The figures of benchmarks/speed.py as text, Markdown, CSV and a plot."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

HAND, COMPILED = "by hand", "torch.compile"
COLUMNS = ("caffe", HAND, COMPILED, "onnxruntime", "floor")
STEPS = {"forward": "forward", "training": "forward, backward, update", "memory": "peak memory in training"}
"""{step: its title}."""


@dataclass(frozen=True)
class Row:
    """A figure of one side.

    value       median of all passes in milliseconds, or MB; None: not measured, for the reason in `note`
    low, high   the least and the largest median of a turn
    ratio       the value of `caffe` over this one: below 1, `caffe` is faster or smaller
    operations, bytes  of the floor
    """

    machine: str
    net: str
    images: int
    step: str
    side: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None
    operations: float | None = None
    bytes: float | None = None
    note: str = ""


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write all figures, one a line."""
    names = [field.name for field in fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            values = (getattr(row, name) for name in names)
            writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])


def best(rows: Iterable[Row], column: str) -> Row | None:
    """The row of a column: of a side's memory layouts, the better; one without a value only if none has one."""
    of_column = [row for row in rows if row.side.partition(",")[0] == column]
    return min(of_column, key=lambda row: (row.value is None, row.value), default=None)


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """{(net, step): its rows}, in order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.net, row.step), []).append(row)
    return groups


def text_of(rows: list[Row], markdown: bool) -> str:
    """The table: of each side its figure, and after it what `caffe` takes of that; then why figures are missing."""
    lines, notes = [["net, images", "step", *COLUMNS]], []
    for (net, step), group in grouped(rows).items():
        cells = [best(group, column) for column in COLUMNS]
        lines.append([f"{net}, {group[0].images}", STEPS[step], *map(_cell, cells)])
        notes += [f"{net}, {step}, {row.side}: {row.note}" for row in group if row.value is None]
    if markdown:
        lines.insert(1, ["---"] * len(lines[0]))
        table = ["| " + " | ".join(line) + " |" for line in lines]
    else:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    listed = [f"- {note}" for note in notes]
    return "\n".join([*table, *([""] if listed else []), *listed])


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.value is None:
        return "not measured"
    figure = f"{row.value:.3g}" if row.value < 100 else f"{row.value:,.0f}"
    layout = " (channels-last)" if row.side.endswith("channels-last") else ""
    return f"{figure} {row.unit}{layout}" + ("" if row.side == "caffe" or row.ratio is None else f", {row.ratio:.2f}")


def plot(rows: list[Row], path: Path) -> None:
    """Draw each side's figure over that of the net by hand; a panel for each step."""
    import matplotlib.pyplot as plt

    from pipeline.figures import COLOURS, STYLE

    steps = [step for step in STEPS if any(row.step == step for row in rows)]
    nets = list(dict.fromkeys(row.net for row in rows))
    groups = grouped(rows)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(max(6.5, 1.3 * len(nets)), 3.2 * len(steps)), layout="constrained")
        panels = figure.subplots(len(steps), squeeze=False, sharex=True)[:, 0]
        for axes, step in zip(panels, steps, strict=True):
            ratios = {column: _ratios(groups, nets, step, column) for column in COLUMNS if column != HAND}
            drawn = [column for column in ratios if ratios[column]]
            width = 0.8 / max(1, len(drawn))
            for number, column in enumerate(drawn):
                places = [place + width * (number - (len(drawn) - 1) / 2) for place in ratios[column]]
                colour = COLOURS[COLUMNS.index(column)]
                bars = axes.bar(places, list(ratios[column].values()), width, label=column, color=colour)
                axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
            axes.axhline(1, color="#333333", linewidth=1, label="by hand in PyTorch")
            axes.set_xticks(range(len(nets)), nets)
            axes.tick_params(labelbottom=True)
            axes.set(title=STEPS[step], ylabel="by hand = 1")
            axes.grid(axis="x", visible=False)
            axes.margins(y=0.12)
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, fontsize=8, columnspacing=1)
        figure.supxlabel(rows[0].machine, fontsize=9)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _ratios(groups: dict[tuple[str, str], list[Row]], nets: list[str], step: str, column: str) -> dict[int, float]:
    """{a net's place: the figure of a column over that by hand}, of the nets that have both."""
    ratios = {}
    for place, net in enumerate(nets):
        side, hand = (best(groups.get((net, step), []), each) for each in (column, HAND))
        if side and hand and side.value is not None and hand.value is not None:
            ratios[place] = side.value / hand.value
    return ratios
