"""The run folder: everything that one run leaves behind."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from torch import nn

from autoprune import __version__
from autoprune.config import (
    COMMANDS,
    EXTENDABLE,
    SHOWING,
    WHERE,
    ApplyConfig,
    BudgetedConfig,
    CompareConfig,
    ResumableConfig,
    RunConfig,
    TrainConfig,
    to_yaml,
)
from autoprune.config.files import check_command, save
from autoprune.errors import AutopruneError, AutopruneWarning, RunError
from autoprune.io.files import first_link, remove_leftovers, saying_why, write_atomic
from autoprune.journal import JOURNAL_FILE, Journal
from autoprune.metrics import is_measured
from autoprune.models._base import Adapter
from autoprune.policy import Policy
from autoprune.results import Metrics
from autoprune.workflows.call import Caller
from autoprune.workflows.inputs import Inputs, noted_in
from autoprune.workflows.records import check_record

RUNS = Path("runs")

Opened = TypeVar("Opened")

INPUTS = "inputs.json"

_PREPARATION = {"demo image size", "threads", "validation", "created", "batch", "scored in"}
"""Kinds of records that are there before anything is found."""

_PACKAGES = ("torch", "numpy", "gymnasium", "stable_baselines3", "ultralytics")


class RunWarning(AutopruneWarning):
    """A run goes on in another environment than it began in."""


class RunFolder:
    """A run's folder with its journal, open for one process. A context manager.

    Where the run can be resumed, an interrupt leaves it with the command that does so. A run that is refused, or fails,
    before it has found anything leaves nothing.

    Attributes:
        path: the folder.
        journal: what the run has found so far.
        command: what is run.
        called: the call that began it, with its options.
        resumed: whether an earlier process began it.
    """

    def __init__(
        self,
        path: Path,
        journal: Journal,
        caller: Caller,
        *,
        command: str,
        config: RunConfig,
        made: Sequence[Path] = (),
    ) -> None:
        """Use ``open``; ``made`` are the folders that this process made, the run's own first."""
        self.path = path
        self.journal = journal
        self.resumed = not made
        self.command, self._made = command, made
        self.called = str(journal.header.get("called", caller.command))
        self._stack = ExitStack()
        self._again = caller.again(command, config, path)
        caller.opened(path, config)

    @classmethod
    def open(cls, command: str, config: RunConfig, caller: Caller) -> RunFolder:
        """Create the run's folder, or go on with the one that the configuration resumes.

        Raises:
            RunError: the folder exists already, or is not a run of this command, configuration and input files.
        """
        resume = config.resume if isinstance(config, ResumableConfig) else None
        return cls._begin(command, config, caller) if resume is None else cls._go_on(command, config, caller, resume)

    @classmethod
    def _begin(cls, command: str, config: RunConfig, caller: Caller) -> RunFolder:
        path, made = _make_next(command, config) if config.out is None else _make_named(config.out, config)
        try:
            config = _with_policy_file(config, path)
            inputs = Inputs.of(config)
            save(config, path)
            write_atomic(path / INPUTS, inputs.to_json())
            journal = Journal.create(
                path / JOURNAL_FILE,
                {
                    **_identifying(command, config),
                    "called": caller.command,
                    "inputs": inputs.digests,
                    "environment": _versions(),
                },
            )
        except BaseException:
            _remove(made)
            raise
        return cls(path, journal, caller, command=command, config=config, made=made)

    @classmethod
    def _go_on(cls, command: str, config: RunConfig, caller: Caller, path: Path) -> RunFolder:
        if link := first_link(path):
            raise RunError(f"{link} is a symbolic link, and nothing is written through one; put the file itself there")
        journal = Journal.open(path / JOURNAL_FILE, check=check_record)
        try:
            began = journal.header
            check_command(command, path, began)
            if any(began.get(key) != value for key, value in _identifying(command, config).items()):
                raise RunError(f"{path / 'config.yaml'} was changed since the run began; start a new run with it")
            _check_inputs(path, began, Inputs.of(config))
            _tell_versions(path, began)
            remove_leftovers(path)
            if isinstance(config, CompareConfig):
                save(replace(config, resume=None), path)  # a comparison that goes further remembers it
        except BaseException:
            journal.close()
            raise
        return cls(path, journal, caller, command=command, config=config)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run whole or not at all; returns its path."""
        path = self.path / name
        write_atomic(path, text)
        return path

    def once(self, kind: str, compute: Any, key: Any = "") -> Any:
        """Return what the journal holds of a stage, or compute it and make it durable (plain JSON values)."""
        return self.journal.once(kind, key, compute)

    def validated(self, name: str, module: nn.Module, adapter: Adapter) -> Metrics:
        """Return a network's metrics on the validation split; measured once in a run.

        Args:
            name: of the network, which tells it from the others of the run.
            module: the network.
            adapter: has the data.
        """
        return Metrics.from_json(self.once("validation", lambda: adapter.validate(module).to_json(), name))

    def enter(self, context: AbstractContextManager[Opened]) -> Opened:
        """Enter a context that ends when the folder is closed; returns what it gives."""
        return self._stack.enter_context(context)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self.journal.close()
        if not isinstance(error, (AutopruneError, KeyboardInterrupt, SystemExit, OSError)):
            return  # of a mistake of the program, or of a user's own code, the folder may say something
        resumable = issubclass(COMMANDS[self.command], ResumableConfig)
        if isinstance(error, KeyboardInterrupt) and resumable:
            raise KeyboardInterrupt(f"stopped; everything so far is kept, go on with: {self._again}") from error
        if not (resumable and (self.resumed or self._found_anything())):
            _remove(self._made)
        elif isinstance(error, AutopruneError):
            raise type(error)(
                f"{str(error).rstrip('.')}; what was found is kept, and {self._again} goes on there"
            ) from error

    def _found_anything(self) -> bool:
        """Return whether a candidate was scored or an epoch trained, or whatever else the run is for."""
        budgeted = issubclass(COMMANDS[self.command], BudgetedConfig)  # the dense network is measured in any case
        return any(self.path.rglob("last.pt")) or any(
            not (kind in _PREPARATION or kind.endswith(" dense") or (budgeted and is_measured(kind)))
            for kind in self.journal.kinds
        )


def _with_policy_file(config: RunConfig, folder: Path) -> RunConfig:
    """Write a policy that the caller has in a variable into the run's folder; return what names that file instead."""
    if not isinstance(config, (ApplyConfig, TrainConfig)) or not isinstance(config.policy, Policy):
        return config
    file = folder / "policy.json"
    config.policy.save(file)
    return replace(config, policy=file)


