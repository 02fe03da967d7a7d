"""Style of figures, and saving them with reproducible bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import matplotlib.rcsetup
from matplotlib.figure import Figure
from PIL import Image

from pipeline.files import written_whole

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # distinguishable with colour blindness
STYLE: dict[RcKeyType, Any] = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "roastery",  # else the ids in an SVG are random
    "axes.prop_cycle": matplotlib.rcsetup.cycler(color=COLOURS),
}


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as STEM.png and STEM.svg, whole, without dates."""
    with written_whole(stem.with_suffix(".svg")) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
    with written_whole(stem.with_suffix(".png")) as part:
        save_png(figure, part)


def save_png(figure: Figure, path: Path, tight: bool = False) -> None:
    """Write a figure as a PNG of 256 colours, a third of the size of one in true colour, and close it.

    tight  crop white margins
    """
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130, bbox_inches="tight" if tight else None, pil_kwargs={"compress_level": 1})
    plt.close(figure)
    image = Image.open(png).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, format="png", optimize=True)
