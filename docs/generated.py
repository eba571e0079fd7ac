"""Pages and entries of the documentation that are made of the code: the commands, on the command line and in Python.

MkDocs runs the functions ``on_…`` when it builds the site, and mkdocstrings uses the extension of griffe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import autoprune
from autoprune.cli.arguments import build_parser

FOLDER = "reference/commands"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for every command into the navigation."""
    (reference,) = (entry["Reference"] for entry in config.nav or () if "Reference" in entry)
    (commands,) = (entry for entry in reference if "Commands" in entry)
    commands["Commands"] = [{name: f"{FOLDER}/{name}.md"} for name in build_parser().commands]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of every command."""
    for name, command in build_parser().commands.items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content="\n".join(_page(name, command))))
    return files


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
