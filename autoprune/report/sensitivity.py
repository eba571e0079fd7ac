"""How the score falls when one unit alone is pruned: a panel per unit, and a heat map of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.report._base import BLUE, FAINT, INK, MUTED, Floats, picture, shortened
from autoprune.report._scale import ScoreAxis, linear_until, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DENSE = (1.0, 0.0)
"""The dense network: everything kept, score 0."""

_PANELS = {4: (2.8, 2.3), 12: (2.2, 1.7)}  # up to this many units: inches, with title and share of the gaps
_PANEL = (1.62, 1.22)  # for more units
_LEFT, _RIGHT, _BOTTOM, _ABOVE = 0.95, 0.2, 0.62, 0.22  # inches around all panels; the last is a panel's own title
_MOST_COLUMNS = 10
_NAME, _LONG_NAME = 22, 34  # characters of a unit's name above a panel, next to a row

_EIGHTHS = tuple(eighth / 8 for eighth in range(1, 8))
_MOST_RATIOS = 8  # columns of the heat map
_MOST_ANNOTATED = 60  # rows whose values are written out
_BLANK = "#E4E4E4"


@dataclass(frozen=True)
class UnitCurve:
    """What pruning one unit alone does.

    Attributes:
        name: of the unit, e.g. ``model.2.cv1``.
        width: its channels in the dense network.
        points: measured (keep ratio, score) in any order; the dense point may be among them. A score that is not
            finite counts as not measured.
    """

    name: str
    width: int
    points: tuple[tuple[float, float], ...]

    def measured(self) -> tuple[Floats, Floats]:
        """Return keep ratios, ascending and with the dense point, and their scores."""
        known = {ratio: score for ratio, score in self.points if math.isfinite(score)}
        ratios, scores = zip(*sorted({DENSE[0]: DENSE[1], **known}.items()), strict=True)
        return np.asarray(ratios, dtype=np.float64), np.asarray(scores, dtype=np.float64)


def sensitivity_curves(units: Sequence[UnitCurve], path: Path, *, title: str) -> Path:
    """Draw score against keep ratio in a small panel per unit, all on one y axis.

    Where few units are far worse than the others the y axis is symmetric-logarithmic, and its label says so.

    Args:
        units: in the order of the panels, row by row; at least one, readable up to about 100.
        path: the PNG to write; its folder must exist.
        title: stands above the panels.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no units.
    """
    _refuse_none(units)
    columns = _columns(len(units))
    rows = math.ceil(len(units) / columns)
    panel = next((size for most, size in _PANELS.items() if len(units) <= most), _PANEL)
    width, height = _LEFT + _RIGHT + columns * panel[0], _BOTTOM + rows * panel[1]
    with picture(path, title, width=width, height=height) as figure:
        figure.set_layout_engine("none")  # a hundred panels of one size need no search for one that fits
        gaps = _gaps(width, height, whole=figure.get_figheight())
        panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=gaps).ravel()
        scale = ScoreAxis.of([unit.measured()[1] for unit in units])
        for index, (axes, unit) in enumerate(zip(panels, units, strict=False)):
            # Not shared through matplotlib: every change would visit all the others, seconds for a hundred panels.
            _set_axes(axes, scale, leftmost=index % columns == 0, lowest=index + columns >= len(units))
            _draw(axes, unit)
        for axes in panels[len(units) :]:
            axes.set_axis_off()
        figure.supxlabel(
            "keep ratio of this unit, all others dense", y=0.1 / figure.get_figheight(), va="bottom", fontsize=9
        )
        figure.supylabel(scale.label, x=0.1 / width, ha="left", multialignment="center", fontsize=9)
    return path


def _refuse_none(units: Sequence[UnitCurve]) -> None:
    if not units:
        raise ValueError("a picture of sensitivities needs at least one unit, got none")


def _columns(units: int) -> int:
    """Return a number of columns that makes the whole a little wider than high."""
    return units if units <= 4 else min(_MOST_COLUMNS, math.ceil(math.sqrt(1.3 * units)))


def _gaps(width: float, height: float, *, whole: float) -> dict[str, float]:
    """Return where all panels lie, as shares of the figure.

    Args:
        width: of the figure, in inches.
        height: of the figure below its title, in inches.
        whole: height of the figure with its title, in inches.
    """
    across = {"left": _LEFT / width, "right": 1 - _RIGHT / width, "wspace": 0.14}
    return across | {"bottom": _BOTTOM / whole, "top": (height - _ABOVE) / whole, "hspace": 0.38}


def _set_axes(axes: Axes, scale: ScoreAxis, *, leftmost: bool, lowest: bool) -> None:
    """Give a panel the axes that all have; only the outer ones have their ticks labelled."""
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    scale.set_on(axes)
    axes.tick_params(labelsize=7, length=2.5, pad=2, labelleft=leftmost, labelbottom=lowest)


def _draw(axes: Axes, unit: UnitCurve) -> None:
    ratios, scores = unit.measured()
    axes.axhline(0.0, color=FAINT, linewidth=0.8, zorder=1)
    axes.plot(ratios, scores, color=BLUE, linewidth=1.3, marker="o", markersize=2.8, clip_on=False, zorder=3)
    axes.set_title(shortened(unit.name, _NAME), fontsize=7.5, pad=3)
    # Curves rise to the right, so this corner stays free.
    width = f"{unit.width} ch"
    axes.text(0.98, 0.03, width, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color=MUTED)


def sensitivity_heatmap(units: Sequence[UnitCurve], path: Path, *, title: str) -> Path:
    """Draw the score drop of every unit (a row) at common keep ratios (columns).

    A cell between two measured ratios is interpolated on the line between them, the dense point being one; a cell
    outside of what was measured stays grey. Up to 60 rows have their values written out.

    Args:
        units: in forward order, top to bottom; at least one.
        path: the PNG to write; its folder must exist.
        title: stands above the map.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no units.
    """
    _refuse_none(units)
    grid = _grid(units)
    drops = np.array([_drops_at(grid, unit) for unit in units])
    annotated = len(units) <= _MOST_ANNOTATED and len(grid) <= _MOST_RATIOS
    row = 0.19 if annotated else 0.155  # inches
    with picture(path, title, width=8.2, height=max(3.2, 0.75 + row * len(units))) as figure:
        axes = figure.subplots()
        norm, ticks = _colour_scale(units, drops)
        image = axes.imshow(np.ma.masked_invalid(drops), aspect="auto", cmap=_colours(), norm=norm)
        names = [f"{shortened(unit.name, _LONG_NAME)}  ({unit.width})" for unit in units]
        axes.set_yticks(range(len(units)), names, fontsize=7.5 if annotated else 7)
        axes.set_xticks(range(len(grid)), [f"{ratio:.3g}" for ratio in grid])
        axes.set_xlabel("keep ratio of this unit, all others dense; interpolated between measured ratios")
        axes.set_ylabel("unit (channels), input first")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _lines_between(axes, len(units), len(grid))
        if annotated:
            _write_values(axes, drops, image)
        _colour_bar(figure, image, ticks)
    return path


def _grid(units: Sequence[UnitCurve]) -> tuple[float, ...]:
    """Return the measured ratios where they are few, else those eighths that lie within what was measured."""
    ratios = [ratio for unit in units for ratio in unit.measured()[0] if ratio < 1]
    found = tuple(sorted({round(ratio, 3) for ratio in ratios}))
    if 0 < len(found) <= _MOST_RATIOS:
        return found
    return tuple(eighth for eighth in _EIGHTHS if eighth >= min(ratios, default=0.0) - 1e-9) or _EIGHTHS[-1:]


def _drops_at(grid: Sequence[float], unit: UnitCurve) -> Floats:
    """Return the score drop at every ratio of the grid; NaN below the lowest measured one."""
    ratios, scores = unit.measured()
    tolerance = 1e-3  # the grid is rounded
    found = np.interp(grid, ratios, -scores)
    return np.where(np.asarray(grid) >= ratios[0] - tolerance, found, np.nan) if len(ratios) > 1 else found * np.nan


def _colour_scale(units: Sequence[UnitCurve], drops: Floats) -> tuple[Normalize, list[float]]:
    """Return the mapping of drops to colours and, where it is logarithmic, the ticks of its bar."""
    from matplotlib.colors import Normalize, SymLogNorm

    known = drops[np.isfinite(drops)]
    worst = max(float(known.max()), 1e-3) if len(known) else 1.0
    linear = linear_until([unit.measured()[1] for unit in units])
    if linear is None or worst <= linear:
        return Normalize(0.0, worst, clip=True), []
    return SymLogNorm(linear, vmin=0.0, vmax=worst, clip=True), log_ticks(linear, worst)


def _colours() -> Colormap:
    """Return light for no drop to dark for the worst, in steps that are even with any colour vision."""
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad=_BLANK)


def _colour_bar(figure: Figure, image: AxesImage, ticks: Sequence[float]) -> None:
    """Put the key of the colours next to the upper end of the map; there are ticks where it is logarithmic."""
    bar = figure.colorbar(image, ax=image.axes, aspect=18, shrink=min(1.0, 5 / figure.get_figheight()), anchor=(0, 1))
    scale = "logarithmic; " if ticks else ""
    bar.set_label(f"score drop (0 is the dense network)\n{scale}grey: not measured")
    bar.minorticks_off()
    if ticks:
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def _lines_between(axes: Axes, rows: int, columns: int) -> None:
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8)
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.8)


def _write_values(axes: Axes, drops: Floats, image: AxesImage) -> None:
    colours = image.to_rgba(drops)
    for (row, column), drop in np.ndenumerate(drops):
        if math.isfinite(drop):
            dark = np.dot(colours[row, column, :3], (0.299, 0.587, 0.114)) < 0.55  # luma, Rec. ITU-R BT.601
            text = _number(float(drop))
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)


def _number(drop: float) -> str:
    """Return a drop in at most five characters or so, as many decimals as tell rows apart."""
    if abs(drop) < 0.0005:
        return "0"
    text = f"{drop:.3f}" if abs(drop) < 0.1 else f"{drop:.2f}" if abs(drop) < 10 else f"{drop:.3g}"
    return text.replace("-", "−", 1)
