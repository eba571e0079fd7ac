"""What was measured on a device, kept on the disk for the next search; single layers are measured on first need."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.errors import RunError
from autoprune.io.files import write_atomic
from autoprune.latency.tables import Point
from autoprune.latency.timing import time_in_turn
from autoprune.runtimes import Backend
from autoprune.runtimes.settings import fingerprint_key
from autoprune.structure.graph import LayerKind

ANCHOR = Point(LayerKind.CONV, (3, 3), (1, 1), (40, 40), (40, 40), 1, 64, 64)
"""A layer timed along with all others: how fast the machine is at the moment."""

_SCHEMA = 2
_WARM_UP = 2
_ROUNDS = (3, 12)
_SECONDS = 20.0
_CHUNK_POINTS = 600  # oneDNN keeps 1024 prepared kernels; beyond that every run would prepare its own anew
_CHUNK_ELEMENTS = 128 * 2**20


class LatencyCache:
    """The file with all measurements that hold for one fingerprint; another device's has another name and content.

    The file is a cache: one that is missing, unreadable or of another fingerprint counts as empty, and a disk that
    refuses it costs the next search some seconds, not this one its result.

    Args:
        folder: where the files are; None for ``$AUTOPRUNE_CACHE/latency``, or else ``~/.cache/autoprune/latency``.
        fingerprint: what the measurements hold for.
    """

    def __init__(self, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self.fingerprint = dict(fingerprint)
        self.path = (folder or default_folder()) / f"{fingerprint_key(fingerprint)}.json"

    def load(self) -> dict[str, Any]:
        """Return what is kept, by key."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["schema"] != _SCHEMA or content["fingerprint"] != self.fingerprint:
                return {}
            return dict(content["values"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def save(self, values: Mapping[str, Any]) -> None:
        """Add plain JSON values to the file; what another process added meanwhile stays."""
        merged = self.load() | dict(values)
        content = {"schema": _SCHEMA, "fingerprint": self.fingerprint, "values": dict(sorted(merged.items()))}
        with suppress(OSError, RunError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(content, indent=1))


def default_folder() -> Path:
    """Return the folder of the files where none is given."""
    cache = os.environ.get("AUTOPRUNE_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "autoprune") / "latency"


def look_up(store: LatencyCache, backend: Backend, points: Iterable[Point]) -> dict[Point, float]:
    """Return the milliseconds of all points; what the store lacks is measured and added to it.

    Times measured at different moments are made comparable by the anchor, a layer that is timed every time.
    """
    wanted = sorted(set(points), key=lambda point: point.key)
    known = {key: value for key, value in store.load().items() if isinstance(value, float) and value > 0}
    missing = [point for point in wanted if point.key not in known]
    if missing:
        measured = measure_points(backend, missing, anchor=known.get(ANCHOR.key))
        store.save(measured)
        known |= measured
    return {point: known[point.key] for point in wanted}


def measure_points(backend: Backend, points: Sequence[Point], *, anchor: float | None = None) -> dict[str, float]:
    """Time layers alone, all of them in turn round by round, so that a drift of the machine meets all alike.

    Args:
        backend: what runs them.
        points: the layers.
        anchor: milliseconds of ``ANCHOR`` that the result is scaled to; None takes what it has first.

    Returns:
        Milliseconds by the points' keys, the anchor's included.
    """
    found: dict[str, float] = {}
    with backend.session():
        for chunk in chunks(points, backend.settings.batch):
            layers = [ANCHOR, *chunk]
            runners = [backend.prepare(point.build(), point.shape(backend.settings.batch)) for point in layers]
            round_trip = float(time_in_turn(runners, _WARM_UP)[-1].sum()) * 1e-3
            share = _SECONDS * len(chunk) / len(points)
            rounds = int(np.clip(share / max(round_trip, 1e-9), *_ROUNDS))
            medians = np.median(time_in_turn(runners, rounds), axis=0)
            anchor = float(medians[0]) if anchor is None else anchor
            scaled = medians * (anchor / medians[0])
            found.update(zip((point.key for point in layers), scaled.tolist(), strict=True))
    return found


def chunks(points: Sequence[Point], batch: int) -> Iterator[list[Point]]:
    """Split points into runs that fit into memory and into the runtime's own caches."""
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
