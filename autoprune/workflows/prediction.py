"""A latency predictor with the measurements that it was made from and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoprune.latency.predictor import LatencyCost, LatencyError, Sample


@dataclass(frozen=True)
class Prediction:
    """A predictor with what it was made from.

    Attributes:
        cost: fitted to all samples.
        fitted: samples that a first fit was made from …
        held_out: … and those that its error is known from.
        error: of that first fit; None if there was nothing to hold out.
    """

    cost: LatencyCost
    fitted: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    error: LatencyError | None

    def to_json(self, dense: float, fresh: Sequence[Sample] = ()) -> dict[str, Any]:
        """Return its errors, and every network that was measured for it, as plain JSON values for reports.

        Networks held out are predicted by the fit that they were held out of, fresh ones by the final one.

        Args:
            dense: median milliseconds of the dense network.
            fresh: networks that were measured to check it.
        """
        first = self.cost.fit(self.fitted, focus=self.cost.focus)
        groups = (("fitted", first, self.fitted), ("held_out", first, self.held_out), ("fresh", self.cost, fresh))
        return {
            "held_out": self.error.to_json() if self.error is not None else None,
            "check": self.cost.error(fresh).to_json() if fresh else None,
            "networks": [
                {
                    "role": role,
                    "keep": list(sample.allocation),
                    "predicted": float(cost(np.array(sample.allocation))),
                    "measured": sample.timing.ratio * dense,
                    "spread": sample.timing.spread,
                }
                for role, cost, samples in groups
                for sample in samples
            ],
        }
