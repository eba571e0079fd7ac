"""What a page shows of each run: its results with their sections, a verdict, and the commands that go on from there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from autoprune.errors import PolicyError, RunError
from autoprune.io.plain_yaml import read_values
from autoprune.metrics import format_amount, metric_kind, spec_of
from autoprune.policy import Policy
from autoprune.report.sections import Shown, sections
from autoprune.results import LEVELS, SUMMARIES, Result

PAGE = "report.html"

_SEARCHED = {
    **dict.fromkeys(("imgsz", "runtime", "runtime_command", "runtime_pattern")),
    **{"device": "auto", "precision": "fp32", "runtime_batch": 1, "with_nms": False},
    **{"criterion": "covariance", "round_to": 8, "min_keep": 0.1},
}
"""Options that say what is searched, which another search of the same has, too, with what they are if nobody says."""

_HELD_UP = 0.002
"""Metrics that differ by less are level."""

_LESS = {"latency": "faster", "energy": "less energy"}


@dataclass(frozen=True)
class Report:
    """One result of a run, for a page.

    Attributes:
        folder: where it lies.
        result: what was found.

    Example:
        >>> [report.result.command for report in reports_of(Path("runs/search-1"))]
        ['search']
    """

    folder: Path
    result: Result

    @cached_property
    def sections(self) -> list[Shown]:
        """What applies to the result, in the order of the page."""
        return sections(self.result, self.folder)

    @property
    def run(self) -> Path:
        """The folder of its run, for several levels of one run have a report each."""
        is_level = self.folder.parent.name == LEVELS and not (self.folder / "config.yaml").is_file()
        return self.folder.parent.parent if is_level else self.folder

    @property
    def name(self) -> str:
        """What tells it from the other reports of a page."""
        return self.folder.name if self.folder == self.run else f"{self.run.name}/{self.folder.name}"

    @property
    def verdict(self) -> str:
        """What became of it, in a sentence: whether the budget is held, the metric is kept, how much less it costs."""
        if self.result.command == "profile":
            return self._reachable()
        if self.result.compared:
            return str(self.result.figures.get("agents", ""))
        parts = [*self._limits(), *self._metric(), *self._factors()]
        return "; ".join(parts) + "." if parts else ""

    @property
    def held(self) -> bool | None:
        """Whether every limit is held; None without a budget."""
        return all(row.satisfied for row in self.result.budget) if self.result.budget else None

    @property
    def command(self) -> str:
        """The command line that does it again."""
        try:
            said = Policy.load(self.folder / "policy.json").provenance.command
        except PolicyError:  # there is none, or it is damaged
            said = ""
        if said.startswith(f"autoprune {self.result.command} ") and _is_one_command(said):
            return said
        return f"autoprune {self.result.command} --config {_quoted(self.run / 'config.yaml')}"

    @property
    def next_commands(self) -> list[tuple[str, str]]:
        """What may come next, each with its command line."""
        model = next((path for end in (".pt", ".cfg") if (path := self.folder / f"model{end}").exists()), None)
        policy, options = self.folder / "policy.json", _options(self.run)
        data = ["--data", str(options["data"])] if options.get("data") else []
        sparse = [path for end in (".pt", ".cfg") if (path := self.run / f"sparse{end}").exists()]
        dense = next(iter(sparse), options.get("model"))  # what the policy was made for
        found = []
        if policy.exists() and dense and data:
            size = _as_given(options, {"imgsz": None})
            words = ["train", "--policy", policy, "--model", dense, *data, *size, "--epochs", 50]
            found.append(("Train longer", words))
        if model is not None:
            found.append(("Export, and check the file", ["export", "--model", model, *data, "--format", "onnx"]))
        if model is not None and data:
            words = ["quantize", "--model", model, *data, *(("--dense", dense) if dense else ())]
            found.append(("Quantise to int8", words))
        if policy.exists() and dense and data and self.result.command == "search":
            limits = [word for row in self.result.budget for word in ("--budget", row.requested)]
            settings = _as_given(options, _SEARCHED)
            found.append(("Compare strategies", ["compare", "--model", dense, *data, *limits, *settings]))
        return [(title, "autoprune " + " ".join(map(_quoted, words))) for title, words in found]

    def _reachable(self) -> str:
        """Return between what a latency budget may lie; empty if a profile has no narrowest network."""
        latencies = {name: stage.cost("latency") for name, stage in self.result.stages.items()}
        if not latencies.keys() >= {"dense", "narrowest"}:
            return ""
        low, high = (format_amount("latency", latencies[name]) for name in ("narrowest", "dense"))
        return f"A latency budget must lie between {low}, with every unit at its lower bound, and {high}, as it is now."

    def _limits(self) -> list[str]:
        found = []
        for row in self.result.budget:
            achieved, most = format_amount(row.metric, row.achieved), format_amount(row.metric, row.limit)
            found.append(f"{row.requested} is {'held' if row.satisfied else 'missed'} ({achieved} of {most})")
        return found

    def _metric(self) -> list[str]:
        stages = self.result.stages
        measured = [(name, one.metrics) for name, one in stages.items() if one.metrics is not None]
        if len(measured) < 2:
            return []
        (first, before), (_, after) = measured[0], measured[-1]
        name, change = self.result.metric_names[0], after.primary - before.primary
        way = "level with" if abs(change) < _HELD_UP else f"{abs(change):.3f} {'above' if change > 0 else 'below'}"
        return [f"{name} {after.primary:.3f}, {way} the {first} network's {before.primary:.3f}"]

    def _factors(self) -> list[str]:
        stages = list(self.result.stages.values())
        if len(stages) < 2:
            return []
        found = []
        for metric, factor in stages[-1].speed_up(stages[0]).items():
            if metric in ("size", "memory", "channels") or abs(factor - 1) < 0.02:
                continue
            label = _LESS.get(metric_kind(metric)) or f"fewer {spec_of(metric).label}"
            where = f" on {metric.partition('@')[2]}" if "@" in metric else ""
            found.append(f"{factor:.1f} × {label}{where}")
        return found


def reports_of(folder: Path) -> list[Report]:
    """Return the results in a run's folder, those of its levels too.

    Raises:
        RunError: there are none, or one is damaged or of another version.
    """
    if not folder.is_dir():
        raise RunError(f"A report is made of a run's folder, and {folder} is none; give one such as runs/search-1")
    paths = [folder / name for name in SUMMARIES if (folder / name).exists()]
    paths += sorted((folder / LEVELS).glob("*/summary.json"))
    if not paths:
        raise RunError(f"{folder} has no results ({', '.join(SUMMARIES)}) yet; finish the run first")
    return [Report(path.parent, Result.load(path)) for path in paths]


def _options(folder: Path) -> Mapping[str, Any]:
    """Return a run's options as its config.yaml has them; empty without one."""
    path = folder / "config.yaml"
    try:
        return read_values(path) if path.is_file() else {}
    except ValueError:  # a damaged file costs the commands that may come next, not the report
        return {}


def _as_given(options: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return the words of those options of a run that are not as usual."""
    words = []
    for name, value in ((name, options.get(name)) for name in usual):
        if value not in (None, "", usual[name]):
            shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name.replace('_', '-')}", *(() if value is True else (shown,))]
    return words


def _is_one_command(text: str) -> bool:
    """Return whether a text, which may be from a file of somebody else, is one command line as a shell reads it."""
    try:
        return text.isprintable() and shlex.join(shlex.split(text)) == text
    except ValueError:
        return False


def _quoted(word: object) -> str:
    return shlex.quote(str(word))
