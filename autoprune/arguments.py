"""Command line and YAML file → configuration. What the command line says wins over the file, wherever it stands."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, get_args, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from autoprune import __version__
from autoprune.choices import match_factory
from autoprune.config import COMMANDS, EXTENDABLE, PLACE, Config, ResumableConfig, RunConfig, option, to_yaml
from autoprune.errors import BudgetError, ConfigError, RunError
from autoprune.files import write_atomic

CONFIG_FILE = "config.yaml"
"""The file of a run folder that keeps what the run was told."""

TRUST = "--trust-checkpoint"
"""The option that lets a file run code. It counts where it is said, on the command line; no file says it for itself."""

_ALIASES = {"--agent": "--strategy"}
"""Other names of options."""

_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_EXPECTED = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "true or false"}


def build_parser() -> ArgumentParser:
    """Return the parser of all commands; it raises ``argparse.ArgumentError`` instead of leaving."""
    description = "Prune a trained YOLO, or a network of your own, until it holds a budget: FLOPs, size, latency."
    parser = ArgumentParser(prog="autoprune", description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"autoprune {__version__}")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, kind in COMMANDS.items():
        docs = parse_docstring(kind.__doc__ or "")
        helps = {
            param.arg_name: " ".join((param.description or "").split())
            for ancestor in reversed(kind.__mro__)
            for param in parse_docstring(ancestor.__doc__ or "").params
        }
        command = ArgumentParser(description=docs.short_description, exit_on_error=False, allow_abbrev=False)
        if not _places(kind):  # jsonargparse cannot take those from a file
            command.add_argument("--config", action="config", metavar="FILE", help="a YAML file of these options")
        for item, hint in _hints(kind).items():
            add = _add_place if item in _places(kind) else _add_option
            add(command, _field(kind, item), hint, helps[item])
        commands.add_subcommand(name, command, help=docs.short_description)
    return parser


def parse(argv: Sequence[str]) -> tuple[str, Config]:
    """Return the command and its configuration.

    With ``--resume RUN`` the configuration is the one kept in the run folder, with ``resume`` and ``out`` set to it.
    What runs somebody's code is taken from the command line only: ``--trust-checkpoint``, and a network that is named
    by the function that builds it.

    Args:
        argv: the command line without the program's name.

    Raises:
        ConfigError: an option or the file breaks a rule; the message is one sentence.
        BudgetError: a limit is malformed.
        RunError: the folder to resume is not a run.
        SystemExit: ``--help``, ``--version`` or ``--print_config`` was given and is answered.
    """
    run = _run_to_resume(argv)
    if run is not None:
        return argv[0], _resumed(argv[0], *run)
    command, config = _parse(argv)
    if getattr(config, "resume", None) is not None:
        raise ConfigError("resume belongs on the command line, not into a configuration file")
    _check_trust(config, argv)
    return command, config


def load(command: str, path: Path) -> Config:
    """Return the configuration that a YAML file describes.

    Raises:
        ConfigError: the file cannot be read or breaks a rule; the message names it.
        BudgetError: a limit is malformed.
    """
    try:
        return _parse([command, f"--config={path}"])[1]
    except (ConfigError, BudgetError) as error:
        raise type(error)(f"{path}: {error}") from error


def save(config: RunConfig, folder: Path) -> Path:
    """Keep a configuration in a run folder, for people and for ``--resume``; returns the file.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / CONFIG_FILE
    write_atomic(path, to_yaml(config))
    return path


def resume_command(command: str, config: RunConfig, run: Path) -> str:
    """Return what is typed to go on with a run that was interrupted."""
    trusting = config.trust_checkpoint or bool(_factories(config))
    return f"autoprune {command} --resume {run}" + (f" {TRUST}" if trusting else "")


# -- building --------------------------------------------------------------------------------------


def _hints(kind: type[Config]) -> dict[str, Any]:
    """Return the fields of a configuration with their types; those that commands have in common come last."""
    common = get_type_hints(ResumableConfig)
    hints = get_type_hints(kind)
    return {name: hints[name] for name in sorted(hints, key=lambda name: name in common)}


def _field(kind: type[Config], name: str) -> Field[Any]:
    return next(item for item in fields(kind) if item.name == name)


def _places(kind: type[Config]) -> dict[str, str]:
    """Return the fields that are taken by their place, each with the word that stands for it."""
    return {item.name: item.metadata[PLACE] for item in fields(kind) if PLACE in item.metadata}


