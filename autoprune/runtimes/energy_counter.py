"""Reads a machine's counter of energy: RAPL of Intel's and AMD's processors, or the power rails of a Jetson.

A file of its own, which a worker loads where it runs: here, or on a board that it is sent to. It needs Python 3.8 and
nothing else. Run as a script it prints ``{"name": ...}``, or ``{"missing": why there is none}``.

Source:
    Linux, Documentation/power/powercap/powercap.rst and Documentation/hwmon/ina3221.rst. Which rail is the whole
    module: NVIDIA, Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import glob
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

FOLDER = "AUTOPRUNE_SYS_CLASS"
"""Variable of the environment with the folder to look in, if not /sys/class: where a container has its host's."""

PERIOD = 0.01
"""Seconds between two samples of power; the monitors of a Jetson convert within some milliseconds."""

_WHOLE = ("VDD_IN", "POM_5V_IN")  # a rail that supplies the whole module: the others are behind it
_UNUSED = "NC"  # not connected


class NoCounterError(Exception):
    """The machine has no counter of energy that can be read; the text says why and what to do."""


class Rapl:
    """Counters of processor packages, in microjoules; all packages count together.

    Args:
        packages: folders with ``energy_uj`` and ``max_energy_range_uj``, at which the counter starts from 0 again.
    """

    def __init__(self, packages: list[str]) -> None:
        self.name = "RAPL (whole processor packages)"
        self._packages = packages
        self._ranges = [_number(folder, "max_energy_range_uj") for folder in packages]
        self._read()

    def joules(self, act: Callable[[], None]) -> float:
        """Do something for less than a minute, and return the joules that were used meanwhile.

        Raises:
            OSError: a counter can no longer be read.
        """
        before = self._read()
        act()
        after = self._read()
        return 1e-6 * sum((after[one] - before[one]) % most for one, most in enumerate(self._ranges))

    def _read(self) -> list[int]:
        return [_number(folder, "energy_uj") for folder in self._packages]


class PowerRails:
    """Power monitors, whose samples are integrated over time.

    Args:
        rails: the files of each rail: voltage in millivolts, current in milliamperes.
        clock: returns seconds.
    """

    def __init__(self, rails: list[tuple[str, str]], clock: Callable[[], float] = time.perf_counter) -> None:
        self.name = "the board's power rails"
        self._rails, self._clock = rails, clock
        self._sample()

    def joules(self, act: Callable[[], None]) -> float:
        """Do something while a thread samples the power, and return the joules that were used meanwhile.

        Raises:
            OSError: a monitor can no longer be read.
        """
        samples, done = [self._sample()], threading.Event()

        def watch() -> None:
            while not done.wait(PERIOD):
                with suppress(OSError):  # a bus that is busy: the next sample stands in
                    samples.append(self._sample())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            act()
        finally:
            done.set()
            thread.join()
        samples.append(self._sample())
        total = 0.0
        for one in range(1, len(samples)):  # by trapezoids
            (before, first), (after, last) = samples[one - 1], samples[one]
            total += (after - before) * (first + last) / 2
        return total

    def _sample(self) -> tuple[float, float]:
        """Return the time in seconds, and the power in watts."""
        watts = sum(_number(volts) * _number(amperes) for volts, amperes in self._rails) * 1e-6
        return self._clock(), watts


def find_counter(*, gpu: bool = False, folder: str | None = None) -> Rapl | PowerRails:
    """Return what counts this machine's energy.

    Args:
        gpu: whether the energy of its GPU must be in it.
        folder: the system's /sys/class; None for the one that the environment names.

    Raises:
        NoCounterError: there is none, or it cannot be read.
    """
    folder = folder or os.environ.get(FOLDER, "/sys/class")
    rails = _rails(folder)
    packages = [] if rails or gpu else _packages(folder)
    try:
        if rails:
            return PowerRails(rails)
        if packages:
            return Rapl(packages)
    except PermissionError as error:
        raise NoCounterError(
            f"only root may read {error.filename}; let others read it (sudo chmod a+r {_pattern(error.filename)})"
        ) from error
    except (OSError, ValueError) as error:
        raise NoCounterError(f"its counter cannot be read ({error}); limit latency or flops") from error
    if gpu:
        raise NoCounterError("that of a GPU is read on a Jetson only; limit latency or flops")
    raise NoCounterError(
        f"there is none: neither RAPL ({folder}/powercap/intel-rapl:*) nor the power rails of a Jetson "
        f"({folder}/hwmon/*, ina3221); limit latency or flops"
    )


def _packages(folder: str) -> list[str]:
    """Return the folders of processor packages; what is inside or around a package would count twice."""
    zones = sorted(glob.glob(os.path.join(folder, "powercap", "intel-rapl:*")))  # AMD's, too
    return [zone for zone in zones if _text(zone, "name").startswith("package")]


def _rails(folder: str) -> list[tuple[str, str]]:
    """Return the files of the rail that supplies the whole module, or else of all rails."""
    rails = {}
    for monitor in sorted(glob.glob(os.path.join(folder, "hwmon", "*"))):
        if _text(monitor, "name") == "ina3221":
            for channel in "123":
                label = _text(monitor, f"in{channel}_label")
                if label and label != _UNUSED:
                    files = [os.path.join(monitor, f"{kind}{channel}_input") for kind in ("in", "curr")]
                    rails[label] = (files[0], files[1])
    return [rails[name] for name in _WHOLE if name in rails][:1] or list(rails.values())


def _number(*path: str) -> int:
    with open(os.path.join(*path)) as file:
        return int(file.read())


def _text(*path: str) -> str:
    """Return what a file says; empty if there is none."""
    try:
        with open(os.path.join(*path)) as file:
            return file.read().strip()
    except OSError:
        return ""


def _pattern(path: str) -> str:
    """Return a pattern for a file of one package or monitor that matches those of all."""
    folder, name = os.path.split(path)
    return os.path.join(folder.rstrip("0123456789") + "*", name)


def main() -> None:
    """Print what counts this machine's energy."""
    try:
        found = {"name": find_counter().name}
    except NoCounterError as error:
        found = {"missing": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
