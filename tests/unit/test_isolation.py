"""Random states kept apart: Python's, NumPy's and torch's, each by itself."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from autoprune.strategies.isolation import preserved_random_state, torch_threads

Generators = {
    "python": (random.seed, random.random),
    "numpy": (np.random.seed, lambda: float(np.random.rand())),
    "torch": (torch.manual_seed, lambda: float(torch.rand(()))),
}
each = pytest.mark.parametrize(("seed", "draw"), Generators.values(), ids=Generators)


def drawn(seed: Callable[[int], object], draw: Callable[[], float], number: int) -> list[float]:
    """What a generator draws after a seed of 1."""
    seed(1)
    return [draw() for _ in range(number)]


@each
@pytest.mark.parametrize("fails", [False, True])
def test_a_preserved_generator_goes_on_as_if_nothing_had_been_drawn(
    seed: Callable[[int], object], draw: Callable[[], float], fails: bool
) -> None:
    expected = drawn(seed, draw, 2)
    found = drawn(seed, draw, 1)
    try:
        with preserved_random_state():
            seed(7)
            draw()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [*found, draw()] == expected


def test_generators_of_cuda_are_preserved_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    state = [torch.tensor([1]), torch.tensor([2])]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(state))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: state.__setitem__(slice(None), states))
    with preserved_random_state():
        state[:] = [torch.tensor([3]), torch.tensor([4])]
    assert [int(one) for one in state] == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_put_back(fails: bool) -> None:
    torch.set_num_threads(2)
    try:
        with torch_threads(1):
            assert torch.get_num_threads() == 1
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert torch.get_num_threads() == 2