def _add_place(parser: ArgumentParser, item: Field[Any], hint: Any, text: str) -> None:
    """Add one field that is taken by its place."""
    members = _enum(hint)
    taken = hint if members is None else _choices(members)
    parser.add_argument(item.name, type=taken, metavar=item.metadata[PLACE], help=text)


def _add_option(parser: ArgumentParser, item: Field[Any], hint: Any, text: str) -> None:
    """Add one field. Enums are offered by their values, tuples of texts as an option to repeat."""
    default = None if item.default is MISSING else item.default
    if hint is bool:
        parser.add_argument(option(item.name), action=ActionYesNo(no_prefix="no-"), default=default, help=text)
    elif (members := _enum(hint)) is not None:
        choices = _choices(members)
        offered = choices if default is not None else Optional[choices]  # noqa: UP045  (built, not written)
        parser.add_argument(option(item.name), type=offered, default=default and default.value, help=text)
    elif hint == tuple[str, ...]:
        metavar = {"budget": "LIMIT"}.get(item.name, "TEXT")
        parser.add_argument(option(item.name), type=list[str], default=[], metavar=metavar, help=text)
    else:
        metavar = _METAVARS[_base(hint)]
        required = item.default is MISSING
        parser.add_argument(
            option(item.name), type=hint, default=default, required=required, metavar=metavar, help=text
        )


def _choices(members: type[Enum]) -> Any:
    """Return a type of the values of an enum, as they are written."""
    return Literal[tuple(member.value for member in members)]


def _enum(hint: Any) -> type[Enum] | None:
    """Return the enum of a hint ``E`` or ``E | None``."""
    base = _base(hint)
    return base if isinstance(base, type) and issubclass(base, Enum) else None


def _base(hint: Any) -> Any:
    """Return T for ``T | None``, and any other hint as it is."""
    return next((member for member in get_args(hint) if member is not type(None)), hint)


