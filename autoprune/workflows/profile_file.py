"""What a profile found, and how ``profile.json`` keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoprune.image_size import ImageSize
from autoprune.latency.layers import LayerShares, LayerWork, Staircase
from autoprune.latency.predictor import Sample
from autoprune.latency.timing import Timing
from autoprune.results import Result, Stage
from autoprune.runtimes import RuntimeSettings
from autoprune.runtimes.settings import threads_in_words
from autoprune.structure.space import Allocation
from autoprune.workflows.prediction import Prediction


@dataclass(frozen=True)
class Profile:
    """What a profile found.

    Attributes:
        name: of the model.
        image_size: of the input.
        costs: of the dense network by metric: FLOPs of one image, parameters, bytes, channels of all units.
        settings: how networks ran.
        environment: what the measurements depend on.
        units: names of all units.
        dense: the dense network's times.
        narrowest: the times with every unit at its lower bound.
        lowest: that allocation.
        lowest_costs: of that allocation, as ``costs``.
        works: what the deployed layers do in one run.
        shares: what of the latency they take.
        fixed_flops: FLOPs of one run that no layer describes.
        staircases: latency by the width of each unit that can be pruned, the widest range first.
        prediction: the predictor and the networks that it was made from.
        fresh: networks measured for ``check``.
    """

    name: str
    image_size: ImageSize
    costs: Mapping[str, float]
    settings: RuntimeSettings
    environment: Mapping[str, Any]
    units: tuple[str, ...]
    dense: Timing
    narrowest: Timing
    lowest: Allocation
    lowest_costs: Mapping[str, float]
    works: Sequence[LayerWork]
    shares: LayerShares
    fixed_flops: float
    staircases: Sequence[Staircase]
    prediction: Prediction
    fresh: Sequence[Sample]

    @property
    def flops(self) -> float:
        """FLOPs of one run."""
        return sum(work.flops for work in self.works) + self.fixed_flops

    def ordered(self) -> list[tuple[LayerWork, float]]:
        """Return the layers with their shares of the latency, the largest first."""
        pairs = zip(self.works, self.shares.layers.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])


def to_result(profile: Profile) -> Result:
    """Return a profile as a result, whose JSON is ``profile.json``.

    All times are milliseconds of one run of ``runtime.batch`` images, all shares are of the dense network's whole.

    ``stages``: ``dense`` and ``narrowest``, which has every unit at its lower bound (``keep``): the reachable minimum.
    Their details are image (milliseconds of one image) and images_per_second.
    ``model``: name, image_size (one number for a square, else height and width).
    ``runtime``: device, runtime, precision, threads, batch, image_size, memory_format, with_nms.
    ``layers``: source (``measured alone`` or ``modelled``), scale (what times of layers alone were multiplied with so
    that they do not exceed the whole), rows, and rest. A row has name, operation, c_in, c_out, height and width of its
    output, flops, bytes (weights, input and output, each once), share of the latency, milliseconds, flops_share. The
    rest has a name, share and milliseconds for each part; all shares sum to 1. ``rest_flops`` no layer describes.
    ``staircases``: per unit that can be pruned its name, widths, predicted and measured milliseconds (null where they
    were not measured), range (milliseconds from dense to narrowest), worth (widths worth choosing: the widest of each
    step) and free (widths that cost as much as a wider one). The widest range first.
    ``predictor``: held_out and check (null without `check`), each median_abs_rel, p90_abs_rel, spearman, n; and
    networks: role (fitted, held_out, fresh), keep (counts in the order of ``units``), predicted, measured, spread
    (half width of the measured ratio's 90% interval, relative).
    ``units``: the names of all units.
    """
    keep = dict(zip(profile.units, profile.lowest, strict=True))
    return Result(
        command="profile",
        title=f"{profile.name} at {profile.image_size} px, {_described(profile.settings)}",
        metric_names=(),
        stages={
            "dense": _stage(profile.dense, profile.costs, profile.settings.batch),
            "narrowest": _stage(profile.narrowest, profile.lowest_costs, profile.settings.batch, keep=keep),
        },
        figures={
            "model": {"name": profile.name, "image_size": profile.image_size.plain},
            "runtime": profile.settings.to_json(),
            "layers": _layers(profile),
            "staircases": [_staircase(one) for one in profile.staircases],
            "predictor": profile.prediction.to_json(profile.dense.median, profile.fresh),
            "units": list(profile.units),
        },
        environment=profile.environment,
    )


def _stage(timing: Timing, costs: Mapping[str, float], batch: int, **details: Any) -> Stage:
    """Return a network with the times of one run, and what an image of its batch takes."""
    per_image = {"image": timing.median / batch, "images_per_second": 1e3 * batch / timing.median}
    return Stage(None, costs, {"latency": timing.to_json()}, {**per_image, **details})


def _described(settings: RuntimeSettings) -> str:
    """Return how networks ran, as a title says it."""
    words = [f"{settings.runtime.value} on {settings.device}", settings.precision.value, f"batch {settings.batch}"]
    if settings.device == "cpu":
        words.append(threads_in_words(settings.threads))
    if settings.with_nms:
        words.append("with NMS")
    return ", ".join(words)


def _layers(profile: Profile) -> dict[str, Any]:
    rows = [
        {
            "name": work.layer.name,
            "operation": work.operation,
            "c_in": work.c_in,
            "c_out": work.c_out,
            "height": work.layer.out_hw[0],
            "width": work.layer.out_hw[1],
            "flops": work.flops,
            "bytes": work.traffic,
            "share": share,
            "milliseconds": share * profile.dense.median,
            "flops_share": work.flops / profile.flops,
        }
        for work, share in profile.ordered()
    ]
    rest = [
        {"name": name, "share": share, "milliseconds": share * profile.dense.median}
        for name, share in profile.shares.rest.items()
    ]
    return {
        "source": profile.shares.source.value,
        "scale": profile.shares.scale,
        "rows": rows,
        "rest": rest,
        "rest_flops": profile.fixed_flops,
    }


def _staircase(one: Staircase) -> dict[str, Any]:
    return {
        "unit": one.unit,
        "widths": list(one.widths),
        "predicted": list(one.predicted),
        "measured": list(one.measured) if one.measured is not None else None,
        "range": one.range,
        "worth": list(one.worth),
        "free": list(one.free),
    }
