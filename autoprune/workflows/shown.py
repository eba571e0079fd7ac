"""What a report shows and no other file of a run holds: detections on validation images, and the search itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from autoprune.listener import Listener, tracked
from autoprune.models._base import Adapter, Batch
from autoprune.report.detections import FILE, LOOKED_AT, SHOWN, Shown, differing, write_detections
from autoprune.results import Detection, Metrics
from autoprune.strategies._base import Candidate
from autoprune.structure.constraint import Constraint, Cost
from autoprune.structure.graph import ChannelGraph

_FRONTS = ("flops", "params")
_BATCH, _QUALITY = 16, 85


Detector = Callable[[Batch], Sequence[Sequence[Detection]] | None]
"""Returns what a network detects in each image of a batch; None if its task has no upright boxes."""


def keep_detections(
    adapter: Adapter, networks: Mapping[str, nn.Module | Detector], folder: Path, listener: Listener
) -> None:
    """Write what networks detect on the validation images on which the first and the last one differ most.

    Nothing is written if the data set has no such images, or the task no boxes; what is there already stays.

    Args:
        adapter: has the data.
        networks: by name; one that is no module of the adapter, such as an exported file, as what detects with it.
        folder: of the run.
        listener: hears why there are none.
    """
    if not (folder / FILE).exists() and adapter.has_images:
        with _optional(listener):
            _write(adapter, networks, folder)


def keep_best_detections(
    adapter: Adapter, compared: Mapping[str, Metrics | None], folder: Path, listener: Listener
) -> None:
    """Write what the dense network and the best one of a comparison detect, as `keep_detections`.

    A comparison that is extended may have another best network: what is there already is replaced.

    Args:
        adapter: has the data.
        compared: the fine-tuned metrics of networks, by the name of their folder in ``networks``; those whose
            checkpoint lies elsewhere, or that were not fine-tuned, take no part.
        folder: of the run.
        listener: hears why there are none.
    """
    paths = {name: adapter.checkpoint(folder / "networks" / name, "model") for name in compared}
    primary = {name: one.primary for name, one in compared.items() if one is not None and paths[name].exists()}
    if primary and adapter.has_images:
        best = max(primary, key=lambda name: primary[name])
        with _optional(listener):
            _write(adapter, {"dense": adapter.module, best: adapter.reopen(paths[best])}, folder)


@contextmanager
def _optional(listener: Listener) -> Iterator[None]:
    """Let a run go on without detections, whatever becomes of them."""
    try:
        yield
    except Exception as error:
        listener.warn(f"The report shows no detections: {str(error) or type(error).__name__}")


def _write(adapter: Adapter, networks: Mapping[str, nn.Module | Detector], folder: Path) -> None:
    if images := _images(adapter, networks):
        write_detections(images, folder)


def _images(adapter: Adapter, networks: Mapping[str, nn.Module | Detector]) -> list[Shown]:
    detectors: dict[str, Detector] = {
        name: partial(adapter.detections, one) if isinstance(one, nn.Module) else one for name, one in networks.items()
    }
    found: list[tuple[float, Shown]] = []
    for batch in tracked(adapter.batches("val", images=LOOKED_AT, batch=_BATCH, seed=0), "Detecting"):
        by_network: dict[str, Sequence[Sequence[Detection]]] = {}
        for name, detect in detectors.items():
            detections = detect(batch)
            if detections is None:
                return []
            by_network[name] = detections
        for place, (pixels, truth) in enumerate(zip(adapter.inputs(batch), adapter.objects(batch), strict=True)):
            marks = {name: each[place] for name, each in by_network.items()}
            first, *_, last = marks.values()
            shown = Shown(pixels.shape[2], pixels.shape[1], _jpeg(pixels), truth, marks)
            found.append((differing(first, last), shown))
    return [shown for _, shown in sorted(found, key=lambda pair: -pair[0])[:SHOWN]]


def _jpeg(pixels: torch.Tensor) -> bytes:
    """Return an image of shape (channels, H, W), values in [0, 1], as JPEG; other than RGB as grey."""
    colours = pixels if len(pixels) == 3 else pixels.mean(0, keepdim=True).expand(3, -1, -1)
    picture = (colours.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).flip(2).contiguous().cpu().numpy()
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1])


def shown_costs(static: Mapping[str, Cost], constraint: Constraint) -> dict[str, Cost]:
    """Return the costs that a report shows scores against, by metric: FLOPs, parameters, and predicted latency."""
    predicted = {limit.cost.metric: limit.cost for limit in constraint.limits if limit.cost.predicted}
    return {**{metric: static[metric] for metric in _FRONTS}, **predicted}


def search_figures(
    history: Sequence[Candidate], costs: Mapping[str, Cost], chosen: Candidate, *, prior: int
) -> dict[str, Any]:
    """Return every candidate that a search scored, in order: its score and its cost by metric.

    Args:
        history: the candidates; those of the prior first.
        costs: by metric.
        chosen: what ships; added at the end if the search did not score it, as a network that was fitted to its budget
            afterwards.
        prior: how many candidates the prior tried.
    """
    if all(candidate.allocation != chosen.allocation for candidate in history):
        history = [*history, chosen]
    counts = np.array([candidate.allocation for candidate in history])
    return {
        "scores": [round(candidate.score, 5) for candidate in history],
        "costs": {metric: [float(f"{value:.5g}") for value in cost(counts)] for metric, cost in costs.items()},
        "prior": prior,
        "chosen": next(place for place, candidate in enumerate(history) if candidate.allocation == chosen.allocation),
    }


def pinned_layers(graph: ChannelGraph) -> list[dict[str, Any]]:
    """Return the layers that keep all their channels: the reason, their width, and how many units come before each."""
    firsts = [unit.groups[0] for unit in graph.units]
    return [
        {
            "layer": group.name,
            "why": group.pinned,
            "channels": group.size,
            "units_before": sum(first < place for first in firsts),
        }
        for place, group in enumerate(graph.groups)
        if group.pinned is not None and group.pinned != "network input"
    ]
