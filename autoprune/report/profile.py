"""Where a network's latency goes, and how well it is predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.report._base import BLUE, FAINT, GOLD, INK, MUTED, ORANGE, picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.3  # inches
_BAR = 0.38  # rows
_NAME = 46  # characters of a row's name
_BAND = 0.05  # relative error that is shaded around the diagonal


class BarKind(Enum):
    """What a row of bars stands for."""

    LAYER = "layer"
    SUM = "sum"
    """Several layers, or what is no layer: written out, so that its bar does not press those of the layers flat."""


@dataclass(frozen=True)
class LayerBar:
    """One row: a layer's share of the latency next to its share of the FLOPs.

    Attributes:
        name: as it is printed.
        latency: share of the latency, in [0, 1].
        flops: share of the FLOPs, in [0, 1].
        kind: a layer, or a sum.
    """

    name: str
    latency: float
    flops: float
    kind: BarKind = BarKind.LAYER


def layer_bars(bars: Sequence[LayerBar], path: Path, *, title: str, note: str) -> Path:
    """Draw share of latency and share of FLOPs of every row, as horizontal bars.

    Args:
        bars: at least one, in the order of the rows from the top; readable up to about 40.
        path: the PNG to write; its folder must exist.
        title: stands above the bars.
        note: below the axis: how the shares were found.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no bars.
    """
    if not bars:
        raise ValueError("a picture of layers needs at least one bar, got none")
    with picture(path, title, width=9.6, height=1.1 + _ROW * len(bars)) as figure:
        axes = figure.subplots()
        layers = np.array([row for row, bar in enumerate(bars) if bar.kind is BarKind.LAYER], dtype=np.int64)
        for offset, label, colour, shares in (
            (-0.5, "share of the latency", BLUE, [bars[row].latency for row in layers]),
            (0.5, "share of the FLOPs", GOLD, [bars[row].flops for row in layers]),
        ):
            axes.barh(layers + offset * _BAR, np.array(shares) * 100, _BAR, color=colour, label=label, zorder=2)
        _write_shares(axes, bars)
        axes.set_yticks(range(len(bars)), [shortened(bar.name, _NAME) for bar in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(True, axis="x")
        axes.margins(x=0.08)
        axes.set_xlabel(f"% of the whole network; {note}")
        figure.legend(loc="outside lower center", ncols=2)
    return path


def _write_shares(axes: Axes, bars: Sequence[LayerBar]) -> None:
    """Write the share of the latency behind each of its bars, and both shares of a sum."""
    for row, bar in enumerate(bars):
        text, place, colour = f"{100 * bar.latency:.1f}", (100 * bar.latency, row - 0.5 * _BAR), INK
        if bar.kind is BarKind.SUM:
            text, place, colour = f"{bar.latency:.1%} of the latency, {bar.flops:.1%} of the FLOPs", (0.0, row), MUTED
        axes.annotate(text, place, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5, color=colour)


class NetworkRole(Enum):
    """What a measured network was for."""

    FITTED = "the predictor was fitted to"
    HELD_OUT = "held out of the fit"
    FRESH = "fresh, measured afterwards"


_MARKS: dict[NetworkRole, dict[str, Any]] = {
    NetworkRole.FITTED: {"marker": "o", "color": "white", "edgecolors": MUTED, "s": 30, "linewidths": 1.1},
    NetworkRole.HELD_OUT: {"marker": "o", "color": BLUE, "edgecolors": "white", "s": 36, "linewidths": 0.6},
    NetworkRole.FRESH: {"marker": "D", "color": ORANGE, "edgecolors": "white", "s": 32, "linewidths": 0.6},
}


@dataclass(frozen=True)
class PredictedNetwork:
    """A whole network that was predicted and measured.

    Attributes:
        role: what it was measured for.
        predicted: milliseconds.
        measured: milliseconds.
    """

    role: NetworkRole
    predicted: float
    measured: float


def prediction_plot(networks: Sequence[PredictedNetwork], path: Path, *, title: str, errors: Sequence[str]) -> Path:
    """Draw predicted against measured milliseconds, a mark per network, with the diagonal and ±5% around it.

    Args:
        networks: at least one; a pair with a number that is not finite is left out.
        path: the PNG to write; its folder must exist.
        title: stands above the plot.
        errors: lines below the title that tell how far predictions are off.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no networks.
    """
    known = [one for one in networks if math.isfinite(one.predicted) and math.isfinite(one.measured)]
    if not known:
        raise ValueError("a picture of predictions needs at least one network, got none")
    with picture(path, title, width=6.4, height=6.0 + 0.18 * len(errors)) as figure:
        axes = figure.subplots()
        values = [value for one in known for value in (one.predicted, one.measured)]
        margin = 0.05 * (max(values) - min(values)) or 0.05 * max(values)
        ends = np.array([max(min(values) - margin, 0.0), max(values) + margin])
        axes.fill_between(ends, ends * (1 - _BAND), ends * (1 + _BAND), color=FAINT, alpha=0.5, linewidth=0, zorder=0)
        axes.plot(ends, ends, color=MUTED, linewidth=0.9, zorder=1, label="equal, ±5% shaded")
        for role, look in _MARKS.items():
            of_role = [one for one in known if one.role is role]
            if of_role:
                axes.scatter(
                    [one.measured for one in of_role],
                    [one.predicted for one in of_role],
                    label=f"{role.value} ({len(of_role)})",
                    zorder=3,
                    **look,
                )
        axes.set(xlim=ends, ylim=ends, aspect="equal", xlabel="measured, ms", ylabel="predicted, ms")
        axes.grid(True)
        axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
        axes.set_title("\n".join(errors))
    return path
