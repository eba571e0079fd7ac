"""Measure networks paired with the dense one, and record every measurement so that a run can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from autoprune.io.records import fits
from autoprune.journal import MemoryRecorder, Recorder
from autoprune.latency.cache import LatencyCache, look_up, network_key, paired_shares
from autoprune.latency.tables import Point
from autoprune.latency.timing import MeasurementConfig, PairedTiming, Timing, time_alone, time_pair
from autoprune.listener import warn
from autoprune.runtimes import Backend, Calibration, Runner, open_backend
from autoprune.runtimes.hosts import BoardLostError
from autoprune.runtimes.settings import MemoryFormat, RuntimeSettings, fingerprint, fingerprint_key, lane_width

REFERENCE_MEASUREMENT = MeasurementConfig(max_runs=300, seconds=5.0)
"""The dense network's reference is measured longer: every millisecond figure is a ratio times it."""

REFERENCES_UNDER_LOAD = 3
"""How often the reference is measured while other processes disturb it."""

SAMPLE_MEASUREMENT = MeasurementConfig(max_runs=60)
"""For the many networks that a predictor is fitted to: about a second each at 12 ms."""

KEPT_SPREAD = 0.04
"""Measurements with a larger spread are not cached for later searches."""

MOST_LOSSES = 3
"""How often in a row a board may be lost in one measurement: that often is no accident."""

Build: TypeAlias = Callable[[], nn.Module]
"""Makes a network as it is deployed."""

_FORMAT_MEASUREMENT = MeasurementConfig(runs=20, max_runs=40, spread=0.05)


def calm(timing: PairedTiming) -> bool:
    """Return whether a measurement is good enough for later searches."""
    return timing.spread <= KEPT_SPREAD and not timing.under_load


