"""What a workflow knows of its caller, and what it returns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from autoprune.config import Config, RunConfig
from autoprune.errors import RunError
from autoprune.listener import Listener, hearing
from autoprune.workflows.run_log import RunListener


@dataclass(frozen=True)
class Caller:
    """Who runs a workflow.

    Attributes:
        command: what was called, which policies name as their origin.
        again: (command, configuration, run folder) → what goes on with a run that was interrupted.
        words: a text of the library → as the caller shows it.
        opened: called with the run folder and the configuration once the folder is there.
    """

    command: str
    again: Callable[[str, RunConfig, Path], str]
    words: Callable[[str], str] = str
    opened: Callable[[Path, RunConfig], None] = lambda path, config: None


@dataclass(frozen=True)
class Finished:
    """What a workflow left behind.

    Attributes:
        folder: where.
        held: whether every limit of its budget is held, as measured; True for what has no budget.
    """

    folder: Path
    held: bool = True


def run_workflow(command: str, config: Config, listener: Listener, caller: Caller) -> Finished:
    """Hand over to ``autoprune.workflows.<command>.run``, imported late so that ``--help`` needs no torch.

    Raises:
        RunError: a user's own code, such as a function that builds a network, wanted to leave the process.
        AutopruneError: the workflow's own.
    """
    module = importlib.import_module(f"autoprune.workflows.{command}")
    from autoprune.runtimes._torch import loss_guard  # late: torch again

    try:
        with (
            loss_guard("GPU"),  # wherever it is used: in measurements, evaluation or training
            RunListener(listener, caller.command, caller.words) as heard,
            hearing(heard),
        ):
            finished: Finished = module.run(config, heard, replace(caller, opened=heard.opened))
            return finished
    except SystemExit as error:
        if type(error) is not SystemExit:  # a listener's own
            raise
        raise RunError(
            f"Code that is not autoprune's called sys.exit({error.code!r}) in the middle of {command}; let it return, "
            "or raise an error"
        ) from error
