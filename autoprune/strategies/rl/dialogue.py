"""Strategies written in one piece: a generator that yields what to score and receives the scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence

from autoprune.strategies._base import Strategy
from autoprune.structure.space import Allocation

Dialogue = Generator[Sequence[Allocation], Sequence[float], None]
"""Yields allocations and is sent all their scores, in the same order; ends when it has finished."""


class DialogueStrategy(Strategy):
    """Asks what its dialogue yields, in pieces as small as the caller wants, and no more than it may.

    Args:
        evaluations: the most allocations that are asked for.
    """

    def __init__(self, evaluations: int) -> None:
        self._left = evaluations
        self._running: Dialogue | None = None
        self._batch: Sequence[Allocation] = ()
        self._scores: list[float] = []

    @abstractmethod
    def dialogue(self) -> Dialogue:
        """Return the generator that leads the search; called once, at the first question."""

    def ask(self, limit: int) -> Sequence[Allocation]:
        """Return the next piece of what the dialogue wants to know."""
        if self._left == 0 or not self._advance():
            return ()
        done = len(self._scores)
        return self._batch[done : done + min(limit, self._left)]

    def tell(self, allocations: Sequence[Allocation], scores: Sequence[float]) -> None:
        """Take scores; the dialogue hears them when its whole batch is scored."""
        self._left -= len(allocations)
        self._scores.extend(scores)

    def close(self) -> None:
        """End the dialogue."""
        if self._running is not None:
            self._running.close()

    def _advance(self) -> bool:
        """Go on with the dialogue where its last batch is scored; return whether it wants to know more."""
        try:
            if self._running is None:
                self._running = self.dialogue()
                self._batch = next(self._running)
            while len(self._scores) == len(self._batch):
                scores, self._scores = self._scores, []
                self._batch = self._running.send(scores)
        except StopIteration:
            self._left = 0
        return self._left > 0
