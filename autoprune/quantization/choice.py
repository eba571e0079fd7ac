"""Choose the groups of operations that stay in float: the most sensitive ones, until the loss is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoprune.errors import ExportError
from autoprune.quantization.network import Quantization


@dataclass(frozen=True)
class Trial:
    """One measured network.

    Attributes:
        in_float: names of the groups that are not quantised.
        accuracy: its primary metric on the held-out training images.
        drop: difference to the float network's.
    """

    in_float: tuple[str, ...]
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Choice:
    """The groups that stay in float, and the measurements that led to them.

    Attributes:
        accuracy: the float network's primary metric on the held-out training images.
        errors: by group, the error of the predictions in [0, 1] if it alone is quantised, the largest first; empty if
            all groups can be quantised.
        steps: the measured networks, the chosen one last.
    """

    accuracy: float
    errors: Mapping[str, float]
    steps: tuple[Trial, ...]

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the groups that are not quantised."""
        return self.steps[-1].in_float


def choose_precision(
    quantization: Quantization, *, whole: float, max_drop: float, advance: Callable[[int, str], None]
) -> Choice:
    """Quantise all groups; then leave the most sensitive ones in float, one more at a time, until the loss is small.

    Groups are ranked by the error of the predictions if each alone is quantised, a finer measure than accuracy on a few
    images. Accuracy decides how many stay in float.

    Args:
        quantization: the network.
        whole: the float network's primary metric on the held-out images.
        max_drop: largest allowed loss of the primary metric on the held-out images.
        advance: called with the number of measurements done (at most two per group) and a text.

    Raises:
        ExportError: even the least sensitive group alone loses more.

    Source:
        Wu et al., Integer Quantization for Deep Learning Inference, 2020, section 5.1 (partial quantization): layers
        are ranked by what each loses alone in int8, and left in float from the worst one on.
    """
    groups = [group.name for group in quantization.groups]
    metric = quantization.metric
    steps: list[Trial] = []

    def holds(in_float: tuple[str, ...], done: int) -> bool:
        found = quantization.held_out(in_float)
        steps.append(Trial(in_float, found, whole - found))
        advance(done, f"{metric} {found - whole:+.4f} with {len(in_float)} of {len(groups)} groups in float")
        return whole - found <= max_drop

    if holds((), 1):
        return Choice(whole, {}, tuple(steps))
    errors = _ranked(quantization, groups, advance)
    for count in range(1, len(groups)):
        if holds(tuple(errors)[:count], len(groups) + count):
            return Choice(whole, errors, tuple(steps))
    raise ExportError(
        f"int8 of the {quantization.name} must lose at most `max_drop` {max_drop:g} of {metric} on training images, "
        f"and loses {steps[-1].drop:.4f} even if only {list(errors)[-1]} is quantised; allow more, tune the "
        "weights for int8 with `qat_epochs`, or keep the float network, which autoprune export writes"
    )


def _ranked(quantization: Quantization, groups: Sequence[str], advance: Callable[[int, str], None]) -> dict[str, float]:
    """Return each group's error, the largest first."""
    errors = {}
    for done, group in enumerate(groups, 1):
        errors[group] = quantization.error(group)
        advance(done, f"{group} off by {errors[group]:.4f}")
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
