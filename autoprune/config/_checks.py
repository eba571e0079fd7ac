"""Rules of single options, and how messages and the command line name them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.choices import DARKNET, DEVICES, is_device, match_factory
from autoprune.config.train_args import check_train_args
from autoprune.errors import ConfigError

if TYPE_CHECKING:
    from autoprune.config._base import BudgetedConfig
    from autoprune.config.training import TrainConfig

MOST = 2**31 - 1
"""The largest count or seed: what every library takes, with room for the seeds that are made of it."""


def named(name: str) -> str:
    """Return a field's name as messages have it; the command line turns it into its option (`autoprune.cli.words`)."""
    return f"`{name}`"


PLACE = "place"
"""Key of the metadata of fields that the command line takes by their place."""


def by_place(word: str) -> Mapping[str, str]:
    """Return the metadata of a field that the command line takes by its place, not as an option.

    Args:
        word: what stands for it in the help and in errors, e.g. ``SRC``.
    """
    return {PLACE: word}


def option(name: str) -> str:
    """Return a field's name as the command line spells it: ``min_keep`` → ``--min-keep``."""
    return "--" + name.replace("_", "-")


def check_together(model: Path | None, data: Path | None) -> None:
    """Make sure that weights and data set are both given, or neither: then there are the bundled ones.

    A function that builds a network brings the data itself.
    """
    if match_factory(model):
        return
    if (model is None) != (data is None):
        given, missing = ("model", "data") if data is None else ("data", "model")
        raise ConfigError(f"`{given}` needs `{missing}`: the weights and the data set they were trained on go together")


def check_stock(model: Path | None, what: str) -> None:
    """Refuse what only networks of Ultralytics have.

    Args:
        model: as the command line names it.
        what: the command or the option that is refused.
    """
    check_family(model, what)
    if model is not None and model.suffix in DARKNET:
        raise ConfigError(f"{what} is for networks of Ultralytics, got `model` {model}, one of Darknet")


def check_training(texts: Sequence[str], config: BudgetedConfig | TrainConfig) -> None:
    """Make sure that ``train_args`` can be passed on to Ultralytics' training, which trains the network."""
    if texts:
        check_stock(config.model, named("train_args"))
        check_train_args(texts, vars(config))
        check_rate(texts, config.lr_scale)


def check_rate(texts: Sequence[str], lr_scale: float) -> None:
    """Make sure that training arguments do not set the rate that ``lr_scale`` multiplies."""
    if lr_scale != 1 and any(text.startswith("lr0=") for text in texts):
        raise ConfigError(
            f"`train_args` lr0 is the first learning rate itself, and `lr_scale` {lr_scale:g} multiplies the default "
            "one; give one of them"
        )


def check_family(model: Path | None, what: str) -> None:
    """Refuse what needs a family's own tool, if a function builds the network; arguments as for `check_stock`."""
    if match_factory(model):
        raise ConfigError(f"{what} is for networks of Ultralytics, got `model` {model}, a network of one's own")


def check_counts(config: object, *names: str, least: int) -> None:
    """Make sure that whole numbers, if they are given, are at least ``least``, and that 32 bits hold them."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"{named(name)} must be a whole number of at least {least}, got {shown(value)}")
        if value is not None and value > MOST:
            raise ConfigError(f"{named(name)} must be a whole number of at most {MOST}, got {shown(value)}")


def shown(value: int) -> str:
    """Return a whole number as a message can have it, however long it is."""
    return str(value) if abs(value) < 10**20 else f"{Decimal(value):.2e}"


def check_share(name: str, value: float, *, most: int = 1) -> None:
    """Make sure that a share lies in (0, 1], or below another bound."""
    if not (math.isfinite(value) and 0 < value <= most):
        raise ConfigError(f"{named(name)} must lie in (0, {most}], got {value}")


def check_positive(name: str, value: float) -> None:
    """Make sure that a number is above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{named(name)} must be above 0, got {value}")


def check_devices(value: str) -> None:
    """Check the form of a device's name, or of several GPUs with commas between them."""
    names = devices_of(value)
    if len(names) == 1:
        check_device(value)
    elif not all(is_device(name) and ":" in name for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"`device` takes several GPUs as 0,1 or cuda:0,1, each once, got {value!r}")


def devices_of(value: str) -> tuple[str, ...]:
    """Return the single devices of an option: ``cuda:0,1`` → ``cuda:0``, ``cuda:1``."""
    first, *others = value.split(",")
    return (first, *(f"cuda:{index}" for index in others))


def check_device(value: str) -> None:
    """Check the form of a device's name."""
    if value != "auto" and not is_device(value):
        raise ConfigError(f"`device` must be auto, {DEVICES}, got {value!r}")