# -- parsing ---------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> tuple[str, Config]:
    try:
        parsed = build_parser().parse_args(_tidy(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(_one_sentence(str(error), argv)) from error
    command = str(parsed.command)
    return command, _config(COMMANDS[command], parsed[command])


def _config(kind: type[Config], parsed: Namespace) -> Config:
    values: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        value, members = parsed[name], _enum(hint)
        if members is not None and value is not None:
            value = members(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _tidy(argv: Sequence[str]) -> list[str]:
    """Put ``--config`` first, so that the file never wins, and gather options that repeat into one list each."""
    if not argv or argv[0] not in COMMANDS:
        return list(argv)
    repeated = [option(name) for name, hint in _hints(COMMANDS[argv[0]]).items() if hint == tuple[str, ...]]
    gathered: dict[str, list[str]] = {name: [] for name in ("--config", *repeated)}
    rest: list[str] = []
    words = iter(argv[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name not in gathered:
            rest.append(_ALIASES.get(name, name) + equals + value)
            continue
        value = value if equals else next(words, "--")
        if not value or value.startswith("--"):
            raise ConfigError(f"{name} needs a value")
        gathered[name].append(value)
    for file in gathered["--config"]:
        if not Path(file).is_file():
            raise ConfigError(f"The configuration file {file} does not exist")
    lists = [f"{name}={json.dumps(gathered[name])}" for name in repeated if gathered[name]]
    return [argv[0], *(f"--config={file}" for file in gathered["--config"]), *rest, *lists]


def _run_to_resume(argv: Sequence[str]) -> tuple[Path, list[str]] | None:
    """Return the folder after ``--resume``, which must be the only option, and what extends the run."""
    if not argv or argv[0] not in COMMANDS or not issubclass(COMMANDS[argv[0]], ResumableConfig):
        return None
    words = [part for word in argv[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--resume" not in words or {"-h", "--help"} & set(words):
        return None
    at = words.index("--resume")
    run, rest = words[at + 1 : at + 2], words[:at] + words[at + 2 :]
    extensions = [option(name) for name in EXTENDABLE.get(argv[0], ())]
    more = [word for word in rest if word == TRUST]
    rest = [word for word in rest if word != TRUST]
    while len(rest) >= 2 and rest[0] in extensions:
        more, rest = [*more, f"{rest[0]}={rest[1]}"], rest[2:]
    if rest or not run:
        others = [word for word in rest if word.startswith("-")]
        allowed = f" but for {' and '.join([*extensions, TRUST])}"
        raise ConfigError(
            f"--resume RUN stands alone{allowed}, the run knows its other options"
            + (f"; remove {', '.join(others)}" if others else f", got {' '.join(words)}")
        )
    return Path(run[0]), more


def _resumed(command: str, run: Path, more: Sequence[str]) -> Config:
    path = run / CONFIG_FILE
    if not path.is_file():
        raise RunError(f"{run} is not a run that can be resumed: it has no {CONFIG_FILE}")
    config = _parse([command, f"--config={path}", *more])[1] if more else load(command, path)
    if not isinstance(config, ResumableConfig):
        raise ConfigError(f"{command} has nothing to resume")
    _check_trust(config, more)
    return replace(config, resume=run, out=run)


def _check_trust(config: Config, words: Sequence[str]) -> None:
    """Refuse what a file would have run, unless the command line says so: the file may be somebody else's.

    Args:
        config: from a file, the command line, or both.
        words: the command line.
    """
    said = {word.partition("=")[0] for word in words}
    if TRUST in said or not isinstance(config, RunConfig):
        return
    if config.trust_checkpoint:
        raise ConfigError(f"trust_checkpoint is not taken from a file, which could so trust itself; give {TRUST}")
    for name, value in _factories(config).items():
        if option(name) not in said:
            raise ConfigError(
                f"A file names {option(name)} {value}, which runs that code; if you trust it, give {TRUST}"
            )


def _factories(config: RunConfig) -> dict[str, Path]:
    """Return the options whose value names a function that builds a network."""
    values = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in ("out", "resume")}
    return {name: value for name, value in values.items() if isinstance(value, Path) and match_factory(value)}


# -- saying what is wrong --------------------------------------------------------------------------


def _one_sentence(message: str, argv: Sequence[str]) -> str:
    """Turn jsonargparse's report into one sentence that names the option, the rule and the value."""
    if not argv or argv[0] not in COMMANDS:
        got = argv[0] if argv else "none"
        return f"The first word must be a command ({', '.join(COMMANDS)}) or --help or --version, got {got}"
    command, text = argv[0], " ".join(message.split())
    hints = _hints(COMMANDS[command])
    if found := re.match(r'Parser key "(\w+)": .*?(?:Got|Given) value: (.*)$', text):
        return f"{_spelled(command, found[1])} must be {_expected(hints.get(found[1]))}, got {found[2]}"
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        return _unknown(found[1], command, _options(COMMANDS[command]))
    if found := re.match(r".*does not accept option '([\w.-]+)'", text):
        return _unknown(found[1], command, list(hints))
    if found := re.match(r"the following arguments are required: (.*)$", text):
        missing = [_spelled(command, name.removeprefix(f"{command}.")) for name in found[1].split(", ")]
        return f"{command} needs {' and '.join(missing)}"
    if found := re.match(r"argument (--[\w-]+).*: expected one argument", text):
        return f"{found[1]} needs a value"
    if found := re.match(r"argument (--[\w-]+)/(--[\w-]+): ignored explicit argument", text):
        return f"{found[1]} takes no value: write {found[1]} or {found[2]}"
    if found := re.match(r"Value not boolean: (.*)\.$", text):
        return f"A flag in the configuration file must be true or false, got {found[1]}"
    if re.match(r"Problems parsing config|Unexpected config", text):
        return f"The configuration file must be YAML that maps options to values: {text}"
    return text


def _options(kind: type[Config]) -> list[str]:
    """Return the options of a command as they are written."""
    options = [option(name) for name in _hints(kind) if name not in _places(kind)]
    return options if _places(kind) else [*options, "--config"]


def _spelled(command: str, name: str) -> str:
    """Return what stands for a field on the command line."""
    return _places(COMMANDS[command]).get(name, option(name))


def _unknown(word: str, command: str, known: Sequence[str]) -> str:
    name = word.split("=")[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else f"see autoprune {command} --help"
    return f"{name} is not an option of autoprune {command}; {hint}"


def _expected(hint: Any) -> str:
    if (members := _enum(hint)) is not None:
        return "one of " + ", ".join(member.value for member in members)
    if hint == tuple[str, ...]:
        return "a list of texts"
    return _EXPECTED.get(_base(hint), "of another type")
