"""Random states kept apart: Python's, NumPy's and torch's, each by itself."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from autoprune.strategies.rl.isolation import PrivateGlobals, compute_on_one_core, preserved_random_state

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


@each
def test_a_private_generator_and_the_outer_one_each_go_on_where_they_were(
    seed: Callable[[int], object], draw: Callable[[], float]
) -> None:
    expected = drawn(seed, draw, 3)
    private = PrivateGlobals()
    seed(5)
    outside = [draw() for _ in range(3)]
    seed(5)
    found, between = [], []
    for number in range(3):
        with private:
            if number == 0:
                seed(1)
            found.append(draw())
        between.append(draw())
    assert found == expected
    assert between == outside


def test_generators_of_cuda_are_preserved_where_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    state = [torch.tensor([1]), torch.tensor([2])]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(state))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: state.__setitem__(slice(None), states))
    with preserved_random_state():
        state[:] = [torch.tensor([3]), torch.tensor([4])]
    assert [int(one) for one in state] == [1, 2]


def test_threads_set_inside_are_put_back_outside() -> None:
    torch.set_num_threads(2)
    private = PrivateGlobals()
    with private:
        compute_on_one_core()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
