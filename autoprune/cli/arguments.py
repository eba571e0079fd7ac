"""Command line and YAML file → configuration. What the command line says wins over the file, wherever it stands."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from docstring_parser import parse as parse_docstring

from autoprune import __version__
from autoprune.cli.words import ALIASES, in_options
from autoprune.config import COMMANDS, EXTENDABLE, Config, ResumableConfig, option, yaml_of
from autoprune.config.files import TRUST, built, check_trust, from_file, going_on, kept_config, load, unknown
from autoprune.config.reading import (
    base_of,
    enum_of,
    field_docs,
    field_of,
    hints_of,
    is_list,
    places_of,
    read_value,
    spelled,
)
from autoprune.errors import AutopruneError, ConfigError

_PRINT = ("--print-config", "--print_config")
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class _Parser(argparse.ArgumentParser):
    """A parser that raises ``ConfigError`` with one sentence, where argparse would print and leave."""

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stdout).write(message)  # argparse's own hides it where that fails

    def error(self, message: str) -> NoReturn:
        raise ConfigError(_one_sentence(message, self.prog.split()[-1]))


@cache
def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it raises ``ConfigError`` instead of leaving."""
    description = "Prune a trained YOLO, or a network of your own, until it holds a budget: FLOPs, size, latency."
    parser = _Parser(prog="autoprune", description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"autoprune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, kind in COMMANDS.items():
        summary = in_options(parse_docstring(kind.__doc__ or "").short_description or "")
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if not places_of(kind):
            command.add_argument(
                "--config",
                action="append",
                default=argparse.SUPPRESS,
                metavar="FILE",
                type=partial(read_value, "--config", Path),
                help="a YAML file of these options",
            )
            command.add_argument(
                *_PRINT,
                dest="print_config",
                action="store_true",
                default=argparse.SUPPRESS,
                help="print all options with their values as YAML, and leave",
            )
        helps = {name: in_options(text) for name, text in field_docs(kind).items()}
        for item, hint in hints_of(kind).items():
            _add(command, kind, item, hint, helps[item])
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
        SystemExit: ``--help``, ``--version`` or ``--print-config`` was given and is answered.
    """
    try:
        return _understood(argv)
    except AutopruneError as error:
        raise type(error)(in_options(str(error))) from error


def _understood(argv: Sequence[str]) -> tuple[str, Config]:
    run = _run_to_resume(argv)
    if run is not None:
        return argv[0], _resumed(argv[0], *run)
    command, config = _parse(argv)
    if getattr(config, "resume", None) is not None:
        raise ConfigError("resume belongs on the command line, not into a configuration file")
    check_trust(config, {word.partition("=")[0] for word in argv})
    return command, config


# -- building --------------------------------------------------------------------------------------


def _add(parser: argparse.ArgumentParser, kind: type[Config], name: str, hint: Any, text: str) -> None:
    """Add one field. What is not given does not come up in the result, so that a file may say it."""
    word, default = spelled(kind, name), field_of(kind, name).default
    if default is MISSING:
        text += " (required)"
    elif (default not in (None, "", ()) and hint is not bool) or default is True:
        text += f" (default: {getattr(default, 'value', default)})"
    text = text.replace("%", "%%")  # argparse fills in what follows one
    if name in places_of(kind):
        parser.add_argument(name, metavar=word, type=partial(read_value, word, hint), help=text)
        return
    words = [word, *([ALIASES[word]] if word in ALIASES else [])]
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if hint is bool:
        parser.add_argument(*words, action=argparse.BooleanOptionalAction, **common)
    elif is_list(hint):
        metavar = {"budget": "LIMIT"}.get(name, "TEXT")
        read = partial(_listed, word, hint)
        parser.add_argument(*words, action="extend", type=read, metavar=metavar, **common)
    else:
        parser.add_argument(*words, type=partial(_given, word, hint), metavar=_metavar(hint), **common)


def _metavar(hint: Any) -> str:
    if (members := enum_of(hint)) is not None:
        return "{" + ",".join(member.value for member in members) + "}"
    return _METAVARS[base_of(hint)]


def _given(word: str, hint: Any, text: str) -> Any:
    """Read a value of the command line, where ``null`` takes back what a file says."""
    return read_value(word, hint, None if text == "null" and type(None) in get_args(hint) else text)


def _listed(word: str, hint: Any, text: str) -> Any:
    """Read one value of an option that repeats."""
    return read_value(word, hint, [text])


# -- parsing ---------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> tuple[str, Config]:
    command = argv[0] if argv else "none"
    if command not in COMMANDS and command not in ("-h", "--help", "--version"):
        raise ConfigError(
            f"The first word must be a command ({', '.join(COMMANDS)}) or --help or --version, got {command}"
        )
    if command in COMMANDS:
        _check_words(command, argv[1:])
    parsed, others = build_parser().parse_known_args(argv)
    if others:
        raise unknown(others[0], command, _words(command))
    given = vars(parsed)
    values: dict[str, Any] = {}
    for file in given.get("config", ()):
        values |= from_file(command, file)
    values |= {name: _frozen(given[name]) for name in hints_of(COMMANDS[command]) if name in given}
    if given.get("print_config"):
        _print(command, values)
    return command, built(command, values)


def _check_words(command: str, argv: Sequence[str]) -> None:
    """Refuse options that there are not, before argparse takes their values for something else."""
    known = _words(command)
    for word in argv:
        name, _, value = word.partition("=")
        if word.startswith("--") and name not in known:
            raise unknown(word, command, known)
        if value == "--":  # argparse takes it for the end of the options
            raise ConfigError(_needs_a_value(name))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _print(command: str, values: Mapping[str, Any]) -> NoReturn:
    """Print a configuration whether it is complete or not, and leave."""
    names = [item for item in fields(COMMANDS[command]) if item.name != "resume"]
    defaults = {item.name: None if item.default is MISSING else item.default for item in names}
    sys.stdout.write(yaml_of(defaults | {name: value for name, value in values.items() if name in defaults}))
    raise SystemExit(0)


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
    path = kept_config(run)
    config = _parse([command, f"--config={path}", *more])[1] if more else load(command, path)
    return going_on(command, config, run, {word.partition("=")[0] for word in more})


# -- saying what is wrong --------------------------------------------------------------------------


def _one_sentence(message: str, command: str) -> str:
    """Turn argparse's report into one sentence that names the option, the rule and the value."""
    if found := re.match(r"the following arguments are required: (.*)$", message):
        return f"{command} needs {' and '.join(found[1].split(', '))}"
    if found := re.match(r"argument ([^\s/]+).*: expected (?:one|at least one) argument", message):
        return _needs_a_value(found[1])
    if found := re.match(r"argument (\S+): ignored explicit argument", message):
        words = found[1].split("/")
        return f"{words[0]} takes no value: write {' or '.join(words)}"
    return message


def _needs_a_value(word: str) -> str:
    return f"{word} needs a value; one that begins with a dash is written {word}=VALUE"


def _words(command: str) -> list[str]:
    """Return the options of a command as they are written."""
    kind = COMMANDS[command]
    places = places_of(kind)
    hints = {option(name): hint for name, hint in hints_of(kind).items() if name not in places}
    switched_off = [word.replace("--", "--no-", 1) for word, hint in hints.items() if hint is bool]
    others = [] if places else ["--config", *_PRINT]
    return [*hints, *switched_off, *(ALIASES[word] for word in hints if word in ALIASES), *others, "--help"]
