"""Which layers lose channels together: the same as Torch-Pruning finds, where both apply."""

from __future__ import annotations

import pytest

from tests.helpers.packages import need
from tests.helpers.torch_pruning_groups import NETWORKS, compared

NOT_OURS = ("network output", "grouped convolution")
"""Why groups stay whole here that Torch-Pruning leaves to its caller, or prunes group by group of a convolution."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    need("torch_pruning")
    equal, here, there, pinned = compared(name)
    assert equal > 10
    assert not here
    assert all(pinned[group].startswith(NOT_OURS) for group in there)
