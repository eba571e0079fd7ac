"""How options look in help, and what a shell offers for them: metavars, groups in order of use, choices."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from click.shell_completion import CompletionItem

from autoprune.config import (
    BudgetedConfig,
    Config,
    PruningConfig,
    ReconstructingConfig,
    ResumableConfig,
    RunConfig,
    RuntimeConfig,
)
from autoprune.config._base import TrainingWorkersConfig
from autoprune.config.reading import base_of, choices_of, hints_of
from autoprune.criteria.registry import CRITERIA
from autoprune.metrics import METRICS
from autoprune.strategies.registry import STRATEGIES

_MOST_USED = (
    *("policy", "model", "data", "budget", "imgsz", "format", "strategy", "strategies", "episodes", "evaluations"),
    *("epochs", "finetune_epochs", "runtime", "device", "out"),
)
"""The options that are nearly always given, in the order in which help shows them, before all others."""

_RUN = "Run"
_TITLES: Mapping[type, str] = {
    BudgetedConfig: "Budget and fine-tuning",
    ReconstructingConfig: "Budget and fine-tuning",
    PruningConfig: "Pruning and scoring",
    RuntimeConfig: "Latency",
    TrainingWorkersConfig: "Workers",
    ResumableConfig: _RUN,
    RunConfig: _RUN,
}
"""Titles of the options that commands share; those of a command itself are under its name."""

_METAVARS: Mapping[str, str] = {
    "architecture": "YAML",
    "budget": "LIMIT",
    "criteria": "CRITERIA",
    "criterion": "CRITERION",
    "device": "DEVICE",
    "imgsz": "PIXELS",
    "name": "NAME",
    "out": "FOLDER",
    "page": "FILE",
    "project": "FOLDER",
    "ratios": "RATIOS",
    "resume": "RUN",
    "runtime_command": "COMMAND",
    "runtime_pattern": "REGEX",
    "runtime_timeout": "SECONDS",
    "sensitivity": "FILE",
    "strategies": "STRATEGIES",
    "tracker": "NAME",
    "train_args": "KEY=VALUE",
    "warm_start": "RUN",
    "watch": "LAYER",
    "workers": "N|auto|ray://HOST:PORT",
    **dict.fromkeys(("decay", "initial_step", "lr_scale", "max_drop", "min_keep", "qat_lr_scale"), "SHARE"),
    **dict.fromkeys(("sparsity_decay", "sparsity_warmup"), "SHARE"),
}
"""What stands for the value of an option, if its type does not say enough."""

_KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_FOLDERS = ("FOLDER", "RUN")


def metavar_of(name: str, hint: Any) -> str:
    """Return what stands for a value in help: its choices as click writes them, or its kind.

    Example:
        >>> metavar_of("min_keep", float), metavar_of("seed", int)
        ('SHARE', 'N')
    """
    choices = choices_of(hint)
    return f"[{'|'.join(choices)}]" if choices else _METAVARS.get(name) or _KINDS[base_of(hint)]


def help_of(text: str, name: str, default: object) -> str:
    """Return an option's help: what its docs say, with the default as click writes it.

    Example:
        >>> help_of("images per batch", "batch", 16), help_of("let it learn", "distill", False)
        ('images per batch  [default: 16]', 'let it learn')
    """
    if default is MISSING:
        return f"{text}  [required]"
    if default is True:
        return f"{text}  [default: {name.replace('_', '-')}]"
    if default is False or default in (None, "", ()):
        return text
    return f"{text}  [default: {getattr(default, 'value', default)}]"


def groups_of(kind: type[Config]) -> Mapping[str, Sequence[str]]:
    """Return the fields of a command by the title of their group, the most used first and those of the run last."""
    names = list(hints_of(kind))
    groups: dict[str, list[str]] = {"Most used": [name for name in _MOST_USED if name in names]}
    for name in names:
        if name not in groups["Most used"]:
            groups.setdefault(_title_of(kind, name), []).append(name)
    order = ["Most used", *(_title(ancestor) for ancestor in kind.__mro__ if _title(ancestor) != _RUN), _RUN]
    return {title: groups[title] for title in dict.fromkeys(order) if groups.get(title)}


def completions(name: str, hint: Any, incomplete: str) -> list[CompletionItem]:
    """Return what a shell offers for the value of an option.

    Args:
        name: of the field.
        hint: its type.
        incomplete: what is typed so far.
    """
    if base_of(hint) is Path:
        return [CompletionItem(incomplete, type="dir" if _METAVARS.get(name) in _FOLDERS else "file")]
    return [CompletionItem(value) for value in _offered(name, hint, incomplete) if value.startswith(incomplete)]


def _offered(name: str, hint: Any, incomplete: str) -> Iterable[str]:
    if name in ("criteria", "strategies"):
        done, comma, _ = incomplete.rpartition(",")
        known = _criteria() if name == "criteria" else [spec.name for spec in STRATEGIES]
        return [f"{done}{comma}{one}" for one in known]
    offers: Mapping[str, Iterable[str]] = {
        "budget": [*(f"{metric.name}=" for metric in METRICS), "fps="],
        "criterion": _criteria(),
        "device": ["auto", "cpu", "cuda", "mps", "0"],  # no cuda:0: bash completes what follows a colon
    }
    return offers.get(name, choices_of(hint))


def _criteria() -> list[str]:
    return ["l1", "l2", *(spec.name for spec in CRITERIA)]


def _title_of(kind: type[Config], name: str) -> str:
    """Return the title of the class that defines a field first."""
    return _title(next(one for one in reversed(kind.__mro__) if name in inspect.get_annotations(one)))


def _title(kind: type) -> str:
    return _TITLES.get(kind) or kind.__name__.removesuffix("Config")
