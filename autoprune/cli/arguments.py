"""Command line and YAML file → configuration. What the command line says wins over the file, wherever it stands."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem, get_completion_class
from docstring_parser import parse as parse_docstring

from autoprune import __version__
from autoprune.cli.options import completions, groups_of, help_of, metavar_of
from autoprune.cli.words import ALIASES, in_options
from autoprune.config import COMMANDS, EXTENDABLE, SHOWING, Config, option, yaml_of
from autoprune.config.files import TRUST, built, check_trust, extended, from_file, going_on, kept_config, load, unknown
from autoprune.config.reading import field_docs, field_of, hints_of, is_list, places_of, read_value, spelled
from autoprune.errors import AutopruneError, ConfigError

COMPLETION = "_AUTOPRUNE_COMPLETE"
"""The variable by which a shell asks for what can follow, see click's "Shell Completion"."""

_SHELLS = {
    "bash": """eval "$(autoprune completion bash)" in ~/.bashrc""",
    "zsh": """eval "$(autoprune completion zsh)" in ~/.zshrc""",
    "fish": "autoprune completion fish > ~/.config/fish/completions/autoprune.fish",
}
"""The shells that are completed for, each with how a user switches it on."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "allow_extra_args": True}


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

    Example:
        >>> command, config = parse(["search", "--budget", "flops=50%"])
        >>> command, config.budget
        ('search', ('flops=50%',))
    """
    try:
        return _understood(argv)
    except AutopruneError as error:
        raise type(error)(in_options(str(error))) from error


def _understood(argv: Sequence[str]) -> tuple[str, Config]:
    command = argv[0] if argv else "none"
    if command in ("-h", "--help", "--version"):
        _context(build_parser(), "autoprune", [command])
    if command == "completion":
        _print_completion(argv[1:])
    if command not in COMMANDS:
        raise ConfigError(
            f"The first word must be a command ({', '.join([*COMMANDS, 'completion'])}) or --help or --version, got "
            f"{command}"
        )
    given = _given(command, argv[1:])
    said = {option(name) for name, value in given.items() if value is not False}
    if given.get("resume") is not None:
        return command, _resumed(command, given, said)
    files, printed = given.pop("config", ()), given.pop("print_config", False)
    values: dict[str, Any] = {}
    for file in files:
        values |= from_file(command, file)
    values |= given
    if printed:
        _print(command, values)
    config = built(command, values)
    if getattr(config, "resume", None) is not None:
        raise ConfigError("resume belongs on the command line, not into a configuration file")
    check_trust(config, said)
    return command, config


# -- building --------------------------------------------------------------------------------------


def build_parser() -> click.Group:
    """Return the command line of all commands.

    Example:
        >>> list(build_parser().commands)[:3]
        ['search', 'netadapt', 'sensitivity']
    """
    description = "Prune a trained YOLO, or a network of your own, until it holds a budget: FLOPs, size, latency."
    commands: dict[str, click.Command] = {name: _command(name) for name in COMMANDS}
    commands["completion"] = _completion_command()
    group = _Commands("autoprune", commands=commands, help=description, context_settings=_SETTINGS)
    click.version_option(__version__, message="autoprune %(version)s")(group)
    return group


class _Commands(click.Group):
    """All commands, not sorted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _Command(click.Command):
    """A command that refuses in our words, and shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group; those of files and help come last."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        shown = {one.name: record for one in options if (record := one.get_help_record(ctx))}
        groups = {title: list(names) for title, names in groups_of(COMMANDS[str(self.name)]).items()}
        groups["Configuration and help"] = [name for name in shown if name not in chain(*groups.values())]
        for title, names in groups.items():
            if records := [shown[name] for name in names if name in shown]:
                with formatter.section(title):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spellings = [[*one.opts, *one.secondary_opts] for one in self.get_params(ctx) if isinstance(one, click.Option)]
        name, known = str(self.name), [word for words in spellings for word in words]
        try:
            if not ctx.resilient_parsing:  # of a shell that completes
                self._check_values(args)
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise unknown(error.option_name, name, known) from error
        except click.BadOptionUsage as error:
            words = next(words for words in spellings if error.option_name in words)
            raise ConfigError(f"{words[0]} takes no value: write {' or '.join(words)}") from error
        if rest and not ctx.resilient_parsing:
            raise unknown(rest[0], name, known)
        return rest

    def _check_values(self, args: Sequence[str]) -> None:
        """Refuse an option without its value, before click takes the next option for it."""
        valued = {word for one in self.params if isinstance(one, click.Option) and not one.is_flag for word in one.opts}
        for word, following in pairwise([*args, "--"]):
            if word in valued and following[1:] and following[0] == "-" and not following[1].isdigit():
                raise _needs_a_value(str(self.name), word)


@cache
def _command(name: str) -> _Command:
    """Return a command with its fields as parameters."""
    kind = COMMANDS[name]
    summary = in_options(parse_docstring(kind.__doc__ or "").short_description or "")
    own, docs = [] if places_of(kind) else _options_of_files(), field_docs(kind)
    params = [*own, *(_parameter(kind, field, hint, docs[field]) for field, hint in hints_of(kind).items())]
    return _Command(name, help=summary, short_help=summary, params=params, context_settings=_SETTINGS)


