"""Pages and entries of the documentation that are made of the code: the commands, on the command line and in Python.

MkDocs runs the functions ``on_…`` when it builds the site, and mkdocstrings uses the extension of griffe.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    context = click.Context(command, info_name=f"autoprune {name}")
    yield from (f"# autoprune {name}\n", f"{command.help}\n", f"```text\n{command.get_usage(context)}\n```\n")
    if name in autoprune.COMMANDS:
        yield f"The same in Python: [`autoprune.{name}`][].\n"
    yield from ("| option | what it does |", "| --- | --- |")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        words, text = record or (str(parameter.human_readable_name), getattr(parameter, "help", None) or "")
        yield f"| `{_cell(words)}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


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
