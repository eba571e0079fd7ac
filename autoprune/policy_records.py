"""What a policy consists of: units, the model that they belong to, costs, and where it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from autoprune.errors import PolicyError


class CostKind(Enum):
    """How a cost became known."""

    PREDICTED = "predicted"
    MEASURED = "measured"


@dataclass(frozen=True)
class PolicyUnit:
    """What one unit keeps.

    Attributes:
        name: the unit, named after its first producing layer.
        channels: how many it has in the dense network.
        keep: how many stay, 1 to ``channels``. This is what counts; the ratio follows from it.

    Raises:
        PolicyError: ``keep`` is out of range.
    """

    name: str
    channels: int
    keep: int

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise PolicyError(f"{self.name} must have at least 1 channel, got {self.channels}")
        if not 1 <= self.keep <= self.channels:
            raise PolicyError(f"{self.name} must keep 1 to {self.channels} channels, got keep {self.keep}")

    @property
    def ratio(self) -> float:
        """Keep ratio, kept / original channels, in (0, 1]."""
        return self.keep / self.channels


@dataclass(frozen=True)
class PolicyModel:
    """Which network a policy is for.

    Attributes:
        name: for users, e.g. ``yolov8n``.
        layers: channels of the dense network's units, by name.
    """

    name: str
    layers: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted layer names and widths: equal for equal architectures, whatever the weights."""
        return hashlib.sha256(json.dumps(sorted(self.layers.items())).encode()).hexdigest()


@dataclass(frozen=True)
class PolicyCost:
    """What the policy's network costs under one metric.

    Attributes:
        value: in ``unit``.
        unit: FLOPs, parameters, bytes, channels, milliseconds.
        kind: whether the value was predicted or measured.
    """

    value: float
    unit: str
    kind: CostKind


@dataclass(frozen=True)
class Provenance:
    """Where a policy came from.

    Attributes:
        autoprune: the version that made it.
        command: the command line that made it.
        strategy: the search strategy, e.g. ``ppo``.
        seed: its seed.
        evaluations: how many candidates it was allowed.
        created: when, ISO 8601 with time zone.
    """

    autoprune: str
    command: str
    strategy: str
    seed: int
    evaluations: int
    created: str
