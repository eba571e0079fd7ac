"""``autoprune sensitivity``: how the score falls when each unit alone is pruned."""

from __future__ import annotations

import numpy as np

from autoprune.config import SensitivityConfig
from autoprune.evaluation.runners import usage_figures
from autoprune.listener import Listener
from autoprune.report.sections import publish
from autoprune.results import Result
from autoprune.strategies.curves import CurvesHeader, curves_from, probe_plan
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder, environment
from autoprune.workflows.run import dense_network, make_evaluator, runner_of, with_model


def run(config: SensitivityConfig, listener: Listener, caller: Caller) -> Finished:
    """Score every unit at every ratio, one at a time; write ``sensitivity.json``, ``summary.json`` and two pictures."""
    with RunFolder.open("sensitivity", config, caller) as folder:
        _measure(with_model(config), folder, listener)
    return Finished(folder.path)


def _measure(config: SensitivityConfig, folder: RunFolder, listener: Listener) -> None:
    listener.stages(stages.of_sensitivity(config))
    listener.stage(stages.OPEN)
    network = dense_network(config, folder, listener)
    network.check_prunable()
    plan = probe_plan(network.space, config.keep_ratios)
    runner = runner_of(config, network, folder, listener)
    evaluator = make_evaluator(network, config, folder, listener, runner=runner)
    evaluator.rebase(network.space.allocation(network.space.dense))
    listener.stage(stages.PROBE)
    scores: list[float] = []
    with listener.progress("Sensitivity", len(plan)) as advance:
        for found in evaluator.each(plan):
            scores.append(found.score)
            advance(len(scores))
    curves = curves_from(network.space, plan, scores)
    header = CurvesHeader(network.described, config.criterion, config.images, config.seed)
    file = folder.path / "sensitivity.json"
    curves.save(file, header)
    kept = {ratio: network.space.round_down(np.full(len(network.space), ratio)) for ratio in config.keep_ratios}
    result = Result(
        command=folder.command,
        title=f"{network.adapter.name} at {network.adapter.image_size} px, {config.criterion}",
        metric_names=network.adapter.metric_names,
        figures={
            "curves": [
                {
                    "unit": curve.unit,
                    "channels": curve.width,
                    "scores": [list(point) for point in curve.points],
                    "kept": {f"{ratio:g}": int(counts[index]) for ratio, counts in kept.items()},
                }
                for index, curve in enumerate(curves.curves)
                if curve.points
            ],
            **usage_figures(runner),
        },
        environment=environment(),
    )
    publish(result, folder.path / "summary.json", listener)
    listener.note(f"The curves are {file}, {folder.path / 'curves.png'} and {folder.path / 'heatmap.png'}.")
