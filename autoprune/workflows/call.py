"""What a workflow knows of its caller, and what it returns."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.choices import match_factory
from autoprune.config import BudgetedConfig, Config, RunConfig
from autoprune.errors import BudgetUnreachableError, RunError
from autoprune.listener import Listener, hearing
from autoprune.results import LEVELS, SUMMARIES
from autoprune.tracking import check_tracker
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
        broken: whether something that the command looked at is broken.
    """

    folder: Path
    held: bool = True
    broken: bool = False

    @property
    def exit_code(self) -> int:
        """What the process returns to its shell."""
        return 1 if self.broken else 0 if self.held else BudgetUnreachableError.exit_code


_WEIGHTS = ("model", "distill", "dense")
"""Options that name weights."""


def located(config: Config, listener: Listener) -> Config:
    """Return a configuration that says where its weights and data lie, see `autoprune.models.finding`.

    Whether they are there, training arguments, trackers' packages, and whether energy is counted, are checked, too:
    before anything is waited for, and hours before their use.

    Args:
        config: as the user gave it, with names as Ultralytics takes them.
        listener: hears where something was found that does not lie where it was named.

    Raises:
        ModelError: there are no such weights here.
        DataError: the data set's description is missing or malformed, or the data set cannot be fetched.
        ConfigError: Ultralytics refuses a training argument, or a tracker's package is not installed.
        DeviceError: the budget limits an energy that nothing counts.
    """
    if not isinstance(config, RunConfig):
        return config
    from autoprune.models.detection.description import read_description  # late, as the workflows
    from autoprune.models.finding import DESCRIPTIONS, check_weights, find_data, find_weights

    if texts := getattr(config, "train_args", ()):
        from autoprune.training.ultralytics.recipe import train_arguments

        train_arguments(texts)
    for tracker in config.tracker:
        check_tracker(tracker).make()
    given = {name: getattr(config, name, None) for name in (*_WEIGHTS, "data")}
    found: dict[str, Any] = {
        name: (find_data if name == "data" else find_weights)(path, download=config.download)
        for name, path in given.items()
        if isinstance(path, Path)
    }
    for name, path in found.items():
        if path.suffix == ".pt" and not match_factory(path):
            check_weights(path)
        if name == "data" and path.suffix in DESCRIPTIONS and not match_factory(given["model"]):
            read_description(path)
        if path != given[name]:
            listener.note(f"{given[name]} is {path}.")
    if isinstance(config, BudgetedConfig):
        from autoprune.workflows.measuring import check_counters

        check_counters(config)
    return replace(config, **found)


def run_workflow(command: str, config: Config, listener: Listener, caller: Caller) -> Finished:
    """Hand over to ``autoprune.workflows.<command>.run``, imported late so that ``--help`` needs no torch.

    Raises:
        RunError: a user's own code, such as a function that builds a network, wanted to leave the process.
        AutopruneError: the workflow's own.
    """
    module = importlib.import_module(f"autoprune.workflows.{command}")
    if not isinstance(config, RunConfig):  # these compute nothing, and the doctor works without torch
        answered: Finished = module.run(config, listener, caller)
        return answered
    from autoprune.runtimes._torch import loss_guard  # late: torch again

    try:
        with (
            loss_guard("GPU"),  # wherever it is used: in measurements, evaluation or training
            RunListener(listener, caller.command, caller.words) as heard,
            hearing(heard),
        ):
            finished: Finished = module.run(config, heard, replace(caller, opened=heard.opened))
            if config.report:
                _report(finished.folder, heard)
            return finished
    except SystemExit as error:
        if type(error) is not SystemExit:  # a listener's own
            raise
        raise RunError(
            f"Code that is not autoprune's called sys.exit({error.code!r}) in the middle of {command}; let it return, "
            "or raise an error"
        ) from error


def _report(folder: Path, listener: Listener) -> None:
    """Write a run's page; one that cannot be made costs a warning, not the run."""
    from autoprune.report.page import PAGE, reports_of, write_page  # late: charts take half a second to import

    if not any((folder / name).exists() for name in SUMMARIES) and not (folder / LEVELS).exists():
        return
    try:
        listener.note(f"The report is {write_page(reports_of(folder), folder / PAGE)}.")
    except Exception as error:  # whatever it is, what the run found is safe
        listener.warn(f"No report was made: {str(error) or type(error).__name__}")