class LatencyMeter:
    """Measures networks as they are deployed, paired with the dense one.

    Every measurement goes through the recorder. One that is recorded already does not run again, so a resumed run sees
    the same reference, tables and ratios as the interrupted one.

    Args:
        dense: the dense network as it is deployed; it is not modified.
        settings: how networks run; an AUTO memory format is decided by measuring the dense network once.
        recorder: keeps the measurements; None keeps them in memory.
        config: how long a candidate is measured.
        cache: folder of the measurements for the next search; None for the default one.
        kind: name of this meter's entries in the recorder.
        calibration: returns the images for the activation ranges of an int8 network.
        opener: makes the backend for settings and calibration.

    Raises:
        DeviceError: (by every method) the device runs out of memory.
    """

    def __init__(
        self,
        dense: nn.Module,
        settings: RuntimeSettings,
        *,
        recorder: Recorder | None = None,
        config: MeasurementConfig | None = None,
        cache: Path | None = None,
        kind: str = "latency",
        calibration: Calibration | None = None,
        opener: Callable[[RuntimeSettings, Calibration | None], Backend] = open_backend,
    ) -> None:
        self.dense = dense
        self._asked = settings
        self._recorder = recorder or MemoryRecorder()
        self._config = config or MeasurementConfig()
        self._cache = cache
        self._kind = kind
        self._calibration = calibration
        self._opener = opener
        self._ahead: tuple[Build, Future[Callable[[], Runner]]] | None = None

    @cached_property
    def settings(self) -> RuntimeSettings:
        """How networks run, with the memory format decided."""
        if self._asked.memory_format is not MemoryFormat.AUTO:
            return self._asked
        value = self._recorded("format", lambda: self._faster_format().value)
        return replace(self._asked, memory_format=MemoryFormat(value))

    @property
    def counter(self) -> str:
        """The name of what counts energy in place of time; empty, since this meter takes the time."""
        return ""

    @cached_property
    def block(self) -> int:
        """How many channels the device computes at once, see ``lane_width``."""
        return int(self._recorded("block", lambda: lane_width(self._asked)))

    @property
    def layers_alone(self) -> bool:
        """Whether the runtime can measure single layers: loading one takes milliseconds, not an export."""
        return self._asked.runtime.spec.per_layer

    @cached_property
    def reference(self) -> Timing:
        """The dense network's time, measured once and long."""

        def measure() -> Mapping[str, Any]:
            with self._backend.session():
                return self._least_disturbed().to_json()

        return Timing.from_json(self._recorded("reference", lambda: self._unbroken(measure)))

    def _unbroken(self, measure: Callable[[], Any]) -> Any:
        """Measure, and again from its start if a board was lost: what was loaded there is gone."""
        for _ in range(MOST_LOSSES - 1):
            try:
                return measure()
            except BoardLostError as error:
                warn(f"{error}; the measurement is repeated.")
                self._ahead = None
                for name in ("_dense_runner", "_backend"):
                    self.__dict__.pop(name, None)
        return measure()

    def _least_disturbed(self) -> Timing:
        """Time the dense network, again if other processes disturb it, and return the least time."""
        found: list[Timing] = []
        while len(found) < REFERENCES_UNDER_LOAD and (not found or found[-1].under_load):
            found.append(time_alone(self._dense_runner, self._adapted(REFERENCE_MEASUREMENT)))
        return min(found, key=lambda timing: (timing.under_load, timing.median))

    def _adapted(self, config: MeasurementConfig) -> MeasurementConfig:
        config = config.of_means() if self._asked.runtime.spec.external else config
        return replace(config, threads=self._asked.threads if self._asked.on_cpu else 1)

    @cached_property
    def note(self) -> str | None:
        """A remark if the dense network does not run as the settings say, see ``Runner``; else None."""

        def ask() -> str:
            with self._backend.session():
                return self._dense_runner.note or ""

        return self._recorded("note", lambda: self._unbroken(ask)) or None

    def measure(
        self,
        build: Build,
        key: Any,
        *,
        config: MeasurementConfig | None = None,
        paired_with: Build | None = None,
        following: Build | None = None,
    ) -> PairedTiming:
        """Time a network paired with the dense one, or with another.

        Args:
            build: makes the network as it is deployed; not called if the measurement is recorded.
            key: plain JSON that names the measurement, e.g. the allocation; a second measurement of the same network
                needs another key.
            config: how long; None for the meter's own.
            paired_with: makes the other network; None for the dense one.
            following: the next measurement's ``build``: while a board measures, this machine exports that network.
        """

        def measure() -> Mapping[str, Any]:
            load = self._exported(build)
            with self._backend.session():
                runner = load()
                other = (
                    self._dense_runner
                    if paired_with is None
                    else self._backend.prepare(paired_with(), self.settings.shape)
                )
                with self._exporting(following):
                    return time_pair(runner, other, self._adapted(config or self._config)).to_json()

        return PairedTiming.from_json(self._recorded(["network", key], lambda: self._unbroken(measure)))

    def _exported(self, build: Build) -> Callable[[], Runner]:
        """Return what loads a network that was exported during the last measurement, or is exported now."""
        if self._ahead is not None and self._ahead[0] is build:
            exported, self._ahead = self._ahead[1], None
            return exported.result()
        return self._export(build)

    def _export(self, build: Build) -> Callable[[], Runner]:
        module = build()
        with self._backend.session():
            return self._backend.export(module, self.settings.shape)

    @contextmanager
    def _exporting(self, following: Build | None) -> Iterator[None]:
        """Export the next network in a thread if a board measures: the thread that waits for it does nothing else.

        It is not sent before its turn: receiving it would take the board's time from the measurement. An error is
        raised when that network is measured.
        """
        if following is None or not self._asked.on_board or (self._ahead and self._ahead[0] is following):
            yield
            return
        with ThreadPoolExecutor(1) as pool:
            self._ahead = following, pool.submit(copy_context().run, self._export, following)
            yield

    def sample(
        self, build: Build, allocation: Sequence[int], *, attempt: int = 0, following: Build | None = None
    ) -> PairedTiming:
        """Time a network that a predictor is fitted to, or take its time from an earlier search on this device.

        Args:
            build: as for ``measure``.
            allocation: kept channels of every unit; the key in the cache of this architecture.
            attempt: number of the measurement, from 0: a later one is measured anew.
            following: as for ``measure``.
        """
        again = ["attempt", attempt] if attempt else []

        def measure() -> Mapping[str, Any]:
            key = "-".join(str(count) for count in allocation)
            known = self._networks.load().get(key)
            if not attempt and known is not None and fits(known, PairedTiming):
                return dict(known)
            timing = self.measure(build, [*allocation, *again], config=SAMPLE_MEASUREMENT, following=following)
            if calm(timing):
                self._networks.save({key: timing.to_json()})
            return timing.to_json()

        return PairedTiming.from_json(self._recorded(["sample", list(allocation), *again], measure))

    @cached_property
    def _networks(self) -> LatencyCache:
        """Cache of this architecture's networks; latency does not depend on the weights."""
        size = self.settings.image_size
        with self._backend.session():
            key = network_key(self.dense, self.settings.shape, self.settings.computing)
        return LatencyCache(self._cache, {**self._conditions, "image_size": size, "network": key})

    @property
    def _conditions(self) -> Mapping[str, Any]:
        """What the measurements of networks depend on, besides the network."""
        return fingerprint(self.settings)

    def milliseconds(self, timing: PairedTiming) -> Timing:
        """Return a candidate's times in milliseconds: its ratio × the dense network's reference, with either's load."""
        scaled = timing.candidate.scaled(self.reference.median / timing.dense.median)
        return replace(scaled, under_load=timing.under_load or self.reference.under_load)

    def layer_times(self, points: Iterable[Point]) -> dict[Point, float]:
        """Return the milliseconds of single layers: recorded, cached on the disk, or measured now."""
        wanted = list(points)
        kept: Mapping[str, float] = self._recorder.lookup(self._kind, "layers") or {}
        if all(point.key in kept for point in wanted):
            return {point: kept[point.key] for point in wanted}
        times = look_up(LatencyCache(self._cache, fingerprint(self.settings)), self._backend, wanted)
        self._recorder.append(self._kind, "layers", {point.key: value for point, value in times.items()})
        return times

    def measured_shares(self, points: Sequence[Point]) -> dict[Point, float]:
        """Return the time of single layers as shares of the dense network's, paired with it."""

        def measure() -> Mapping[str, float]:
            with self._backend.session():
                return paired_shares(self._backend, self._dense_runner, points)

        key = fingerprint_key({point.key: True for point in points})
        found = self._recorded(["beside", key], measure)
        return {point: float(found[point.key]) for point in points}

    @cached_property
    def _backend(self) -> Backend:
        return self._opener(self.settings, self._calibration)

    @cached_property
    def _dense_runner(self) -> Runner:
        return self._backend.prepare(self.dense, self.settings.shape)

    def _recorded(self, key: Any, measure: Callable[[], Any]) -> Any:
        return self._recorder.once(self._kind, key, measure)

    def _faster_format(self) -> MemoryFormat:
        """Return the memory format in which the dense network is faster, timed with interleaved runs."""
        formats = (MemoryFormat.CONTIGUOUS, MemoryFormat.CHANNELS_LAST)
        backends = [self._opener(replace(self._asked, memory_format=layout), self._calibration) for layout in formats]
        with backends[0].session():
            plain, last = (backend.prepare(self.dense, self._asked.shape) for backend in backends)
            timing = time_pair(last, plain, self._adapted(_FORMAT_MEASUREMENT))
        return MemoryFormat.CHANNELS_LAST if timing.ratio < 1 else MemoryFormat.CONTIGUOUS
