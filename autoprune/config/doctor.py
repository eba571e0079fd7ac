"""The options of ``autoprune doctor``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Show what this installation and this machine have: packages, devices, runtimes, load, cache; exit 1 if broken.

    Attributes:
        json: print JSON instead of a table
    """

    json: bool = False
