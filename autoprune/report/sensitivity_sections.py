"""The sections of a sensitivity analysis: how the score falls when each unit alone is pruned."""

from __future__ import annotations

from pathlib import Path

from autoprune.report.sensitivity import UnitCurve, sensitivity_curves, sensitivity_heatmap
from autoprune.report.table import Picture, Table
from autoprune.results import Result

SHOWN = 10
"""How many units the table shows: those whose pruning costs most."""


def curves_picture(result: Result, folder: Path) -> Picture | None:
    """Draw the score against the keep ratio of each unit; ``curves.png``."""
    units = _units(result)
    return Picture(sensitivity_curves(units, folder / "curves.png", title=result.title)) if units else None


def heatmap_picture(result: Result, folder: Path) -> Picture | None:
    """Draw the score drop of each unit at each keep ratio; ``heatmap.png``."""
    units = _units(result)
    return Picture(sensitivity_heatmap(units, folder / "heatmap.png", title=result.title)) if units else None


def sensitivity_table(result: Result, folder: Path) -> Table | None:
    """Return the units whose pruning costs most at their narrowest, with their score at each keep ratio."""
    if "curves" not in result.figures:
        return None
    measured = [(one, dict(one["scores"])) for one in result.figures["curves"]]
    rows = []
    for one, scores in sorted(measured, key=lambda pair: min(pair[1].values()))[:SHOWN]:
        found = (scores.get(count) for count in one["kept"].values())
        cells = ("" if score is None else f"{score:+.3f}" for score in found)
        rows.append([one["unit"], str(one["channels"]), *cells])
    header = ["unit", "channels", *(f"keep {ratio}" for ratio in measured[0][0]["kept"])]
    return Table(f"The most sensitive of {len(measured)} units: score when it alone is pruned", header, rows)


def _units(result: Result) -> list[UnitCurve]:
    return [
        UnitCurve(one["unit"], one["channels"], tuple((keep / one["channels"], score) for keep, score in one["scores"]))
        for one in result.figures.get("curves", ())
    ]
