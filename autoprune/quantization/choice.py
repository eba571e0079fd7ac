"""Which groups stay in float: the most sensitive ones, until little is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoprune.errors import ExportError
from autoprune.quantization.network import Quantization


@dataclass(frozen=True)
class Step:
    """One network that was tried.

    Attributes:
        in_float: names of the groups that are not quantised.
        accuracy: its primary metric on the held-out training images.
        drop: how much lower that is than the float network's.
    """

    in_float: tuple[str, ...]
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Choice:
    """What stays in float, and how that was found.

    Attributes:
        accuracy: the float network's primary metric on the held-out training images.
        errors: by group, how far the predictions are off where it alone is quantised, in [0, 1], the worst one first;
            empty where nothing had to be found.
        steps: the networks that were tried, the chosen one last.
    """

    accuracy: float
    errors: Mapping[str, float]
    steps: tuple[Step, ...]

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the groups that are not quantised."""
        return self.steps[-1].in_float


def choose(quantization: Quantization, *, whole: float, max_drop: float, advance: Callable[[int, str], None]) -> Choice:
    """Quantise everything; then leave the most sensitive groups in float, one more at a time, until little is lost.

    Groups are ordered by the error of the predictions where each alone is quantised, which tells apart what accuracy
    on a few images does not; that decides how many of them stay in float.

    Args:
        quantization: the network.
        whole: the primary metric, on the held-out images, of the float network that it is to come close to.
        max_drop: how much of the primary metric may be lost on the held-out images.
        advance: called with how many measurements are done, of two for each group, and a word.

    Raises:
        ExportError: even the least sensitive group alone loses more.

    Source:
        Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5.1 (partial quantization): layers
        are ranked by what each loses alone in int8, and left in float from the worst one on.
    """
    groups = [group.name for group in quantization.groups]
    metric = quantization.metric
    steps: list[Step] = []

    def holds(in_float: tuple[str, ...], done: int) -> bool:
        found = quantization.held_out(in_float)
        steps.append(Step(in_float, found, whole - found))
        advance(done, f"loses {whole - found:.4f} of {metric} with {len(in_float)} of {len(groups)} groups in float")
        return whole - found <= max_drop

    if holds((), 1):
        return Choice(whole, {}, tuple(steps))
    errors = _ranked(quantization, groups, advance)
    for count in range(1, len(groups)):
        if holds(tuple(errors)[:count], len(groups) + count):
            return Choice(whole, errors, tuple(steps))
    raise ExportError(
        f"int8 of the {quantization.name} must lose at most `max_drop` {max_drop:g} of {metric} on training images, "
        f"and loses {steps[-1].drop:.4f} even where only {list(errors)[-1]} is quantised; allow more, tune the "
        "weights for int8 with `qat_epochs`, or keep the float network, which autoprune export writes"
    )


def _ranked(quantization: Quantization, groups: Sequence[str], advance: Callable[[int, str], None]) -> dict[str, float]:
    """Return each group's error, the worst one first."""
    errors = {}
    for done, group in enumerate(groups, 1):
        errors[group] = quantization.error(group)
        advance(done, f"{group} off by {errors[group]:.4f}")
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
