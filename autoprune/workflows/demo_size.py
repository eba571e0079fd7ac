"""The image size of the bundled detector: one at which its latency budget asks for a fair amount of pruning here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

from autoprune.config import SearchConfig
from autoprune.demo import DEMO_SIZES, demo_weights
from autoprune.errors import DeviceError
from autoprune.image_size import ImageSize
from autoprune.latency.meter import LatencyMeter
from autoprune.latency.timing import MeasurementConfig, time_alone
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.runtimes import MemoryFormat, open_backend
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.measuring import settings_of
from autoprune.workflows.network import choose_device, pin_threads

WANTED = 1.6
"""How often the dense network should take the budget: enough to show something, and what is left learns it back."""

OUT_OF_REACH = 3.0
"""How often the dense network takes the budget where the narrowest one hardly holds it."""

_MEASUREMENT = MeasurementConfig(runs=20, max_runs=40, seconds=1.0)

Measure = Callable[[int], float]
"""Returns the milliseconds of the dense network at an image size."""


def with_demo_size(config: SearchConfig, folder: RunFolder, listener: Listener) -> SearchConfig:
    """Return the configuration with an image size that suits a latency budget in milliseconds on this machine.

    Only if the bundled detector is searched, and neither its image size nor another runtime is asked for.

    Raises:
        DeviceError: other processes use the cores so much that the budget is out of reach at any size.
    """
    if config.model is not None or config.imgsz is not None or config.measured_on is not None:
        return config
    limits = [limit.value for limit in config.lowest if limit.metric == "latency" and not limit.relative]
    if not limits:
        return config
    limit = min(limits)

    def choose() -> int:
        pin_threads(config.threads_here, folder, listener)
        measure = DenseLatency(config)
        size, taken = suitable_size(measure, limit)
        if measure.under_load and taken > OUT_OF_REACH * limit:
            raise DeviceError(
                f"The demonstration needs a core to itself for {limit:g} ms: next to other processes its dense network "
                f"takes {taken:.0f} ms at {size} px already; run it again when they are done"
            )
        listener.note(
            f"The demonstration runs at {size} px: there its dense network takes {taken:.2f} ms on this machine, "
            f"{taken / limit:.1f} times the budget."
        )
        return size

    return replace(config, imgsz=ImageSize.of(int(folder.once("demo image size", choose))))


def suitable_size(measure: Measure, limit: float) -> tuple[int, float]:
    """Return the image size at which the dense network comes nearest to ``WANTED`` times a limit.

    Args:
        measure: returns milliseconds, which grow with the size; called for a few sizes, each once.
        limit: milliseconds.

    Returns:
        The size in pixels and what the dense network takes there.

    Example:
        >>> suitable_size(lambda size: 13 * (size / 224) ** 2, 8.0)
        (224, 13.0)
    """
    known: dict[int, float] = {}
    low, high = 0, len(DEMO_SIZES) - 1
    while low < high:  # find the smallest size that takes at least what is wanted
        middle = (low + high) // 2
        known[middle] = measure(DEMO_SIZES[middle])
        low, high = (low, middle) if known[middle] >= WANTED * limit else (middle + 1, high)
    known |= {index: measure(DEMO_SIZES[index]) for index in {max(low - 1, 0), low} - known.keys()}

    best = min(known, key=lambda index: abs(log(known[index] / (WANTED * limit))))
    return DEMO_SIZES[best], known[best]


class DenseLatency:
    """Measures the dense demo network as a search measures it, but shortly.

    Args:
        config: how it runs.

    Attributes:
        under_load: whether other processes disturbed the last measurement.
    """

    under_load = False

    def __init__(self, config: SearchConfig) -> None:
        self._config, self._device = config, choose_device(config.device)
        self._format: MemoryFormat | None = None

    def __call__(self, size: int) -> float:
        """Return the milliseconds of one run at an image size."""
        adapter = open_adapter(demo_weights(), image_size=size, device=self._device)
        module = adapter.deployable(adapter.module, with_nms=self._config.with_nms)
        settings = settings_of("latency", self._config, adapter.input_shape)
        if self._format is None:  # which one is faster hardly depends on the size
            self._format = LatencyMeter(module, settings).settings.memory_format
        backend = open_backend(replace(settings, memory_format=self._format))
        with backend.session():
            config = replace(_MEASUREMENT, threads=settings.threads)
            timing = time_alone(backend.prepare(module, settings.shape), config)
        self.under_load = timing.under_load
        return timing.median
