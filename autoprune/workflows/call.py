"""What a workflow is told about its caller, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoprune.config import RunConfig


@dataclass(frozen=True)
class Caller:
    """Who runs a workflow.

    Attributes:
        command: what was called, which policies name as their origin.
        again: (command, configuration, run folder) → what goes on with a run that was interrupted.
    """

    command: str
    again: Callable[[str, RunConfig, Path], str]


@dataclass(frozen=True)
class Finished:
    """What a workflow left behind.

    Attributes:
        folder: where.
        held: whether every limit of its budget is held, as measured; True for what has no budget.
    """

    folder: Path
    held: bool = True