def _options_of_files() -> list[click.Parameter]:
    """Return the options of every command that reads a configuration file."""
    reads, prints = "a YAML file of these options", "print all options with their values as YAML, and leave"
    return [
        click.Option(["--config"], type=_Value("--config", "config", Path), metavar="FILE", multiple=True, help=reads),
        click.Option(["print_config", "--print-config", "--print_config"], is_flag=True, help=prints),
    ]


def _parameter(kind: type[Config], name: str, hint: Any, docs: str) -> click.Parameter:
    word, text = spelled(kind, name), in_options(help_of(docs, name, field_of(kind, name).default))
    value = _Value(word, name, hint)
    if name in places_of(kind):
        several = -1 if is_list(hint) else 1
        return click.Argument(
            [name], metavar=word + "..." * (several < 0), type=value, nargs=several, required=False, help=text
        )
    if hint is bool:
        return click.Option([name, f"{word}/--no-{word[2:]}"], help=text)
    words = [name, word, *([ALIASES[word]] if word in ALIASES else [])]
    return click.Option(words, type=value, metavar=metavar_of(name, hint), multiple=is_list(hint), help=text)


class _Value(click.ParamType[Any]):
    """A value of a field, read and refused as one of a configuration file is.

    Args:
        word: what stands for the field on the command line.
        field: its name.
        hint: its type.
    """

    name = "value"

    def __init__(self, word: str, field: str, hint: Any) -> None:
        self._word, self._field, self._hint = word, field, hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a value of the command line, where ``null`` takes back what a file says."""
        if is_list(self._hint):
            return read_value(self._word, self._hint, [value])[0]
        optional = type(None) in get_args(self._hint)
        return read_value(self._word, self._hint, None if value == "null" and optional else value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what a shell offers for what is typed so far."""
        return completions(self._field, self._hint, incomplete)


def _completion_command() -> click.Command:
    """Return the command that prints what a shell needs to complete commands, options, choices and file names."""
    lines = "\n\n".join(f"{shell}: {how}" for shell, how in _SHELLS.items())
    summary = "Print what a shell needs to complete commands, options, choices and file names."
    shell = click.Argument(["shell"], type=click.Choice(list(_SHELLS)), help="which shell")
    return click.Command(
        "completion",
        params=[shell],
        help=f"{summary}\n\nSwitch it on once:\n\n{lines}",
        short_help=summary,
        context_settings=_SETTINGS,
    )


# -- parsing ---------------------------------------------------------------------------------------


def _given(command: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the values that a command line gives, by field; what it does not give, a file may."""
    found = _context(_command(command), f"autoprune {command}", words)
    said = {name for name in found.params if found.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return {name: value for name, value in found.params.items() if name in said}


def _context(command: click.Command, name: str, words: Sequence[str]) -> click.Context:
    """Return what click makes of a command line; help and version are answered, and leave."""
    try:
        return command.make_context(name, list(words))
    except click.exceptions.Exit as answered:
        raise SystemExit(answered.exit_code) from None


def _print_completion(words: Sequence[str]) -> NoReturn:
    """Print the completion script of a shell, and leave."""
    if {"-h", "--help"} & {*words}:
        _context(_completion_command(), "autoprune completion", ["--help"])
    shell = words[0] if words else "none"
    if shell not in _SHELLS or words[1:]:
        raise ConfigError(f"completion takes one shell, {', '.join(_SHELLS)}, got {' '.join(words) or 'none'}")
    kind = get_completion_class(shell)
    assert kind is not None
    sys.stdout.write(kind(build_parser(), {}, "autoprune", COMPLETION).source() + "\n")
    raise SystemExit(0)


def _print(command: str, values: Mapping[str, Any]) -> NoReturn:
    """Print a configuration whether it is complete or not, and leave."""
    names = [item for item in fields(COMMANDS[command]) if item.name != "resume"]
    defaults = {item.name: None if item.default is MISSING else item.default for item in names}
    sys.stdout.write(yaml_of(defaults | {name: value for name, value in values.items() if name in defaults}))
    raise SystemExit(0)


def _resumed(command: str, given: Mapping[str, Any], said: Collection[str]) -> Config:
    """Return the configuration of a run that goes on; what extends it is all that may be said anew."""
    extending = (*EXTENDABLE.get(command, ()), *SHOWING, "trust_checkpoint")
    others = [option(name) for name in given if name not in (*extending, "resume")]
    if others:
        raise _stands_alone(command, others)
    config = load(command, kept_config(command, given["resume"]))
    config = extended(config, {name: given[name] for name in extending if name in given})
    return going_on(command, config, given["resume"], said)


def _needs_a_value(command: str, word: str) -> ConfigError:
    if word == "--resume":
        return _stands_alone(command)
    return ConfigError(f"{word} needs a value; one that begins with a dash is written {word}=VALUE")


def _stands_alone(command: str, others: Sequence[str] = ()) -> ConfigError:
    names = [name for name in (*EXTENDABLE.get(command, ()), *SHOWING) if name in hints_of(COMMANDS[command])]
    allowed = ", ".join(map(option, names)) + f" and {TRUST}"
    what = f"remove {', '.join(others)}" if others else "got none"
    return ConfigError(f"--resume RUN stands alone but for {allowed}, the run knows its other options; {what}")
