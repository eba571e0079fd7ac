"""Measurements cached on the disk for the next search, and the timing of single layers that fills the cache."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from autoprune.errors import RunError
from autoprune.io.files import write_atomic
from autoprune.latency.tables import Point
from autoprune.latency.timing import time_interleaved
from autoprune.listener import tracked
from autoprune.runtimes import Backend, Runner, Times
from autoprune.runtimes.load import LoadWatch
from autoprune.runtimes.settings import fingerprint_key
from autoprune.structure.graph import LayerKind

ANCHOR = Point(LayerKind.CONV, (3, 3), (1, 1), (40, 40), (40, 40), 1, 64, 64)
"""A layer timed along with all others: its time says how fast the machine is at the moment."""

_SCHEMA = 2
_WARM_UP = 2
_CHUNK_POINTS = 600  # oneDNN keeps 1024 prepared kernels; with more layers every run would prepare its kernel again
_CHUNK_ELEMENTS = 128 * 2**20
_CONSTANTS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_QUANTILE = 25  # disturbances only make runs longer, and hit a whole network more often than a layer


class LatencyCache:
    """A file with all measurements for one fingerprint of device, runtime and settings.

    A file that is missing, unreadable or of another fingerprint counts as empty. If the disk refuses to write, the
    next search measures again; the current one is not affected.

    Args:
        folder: where the files are; None for ``$AUTOPRUNE_CACHE/latency``, or else ``~/.cache/autoprune/latency``.
        fingerprint: the conditions that the measurements hold for.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self.fingerprint = dict(fingerprint)
        self.path = (folder or default_folder()) / f"{fingerprint_key(fingerprint)}.json"

    def load(self) -> dict[str, Any]:
        """Return the cached values by key."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["schema"] != _SCHEMA or content["fingerprint"] != self.fingerprint:
                return {}
            return dict(content["values"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def save(self, values: Mapping[str, Any]) -> None:
        """Add plain JSON values to the file; values that another process added meanwhile stay."""
        with suppress(OSError, RunError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")):
                merged = self.load() | dict(values)
                content = {"schema": _SCHEMA, "fingerprint": self.fingerprint, "values": dict(sorted(merged.items()))}
                write_atomic(self.path, json.dumps(content, indent=1))


def network_key(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> str:
    """Return a hash of what a network computes, whatever its weights: each operation, its constants and its shapes.

    Args:
        module: the network; it is not modified.
        shape: of its input.
        device: where it runs, twice.

    Example:
        >>> from torch import nn
        >>> keys = {
        ...     network_key(net, (1, 3, 8, 8), torch.device("cpu"))
        ...     for net in (nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1, stride=2))
        ... }
        >>> len(keys)
        2
    """
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(module).to(device, torch.float32).eval()
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
        copied(image)  # caches of a first run are not what is measured
        with _Operations() as operations:
            copied(image)
    return fingerprint_key({"operations": operations.seen})


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that run inside.

    Attributes:
        seen: each with its arguments and results in words, tensors as their shapes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.seen.append(f"{func} {tree_map(_in_words, (args, kwargs, results))}")
        return results


def _in_words(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return value if isinstance(value, _CONSTANTS) else type(value).__name__  # others may be named by their address


def default_folder() -> Path:
    """Return the folder of the cache files if the caller names none."""
    cache = os.environ.get("AUTOPRUNE_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "autoprune") / "latency"


def look_up(cache: LatencyCache, backend: Backend, points: Iterable[Point]) -> dict[Point, float]:
    """Return the milliseconds of all points; missing ones are measured and added to the cache.

    Times measured at different moments are made comparable by the anchor, a layer that is timed every time; what
    other processes disturbed is not added.
    """
    wanted = sorted(set(points), key=lambda point: point.key)
    known = {key: value for key, value in cache.load().items() if isinstance(value, float) and value > 0}
    missing = [point for point in wanted if point.key not in known]
    if missing:
        watch = LoadWatch()
        measured = measure_points(backend, missing, anchor=known.get(ANCHOR.key))
        if not watch.disturbs(backend.settings.threads):
            cache.save(measured)
        known |= measured
    return {point: known[point.key] for point in wanted}


def measure_points(backend: Backend, points: Sequence[Point], *, anchor: float | None = None) -> dict[str, float]:
    """Time single layers, interleaved round by round, so that a drift of the machine affects all of them equally.

    Args:
        backend: runs the layers.
        points: the layers.
        anchor: milliseconds of ``ANCHOR`` that the result is scaled to; None for those of the first measurement.

    Returns:
        Milliseconds by the points' keys, including the anchor's.
    """
    found: dict[str, float] = {}
    with backend.session():
        prepared = _prepared(backend, [ANCHOR])[0]
        for chunk, times in _timed_chunks(backend, prepared, points, rounds=(3, 12), seconds=20.0):
            medians = np.median(times, axis=0)
            anchor = float(medians[0]) if anchor is None else anchor
            scaled = medians * (anchor / medians[0])
            found.update(zip((point.key for point in [ANCHOR, *chunk]), scaled.tolist(), strict=True))
    return found


def paired_shares(backend: Backend, whole: Runner, points: Sequence[Point]) -> dict[str, float]:
    """Return the time of single layers as shares of the whole network's time, by the points' keys.

    Every round runs the network and all layers once, so that a drift of the machine affects both equally. Layers run
    one after another, as in the network, so a layer does not find its weights in the processor's cache.

    Args:
        backend: runs the layers; the caller holds its session.
        whole: the network, loaded by the same backend.
        points: the layers, each once.
    """
    found: dict[str, float] = {}
    for chunk, times in _timed_chunks(backend, whole, points, rounds=(5, 40), seconds=8.0):
        typical = np.percentile(times, _QUANTILE, axis=0)
        found.update(zip((point.key for point in chunk), (typical[1:] / typical[0]).tolist(), strict=True))
    return found


def chunks(points: Sequence[Point], batch: int) -> Iterator[list[Point]]:
    """Split points into lists that fit into memory and into the runtime's own caches."""
    chunk: list[Point] = []
    elements = 0
    for point in points:
        size = point.weights + int(np.prod(point.shape(batch)))
        if chunk and (len(chunk) >= _CHUNK_POINTS or elements + size > _CHUNK_ELEMENTS):
            yield chunk
            chunk, elements = [], 0
        chunk.append(point)
        elements += size
    if chunk:
        yield chunk


def _prepared(backend: Backend, points: Sequence[Point]) -> list[Runner]:
    return [backend.prepare(point.build(), point.shape(backend.settings.batch)) for point in points]


def _timed_chunks(
    backend: Backend, first: Runner, points: Sequence[Point], *, rounds: tuple[int, int], seconds: float
) -> Iterator[tuple[list[Point], Times]]:
    """Yield chunks of points with their times, shape (rounds, 1 + points): ``first`` runs in every round, too.

    Args:
        backend: runs the layers.
        first: runs at the start of each round.
        points: the layers.
        rounds: least and most rounds.
        seconds: for all points together; decides how many rounds each chunk gets.
    """
    for chunk in tracked(list(chunks(points, backend.settings.batch)), "Timing layers"):
        runners = [first, *_prepared(backend, chunk)]
        round_seconds = float(time_interleaved(runners, _WARM_UP)[-1].sum()) * 1e-3
        share = seconds * len(chunk) / len(points)
        yield chunk, time_interleaved(runners, int(np.clip(share / max(round_seconds, 1e-9), *rounds)))
