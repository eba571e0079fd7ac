"""The sections of a profile: where the latency goes, which widths are free, and how well latency is predicted.

Each reads the figures of the result, which `autoprune.workflows.profile_file` describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.budget import format_amount
from autoprune.latency.layers import ShareSource
from autoprune.report.profile import BarKind, LayerBar, NetworkRole, PredictedNetwork, layer_bars, prediction_plot
from autoprune.report.staircase import UnitSteps, staircases
from autoprune.report.table import Picture, Table
from autoprune.results import Result

SHOWN_LAYERS, SHOWN_UNITS, SHOWN_WIDTHS = 15, 10, 12
DRAWN_LAYERS, DRAWN_UNITS = 24, 20

_HOW = {
    ShareSource.ALONE.value: "layers measured alone, paired with the whole network",
    ShareSource.MODEL.value: "shares modelled from each layer's work; the whole is measured",
}


def layers_picture(result: Result, folder: Path) -> Picture | None:
    """Draw each layer's share of the latency next to that of the FLOPs; ``layers.png``."""
    if "layers" not in result.figures:
        return None
    layers, flops = result.figures["layers"], _flops(result)
    rows, others = layers["rows"][:DRAWN_LAYERS], layers["rows"][DRAWN_LAYERS:]
    bars = [
        LayerBar(f"{one['name']}  {one['operation']}  {one['c_in']}→{one['c_out']}", one["share"], one["flops_share"])
        for one in rows
    ]
    if others:
        latency, share = (sum(one[name] for one in others) for name in ("share", "flops_share"))
        bars.append(LayerBar(f"{len(others)} more layers", latency, share, BarKind.SUM))
    fixed = layers["rest_flops"] / flops
    bars += [
        LayerBar(one["name"], one["share"], 0.0 if index else fixed, BarKind.SUM)
        for index, one in enumerate(layers["rest"])
    ]
    return Picture(layer_bars(bars, folder / "layers.png", title=result.title, note=_HOW[layers["source"]]))


def staircase_picture(result: Result, folder: Path) -> Picture | None:
    """Draw latency by the width of the units that matter most; ``staircase.png``."""
    if "staircases" not in result.figures:
        return None
    found = result.figures["staircases"]
    units = [
        UnitSteps(one["unit"], one["widths"], one["predicted"], one["measured"], one["worth"])
        for one in found[:DRAWN_UNITS]
    ]
    of = f"latency by the width of one unit, all others dense (the {len(units)} of {len(found)} units that matter most)"
    return Picture(staircases(units, folder / "staircase.png", title=f"{result.title}: {of}"))


def prediction_picture(result: Result, folder: Path) -> Picture | None:
    """Draw predicted against measured latency; ``predicted.png``."""
    if "predictor" not in result.figures:
        return None
    networks = [
        PredictedNetwork(NetworkRole[one["role"].upper()], one["predicted"], one["measured"])
        for one in result.figures["predictor"]["networks"]
    ]
    path, errors = folder / "predicted.png", error_lines(result)
    return Picture(prediction_plot(networks, path, title=result.title, errors=errors))


def layers_table(result: Result, folder: Path) -> Table | None:
    """Return the layers that take most of the latency, the others summed, and what is no layer."""
    if "layers" not in result.figures:
        return None
    layers, flops = result.figures["layers"], _flops(result)
    shown, others = layers["rows"][:SHOWN_LAYERS], layers["rows"][SHOWN_LAYERS:]
    rows = [
        [
            one["name"],
            one["operation"],
            f"{one['c_in']} → {one['c_out']}",
            f"{one['height']}×{one['width']}",
            *_amounts(one, flops),
        ]
        for one in shown
    ]
    if others:
        total = {name: sum(one[name] for one in others) for name in ("flops", "bytes", "share", "milliseconds")}
        rows.append([f"{len(others)} more layers", "", "", "", *_amounts(total, flops)])
    for index, one in enumerate(layers["rest"]):
        fixed = 0.0 if index else layers["rest_flops"]
        rows.append([one["name"], "", "", "", *_amounts({**one, "flops": fixed}, flops)])
    header = ["layer", "operation", "channels", "output", "FLOPs", "of all", "moved", "latency", "share"]
    return Table(f"Where the latency goes: {_HOW[layers['source']]}", header, rows)


def staircase_table(result: Result, folder: Path) -> Table | None:
    """Return the units whose width matters most, with the widths worth choosing."""
    if "staircases" not in result.figures:
        return None
    found = result.figures["staircases"]
    rows = [
        [
            one["unit"],
            str(one["widths"][-1]),
            f"{one['range']:.3f} ms",
            str(len(one["free"])),
            listed_widths(one["worth"]) if one["free"] else "all",
        ]
        for one in found[:SHOWN_UNITS]
    ]
    modelled = result.figures["layers"]["source"] == ShareSource.MODEL.value
    how = "predicted" if modelled else "its layers measured alone"
    title = f"Latency by the width of one unit, {how}: the {len(rows)} of {len(found)} units that matter most"
    return Table(title, ["unit", "channels", "range", "free widths", "widths worth choosing"], rows)


def error_lines(result: Result) -> list[str]:
    """Return how far predictions are off: of networks held out, and of fresh ones if there are any."""
    named = {"held_out": "networks held out", "check": "fresh networks"}
    found = {which: result.figures["predictor"][name] for name, which in named.items()}
    return [
        f"off by {one['median_abs_rel']:.1%} (median; p90 {one['p90_abs_rel']:.1%}, Spearman {one['spearman']:.3f}, "
        f"{one['n']} {which})"
        for which, one in found.items()
        if one is not None
    ]


def listed_widths(widths: Sequence[int]) -> str:
    """Return widths as a column of a table has room for: the first and the last ones, if they are many."""
    words = list(map(str, widths))
    if len(words) > SHOWN_WIDTHS:
        half = SHOWN_WIDTHS // 2
        words[half:-half] = ["…"]
    return " ".join(words)


def _flops(result: Result) -> float:
    """Return the FLOPs of one run."""
    layers = result.figures["layers"]
    return float(sum(one["flops"] for one in layers["rows"]) + layers["rest_flops"])


def _amounts(row: Mapping[str, Any], flops: float) -> list[str]:
    return [
        format_amount("flops", row["flops"]) if row["flops"] else "",
        f"{row['flops'] / flops:.1%}" if row["flops"] else "",
        format_amount("size", row["bytes"]) if "bytes" in row else "",
        f"{row['milliseconds']:.3f} ms",
        f"{row['share']:.1%}",
    ]
