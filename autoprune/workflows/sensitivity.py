"""``autoprune sensitivity``: how the score falls when each unit alone is pruned."""

from __future__ import annotations

import numpy as np

from autoprune.config import SensitivityConfig
from autoprune.errors import ConfigError
from autoprune.listener import Listener
from autoprune.report.sensitivity import UnitCurve, sensitivity_curves, sensitivity_heatmap
from autoprune.strategies.curves import CurvesHeader, SensitivityCurves, curves_from, probe_plan
from autoprune.structure.space import Space
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.run import dense_network, make_evaluator, with_model

SHOWN = 10
"""How many units the table shows: those whose pruning costs most."""


def run(config: SensitivityConfig, listener: Listener, caller: Caller) -> Finished:
    """Score every unit at every ratio, one at a time; write ``sensitivity.json`` and two pictures."""
    with RunFolder.open("sensitivity", config, caller) as folder:
        _measure(with_model(config), folder, listener)
    return Finished(folder.path)


def _measure(config: SensitivityConfig, folder: RunFolder, listener: Listener) -> None:
    network = dense_network(config, folder, listener)
    plan = probe_plan(network.space, config.keep_ratios)
    if not plan:
        raise ConfigError(
            f"No unit can be pruned with `min_keep` {config.min_keep} and `round_to` {config.round_to}; lower one of "
            "them"
        )
    evaluator = make_evaluator(network, config, folder, listener, kind="evaluation", images=config.images)
    evaluator.rebase(network.space.allocation(network.space.dense))
    scores = []
    with listener.progress("Sensitivity", len(plan)) as advance:
        for done, allocation in enumerate(plan, start=1):
            scores.append(evaluator([allocation])[0].score)
            advance(done)
    curves = curves_from(network.space, plan, scores)
    header = CurvesHeader(network.described, config.criterion, config.images, config.seed)
    file = folder.path / "sensitivity.json"
    curves.save(file, header)
    title = f"{network.adapter.name} at {network.adapter.image_size} px, {config.criterion}"
    drawn = _drawn(curves)
    sensitivity_curves(drawn, folder.path / "curves.png", title=title)
    sensitivity_heatmap(drawn, folder.path / "heatmap.png", title=title)
    _show(curves, config, network.space, listener)
    listener.note(f"The curves are {file}, {folder.path / 'curves.png'} and {folder.path / 'heatmap.png'}.")


def _drawn(curves: SensitivityCurves) -> list[UnitCurve]:
    return [
        UnitCurve(curve.unit, curve.width, tuple((keep / curve.width, score) for keep, score in curve.points))
        for curve in curves.curves
        if curve.points
    ]


def _show(curves: SensitivityCurves, config: SensitivityConfig, space: Space, listener: Listener) -> None:
    """Show the units whose pruning costs most, at their narrowest."""
    kept = {ratio: space.round_down(np.full(len(space), ratio)) for ratio in config.keep_ratios}
    measured = [(index, dict(curve.points)) for index, curve in enumerate(curves.curves) if curve.points]
    rows = []
    for index, scores in sorted(measured, key=lambda item: min(item[1].values()))[:SHOWN]:
        found = (scores.get(int(counts[index])) for counts in kept.values())
        unit = space.units[index]
        rows.append([unit.name, str(unit.width), *("" if score is None else f"{score:+.3f}" for score in found)])
    header = ["unit", "channels", *(f"keep {ratio:g}" for ratio in kept)]
    listener.table(f"The most sensitive of {len(measured)} units: score when it alone is pruned", header, rows)
