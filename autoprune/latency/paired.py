"""Times of single layers as shares of the dense network's, all of them taken paired with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.latency.cache import chunks
from autoprune.latency.tables import Point
from autoprune.latency.timing import time_in_turn
from autoprune.runtimes import Backend, Runner

_WARM_UP = 2
_ROUNDS = (5, 40)
_SECONDS = 8.0
_QUANTILE = 25  # whatever disturbs a run makes it longer, and a whole network is hit more often than a layer


def paired_shares(backend: Backend, whole: Runner, points: Sequence[Point]) -> dict[str, float]:
    """Return by the points' keys what share of the whole network's time each layer takes that runs alone.

    Every round runs the network and all layers once, so that a drift of the machine meets both alike. The layers were
    run one after another, as in the network: a layer does not find its weights in the cache.

    Args:
        backend: what runs the layers; the caller holds its session.
        whole: the network, loaded by the same backend.
        points: the layers, each once.
    """
    found: dict[str, float] = {}
    for chunk in chunks(points, backend.settings.batch):
        runners = [whole, *(backend.prepare(point.build(), point.shape(backend.settings.batch)) for point in chunk)]
        round_trip = float(time_in_turn(runners, _WARM_UP)[-1].sum()) * 1e-3
        share = _SECONDS * len(chunk) / len(points)
        rounds = int(np.clip(share / max(round_trip, 1e-9), *_ROUNDS))
        times = np.percentile(time_in_turn(runners, rounds), _QUANTILE, axis=0)
        found.update(zip((point.key for point in chunk), (times[1:] / times[0]).tolist(), strict=True))
    return found
