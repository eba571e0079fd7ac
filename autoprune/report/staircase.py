"""Latency by the width of one unit alone: a panel per unit, with the widths worth choosing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.report._base import BLUE, FAINT, MUTED, ORANGE, picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = (2.1, 1.75)  # inches, with title and share of the gaps
_LEFT, _RIGHT, _BOTTOM, _ABOVE = 0.75, 0.25, 0.8, 0.22  # inches around all panels; the last is a panel's own title
_MOST_COLUMNS = 5
_NAME = 24  # characters of a unit's name


@dataclass(frozen=True)
class UnitSteps:
    """Latency of the whole network by the width of one unit, all others dense.

    Attributes:
        name: of the unit.
        widths: kept channels, ascending, the dense width last.
        predicted: milliseconds, one per width.
        measured: milliseconds by the unit's layers alone, one per width; None where they were not measured.
        worth: those of the widths that are worth choosing.
    """

    name: str
    widths: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...] | None
    worth: tuple[int, ...]


def staircases(units: Sequence[UnitSteps], path: Path, *, title: str) -> Path:
    """Draw milliseconds against width in a panel per unit, all on one y axis.

    Args:
        units: in the order of the panels, row by row; at least one, readable up to about 30.
        path: the PNG to write; its folder must exist.
        title: stands above the panels.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no units.
    """
    if not units:
        raise ValueError("a picture of staircases needs at least one unit, got none")
    columns = min(_MOST_COLUMNS, len(units))
    rows = math.ceil(len(units) / columns)
    width, height = max(columns * _PANEL[0], 5.6) + _LEFT + _RIGHT, rows * _PANEL[1] + _BOTTOM
    with picture(path, title, width=width, height=height) as figure:
        figure.set_layout_engine("none")  # panels of one size need no search for one that fits
        gaps = _gaps(width, height, whole=figure.get_figheight())
        panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=gaps).ravel()
        ends = _ends(units)
        for index, (axes, unit) in enumerate(zip(panels, units, strict=False)):
            _draw(axes, unit)
            axes.set_ylim(ends)
            axes.tick_params(labelsize=7, length=2.5, pad=2, labelleft=index % columns == 0)
            if index + columns >= len(units):
                axes.set_xlabel("channels", fontsize=8)
            if index % columns == 0:
                axes.set_ylabel("ms", fontsize=8)
        for axes in panels[len(units) :]:
            axes.set_axis_off()
        _explain(figure, measured=any(unit.measured is not None for unit in units))
    return path


def _gaps(width: float, height: float, *, whole: float) -> dict[str, float]:
    """Return where all panels lie, as shares of the figure.

    Args:
        width: of the figure, in inches.
        height: of the figure below its title, in inches.
        whole: height of the figure with its title, in inches.
    """
    across = {"left": _LEFT / width, "right": 1 - _RIGHT / width, "wspace": 0.14}
    return across | {"bottom": _BOTTOM / whole, "top": (height - _ABOVE) / whole, "hspace": 0.42}


def _ends(units: Sequence[UnitSteps]) -> tuple[float, float]:
    """Return the ends of the y axis that all panels share."""
    times = [time for unit in units for time in (*unit.predicted, *(unit.measured or ()))]
    margin = 0.05 * (max(times) - min(times)) or 0.05 * max(times)
    return min(times) - margin, max(times) + margin


def _draw(axes: Axes, unit: UnitSteps) -> None:
    widths = np.array(unit.widths)
    known = unit.predicted if unit.measured is None else unit.measured
    if unit.measured is not None:
        axes.plot(widths, unit.predicted, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=2)
    # A width costs what is drawn at its dot; the line before it is level, as a device that computes in blocks is.
    axes.step(widths, known, where="pre", color=BLUE, linewidth=1.2, zorder=3)
    axes.scatter(widths, known, s=7, color=BLUE, zorder=4)
    worth = np.isin(widths, unit.worth)
    axes.scatter(widths[worth], np.array(known)[worth], s=20, color=ORANGE, zorder=5)
    axes.set_title(shortened(unit.name, _NAME), fontsize=8, pad=3)
    axes.set_xlim(0, widths[-1] * 1.05)
    axes.set_xticks(_ticks(int(widths[-1])))
    axes.grid(True, color=FAINT)


def _ticks(width: int) -> list[int]:
    """Return four ticks or so that end at the dense width."""
    return [0, round(width / 2), width]


def _explain(figure: Figure, *, measured: bool) -> None:
    """Put the key below the panels."""
    from matplotlib.lines import Line2D

    found = "layers measured alone" if measured else "predicted"
    handles = [
        Line2D([], [], color=BLUE, linewidth=1.2, marker="o", markersize=3, label=found),
        Line2D([], [], color=ORANGE, linestyle="", marker="o", markersize=5, label="worth choosing: widest of a step"),
    ]
    if measured:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label="predicted"))
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.05 / figure.get_figheight()), ncols=len(handles)
    )
