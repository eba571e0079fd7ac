"""The image size of the bundled detector: one at which its latency budget is neither trivial nor out of reach here."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from autoprune.config import SearchConfig
from autoprune.demo import DEMO_IMAGE_SIZE, demo_weights
from autoprune.listener import Listener
from autoprune.models import open_adapter
from autoprune.workflows.folder import RunFolder
from autoprune.workflows.network import choose_device, pin_threads

SMALLEST, STEP = 96, 32

MOST_TIMES = 2.5
"""How often the dense network may take the budget; at three times its narrowest one is about at the limit."""

_WARM_UP, _RUNS = 5, 15


def with_demo_size(config: SearchConfig, folder: RunFolder, listener: Listener) -> SearchConfig:
    """Return the configuration with an image size that suits a latency budget in milliseconds on this machine.

    Only if the bundled detector is searched, and neither its image size nor another runtime is asked for.
    """
    if config.model is not None or config.imgsz is not None or config.runtime is not None:
        return config
    limits = [limit.value for limit in config.lowest if limit.metric == "latency" and not limit.relative]
    if not limits:
        return config
    size = int(folder.once("demo image size", lambda: _largest_size(config, min(limits), folder)))
    if size < DEMO_IMAGE_SIZE:
        listener.note(f"This machine is slow: the demonstration runs at {size} px in place of {DEMO_IMAGE_SIZE}.")
    return replace(config, imgsz=size)


def _largest_size(config: SearchConfig, limit: float, folder: RunFolder) -> int:
    pin_threads(config.threads, folder)
    for size in range(DEMO_IMAGE_SIZE, SMALLEST, -STEP):
        if _milliseconds(size, choose_device(config.device)) <= MOST_TIMES * limit:
            return size
    return SMALLEST


def _milliseconds(size: int, device: str) -> float:
    """Return the median time of the dense network for one image, as it is deployed."""
    adapter = open_adapter(demo_weights(), image_size=size, device=device)
    network, image = adapter.deployable(adapter.module), adapter.example(1)
    times = []
    with torch.inference_mode():
        for _ in range(_WARM_UP + _RUNS):
            start = time.perf_counter()
            network(image)
            if adapter.device.type == "cuda":
                torch.cuda.synchronize(adapter.device)
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[_WARM_UP:])
