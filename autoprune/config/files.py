"""Configurations as files, which are read as data of others, and built from what was given."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from autoprune.choices import match_factory
from autoprune.config import COMMANDS, WHERE, Config, ResumableConfig, RunConfig, named, option, to_yaml
from autoprune.config.reading import hints_of, places_of, read_value
from autoprune.errors import BudgetError, ConfigError, RunError
from autoprune.io.files import write_atomic
from autoprune.io.plain_yaml import read_texts
from autoprune.journal import JOURNAL_FILE, read_header

CONFIG_FILE = "config.yaml"
"""The file of a run folder that keeps the options of the run."""

TRUST = "--trust-checkpoint"
"""The option that lets a file run code. It counts where it is said, on the command line; no file says it for itself."""


def load(command: str, path: Path) -> Config:
    """Return the configuration that a YAML file describes.

    Raises:
        ConfigError: the file cannot be read or breaks a rule; the message names it.
        BudgetError: a limit is malformed.
    """
    values = from_file(command, path)
    try:
        return built(command, values)
    except (ConfigError, BudgetError) as error:
        raise type(error)(f"{path}: {error}") from error


def save(config: RunConfig, folder: Path) -> Path:
    """Write a configuration into a run folder, for users and for ``resume``; return the file.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / CONFIG_FILE
    write_atomic(path, to_yaml(config))
    return path


def resume_command(command: str, config: RunConfig, run: Path) -> str:
    """Return what is typed to go on with a run that was interrupted."""
    return f"autoprune {command} --resume {shlex.quote(str(run))}" + (f" {TRUST}" if needs_trust(config) else "")


def needs_trust(config: RunConfig) -> bool:
    """Return whether a run goes on only for a caller who trusts what it was begun with."""
    return config.trust_checkpoint or bool(_code(config))


def kept_config(command: str, run: Path) -> Path:
    """Return the file that keeps the options of a command's run.

    Raises:
        RunError: there is none, or another command began the run: its options would be refused one by one.
    """
    path = run / CONFIG_FILE
    if not os.path.isfile(path):
        raise RunError(f"{run} is not a run that can be resumed: it has no {CONFIG_FILE}")
    check_command(command, run, read_header(run / JOURNAL_FILE))
    return path


def check_command(command: str, run: Path, header: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that another command began.

    Args:
        command: that is to go on.
        run: its folder.
        header: of its journal.

    Raises:
        RunError: another command began the run.
    """
    began = header.get("command")
    if isinstance(began, str) and began in COMMANDS and began != command:
        raise RunError(f"{run} is a run of {began}, which {command} cannot go on with; `resume` it with {began}")


def going_on(command: str, config: Config, run: Path, said: Collection[str]) -> Config:
    """Return the configuration of a run that goes on.

    Args:
        command: of the run.
        config: from its file, and what extends it.
        run: its folder.
        said: the options that the caller gave now, see `check_trust`.

    Raises:
        ConfigError: the command has nothing to resume, or the file names code that the caller does not trust.
    """
    if not isinstance(config, ResumableConfig):
        raise ConfigError(f"{command} has nothing to resume")
    check_trust(config, said)
    return replace(config, resume=run, out=run, project=None, name=None)


def extended(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a run's configuration with changed options; lists of what is compared become longer, not others."""
    longer = {
        name: ",".join(dict.fromkeys(word.strip() for word in f"{kept},{changes[name]}".split(",")))
        for name in ("strategies", "criteria")
        if changes.get(name) and (kept := getattr(config, name))
    }
    return replace(config, **{**changes, **longer})


def from_file(command: str, path: Path) -> dict[str, Any]:
    """Return the values of a configuration file."""
    if not os.path.isfile(path):
        missing = "is no file" if os.path.exists(path) else "does not exist"
        raise ConfigError(f"The configuration file {path} {missing}")
    try:
        texts = read_texts(path)
    except ValueError as error:
        raise ConfigError(f"The configuration file {path} {error}") from error
    kind, hints = COMMANDS[command], hints_of(COMMANDS[command])
    try:
        for name in texts:
            if name not in hints or name in places_of(kind):
                raise unknown(name, command, list(hints))
        return {name: read_value(named(name), hints[name], value) for name, value in texts.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def built(command: str, values: Mapping[str, Any]) -> Config:
    """Return the configuration of a command, from values by field name.

    Raises:
        ConfigError: a required value is missing, or one breaks a rule.
        BudgetError: a limit is malformed.
    """
    kind = COMMANDS[command]
    missing = [named(item.name) for item in fields(kind) if item.default is MISSING and item.name not in values]
    if missing:
        raise ConfigError(f"{command} needs {' and '.join(missing)}")
    return kind(**values)


def factories(config: RunConfig) -> dict[str, Path]:
    """Return the options whose value names a function that builds a network."""
    values = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in WHERE}
    return {name: value for name, value in values.items() if isinstance(value, Path) and match_factory(value)}


def _code(config: RunConfig) -> dict[str, object]:
    """Return the options that have code run: a function, a program, or a cluster, which is sent objects and sends some.

    A board is none: it is reached by the user's own ssh, and sends numbers.
    """
    command, workers = getattr(config, "runtime_command", ""), getattr(config, "workers", None) or ""
    cluster = {"workers": workers} if "://" in workers else {}
    return {**factories(config), **({"runtime_command": command} if command else {}), **cluster}


def check_trust(config: Config, said: Collection[str]) -> None:
    """Refuse what a file would have run, unless the caller says so: the file may be somebody else's.

    Args:
        config: from a file, from the caller, or both.
        said: the options that the caller gave, e.g. ``--model``.

    Raises:
        ConfigError: a file trusts itself, or names code to be run.
    """
    if TRUST in said or not isinstance(config, RunConfig):
        return
    if config.trust_checkpoint:
        raise ConfigError(
            "A configuration file cannot set trust_checkpoint, or it would trust itself; give `trust_checkpoint`"
        )
    for name, value in _code(config).items():
        if option(name) not in said:
            raise ConfigError(
                f"{named(name)} {value} comes from a file and would be executed; if you trust that file, give "
                "`trust_checkpoint`"
            )


def unknown(word: str, command: str, known: Sequence[str]) -> ConfigError:
    """Return the error of an option that a command does not have; it names the closest of those that it has."""
    name = word.split("=")[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    close += [one for one in known if name.startswith("--") and one.endswith(name[1:])]  # of search --epochs
    hint = f"did you mean {close[0]}?" if close else f"see autoprune {command} --help"
    if name.lstrip("-").replace("-", "_") == "exist_ok":
        hint = "a run never writes into the folder of another; with `name` it counts on to the next free one"
    return ConfigError(f"{name} is not an option of autoprune {command}; {hint}")
