"""Images in batches, halved when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import torch

from autoprune.errors import DeviceError, is_out_of_memory
from autoprune.evaluation.prefix import Prefix
from autoprune.evaluation.runners import Runner
from autoprune.journal import Journal
from autoprune.models._base import Adapter, Batch
from autoprune.structure.space import Allocation

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

_MADE = ("_augmented", "_moments", "_dense")
"""What is made of the images in batches of one size, when it is needed first."""


class HalvingBatches:
    """Holds images in batches; all that have the same journal halve them together when memory runs out.

    Attributes:
        adapter: has the images.
        images: how many.
        batch: images per batch.
        seed: chooses them.
        journal: holds what the batch was halved to.
        notify: called with a sentence that users should read.
        runner: computes.
    """

    adapter: Adapter
    images: int
    batch: int
    seed: int
    journal: Journal
    notify: Callable[[str], None]
    runner: Runner

    def _begin(self, like: HalvingBatches | None) -> None:
        """Read the images, or take those of another one."""
        self._batches: Sequence[Batch] = ()
        self._base: Allocation | None = None
        self._prefix: Prefix | None = None
        self._said: set[str] = set() if like is None else like._said
        self._copied = False
        self._load(like)

    @cached_property
    def _augmented(self) -> Sequence[torch.Tensor]:
        return self.adapter.calibration(images=self.images, batch=self.batch, seed=self.seed)

    def computed(self, function: Callable[[], Callable[[Item], Answer]], items: Sequence[Item]) -> Iterator[Answer]:
        """Give a function's answers from the runner; when memory runs out, save some and go on with the rest.

        Args:
            function: makes the function; after memory was saved, another one (``!=``), which workers take anew.
            items: its arguments.

        Raises:
            DeviceError: memory runs out with one image per batch.
        """
        return self._saving(lambda rest: self.runner.map(function(), rest), items)

    def _retrying(self, compute: Callable[[], Result]) -> Result:
        """Compute in this process; when memory runs out, save some and try again."""
        return next(self._saving(lambda rest: (compute() for _ in rest), (None,)))

    def _saving(self, answers: Callable[[Sequence[Item]], Iterable[Answer]], items: Sequence[Item]) -> Iterator[Answer]:
        rest = deque(items)
        while rest:
            self._load()
            try:
                for answer in answers(tuple(rest)):
                    yield answer
                    rest.popleft()
            except (MemoryError, RuntimeError) as error:
                self._check_memory(error)
            else:
                return
            self._save_memory()  # after the error, whose traceback holds what was computed

    def _load(self, like: HalvingBatches | None = None) -> None:
        """Hold the images in the run's batches, and nothing that was made of larger ones."""
        halved = self.journal.records("batch")
        batch = int(halved[-1].value) if halved else self.batch
        if self._batches and batch == self.batch:
            return
        self.batch, self._prefix = batch, None
        for name in _MADE:
            self.__dict__.pop(name, None)
        if like is not None and like.batch == batch:
            held = ("_batches", "_augmented")
            self.__dict__.update({name: one for name, one in like.__dict__.items() if name in held})
        else:
            self._batches = self.adapter.batches(
                "train", images=self.images, batch=batch, seed=self.seed, balanced=True
            )

    def _check_memory(self, error: Exception) -> None:
        """Raise an error that is no lack of memory, and one in a copy: only the run itself halves."""
        if self._copied or not is_out_of_memory(error):
            raise error
        if self._base is None and self.batch == 1:
            raise DeviceError(
                "Out of memory even with one image per batch; use a smaller `imgsz` or another `device`"
            ) from error

    def _save_memory(self) -> None:
        """Forget what the base network's layers computed, or else halve the run's batch; say so."""
        if self._base is not None:
            self._base = self._prefix = None
            self._say("Out of memory; going on without what the base network's layers computed, more slowly.")
        else:
            self._say(f"Out of memory with {self.batch} images per batch; going on with {self.batch // 2}.")
            self.journal.append("batch", len(self.journal.records("batch")), self.batch // 2)
        if self.adapter.device.type == "cuda":
            torch.cuda.empty_cache()

    def _say(self, note: str) -> None:
        if note not in self._said:
            self._said.add(note)
            self.notify(note)
