"""The tables that commands end with, made from their result: one for networks, one for comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.metrics import format_amount, is_measured, spec_of
from autoprune.report.table import Table
from autoprune.results import Compared, Metrics, Result, Stage

NOTHING = "–"
"""A cell whose value was not measured."""

UNDER_LOAD = " (measured under load)"
"""Follows the name of a latency or energy that others disturbed; its figures are tenth percentiles, not medians."""

_FINE = ("export", "quantize")
"""Commands whose networks hardly differ: their metrics have four decimals."""

_FEWEST_CLASSES, _MOST_CLASSES = 2, 40
"""A single class is the whole, and more than forty are a list that nobody reads."""

_DETAILS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "scale_median": ("median scale", "{:.3g}".format),
    "scales_near_zero": ("scales near zero", "{:.1%}".format),
    "zeros": ("zeros", "{:.1%}".format),
    "convolutions": ("convolutions", str),
    "two_of_four": ("2:4 as deployed", str),
    "compressed_bytes": ("compressed", lambda value: format_amount("size", value)),
    "paired_ratio": ("paired ratio", lambda value: f"{value['ratio']:.3f} ± {value['ratio'] * value['spread']:.3f}"),
    "image": ("one image", "{:.3f} ms".format),
    "images_per_second": ("images/s", "{:.1f}".format),
    "score_difference": ("largest difference of a score", "{:.2g}".format),
    "box_difference_px": ("largest difference of a box", "{:.2g} px".format),
}
"""Label and format of `Stage.details`; those that are not here are in the JSON only."""


def stage_table(result: Result, folder: Path) -> Table | None:
    """Return the table of a result's networks: metrics, costs with their ratio to the first network, latencies."""
    stages = list(result.stages.values())
    if not stages or result.compared:
        return None
    digits = 4 if result.command in _FINE else 3
    measured = [one.metrics for one in stages]
    rows = [[name, *(_metric(one, name, digits) for one in measured)] for name in result.metric_names if any(measured)]
    for metric in dict.fromkeys(metric for one in stages for metric in (*one.costs, *one.latencies)):
        label = metric if "@" in metric else spec_of(metric).label
        if any(one.latencies.get(metric, {}).get("under_load") for one in stages):
            label += UNDER_LOAD
        rows.append([label, *(_cost(metric, one, stages[0]) for one in stages)])
        if is_measured(metric):
            rows.append(["p10 – p90", *(_range(metric, one.latencies.get(metric)) for one in stages)])
    for name, (label, form) in _DETAILS.items():
        if any(name in one.details for one in stages):
            values = (one.details.get(name) for one in stages)
            rows.append([label, *(NOTHING if value is None else form(value) for value in values)])
    return Table(result.title, ["", *result.stages], rows)


def class_table(result: Result, folder: Path) -> Table | None:
    """Return the table of the primary metric of each class, with its change from the first network."""
    stages = {name: one.metrics.per_class for name, one in result.stages.items() if one.metrics is not None}
    first = next(iter(stages.values()), {})
    if result.compared or not _FEWEST_CLASSES <= len(first) <= _MOST_CLASSES:
        return None
    name = result.metric_names[0]
    rows = [
        [kind, *(_change(one.get(kind, {}).get(name), first[kind].get(name)) for one in stages.values())]
        for kind in first
    ]
    return Table(f"{result.title}: {name} of each class", ["", *stages], rows)


def workers_table(result: Result, folder: Path) -> Table | None:
    """Return the table of what workers were used for; None if this process computed all candidates."""
    used = result.figures.get("workers")
    if used is None:
        return None
    header = ["workers", "tasks", "speed-up", "busy", "computed again"]
    row = [str(used["workers"]), str(used["tasks"]), f"{used['speed_up']:.1f}", f"{used['busy']:.0%}"]
    return Table("Workers", header, [[*row, str(used["repeated"])]])


def comparison_table(result: Result, folder: Path) -> Table | None:
    """Return the table of a comparison: mean ± standard deviation over seeds, then the dense network and references."""
    searched, references = compared_rows(result)
    if not searched:
        return None
    metric, primary = next(iter(searched[0].costs)), result.metric_names[0]
    dense = result.stages["dense"].metrics
    rows = [_compared(row, metric) for row in searched]
    rows.append(["dense", "0", f"{dense.primary:.3f}" if dense is not None else NOTHING, NOTHING, "100%", "", ""])
    rows += [_compared(row, metric) for row in references]
    header = ["", "score", primary, "fine-tuned", metric, "evaluations", "seconds"]
    return Table(result.title, header, rows)


def compared_rows(result: Result) -> tuple[Sequence[Compared], Sequence[Compared]]:
    """Return the strategies or criteria of a comparison, the best mean score first, and its references."""
    rows = [row for kind, rows in result.compared.items() if kind != "references" for row in rows]
    return sorted(rows, key=lambda row: -float(np.mean(row.scores))), result.compared.get("references", ())


def primaries(found: Sequence[Metrics]) -> list[float]:
    """Return the primary metric of each."""
    return [one.primary for one in found]


def _compared(row: Compared, metric: str) -> list[str]:
    return [
        row.name,
        _spread(row.scores, "+.4f") if row.scores else "",
        _spread(primaries(row.before)),
        _spread(primaries(row.after)),
        f"{np.mean(row.costs[metric]):.1%}",
        f"{np.mean(row.evaluations):.0f}" if row.evaluations else "",
        f"{np.mean(row.seconds):.3g}" if row.seconds else "",
    ]


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    """Return mean ± standard deviation, as a few seeds estimate it of all (n − 1)."""
    if not values:
        return NOTHING
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{form.lstrip('+')}}"


def _metric(metrics: Metrics | None, name: str, digits: int) -> str:
    return NOTHING if metrics is None else f"{metrics[name]:.{digits}f}"


def _change(value: float | None, before: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if before is None or value == before else f"{value:.3f} ({value - before:+.3f})"


def _cost(metric: str, stage: Stage, first: Stage) -> str:
    value, before = stage.cost(metric), first.cost(metric)
    if np.isnan(value):
        return NOTHING
    text = format_amount(metric, value)
    return text if stage is first or not before > 0 else f"{text} ({value / before:.0%})"


def _range(metric: str, measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return NOTHING
    low, high = (format_amount(metric, measured[name]) for name in ("p10", "p90"))
    return f"{low.removesuffix(f' {spec_of(metric).suffix}')} – {high}"
