"""A device in closed form: every network takes a known number of milliseconds, on a machine that drifts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from autoprune.arrays import Counts
from autoprune.runtimes import Backend, Calibration, Precision, Runner, Runtime, RuntimeSettings
from autoprune.runtimes.energy_counter import find_counter
from autoprune.runtimes.settings import MemoryFormat
from autoprune.structure.space import Space
from tests.helpers.counters import FakeRapl

SETTINGS = RuntimeSettings("cpu", Runtime.TORCH, Precision.FP32, 2, 1, 64, MemoryFormat.CONTIGUOUS)
OVERHEAD = 0.5
"""Milliseconds of a whole network that no layer accounts for."""

WATTS = 20.0
"""Power of the device while a network runs."""


class Scripted(Runner):
    """Takes as long as it is told: the given times one by one, over and over."""

    def __init__(self, times: Sequence[float], log: list[str] | None = None, name: str = "") -> None:
        self.times, self.runs, self.log, self.name = times, 0, log, name

    def elapsed(self) -> float:
        if self.log is not None:
            self.log.append(self.name)
        self.runs += 1
        return self.times[(self.runs - 1) % len(self.times)]


class Chain(nn.Module):
    """The network of ``toy.chain_graph`` at given counts."""

    def __init__(self, space: Space, counts: Counts) -> None:
        super().__init__()
        widths = space.axis_widths(counts).astype(int)
        for layer in space.graph.layers:
            module = nn.Conv2d(widths[layer.in_axis], widths[layer.out_axis], layer.kernel, layer.stride, 1)
            self.add_module(layer.name, module)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            image = layer(image)
        return image


def layer_law(layer: nn.Conv2d, area: int) -> float:
    """Milliseconds of one convolution: a start and its multiply-accumulates."""
    return 0.01 + 2e-7 * area * layer.weight.numel()


class Hungry(nn.Module):
    """Asks for more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.zeros((1 << 40, 4), device=image.device)


class FakeBackend(Backend):
    """Runs nothing: a convolution takes what the law says, a network its layers' sum and an overhead.

    Args:
        settings: as any backend's.
        noise: standard deviation of each run, relative.
        drift: amplitude of the machine's slow changes, relative.

    Attributes:
        rapl: counts the energy of every run, ``WATTS`` times its time; nothing does if None.
    """

    rapl: FakeRapl | None = None

    def __init__(
        self,
        settings: RuntimeSettings,
        calibration: Calibration | None = None,
        *,
        noise: float = 0.0,
        drift: float = 0.0,
    ) -> None:
        super().__init__(settings, calibration)
        self.noise, self.drift = noise, drift
        self.prepared = 0
        self._runs = 0
        self._generator = np.random.default_rng(0)

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def prepare(self, module: nn.Module, shape: tuple[int, ...]) -> Runner:
        self.prepared += 1
        return _Lawful(self, self._law(module, shape))

    def _law(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        areas: list[float] = []

        def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            areas.append(layer_law(layer, output.shape[2] * output.shape[3]))

        module = copy.deepcopy(module).to("meta")
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(note)
        module(torch.zeros(shape, device="meta"))
        return sum(areas) + (0.0 if isinstance(module, nn.Conv2d) else OVERHEAD)

    def slowness(self) -> float:
        """How much slower than usual the next run is."""
        self._runs += 1
        slow = 1 + self.drift * float(np.sin(self._runs / 700))
        return slow * (1 + self.noise * float(self._generator.standard_normal()))


class _Lawful(Runner):
    def __init__(self, backend: FakeBackend, milliseconds: float) -> None:
        self.backend, self.milliseconds = backend, milliseconds

    def elapsed(self) -> float:
        return self.milliseconds * self.backend.slowness()

    def joules(self, runs: int) -> float:
        rapl = self.backend.rapl
        assert rapl is not None
        return find_counter().joules(lambda: rapl.spend(1e-3 * WATTS * sum(self.elapsed() for _ in range(runs))))


def opener(backend: Backend) -> Callable[[RuntimeSettings, Calibration | None], Backend]:
    """Return what a meter opens: always this backend."""
    return lambda *_: backend
