"""Measure, save and interpolate sensitivity curves: how the score falls as one unit alone is pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoprune.arrays import Array, Counts
from autoprune.errors import ConfigError, PolicyError
from autoprune.io.fields import pretty
from autoprune.io.files import read_bytes, write_atomic
from autoprune.io.records import FiniteRecord, read_record
from autoprune.policy import PolicyModel
from autoprune.policy_file import ModelEntries, model_to_json
from autoprune.structure.space import Allocation, Space

SCHEMA_VERSION = 1

EXPONENT = 2.0
"""The loss rises with about this power of the pruned share: it is smooth, and the dense network is near a minimum."""

_FLOOR = 1e-4
"""Rise of the relative loss that even a unit without any effect is given, at a pruned share of 1; breaks ties."""


@dataclass(frozen=True)
class Curve:
    """What pruning one unit alone does.

    Attributes:
        unit: its name.
        width: its channels in the dense network.
        points: (kept channels, score), by kept channels ascending, the dense network not among them; the score is
            0 for the dense network and negative if the loss is higher. Empty if nothing was measured.

    Raises:
        ConfigError: the width is below 1, or a point lies outside 1 … width − 1, is out of order, or has a score that
            is not finite.
    """

    unit: str
    width: int
    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"{self.unit} must have at least 1 channel, got {self.width}")
        before = 0
        for keep, score in self.points:
            if not 1 <= keep < self.width:
                raise ConfigError(f"A curve's points keep 1 to {self.width - 1} channels of {self.unit}, got {keep}")
            if keep <= before:
                raise ConfigError(f"A curve's points ascend by keep, got {keep} after {before} for {self.unit}")
            if not math.isfinite(score):
                raise ConfigError(f"A curve's scores must be finite, got {score} for {self.unit} at keep {keep}")
            before = keep

    def rises(self, choices: Counts) -> Array:
        """Return the estimated rise of the loss at kept channels, ≥ 0, shape as ``choices``, never rising with them.

        A power law in the pruned share joins the measured points, and goes on beyond them with the exponent 2. At
        least one point must be there.
        """
        pruned = 1 - np.asarray(choices, dtype=np.float64) / self.width
        shares = 1 - np.array([keep for keep, _ in reversed(self.points)], dtype=np.float64) / self.width
        measured = np.array([max(-score, 0.0) for _, score in reversed(self.points)])
        # A higher loss with more channels is noise of the scoring images: from here on the curve only rises.
        known = np.maximum.accumulate(np.maximum(measured, _FLOOR * shares**EXPONENT))
        x, at = np.log(np.maximum(pruned, 1e-12)), np.log(shares)
        inside = np.interp(x, at, np.log(known))
        outside = x - np.clip(x, at[0], at[-1])
        return np.where(pruned > 0, np.exp(inside + EXPONENT * outside), 0.0)


@dataclass(frozen=True)
class CurvesHeader:
    """How curves were measured.

    Attributes:
        model: the network.
        criterion: the importance criterion that said which channels stay.
        images: scoring images.
        seed: chose the images.
    """

    model: PolicyModel
    criterion: str
    images: int
    seed: int


@dataclass(frozen=True)
class SensitivityCurves:
    """One curve per unit.

    Attributes:
        curves: in the order of ``Space.units``.
    """

    curves: tuple[Curve, ...]

    def check(self, space: Space) -> None:
        """Make sure that the curves belong to a space.

        Raises:
            ConfigError: units differ, or one with several choices was not measured; the message names the first.
        """
        ours = [(curve.unit, curve.width) for curve in self.curves]
        theirs = [(unit.name, unit.width) for unit in space.units]
        for index in range(max(len(ours), len(theirs))):
            if ours[index : index + 1] != theirs[index : index + 1]:
                raise ConfigError(
                    "The sensitivity curves do not fit this model: "
                    f"unit {index + 1} is {_named(ours, index)} in the curves, {_named(theirs, index)} in the model; "
                    "measure them again for it"
                )
        for curve, choices in zip(self.curves, space.choices, strict=True):
            if len(choices) > 1 and not curve.points:
                raise ConfigError(
                    f"The sensitivity curves have no score of {curve.unit}, which may keep {choices[0]} to "
                    f"{choices[-1]} channels; measure them again with this rounding"
                )

    def rises(self, space: Space) -> list[Array]:
        """Return per unit the estimated rise of the loss at each of its choices, 0 at full width.

        Raises:
            ConfigError: the curves belong to another space.
        """
        self.check(space)
        return [
            curve.rises(choices) if curve.points else np.zeros(len(choices))
            for curve, choices in zip(self.curves, space.choices, strict=True)
        ]

    def to_json(self, header: CurvesHeader) -> str:
        """Return the curves as JSON, one unit per line; ends with a line end."""
        units = [
            {
                "name": curve.unit,
                "channels": curve.width,
                "scores": [{"keep": keep, "score": score} for keep, score in curve.points],
            }
            for curve in self.curves
        ]
        entries = {
            "schema_version": str(SCHEMA_VERSION),
            "model": model_to_json(header.model),
            "criterion": json.dumps(header.criterion),
            "images": str(header.images),
            "seed": str(header.seed),
            "units": pretty(units, indent="  "),
        }
        return "{\n" + ",\n".join(f'  "{name}": {value}' for name, value in entries.items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> tuple[CurvesHeader, SensitivityCurves]:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: not JSON (the message has line and column), another schema version, or an entry that is
                unknown, missing, of the wrong type or out of range.
        """
        try:
            return _read(text)
        except (ValueError, PolicyError) as error:
            raise ConfigError(str(error)) from error

    def save(self, path: Path | str, header: CurvesHeader) -> None:
        """Write the curves as a JSON file, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomic(Path(path), self.to_json(header))

    @classmethod
    def load(cls, path: Path | str) -> tuple[CurvesHeader, SensitivityCurves]:
        """Read a file of curves.

        Raises:
            ConfigError: it cannot be read, or is no file of curves; the message begins with the path.
        """
        try:
            return cls.from_json(read_bytes(Path(path)).decode("utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} has no sensitivity curves: it is not a text in UTF-8") from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def probe_plan(space: Space, ratios: Sequence[float]) -> list[Allocation]:
    """Return the allocations that measure curves: one unit at a time at each ratio, the others dense.

    Args:
        space: the allocations.
        ratios: keep ratios, each rounded down to a choice; equal ones are measured once.
    """
    rounded = np.array([space.round_down(np.full(len(space), ratio)) for ratio in ratios])
    plan = []
    for index in range(len(space)):
        for count in sorted({int(count) for count in rounded[:, index]} - {int(space.dense[index])}, reverse=True):
            counts = space.dense.copy()
            counts[index] = count
            plan.append(space.allocation(counts))
    return plan


def curves_from(space: Space, plan: Sequence[Allocation], scores: Sequence[float]) -> SensitivityCurves:
    """Return the curves that probes have measured.

    Args:
        space: the allocations.
        plan: probes, each with one unit pruned, as from ``probe_plan``.
        scores: their scores.
    """
    points: list[list[tuple[int, float]]] = [[] for _ in space.units]
    for allocation, score in zip(plan, scores, strict=True):
        (index,) = np.flatnonzero(np.array(allocation) != space.dense)
        points[index].append((allocation[index], float(score)))
    return SensitivityCurves(
        tuple(Curve(unit.name, unit.width, tuple(sorted(own))) for unit, own in zip(space.units, points, strict=True))
    )


@dataclass(frozen=True)
class _Point(FiniteRecord):
    keep: int
    score: float


@dataclass(frozen=True)
class _CurveEntries:
    name: str
    channels: int
    scores: tuple[_Point, ...]


@dataclass(frozen=True)
class _FileEntries:
    schema_version: int
    model: ModelEntries
    criterion: str
    images: int
    seed: int
    units: tuple[_CurveEntries, ...]


def _read(text: str) -> tuple[CurvesHeader, SensitivityCurves]:
    read = read_record(text, _FileEntries, "the file of curves", version=SCHEMA_VERSION)
    curves = (
        Curve(unit.name, unit.channels, tuple((point.keep, point.score) for point in unit.scores))
        for unit in read.units
    )
    return CurvesHeader(read.model.read(), read.criterion, read.images, read.seed), SensitivityCurves(tuple(curves))


def _named(units: Sequence[tuple[str, int]], index: int) -> str:
    return f"{units[index][0]} with {units[index][1]} channels" if index < len(units) else "absent"
