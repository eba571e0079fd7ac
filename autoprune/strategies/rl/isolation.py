"""Global states, kept apart: evaluation and search must not draw from each other's random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, NumPy's and torch's global generators at one moment."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]

    @classmethod
    def capture(cls) -> RandomState:
        """Return the states as they are; those of CUDA where it is in use."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all() if in_use else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the global random states as they were."""
    before = RandomState.capture()
    try:
        yield
    finally:
        before.restore()


class PrivateGlobals:
    """Global random states of one's own: in force while this is entered, untouched by anyone outside.

    torch's thread count is put back too when it is left, whatever was set inside.
    """

    def __init__(self) -> None:
        self._inner: RandomState | None = None
        self._outer: RandomState | None = None
        self._threads = 1

    def __enter__(self) -> None:
        self._outer, self._threads = RandomState.capture(), torch.get_num_threads()
        if self._inner is not None:
            self._inner.restore()

    def __exit__(self, *_: object) -> None:
        self._inner = RandomState.capture()
        if self._outer is not None:
            self._outer.restore()
        torch.set_num_threads(self._threads)


def compute_on_one_core() -> None:
    """Make torch compute on one core in this thread from now on, whatever is set in others later."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first question fixes its count; without one, others' settings would reach it
