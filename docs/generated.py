"""Pages and entries of the documentation that are made of the code: commands, functions, strategies and criteria.

MkDocs runs the functions ``on_…`` when it builds the site, and mkdocstrings uses the extension of griffe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import autoprune
from autoprune.cli.arguments import build_parser
from autoprune.criteria.registry import CRITERIA, spec_of
from autoprune.strategies.registry import STRATEGIES

FOLDER, CHOICES = "reference/commands", "reference/choices.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for every command into the navigation."""
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    (commands,) = (entry for entry in reference if "Commands" in entry)
    commands["Commands"] = [{name: f"{FOLDER}/{name}.md"} for name in build_parser().commands]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of every command, and that of strategies and criteria."""
    pages = {f"{FOLDER}/{name}.md": _page(name, command) for name, command in build_parser().commands.items()}
    for path, lines in {**pages, CHOICES: choices()}.items():
        files.append(File.generated(config, path, content="\n".join(lines)))
    return files


def choices() -> Iterator[str]:
    """Yield the lines of the page of strategies and criteria: what their records say."""
    yield "# Strategies and criteria\n\nWhat each does is in the [guide](../guides/strategies.md)."
    yield from _table("strategy", STRATEGIES, {"starts from the prior": "uses_prior", "draws nothing": "deterministic"})
    yield from _table("criterion", (spec_of("l1"), *CRITERIA), {"looks at images": "needs_images"})


def _table(kind: str, specs: Iterable[Any], flags: Mapping[str, str]) -> Iterator[str]:
    """Yield a table of records: their names, which flags are set, and where they come from."""
    yield f"\n| {kind} | {' | '.join(flags)} | source |\n|---|{'---|' * len(flags)}---|"
    for spec in specs:
        words = ("yes" if getattr(spec, flag) else "" for flag in flags.values())
        yield f"| `{spec.name}` | {' | '.join(words)} | {spec.source} |"


def _page(name: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"autoprune {name}", **command.context_settings)
    yield from (f"# autoprune {name}\n", f"{command.help}\n", f"```text\n{command.get_usage(context)}\n```\n")
    if name in autoprune.COMMANDS:
        yield f"The same in Python: [`autoprune.{name}`][].\n"
    options = _Markdown()
    places = [one for one in command.params if isinstance(one, click.Argument)]
    options.write_dl((one.make_metavar(context), one.help or "") for one in places)
    command.format_options(context, options)
    yield from options.lines


class _Markdown(click.HelpFormatter):
    """Writes the options of a command as headings and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.lines.append(f"## {name}\n")
        yield

    def write_dl(self, rows: Iterable[tuple[str, str]], *_: Any, **__: Any) -> None:
        self.lines += [f"`{words}`\n:   {text.replace('<', '&lt;')}\n" for words, text in rows]


class PublicNames(griffe.Extension):
    """Tells griffe, which reads source, what Python finds in `autoprune` when it runs."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Add the functions that are made of the commands."""
        if pkg.path == "autoprune":
            inspected = griffe.inspect("autoprune", filepath=None)
            for name in autoprune.COMMANDS:
                function = inspected.members[name]
                self.on_object(obj=function)
                pkg.set_member(name, function)

    def on_object(self, *, obj: griffe.Object | griffe.Alias, **kwargs: Any) -> None:
        """Show an example as code, which griffe does under its own heading for it."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
