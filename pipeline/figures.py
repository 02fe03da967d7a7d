"""How figures look, and how they are saved: the same drawing gives the same bytes."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

from pipeline.files import written_whole

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # told apart by colour-blind readers too
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "roastery",  # the same drawing gives the same bytes
    "axes.prop_cycle": plt.cycler(color=COLOURS),
}


def save(figure: plt.Figure, stem: Path) -> None:
    """Write a figure as STEM.png and STEM.svg, whole, without dates."""
    with written_whole(stem.with_suffix(".svg")) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
    with written_whole(stem.with_suffix(".png")) as part:
        save_png(figure, part)


def save_png(figure: plt.Figure, path: Path, tight: bool = False) -> None:
    """Write a figure as a PNG of 256 colours, which is a third of the size of one with all, and close it.

    tight  cut off white margins
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130, bbox_inches="tight" if tight else None, pil_kwargs={"compress_level": 1})
    plt.close(figure)
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, format="png", optimize=True)
