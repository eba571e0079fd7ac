"""Policies: an allocation with its provenance, as a JSON file that a user reads and edits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from autoprune.criteria.registry import spec_of
from autoprune.errors import AutopruneWarning, ConfigError, ModelError, PolicyError
from autoprune.image_size import SizeLike
from autoprune.io.files import read_bytes, write_atomic
from autoprune.listener import PythonListener, hearing
from autoprune.policy_file import policy_to_json, read_policy
from autoprune.policy_records import CostKind as CostKind
from autoprune.policy_records import PolicyCost as PolicyCost
from autoprune.policy_records import PolicyModel as PolicyModel
from autoprune.policy_records import PolicyUnit as PolicyUnit
from autoprune.policy_records import Provenance as Provenance

if TYPE_CHECKING:
    from torch import nn

    from autoprune.models._base import Adapter

_UNITS_NAMED = 5


class PolicyWarning(AutopruneWarning):
    """A policy was applied in a way that leaves the network less accurate than it can be."""


@runtime_checkable
class HoldsModule(Protocol):
    """A network with its data, such as `autoprune.Network`."""

    @property
    def module(self) -> nn.Module:
        """The network in torch."""

    @property
    def adapter(self) -> Adapter:
        """Its family's tools."""

    def with_module(self, module: nn.Module) -> Any:
        """Return another network of the same data."""


Kind = TypeVar("Kind", bound="nn.Module | HoldsModule")


