"""Tables and pictures, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path

from rich import box
from rich import table as rich_table
from rich.console import Console

WIDTH = 140
"""Columns of a table that is not printed on a terminal."""


@dataclass(frozen=True)
class Table:
    """A table of texts; numbers stand to the right.

    Attributes:
        title: stands above it.
        header: the names of the columns.
        rows: the cells, as many per row as there are columns.

    Example:
        >>> table = Table("units", ["unit", "channels"], [["conv1", "16"]])
        >>> [row["channels"] for row in table]
        ['16']
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (dict(zip(self.header, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=WIDTH, highlight=False).print(self.rich())
        return text.getvalue()

    def _repr_html_(self) -> str:
        def row(tag: str, cells: Sequence[str]) -> str:
            first, others = f"<{tag}>", f'<{tag} style="text-align: right">'
            return "".join(f"{others if place else first}{escape(cell)}</{tag}>" for place, cell in enumerate(cells))

        body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in self.rows)
        caption = f'<caption style="text-align: left">{escape(self.title)}</caption>'
        return f"<table>{caption}<thead><tr>{row('th', self.header)}</tr></thead><tbody>{body}</tbody></table>"

    def rich(self) -> rich_table.Table:
        """Return it as a table of rich."""
        table = rich_table.Table(title=self.title, box=box.SIMPLE_HEAD, title_justify="left")
        for place, name in enumerate(self.header):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


@dataclass(frozen=True)
class Picture:
    """A PNG file, which a notebook shows."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
