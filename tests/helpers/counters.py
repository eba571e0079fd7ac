"""Counters of energy that move when a test says so: folders like the system's /sys/class."""

from __future__ import annotations

from pathlib import Path

RANGE = 200_000_000
"""Microjoules at which a package's counter starts again: early, so that searches see it happen."""


class FakeRapl:
    """RAPL of one package, with a core inside and the platform around it, which must not be counted.

    Args:
        sys_class: the folder.
        start: microjoules that are counted already.
    """

    def __init__(self, sys_class: Path, start: int = 0) -> None:
        self._microjoules = start
        for number, name in (("0", "package-0"), ("0:0", "core"), ("1", "psys")):
            zone = sys_class / "powercap" / f"intel-rapl:{number}"
            zone.mkdir(parents=True)
            (zone / "name").write_text(f"{name}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (zone / "energy_uj").write_text(f"{start}\n")
        self.files = [zone / "energy_uj" for zone in sorted((sys_class / "powercap").iterdir())]

    @property
    def file(self) -> Path:
        """The package's counter."""
        return self.files[0]

    def spend(self, joules: float) -> None:
        """Count energy."""
        self._microjoules += round(1e6 * joules)
        for file in self.files:
            overwrite(file, f"{self._microjoules % RANGE}\n")


def overwrite(file: Path, content: str) -> None:
    """Change a file at once, since somebody may be reading it."""
    whole = file.with_name("new")
    whole.write_text(content)
    whole.replace(file)


def write_rails(sys_class: Path, watts: dict[str, float], *, monitor: str = "ina3221") -> Path:
    """Write a power monitor with up to three rails at 5 V; return its folder."""
    folder = sys_class / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{monitor}\n")
    for channel, (label, power) in enumerate(watts.items(), 1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text("5000\n")
        (folder / f"curr{channel}_input").write_text(f"{power * 200:.0f}\n")
    return folder
