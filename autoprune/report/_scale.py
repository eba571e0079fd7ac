"""Axes of scores on which the middle unit can be read although a few are far worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoprune.report._base import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SKEWED = 6.0  # the worst unit this many times worse than the middle one: the middle one would look flat
_LEAST = 1e-3  # score drop that an axis spans at least: what is smaller is noise, or nothing at all


@dataclass(frozen=True)
class ScoreAxis:
    """A y axis of scores that several panels share.

    Attributes:
        lowest: its lower end, below the worst score.
        highest: its upper end, above the best score and 0.
        linear: the score drop from which it is logarithmic; None where it is linear throughout.
    """

    lowest: float
    highest: float
    linear: float | None

    @classmethod
    def of(cls, scores: Sequence[Floats]) -> ScoreAxis:
        """Return an axis for the scores of several units, the dense network's 0 among each."""
        linear = linear_until(scores)
        worst = max(_LEAST, *(-float(values.min()) for values in scores))
        best = max(float(values.max()) for values in scores)
        if linear is None:
            return cls(-1.05 * worst, best + 0.08 * worst, None)
        return cls(-1.25 * worst, best + 0.25 * linear, linear)

    @property
    def label(self) -> str:
        """What is written along the axis."""
        name = "score" if self.linear is None else f"score; logarithmic below −{self.linear:g}"
        return f"{name}\n(0 is the dense network, negative is worse)"

    def set_on(self, axes: Axes) -> None:
        """Give a panel this y axis."""
        from matplotlib.ticker import MaxNLocator, NullLocator

        if self.linear is None:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            axes.set_yscale("symlog", linthresh=self.linear)
            ticks = log_ticks(self.linear, -self.lowest)
            axes.set_yticks([-tick for tick in ticks], [f"−{tick:g}" if tick else "0" for tick in ticks])
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(self.lowest, self.highest)


def linear_until(scores: Sequence[Floats]) -> float | None:
    """Return the score drop up to which an axis of several units' scores is linear; None where all of it can be.

    All of it cannot where a few units would press the curves of the others flat.
    """
    drops = np.array([max(0.0, -float(values.min())) for values in scores])
    middle = float(np.median(drops))
    if middle <= 0 or drops.max() <= max(_LEAST, _SKEWED * middle):
        return None
    exponent = math.floor(math.log10(middle))
    return float(f"{max(step for step in (1, 2, 5) if step * 10**exponent <= middle * 1.001)}e{exponent}")


def log_ticks(linear: float, worst: float) -> list[float]:
    """Return ticks from 0 to ``worst``: powers of ten times ``linear``, with halves of a decade where these are few."""
    decades = int(math.log10(worst / linear) + 1e-9)
    factors = [10.0**power for power in range(decades + 1)]
    if decades < 2:
        factors = [factor for factor in (1.0, 3.0, 10.0, 30.0) if factor * linear <= worst]
    elif decades > 4:
        factors = factors[:: math.ceil(decades / 4)]
    return [0.0, *(float(f"{linear * factor:.3g}") for factor in factors)]
