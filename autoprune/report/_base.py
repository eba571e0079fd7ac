"""The look that all pictures share, and how a picture reaches its file."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoprune.io.files import write_atomic

if TYPE_CHECKING:  # matplotlib takes a third of a second to import: only who draws pays for it
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

DPI = 120
"""Pixels per inch: 7 points, the smallest text here, are 12 pixels high."""

BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
"""Colours that differ for readers with any colour vision (Okabe and Ito, "Color Universal Design", 2008)."""

INK, MUTED, FAINT = "#222222", "#6E6E6E", "#D9D9D9"
"""Text and means; secondary text; lines that only guide the eye."""

_TITLE = 11.0  # points
_CHARACTER = 0.63 * _TITLE / 72  # inches: the mean width of a character of the title's bold font
_EDGE = 0.1  # inches that stay free around everything
_LOOK: dict[Any, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "figure.titlesize": _TITLE,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # a name with two dollar signs is a name, not a formula
}


@contextmanager
def picture(path: Path, title: str, *, width: float, height: float) -> Iterator[Figure]:
    """Hand out an empty figure in the shared look; write it when the block ends without an error.

    The same input gives the same bytes: the user's own matplotlib settings do not count, and nothing in the
    file tells the time or the version. Matplotlib's global settings are afterwards what they were.

    Args:
        path: the PNG to write; its folder must exist.
        title: stands above everything, broken into lines where it is longer than the figure is wide.
        width: of the figure, in inches.
        height: of the figure below the title, in inches.

    Raises:
        RunError: the file cannot be written; an old one is untouched.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = textwrap.wrap(title, max(20, int((width - 2 * _EDGE) / _CHARACTER))) or [""]
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box in a title says it well enough
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        above = 1.35 * _TITLE / 72 * len(lines) + 2 * _EDGE
        figure = Figure(figsize=(width, height + above))
        FigureCanvasAgg(figure)
        figure.suptitle("\n".join(lines), y=1 - _EDGE / (height + above), va="top", fontweight="bold")
        box = (_EDGE / width, _EDGE / height, 1 - 2 * _EDGE / width, 1 - (above + _EDGE) / (height + above))
        figure.set_layout_engine(ConstrainedLayoutEngine(rect=box, w_pad=0.0, h_pad=0.04))
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    write_atomic(path, content.getvalue())


def shortened(name: str, limit: int) -> str:
    """Return a name of at most ``limit`` characters; what is left out of its middle becomes an ellipsis."""
    if len(name) <= limit:
        return name
    tail = limit // 2  # layers differ at both ends
    return f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def finite(values: Sequence[float]) -> Floats:
    """Return the values that are numbers: neither NaN nor infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]