def _make(path: Path) -> Sequence[Path]:
    """Make a folder, and its parents if they are missing; return those that were, the innermost first."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    with saying_why(path):
        try:
            path.mkdir(parents=True)
        except BaseException:
            _remove_empty(missing[1:])
            raise
    return missing


def _make_named(path: Path, config: RunConfig) -> tuple[Path, Sequence[Path]]:
    """Make the folder that the configuration names; see `_make`."""
    check_free(path, config)
    return path, _make(path)


def check_free(path: Path | None, config: RunConfig) -> None:
    """Check that nothing is where a new run's folder is to be.

    Raises:
        RunError: something is.
    """
    if path is not None and os.path.lexists(path):
        resumed = f", or `resume` {path}" if isinstance(config, ResumableConfig) else ""
        raise RunError(f"The run folder {path} exists already; choose another `out`{resumed}")


def _make_next(command: str, config: RunConfig) -> tuple[Path, Sequence[Path]]:
    """Make the first free folder, or the next one if another run makes that first; see `_free` and `_make`."""
    while True:
        path = _free(command, config)
        try:
            return path, _make(path)
        except RunError:
            if not os.path.lexists(path):  # no other run made it
                raise


def _remove(made: Sequence[Path]) -> None:
    """Remove a run's folder, and the parents that were made for it if nothing else is in them."""
    for run in made[:1]:
        shutil.rmtree(run, ignore_errors=True)
    _remove_empty(made[1:])


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _check_inputs(path: Path, began: Mapping[str, Any], inputs: Inputs) -> None:
    """Refuse to go on with other input files than a run began with."""
    if changes := inputs.changes(noted_in(began), path / INPUTS):
        raise RunError(
            f"{path} began with other input files ({changes}), and old figures must not mix with new ones; put back "
            "what it began with, or start a new run"
        )


def _tell_versions(path: Path, began: Mapping[str, Any]) -> None:
    """Say if a run goes on with other packages than it began with."""
    before = began.get("environment")
    if not isinstance(before, dict):
        return
    changed = [f"{name} {before.get(name)} → {now}" for name, now in _versions().items() if before.get(name) != now]
    if changed:
        warnings.warn(
            f"{path} goes on with other versions than it began with ({', '.join(changed)}): its figures may come to "
            "differ for that",
            RunWarning,
            stacklevel=2,
        )


def _identifying(command: str, config: RunConfig) -> Mapping[str, str]:
    """Return the part of a journal's header that a run cannot go on without."""
    return {"command": command, "config": _identity(command, config)}


def _identity(command: str, config: RunConfig) -> str:
    """Return what makes a run another run: not where its folder lies, nor how far a comparison goes."""
    changing = {*WHERE, *SHOWING, *EXTENDABLE.get(command, ())}
    lines = to_yaml(config).splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0] not in changing)


def _free(command: str, config: RunConfig) -> Path:
    """Return the first free ``runs/<command>-<n>``, or ``<project>/<name>``, ``<name>-2``, … as Ultralytics counts.

    Source:
        ``ultralytics.utils.files.increment_path``.
    """
    if config.project is None and config.name is None:
        names = (f"{command}-{number}" for number in count(1))
    else:
        name = config.name or command
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    project = config.project or RUNS
    return next(project / name for name in names if not os.path.lexists(project / name))


def environment() -> Mapping[str, str]:
    """Return what a figure of this run depends on next to its configuration."""
    return {**_versions(), "platform": platform.platform()}


def _versions() -> dict[str, str]:
    packages = {package: version(package) for package in _PACKAGES}
    return {"autoprune": __version__, "python": platform.python_version(), **packages}
