"""Which groups of a network stay in float, and which operations are a group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import ExportError
from autoprune.quantization import OperationGroup, choose_precision, group_operations


@dataclass
class Scripted:
    """A network whose groups lose a known accuracy each, and whose errors rank them in a known order."""

    losses: dict[str, float]
    errors: dict[str, float]
    name: str = "model"
    metric: str = "mAP50-95"
    asked: list[str] = field(default_factory=list)

    @property
    def groups(self) -> tuple[OperationGroup, ...]:
        return tuple(OperationGroup(name, ()) for name in self.losses)

    def error(self, group: str) -> float:
        self.asked.append(group)
        return self.errors[group]

    def held_out(self, in_float: tuple[str, ...] | None) -> float:
        return 0.75 - sum(loss for name, loss in self.losses.items() if in_float is not None and name not in in_float)


def ignore(done: int, detail: str) -> None:
    assert done >= 1
    assert detail


@given(
    losses=st.lists(st.integers(0, 50).map(lambda value: value / 1024), min_size=2, max_size=12),
    errors=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    max_drop=st.integers(0, 200).map(lambda value: value / 1024),
)
def test_the_fewest_of_the_worst_groups_stay_in_float(
    losses: list[float], errors: list[float], max_drop: float
) -> None:
    names = [f"model.{index}" for index in range(len(losses))]
    network: Any = Scripted(dict(zip(names, losses, strict=True)), dict(zip(names, errors, strict=False)))
    least = min(names, key=lambda name: (network.errors[name], -names.index(name)))
    if sum(losses) > max_drop and network.losses[least] > max_drop:
        with pytest.raises(ExportError, match=f"even if only {least} is quantised"):
            choose_precision(network, whole=0.75, max_drop=max_drop, advance=ignore)
        return
    choice = choose_precision(network, whole=0.75, max_drop=max_drop, advance=ignore)
    *before, last = choice.steps
    assert last.drop <= max_drop < min((step.drop for step in before), default=1.0)
    kept = [network.errors[name] for name in choice.in_float]
    assert all(
        worst >= error for worst in kept for name, error in network.errors.items() if name not in choice.in_float
    )
    assert network.asked == (names if before else []), "nothing is ranked where all of int8 is good enough"


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["conv/Conv", "cv1/conv/Conv", "Concat"])), max_size=40))
def test_every_operation_is_in_one_group_with_weights(made: list[tuple[int, str]]) -> None:
    operations = [(f"/model.{stage}/{rest}-{index}", "Conv" in rest) for index, (stage, rest) in enumerate(made)]
    groups = group_operations([*operations, ("Constant_3", False)], {f"model.{stage}" for stage in range(6)})
    weights = {name for name, has_weights in operations if has_weights}
    members = [name for group in groups for name in group.operations]
    assert sorted(members) == (sorted(name for name, _ in operations) if weights else [])
    assert all(weights & set(group.operations) for group in groups)
    assert len({group.name for group in groups}) == len(groups)


def test_a_stage_is_a_group_and_so_is_each_branch_of_the_head() -> None:
    operations = ["/model.0/conv/Conv", "/model.1/Concat", "/model.2/cv1/Conv", "/model.2/cv2/Conv", "/model.3/Split"]
    head = ["/model.4/cv2.0/cv2.0.0/Conv", "/model.4/cv3.0/Conv", "/model.4/Sigmoid"]
    stages = [f"model.{index}" for index in range(4)]
    groups = group_operations([(name, name.endswith("Conv")) for name in [*operations, *head]], stages)
    assert [(group.name, len(group.operations)) for group in groups] == [
        ("model.0", 1),
        ("model.2", 3),
        ("model.4/cv2.0", 2),
        ("model.4/cv3.0", 2),
    ]
