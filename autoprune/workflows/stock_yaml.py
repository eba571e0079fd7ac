"""Networks that their own tool can describe: the description written down, and what it costs to consider no others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from autoprune.errors import ModelError
from autoprune.io.files import write_atomic
from autoprune.metrics import is_measured
from autoprune.models._base import Adapter
from autoprune.structure.constraint import Constraint, CostLimit
from autoprune.workflows.run import PruningRun

Price = Mapping[str, float]


def describe(module: nn.Module, adapter: Adapter, folder: Path, *, required: bool) -> nn.Module:
    """Write down what stock training does to the checkpoints of a network, and return it as they hold it.

    Where its own tool can describe the network, that is a copy which carries its description, which is written, too.

    Args:
        module: the pruned network.
        adapter: of its family.
        folder: of its checkpoints.
        required: whether only describable networks were considered.

    Raises:
        ModelError: a description is required, and none expresses the network.
    """
    description = adapter.description
    if description is None:
        return module
    about = description.lost
    try:
        module, text = description.described(module)
    except ModelError:
        if required:
            raise
    else:
        write_atomic(folder / f"pruned{description.suffix}", text)
        about = description.kept
    write_atomic(folder / "model.txt", about + "\n")
    return module


def price(run: PruningRun, constraint: Constraint, limits: Mapping[str, float]) -> Price:
    """Score the uniform ratio on the budget twice: with tied units, and with all units free.

    The uniform ratio stands for where a search starts; how far a search gets from there is not in it. It takes the
    time of three evaluations. The predictor of a latency knows tied units only: in place of a latency limit the free
    units have the FLOPs that the tied ones come to.

    Args:
        run: of a network whose units are tied.
        constraint: the budget on the tied units.
        limits: the budget, what each metric may be at most.

    Returns:
        The scores ``uniform`` and ``uniform_untied``.
    """
    untied = run.network.untied()
    tied = constraint.allocation(np.zeros(len(constraint.space)))
    expressed = untied.space.from_names(run.network.keep(tied))
    static = untied.static_costs
    cost_limits = [CostLimit(static[metric], most) for metric, most in limits.items() if not is_measured(metric)]
    if len(cost_limits) < len(limits):
        cost_limits.append(CostLimit(static["flops"], float(static["flops"](np.array(expressed)))))
    free = Constraint(untied.space, cost_limits).allocation(np.zeros(len(untied.space)))
    evaluator = run.evaluator("untied", untied.pruner)
    with_ties, without = (evaluation.score for evaluation in evaluator([expressed, free]))
    run.listener.note(
        f"Of networks that a stock YAML can express the uniform ratio scores {with_ties:+.4f}, of all {without:+.4f}."
    )
    return {"uniform": with_ties, "uniform_untied": without}
