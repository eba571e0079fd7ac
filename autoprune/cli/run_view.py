"""Where a run stands: its stages, its bars, and about how long they will still take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

KNOWN_ALREADY = 0.02
"""Seconds per unit below which a unit was not computed but looked up: it says nothing of the next one."""

RECENT = 50
"""Units whose duration tells that of the next ones."""

LEAST_SHARE, LEAST_SECONDS = 0.03, 5.0
"""Share of the run's work, and seconds, from which on there is something to say of the rest."""


@dataclass
class Bar:
    """One progress bar.

    Attributes:
        label: what is done.
        total: what ``done`` goes up to; 0 if nobody knows.
        clock: seconds.
        done: units so far.
        detail: a few words next to it.
    """

    label: str
    total: int
    clock: Callable[[], float] = time.monotonic
    done: int = 0
    detail: str = ""

    def __post_init__(self) -> None:
        self.began = self.clock()
        self._moments: deque[tuple[float, int]] = deque([(self.began, 0)], maxlen=RECENT)

    def __call__(self, done: int, detail: str = "") -> None:
        """Show how much is done, and a few words next to it."""
        now, (before, units) = self.clock(), self._moments[-1]
        if done > units and (now - before) / (done - units) < KNOWN_ALREADY:
            self._moments.clear()
        if done != units or not self._moments:
            self._moments.append((now, done))
        self.done, self.detail = done, detail

    @property
    def seconds(self) -> float:
        """Return how long it has been there."""
        return self.clock() - self.began

    def share(self, part: float = 0.0) -> float:
        """Return how much is done, in [0, 1]; ``part`` is that of the current unit."""
        return min((self.done + part) / self.total, 1.0) if self.total else 0.0

    def left(self, part: float = 0.0) -> float | None:
        """Return about how many seconds it will still take, None if there is nothing to tell it from."""
        (start, units), (last, _) = self._moments[0], self._moments[-1]
        finished = self.done - units
        until = last if finished else self.clock()
        worked = finished or part
        if not self.total or worked <= 0 or self.clock() - start < LEAST_SECONDS / 2:
            return None
        rest = (self.total - self.done) * (until - start) / worked
        return max(rest - (self.clock() - last), 0.0)


@dataclass
class RunView:
    """The stages of a run and the bars of the current one, the outermost first.

    Attributes:
        clock: seconds.
        bars: those that are open.
    """

    clock: Callable[[], float] = time.monotonic
    bars: list[Bar] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._work: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._name = ""
        self._began = self.clock()

    def stages(self, work: Mapping[str, float]) -> None:
        """Hear what the run consists of, see `Listener.stages`."""
        self._work = dict(work)

    def stage(self, name: str) -> None:
        """Begin a stage; the one before is over."""
        if self._name:
            self._seconds[self._name] = self.clock() - self._began
        self._work.setdefault(name, 0.0)
        self._name, self._began = name, self.clock()

    @property
    def title(self) -> str:
        """Return which stage it is, e.g. ``[3/7] Search``; empty before the first one."""
        if not self._name:
            return ""
        return f"[{list(self._work).index(self._name) + 1}/{len(self._work)}] {self._name}"

    @property
    def seconds(self) -> float:
        """Return how long the stage has taken so far."""
        return self.clock() - self._began

    def bar_left(self, place: int) -> float | None:
        """Return about how many seconds a bar will still take."""
        return self.bars[place].left(self._part(place + 1))

    def stage_left(self) -> float | None:
        """Return about how many seconds the stage will still take."""
        return self.bar_left(0) if self.bars else None

    def run_left(self) -> float | None:
        """Return about how many seconds the run will still take, from what its stages took so far for their work."""
        names = list(self._work)
        if self._name not in names:
            return None
        rest = sum(self._work[name] for name in names[names.index(self._name) + 1 :])
        left, share = self.stage_left(), self._part(0)
        computed = {name: took for name, took in self._seconds.items() if took > LEAST_SECONDS / 10}  # others: known
        here = self.seconds if share else 0.0  # a stage whose first unit is not done says nothing of the pace
        seconds = sum(computed.values()) + here
        work = sum(self._work.get(name, 0.0) for name in computed) + share * self._work[self._name]
        if not computed or work <= LEAST_SHARE * sum(self._work.values()) or seconds < LEAST_SECONDS:
            return left if rest == 0 else None
        pace = seconds / work
        if left is None:
            left = max((1 - share) * self._work[self._name] * pace + here - self.seconds, 0.0)
        return left + rest * pace

    def _part(self, place: int) -> float:
        """Return how much is done of what the bars from a place on show, in [0, 1]."""
        part = 0.0
        for bar in reversed(self.bars[place:]):
            part = bar.share(part)
        return part


def about(seconds: float | None) -> str:
    """Return a time left in words, as vague as it is known; empty if it is not.

    Example:
        >>> about(43.2), about(200.0), about(9000.0), about(None)
        ('about 40 s', 'about 3 min', 'about 2.5 h', '')
    """
    if seconds is None:
        return ""
    if seconds < 55:
        return f"about {max(round(seconds / 10) * 10, 5)} s"
    if seconds < 3600:
        return f"about {max(round(seconds / 60), 1)} min"
    return f"about {round(seconds / 1800) / 2:g} h"


def clock_time(seconds: float) -> str:
    """Return a duration as clocks show it.

    Example:
        >>> clock_time(75.0), clock_time(3671.0)
        ('1:15', '1:01:11')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
