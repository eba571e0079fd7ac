"""Whether the energy of a network can be counted where it runs."""

from __future__ import annotations

import json
from pathlib import Path

from autoprune.choices import RUNTIMES
from autoprune.errors import DeviceError
from autoprune.runtimes import energy_counter
from autoprune.runtimes.hosts import board_at
from autoprune.runtimes.settings import RuntimeSettings

_SECONDS = 30.0


def counter_of(settings: RuntimeSettings) -> str:
    """Return the name of what counts the energy of networks that run under settings: RAPL or power rails.

    Raises:
        DeviceError: nothing does, or it cannot be read; or a command runs them.
    """
    if settings.runtime.spec.external:
        names = ", ".join(spec.name for spec in RUNTIMES if not spec.external)
        raise DeviceError(
            "Energy must be counted per run of a network, and how often `runtime_command` runs it is not known; name a "
            f"runtime, as in energy@onnxruntime=60% ({names})"
        )
    try:
        return _on_board(settings.device) if settings.on_board else _here(gpu=not settings.on_cpu)
    except energy_counter.NoCounterError as error:
        raise DeviceError(
            f"Energy must be counted by {settings.device if settings.on_board else 'this machine'}, and {error}"
        ) from error


def _here(*, gpu: bool) -> str:
    return energy_counter.find_counter(gpu=gpu).name


def _on_board(url: str) -> str:
    """Run the script that looks for a counter, on the board."""
    board = board_at(url)
    try:
        printed = board.run([board.description["executable"], board.put(Path(energy_counter.__file__))], _SECONDS)
    finally:
        board.leave()
    if printed.code != 0:
        raise energy_counter.NoCounterError(f"Python failed there when it looked for it: {printed.err[-200:].strip()}")
    found = json.loads(printed.out)
    if "missing" in found:
        raise energy_counter.NoCounterError(found["missing"])
    return str(found["name"])
