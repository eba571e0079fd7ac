"""How channels become small in sparsity training, and what is left of them after pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.report._base import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, Floats, picture, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUINTILES = ("20%", "40%", "60%", "80%", "largest")
_COLOURS = (SKY, BLUE, GREEN, PURPLE, ORANGE)
_MOST_ROWS = 60  # units in one panel of bars
_ROW = 0.17  # inches per unit
_NAME = 26  # characters of a unit's name


def scale_quintiles(
    epochs: Sequence[int], quintiles: Sequence[Sequence[float]], path: Path, *, title: str, symbol: str
) -> Path:
    """Draw what 20, 40, 60, 80 and 100% of the scales do not exceed, a line each over the epochs.

    Args:
        epochs: numbers of the epochs, 0 for the dense network; at least one.
        quintiles: per epoch, the five values.
        path: the PNG to write; its folder must exist.
        title: stands above the plot.
        symbol: how a scale is written.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no epochs.
    """
    _refuse_none(epochs)
    with picture(path, title, width=7.4, height=4.2) as figure:
        axes = figure.subplots()
        for name, colour, values in reversed(
            list(zip(_QUINTILES, _COLOURS, zip(*quintiles, strict=True), strict=True))
        ):
            axes.plot(epochs, values, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=name)
        axes.set_ylabel(f"{symbol} that so many channels do not exceed")
        axes.set_ylim(bottom=0)
        _over_epochs(axes)
        axes.grid(True, axis="y")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, title="of the channels")
    return path


def watched_scales(
    iterations: Sequence[int], scales: Sequence[Sequence[float]], path: Path, *, title: str, symbol: str
) -> Path:
    """Draw every channel's scale in one layer over the iterations, a thin line each, and their median.

    Args:
        iterations: their numbers; at least one.
        scales: per iteration, the layer's scales.
        path: the PNG to write; its folder must exist.
        title: stands above the plot.
        symbol: how a scale is written.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no iterations.
    """
    _refuse_none(iterations)
    table = np.asarray(scales, dtype=np.float64)
    with picture(path, title, width=7.4, height=4.2) as figure:
        axes = figure.subplots()
        axes.plot(iterations, table, color=BLUE, linewidth=0.7, alpha=0.55)
        axes.plot(iterations, np.median(table, axis=1), color=ORANGE, linewidth=1.8, label="median")
        axes.plot([], [], color=BLUE, linewidth=0.7, label=f"each of {table.shape[1]} channels")
        axes.set_xlabel("iteration")
        axes.set_ylabel(symbol)
        axes.set_ylim(bottom=0)
        axes.grid(True, axis="y")
        figure.legend(loc="outside lower center", ncols=2)
    return path


def scale_histogram(
    epochs: Sequence[int],
    counts: Sequence[Sequence[int]],
    edges: Sequence[float],
    path: Path,
    *,
    title: str,
    symbol: str,
) -> Path:
    """Draw the histogram of all scales as a column of colours per epoch, on a logarithmic colour scale.

    Args:
        epochs: numbers of the epochs, ascending; at least one.
        counts: per epoch, the scales in each bin.
        edges: of the bins, ascending, one more than there are bins.
        path: the PNG to write; its folder must exist.
        title: stands above the plot.
        symbol: how a scale is written.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no epochs.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import PercentFormatter

    _refuse_none(epochs)
    table = np.asarray(counts, dtype=np.float64)
    shares = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    least = float(shares[shares > 0].min(initial=100.0))
    with picture(path, title, width=7.4, height=4.2) as figure:
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            _between(epochs),
            edges,
            np.ma.masked_less_equal(shares.T, 0),
            cmap="viridis_r",
            norm=LogNorm(vmin=min(least, 50.0), vmax=100.0),
        )
        bar = figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(decimals=1 if least < 1 else 0))
        bar.set_label("share of the channels; white: none")
        axes.set_ylabel(symbol)
        _over_epochs(axes)
    return path


def slimmed_channels(before: Mapping[str, int], after: Mapping[str, int], path: Path, *, title: str) -> Path:
    """Draw per unit how many of its channels are left, in panels of up to 60 units side by side.

    Args:
        before: channels of each unit in the dense network, in the order of the rows; at least one unit.
        after: channels that it keeps; all that it has where it is not named.
        path: the PNG to write; its folder must exist.
        title: stands above the bars.

    Returns:
        the path.

    Raises:
        RunError: the file cannot be written.
        ValueError: there are no units.
    """
    _refuse_none(before)
    columns = math.ceil(len(before) / _MOST_ROWS)
    rows = math.ceil(len(before) / columns)
    names = list(before)
    with picture(path, title, width=max(6.4, 4.6 * columns), height=1.0 + _ROW * rows) as figure:
        panels = figure.subplots(1, columns, squeeze=False, sharex=True)[0]
        for index, axes in enumerate(panels):
            shown = names[index * rows : (index + 1) * rows]
            _bars(axes, shown, [before[name] for name in shown], [after.get(name, before[name]) for name in shown])
            axes.set_ylim(rows - 0.4, -0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return path


def _bars(axes: Axes, names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> None:
    places = np.arange(len(names))
    axes.barh(places, before, 0.72, color=FAINT, label="dense", zorder=2)
    axes.barh(places, after, 0.72, color=BLUE, label="kept", zorder=3)
    for place, dense, kept in zip(places, before, after, strict=True):
        axes.annotate(
            f"{kept} of {dense}" if kept < dense else f"{dense}",
            (dense, float(place)),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=INK if kept < dense else MUTED,
        )
    axes.set_yticks(places, [shortened(name, _NAME) for name in names], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.16)
    axes.grid(True, axis="x")
    axes.set_xlabel("channels")


def _over_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch (0 is the dense network)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _between(epochs: Sequence[int]) -> Floats:
    """Return the ends of each epoch's column: half way to its neighbours."""
    numbers = np.asarray(epochs, dtype=np.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    first, last = (middles[0], middles[-1]) if len(middles) else (numbers[0] + 0.5, numbers[0] - 0.5)
    return np.concatenate([[2 * numbers[0] - first], middles, [2 * numbers[-1] - last]])


def _refuse_none(values: Sequence[object] | Mapping[str, int]) -> None:
    if not values:
        raise ValueError("a picture of sparsity needs at least one value, got none")
