"""What a command left in its folder, as a result in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from autoprune.api.network import Network, load
from autoprune.choices import match_factory, reopened
from autoprune.config import Config, PruningConfig, RunConfig
from autoprune.config._checks import devices_of
from autoprune.errors import RunError
from autoprune.policy import Policy
from autoprune.report import Picture, Table
from autoprune.report.progress import search_progress
from autoprune.report.sections import sections
from autoprune.results import LEVELS, SUMMARIES, Result
from autoprune.strategies._base import Candidate
from autoprune.workflows.network import choose_device
from autoprune.workflows.run import with_model
from autoprune.workflows.warmstart import scored_candidates


class Run:
    """A finished command.

    It prints as the tables and sentences that the command line shows, and a notebook shows it as tables.

    Attributes:
        command: what was called, e.g. ``search``.
        folder: everything that it left behind.
        config: its options.
        held: whether every limit of the budget is held, as measured; True without a budget.
        tables: the tables of its results.
        notes: what it reported on the way.

    Example:
        >>> run = ap.search("best.pt", data="data.yaml", budget="flops=60%", strategy="uniform", finetune_epochs=0)
        >>> run.held, [limit["metric"] for limit in run.summary["budget"]]
        (True, ['flops'])
        >>> run.model
        Network(model at 64 px on cpu: 21 units, ...)
        >>> len(run.history)
        1
    """

    def __init__(
        self, command: str, folder: Path, config: Config, *, held: bool, tables: Sequence[Table], notes: Sequence[str]
    ) -> None:
        self.command, self.folder, self.config, self.held = command, folder, config, held
        self.tables, self.notes = tuple(tables), tuple(notes)

    @cached_property
    def summary(self) -> Result:
        """What the command found; as a mapping its JSON file, e.g. ``summary.json`` or ``compare.json``.

        Raises:
            RunError: the command left no such file, or one of another version.
        """
        return Result.load(self._first(*SUMMARIES))

    @cached_property
    def policy(self) -> Policy:
        """The policy that was found or applied."""
        return Policy.load(self._first("policy.json"))

    @cached_property
    def model(self) -> Network:
        """The network that was made, with the data of the run: trained if the command trains, else pruned."""
        config = self.config
        assert isinstance(config, RunConfig)
        imgsz = config.imgsz  # the bundled detector's checkpoint knows which size was chosen
        if isinstance(config, PruningConfig) and getattr(config, "architecture", None) is None:
            config = with_model(config)
        given, names = vars(config), ("model", "pruned", "sparse")
        path = self._first(*(f"{name}{suffix}" for name in names for suffix in (".pt", ".cfg")))
        return load(
            reopened(given["model"], path),
            data=given.get("data"),
            imgsz=None if match_factory(given["model"]) else imgsz,
            device=choose_device(devices_of(config.device)[0]),
            trust_checkpoint=config.trust_checkpoint,
        )

    @property
    def history(self) -> tuple[Candidate, ...]:
        """Every candidate that was scored, in order."""
        return tuple(scored_candidates(self.folder))

    @property
    def levels(self) -> Mapping[str, Run]:
        """The budgets of a ``netadapt`` with several levels, each as a run of its own."""
        return {folder.name: self._level(folder) for folder in sorted((self.folder / LEVELS).glob("*"))}

    def _level(self, folder: Path) -> Run:
        result = Result.load(folder / "summary.json")
        tables = [shown for shown in sections(result, folder, details=False) if isinstance(shown, Table)]
        held = all(row.satisfied for row in result.budget)
        return Run(self.command, folder, self.config, held=held, tables=tables, notes=())

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page of the run, one HTML file that opens offline.

        Args:
            path: the file; ``report.html`` in the folder if None.

        Returns:
            the path.
        """
        from autoprune.report.page import PAGE, reports_of, write_page

        return write_page(reports_of(self.folder), self.folder / PAGE if path is None else Path(path))

    def plot(self) -> Picture:
        """Draw the best score against the candidates scored; ``progress.png`` in the folder.

        Raises:
            RunError: the command scores no candidates one by one, such as ``netadapt``.
        """
        if self.command == "compare":  # it draws a curve for each strategy
            return self.pictures["progress"]
        scores = [candidate.score for candidate in self.history]
        if not scores:
            raise RunError(
                f"{self.folder} has no scored candidates to draw; its `pictures` are what {self.command} drew"
            )
        return search_progress({self.command: [scores]}, title=str(self.folder)).png(self.folder)

    @property
    def pictures(self) -> Mapping[str, Picture]:
        """The pictures in the folder, by name."""
        return {path.stem: Picture(path) for path in sorted(self.folder.glob("*.png"))}

    def _first(self, *names: str) -> Path:
        found = next((self.folder / name for name in names if (self.folder / name).exists()), None)
        if found is None:
            raise RunError(f"{self.command} has left no {' or '.join(names)} in {self.folder}")
        return found

    def __str__(self) -> str:
        return "\n".join([*map(str, self.tables), *self.notes])

    def __repr__(self) -> str:
        return f"Run({self.command} in {self.folder}{'' if self.held else ', budget missed'})"

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables) or f"<code>{self.folder}</code>"