@dataclass(frozen=True)
class Policy:
    """An allocation with all that is needed to apply it to any weights of the same architecture.

    Attributes:
        model: the network it is for.
        criterion: the importance criterion that says which channels stay.
        round_to: the widths' common divisor in the search.
        units: what each unit of the model keeps, in the order of the forward pass.
        budget: the limits it was made for, as texts.
        costs: by metric.
        score: the evaluation's score, or None if it was not scored.
        provenance: where it came from.

    Raises:
        PolicyError: the units are not those of the model, each once and with its channels; a number is not finite; or
            ``round_to`` is below 1.

    Example:
        >>> policy = ap.Policy.load("policy.json")
        >>> small = policy.apply(ap.load("best.pt", data="data.yaml"))
        >>> sum(policy.keep.values()) < sum(policy.model.layers.values())
        True
    """

    model: PolicyModel
    criterion: str
    round_to: int
    units: tuple[PolicyUnit, ...]
    budget: tuple[str, ...]
    costs: Mapping[str, PolicyCost]
    score: float | None
    provenance: Provenance

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for unit in self.units:
            if unit.name in seen:
                raise PolicyError(f"A policy names every unit once, got {unit.name} twice")
            seen.add(unit.name)
        channels = {unit.name: unit.channels for unit in self.units}
        if differences := _differences(channels, self.model.layers, "in units", "in the model's layers"):
            raise PolicyError(
                f"A policy's units must be its model's, with the same channels, and differ at {differences}; edit only "
                "`keep`"
            )
        if self.round_to < 1:
            raise PolicyError(f"round_to must be at least 1, got {self.round_to}")
        for name, value in [("score", self.score), *((metric, cost.value) for metric, cost in self.costs.items())]:
            if value is not None and not math.isfinite(value):
                raise PolicyError(f"A policy's numbers must be finite, got {name} {value}")

    @property
    def keep(self) -> dict[str, int]:
        """Kept channels by unit name, in the order of the forward pass."""
        return {unit.name: unit.keep for unit in self.units}

    def check(self, widths: Mapping[str, int]) -> None:
        """Make sure that the policy fits a model.

        Args:
            widths: channels of all units of the model, by name, as in ``model.layers``.

        Raises:
            PolicyError: the units differ; the message names the first of them.
        """
        if differences := _differences(self.model.layers, widths, "in the policy", "in the model"):
            raise PolicyError(
                f"The policy was made for {self.model.name} and does not fit this model: {differences}; apply it to "
                "weights of the architecture it was made for"
            )

    def check_criterion(self) -> None:
        """Make sure that the policy's criterion is one.

        Raises:
            PolicyError: it is not.
        """
        try:
            spec_of(self.criterion)
        except ConfigError as error:
            raise PolicyError(f"A policy's criterion must be one that there is: {error}") from error

    def apply(
        self,
        module: Kind,
        *,
        data: Adapter | HoldsModule | Path | str | None = None,
        imgsz: SizeLike | None = None,
        compensate: bool = True,
        reconstruct: bool = True,
    ) -> Kind:
        """Return a new network that keeps what the policy says, compensated and recalibrated on training images.

        For Ultralytics: ``yolo.model = Policy.load("policy.json").apply(yolo.model, data="data.yaml")``. That is the
        network that ``autoprune apply --data data.yaml`` writes.

        Args:
            module: a network of the architecture that the policy is for, with any weights; it is not modified. An
                `autoprune.Network` brings its data, and one of its kind is returned.
            data: the data set it was trained on, a YAML file or class folders as Ultralytics reads them; or what
                autoprune.load returned, or the adapter, of such a network with its data, for those that are not
                Ultralytics'. The new one is then in float32, on that one's device.
            imgsz: with a data set, the image size in pixels, one number for squares or (height, width); what the
                weights were trained with if None.
            compensate: with a data set, give the kept channels' weights what best predicts the removed ones from them.
            reconstruct: of what is compensated, also solve every layer for what the dense network gives.

        Raises:
            PolicyError: the policy is for another architecture, or names an unknown criterion.
            ConfigError: its criterion needs images, and there are none.
            ModelError: the network cannot be analysed, or is not one of Ultralytics and ``data`` is a path.
            DataError: the data set is missing or malformed, or does not fit the network.

        Warns:
            PolicyWarning: there is no ``data``, and so nothing is compensated and batch norm is not recalibrated.
            AutopruneWarning: layers cannot be compensated, or are solved for some of the images only.
        """
        import torch
        from torch import nn

        from autoprune.evaluation.pruning import apply_keep
        from autoprune.models._base import Adapter

        self.check_criterion()
        holder: Any = None if isinstance(module, nn.Module) else module
        if not isinstance(module, nn.Module | HoldsModule):
            raise ModelError(
                "A policy is applied to a torch network, such as the `model` of a YOLO, or to what autoprune.load "
                f"returns, got a {type(module).__name__}"
            )
        network: Any = holder.module if holder else module
        source = data.adapter if isinstance(data, HoldsModule) else data
        if holder and holder.adapter.has_images and not (source is None and imgsz is None):
            raise ConfigError("`data` and `imgsz` are those of the network; autoprune.load takes them")
        if holder and (source is None or holder.adapter.has_images):
            source = holder.adapter
        with hearing(PythonListener()), torch.inference_mode(False), torch.enable_grad():
            found: Any = apply_keep(
                network,
                self.keep,
                criterion=self.criterion,
                check=self.check,
                data=source,
                imgsz=imgsz,
                compensate=compensate,
                reconstruct=reconstruct,
            )
        if source is None or (isinstance(source, Adapter) and not source.has_images):
            _warn_without_data(found, compensate=compensate)
        kept: Kind = holder.with_module(found) if holder else found
        return kept

    def to_json(self) -> str:
        """Return the policy as JSON, one unit and one layer per line, in a fixed order; ends with a line end."""
        return policy_to_json(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what ``to_json`` wrote, or a user's edit of it.

        Raises:
            PolicyError: not JSON (the message has line and column), another schema version, an entry that is unknown,
                missing, of the wrong type or out of range, or a ratio that does not belong to its ``keep``.
        """
        try:
            return cls(**read_policy(text))
        except ValueError as error:
            raise PolicyError(str(error)) from error

    def save(self, path: Path | str) -> None:
        """Write the policy as a JSON file, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        write_atomic(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Policy:
        """Read a policy file.

        Raises:
            PolicyError: it cannot be read, or is not a policy; the message begins with the path.
        """
        try:
            text = read_bytes(Path(path)).decode("utf-8-sig")
        except OSError as error:
            raise PolicyError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PolicyError(f"{path} is not a policy: it is not a text in UTF-8") from error
        try:
            return cls.from_json(text)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from error


def _warn_without_data(module: nn.Module, *, compensate: bool) -> None:
    """Say what a network lacks that was pruned without images."""
    from autoprune.statistics.layers import Norm

    lost = ["compensated"] if compensate else []
    if any(isinstance(child, Norm) for child in module.modules()):
        lost.append("recalibrated in its batch norm")
    if lost:
        warnings.warn(
            f"Without data a pruned network is {'neither ' if len(lost) > 1 else 'not '}{' nor '.join(lost)}, and its "
            "accuracy may be next to nothing until it is trained; give the data set that it was trained on, "
            'apply(model, data="data.yaml")',
            PolicyWarning,
            stacklevel=3,
        )


def _differences(ours: Mapping[str, int], theirs: Mapping[str, int], here: str, there: str) -> str:
    """Name the first units whose channels are not the same in both; empty if there are none."""
    differences = [
        f"{name} ({_width(ours.get(name))} {here}, {_width(theirs.get(name))} {there})"
        for name in [*ours, *(name for name in theirs if name not in ours)]
        if ours.get(name) != theirs.get(name)
    ]
    more = len(differences) - _UNITS_NAMED
    return ", ".join(differences[:_UNITS_NAMED]) + (f" and {more} more units differ" if more > 0 else "")


def _width(channels: int | None) -> str:
    return "absent" if channels is None else str(channels)
