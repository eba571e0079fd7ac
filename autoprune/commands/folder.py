"""The run folder: everything that one run leaves behind."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from autoprune import __version__
from autoprune.arguments import save
from autoprune.config import COMMANDS, EXTENDABLE, CompareConfig, ResumableConfig, RunConfig, to_yaml
from autoprune.errors import RunError
from autoprune.files import remove_leftovers, saying_why, write_atomic
from autoprune.journal import Journal

RUNS = Path("runs")


class RunFolder:
    """A run's folder with its journal, open for one process. A context manager.

    Where the run can be resumed, an interrupt leaves it with the command that does so.

    Attributes:
        path: the folder.
        journal: what the run has found so far.
        resumed: whether an earlier process began it.
    """

    def __init__(self, path: Path, journal: Journal, *, command: str, resumed: bool) -> None:
        self.path = path
        self.journal = journal
        self.resumed = resumed
        self._command = command

    @classmethod
    def open(cls, command: str, config: RunConfig) -> RunFolder:
        """Create the run's folder, or go on with the one that the configuration resumes.

        Raises:
            RunError: the folder exists already, or is not a run of this command and configuration.
        """
        told = {"command": command, "config": _identity(command, config)}
        resume = config.resume if isinstance(config, ResumableConfig) else None
        if resume is not None:
            journal = Journal.open(resume / "journal.jsonl")
            if {key: journal.header.get(key) for key in told} != told:
                journal.close()
                raise RunError(f"{resume / 'config.yaml'} was changed since the run began; start a new run with it")
            remove_leftovers(resume)
            if isinstance(config, CompareConfig):
                save(replace(config, resume=None), resume)  # a comparison that goes further remembers it
            return cls(resume, journal, command=command, resumed=True)
        path = config.out if config.out is not None else _next(command)
        if path.exists():
            resumed = f", or --resume {path}" if isinstance(config, ResumableConfig) else ""
            raise RunError(f"The run folder {path} exists already; choose another --out{resumed}")
        with saying_why(path):
            path.mkdir(parents=True)
        journal = Journal.create(path / "journal.jsonl", {**told, "autoprune": __version__})
        save(config, path)
        return cls(path, journal, command=command, resumed=False)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run whole or not at all; returns its path."""
        path = self.path / name
        write_atomic(path, text)
        return path

    def once(self, kind: str, compute: Any, key: Any = "") -> Any:
        """Return what the journal holds of a stage, or compute it and make it durable (plain JSON values)."""
        found = self.journal.lookup(kind, key)
        if found is None:
            found = compute()
            self.journal.append(kind, key, found)
        return found

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()
        if isinstance(error, KeyboardInterrupt) and issubclass(COMMANDS[self._command], ResumableConfig):
            raise KeyboardInterrupt(
                f"stopped; everything so far is kept, go on with: autoprune {self._command} --resume {self.path}"
            ) from error


def _identity(command: str, config: RunConfig) -> str:
    """Return what makes a run another run: not where its folder lies, nor how far a comparison goes."""
    changing = {"out", *EXTENDABLE.get(command, ())}
    lines = to_yaml(config).splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0] not in changing)


def _next(command: str) -> Path:
    """Return the first free ``runs/<command>-<n>``."""
    number = 1
    while (RUNS / f"{command}-{number}").exists():
        number += 1
    return RUNS / f"{command}-{number}"


def environment() -> Mapping[str, str]:
    """Return what a figure of this run depends on beside its configuration."""
    packages = ("torch", "numpy", "gymnasium", "stable_baselines3", "ultralytics")
    return {
        "autoprune": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: version(package) for package in packages},
    }
