"""``autoprune profile``: where a network's latency goes, which widths are free, and how well latency is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autoprune.choices import Precision
from autoprune.config import ProfileConfig
from autoprune.costs.static import undescribed_flops
from autoprune.latency.features import deployed_layers
from autoprune.latency.layers import (
    WIDTHS,
    LayerShares,
    LayerWork,
    MeasuredStaircases,
    Staircase,
    layer_shares,
    layer_work,
    predicted_staircases,
    shares_alone,
)
from autoprune.latency.predictor import spread_allocations
from autoprune.latency.timing import Timing
from autoprune.listener import Listener
from autoprune.report.profile import error_lines
from autoprune.report.sections import publish
from autoprune.structure.space import Allocation
from autoprune.workflows import stages
from autoprune.workflows.call import Caller, Finished
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.latency import LatencyEstimator
from autoprune.workflows.network import Network, open_network, pin_threads
from autoprune.workflows.profile_file import Profile, to_result
from autoprune.workflows.run import demonstration

FRESH = 30
"""Allocations that ``check`` measures."""

BUSY = 1.5
"""p90 over p10 of the dense network's times above which users are warned."""

_FRESH_SEED = 10_000  # apart from the seeds of the allocations that predictors are fitted to
_TRIES = 20
_CRITERION = "l1"  # which channels stay does not change a latency


def run(config: ProfileConfig, listener: Listener, caller: Caller) -> Finished:
    """Measure where the latency goes; write ``profile.json`` and three pictures."""
    with RunFolder.open("profile", config, caller) as folder:
        _profile(config, folder, listener)
    return Finished(folder.path)


def _profile(config: ProfileConfig, folder: RunFolder, listener: Listener) -> None:
    pin_threads(config.threads_here, folder, listener)
    listener.stages(stages.of_profile())
    listener.stage(stages.OPEN)
    network = _network(config, listener)
    estimator = LatencyEstimator(network, config, folder, listener)
    listener.stage(stages.LAYERS)
    found = _measured(network, estimator, config, listener)
    result, file = to_result(found), folder.path / "profile.json"
    publish(result, file, listener)
    if found.shares.scale < 1:
        listener.note(
            f"Timed alone, the layers add up to {1 / found.shares.scale:.2f} × the network's latency; shares are "
            "scaled to it."
        )
    if found.dense.p90 / found.dense.p10 > BUSY:
        listener.warn(
            f"The machine is busy: the dense network took {found.dense.p10:.3f} to {found.dense.p90:.3f} ms, so "
            "shares and steps are uncertain; profile again when it is calm."
        )
    for line in error_lines(result):
        listener.note(f"The latency predictor is {line}.")
    listener.note(f"The profile is {file}, with layers.png, staircase.png and predicted.png.")


def _network(config: ProfileConfig, listener: Listener) -> Network:
    """Load and analyse the network; the bundled detector brings its data if ranges must be found."""
    if config.model is None:
        model, data, imgsz = demonstration(config.imgsz, images=config.precision is Precision.INT8)
        config = replace(config, model=model, data=data, imgsz=imgsz)
    network = open_network(
        config, criterion=_CRITERION, round_to=config.round_to, min_keep=config.min_keep, listener=listener
    )
    network.check_prunable()
    return network


def _measured(network: Network, estimator: LatencyEstimator, config: ProfileConfig, listener: Listener) -> Profile:
    """Measure everything, the dense network first: whatever follows is measured against it."""
    space, settings = network.space, estimator.meter.settings
    dense = Timing.from_json(estimator.stage("dense", network.adapter.module))
    lowest = space.allocation(space.lower)
    narrowest = Timing.from_json(estimator.stage("narrowest", network.pruner.materialise(lowest)))
    prediction = estimator.prediction()
    layers = deployed_layers(space.graph.layers, estimator.meter.dense, settings.shape)
    works = layer_work(space, layers, space.dense, batch=settings.batch, width=WIDTHS[settings.precision])
    staircases = predicted_staircases(space, prediction.cost)
    if estimator.meter.layers_alone:
        shares, staircases = _alone(network, estimator, works, staircases, listener)
    else:
        shares = layer_shares(prediction.cost)
    known = {sample.allocation for sample in (*prediction.fitted, *prediction.held_out)}
    fresh = fresh_allocations(network, known, seed=config.seed) if config.check else []
    return Profile(
        name=network.adapter.name,
        image_size=network.adapter.image_size,
        costs=network.costs(space.allocation(space.dense)),
        settings=settings,
        environment=estimator.environment(),
        units=tuple(unit.name for unit in space.units),
        dense=dense,
        narrowest=narrowest,
        lowest=lowest,
        lowest_costs=network.costs(lowest),
        works=works,
        shares=shares,
        fixed_flops=settings.batch * undescribed_flops(network.adapter.module, space.graph, network.adapter.example(1)),
        staircases=staircases,
        prediction=prediction,
        fresh=estimator.fresh(fresh) if fresh else [],
    )


def _alone(
    network: Network,
    estimator: LatencyEstimator,
    works: Sequence[LayerWork],
    predicted: Sequence[Staircase],
    listener: Listener,
) -> tuple[LayerShares, list[Staircase]]:
    """Measure layers alone, paired with the dense network: at their dense widths and along the staircases."""
    plan = MeasuredStaircases(network.space, [work.layer for work in works], predicted)
    listener.note(f"Measuring {len(plan.points)} layers alone, paired with the whole network …")
    times = estimator.meter.measured_shares(plan.points)
    shares = shares_alone(works, times)
    return shares, plan.of(times, shares, estimator.meter.reference.median)


def fresh_allocations(network: Network, known: set[Allocation], *, seed: int) -> list[Allocation]:
    """Return random aligned allocations over all that can be reached and that are not known; fewer if there are few."""
    found: dict[Allocation, None] = {}
    flops = network.static_costs["flops"]
    for attempt in range(_TRIES):
        chosen = _FRESH_SEED + _TRIES * seed + attempt
        drawn = spread_allocations(network.space, flops, number=FRESH, seed=chosen)
        found |= dict.fromkeys(allocation for allocation in drawn if allocation not in known)
        if len(found) >= FRESH:
            break
    return list(found)[:FRESH]
