"""The options of ``autoprune report``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autoprune.config._checks import by_place
from autoprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a page of one or several finished runs: one HTML file that opens offline.

    Attributes:
        runs: folders of finished runs; several are also compared with one another
        page: the file to write; by default report.html, of one run in its folder, of several here
    """

    runs: tuple[str, ...] = field(metadata=by_place("RUN"))
    page: Path | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("`runs` must be one or several folders of finished runs, such as runs/search-1, got none")
        if self.page is not None and self.page.suffix not in (".html", ".htm"):
            raise ConfigError(f"`page` must be an HTML file, such as report.html, got {self.page}")
