"""Energy in place of time: networks run for a window that the machine's counter resolves, paired as for latency.

Energy differs from latency in what one timed run yields: the millijoules of a run, as the mean over a window. All else
is the same: pairs with the dense network, the journal, the cache, the predictor.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import DeviceError
from autoprune.latency.meter import LatencyMeter
from autoprune.latency.timing import MeasurementConfig, time_interleaved, warm_up
from autoprune.runtimes import Backend, Runner
from autoprune.runtimes.energy import counter_of
from autoprune.runtimes.energy_counter import NoCounterError
from autoprune.runtimes.hosts import BoardWatch

WINDOW = 0.4
"""Seconds for which a network runs between two readings.

RAPL counts about every millisecond, so either end of a window is off by at most a quarter percent of it; a Jetson's
rails are sampled forty times.
"""

_WARM_UP, _TIMED = 30, 5


class EnergyRunner(Runner):
    """Runs a network for a window, and yields the millijoules of one run.

    Args:
        network: what runs it.
    """

    def __init__(self, network: Runner) -> None:
        self._network = network
        self.note = network.note

    def elapsed(self) -> float:
        """Run for a window, and return the millijoules of a run.

        Raises:
            DeviceError: the counter did not rise, or can no longer be read.
        """
        try:
            joules = self._network.joules(self._runs)
        except (OSError, NoCounterError) as error:
            raise DeviceError(
                f"The counter of energy must be readable until the run is done, and is not ({error}); see that it "
                "is, then go on with `resume`"
            ) from error
        if not joules > 0:
            raise DeviceError(
                f"The counter of energy must rise while a network runs, and did not in {WINDOW:g} s (as in some "
                "virtual machines); limit latency or flops"
            )
        return 1e3 * joules / self._runs

    def watch(self) -> BoardWatch | None:
        """Return what watches the board from now on; see ``Runner``."""
        return self._network.watch()

    @cached_property
    def _runs(self) -> int:
        """How often the network runs in a window."""
        warm_up(self._network, _WARM_UP)
        milliseconds = float(np.median(time_interleaved([self._network], _TIMED)))
        return max(1, math.ceil(1e3 * WINDOW / milliseconds))


class EnergyBackend(Backend):
    """Loads networks with another backend, and counts the energy of their runs.

    Args:
        backend: the other one.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.settings, backend.calibration)
        self._backend = backend

    def session(self) -> AbstractContextManager[None]:
        """Enter the other backend's session; see ``Backend``."""
        return self._backend.session()

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        """Load a network; see ``Backend``."""
        return EnergyRunner(self._backend.prepare(module, shape))

    def export(self, module: nn.Module, shape: tuple[int, ...]) -> Callable[[], Runner]:
        """Do what needs no device; see ``Backend``."""
        load = self._backend.export(module, shape)
        return lambda: EnergyRunner(load())


class EnergyMeter(LatencyMeter):
    """Measures networks as `LatencyMeter` does; every figure is in millijoules in place of milliseconds.

    The memory format is still the one in which the dense network is faster: as it is deployed.

    Raises:
        DeviceError: (by every method) nothing counts energy there.
    """

    @cached_property
    def counter(self) -> str:
        """The name of what counts, see `counter_of`."""
        return counter_of(self._asked)

    @property
    def layers_alone(self) -> bool:
        """No: a window for each of hundreds of layers would take minutes."""
        return False

    @cached_property
    def _backend(self) -> Backend:
        return EnergyBackend(self._opener(self.settings, self._calibration))

    @property
    def _conditions(self) -> Mapping[str, Any]:
        return {**super()._conditions, "energy": self.counter}

    def _adapted(self, config: MeasurementConfig) -> MeasurementConfig:
        """Return a configuration for windows; other processes disturb on every core, since the counter counts all."""
        return replace(config.of_means(), seconds=math.inf, threads=sys.maxsize)
