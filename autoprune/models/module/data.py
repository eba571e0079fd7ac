"""Batches on a device from a user's own data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from autoprune.errors import DataError
from autoprune.models._base import Batch

Collate = Callable[[list[Any]], tuple[torch.Tensor, Any]]
"""Maps samples to a batch: images, shape (B, channels, height, width), and targets."""


class MapDataset(Protocol):
    """A map-style data set of torch: samples by index, each an image and its target."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> Any:
        """Return one sample, (image of shape (channels, height, width), target)."""


@dataclass(frozen=True)
class Data:
    """A data set's splits.

    Attributes:
        train: training samples.
        val: validation samples.
        collate: makes a batch of samples.
        shape: of one image, (channels, height, width).
    """

    train: MapDataset
    val: MapDataset
    collate: Collate = default_collate
    shape: tuple[int, ...] = ()

    def split(self, name: str) -> MapDataset:
        """Return a split by its name.

        Raises:
            DataError: there is none of this name, or it is empty.
        """
        found = {"train": self.train, "val": self.val}.get(name)
        if found is None:
            raise DataError(f"a module has the splits train and val, got {name!r}")
        if len(found) == 0:
            raise DataError(f"the {name} data of a module must have at least one sample, and it is empty")
        return found

    def chosen(self, split: str, *, images: int | None, seed: int | None) -> Sequence[int]:
        """Return the first ``images`` indices (None: all) in an order drawn from the seed (None: ascending)."""
        count = len(self.split(split))
        if seed is None:
            return range(count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        return order[:images]

    def batches(
        self, split: str, numbers: Sequence[int], *, batch: int, seed: int, device: torch.device
    ) -> Iterator[Batch]:
        """Yield samples as batches; torch's generator is seeded, for data sets that augment.

        A single last sample is joined by one of the batch before, or joins a batch of two: batch norm needs two values
        per channel.
        """
        samples = self.split(split)
        state = torch.Generator().manual_seed(seed).get_state()
        cuts = [*range(0, len(numbers), batch), len(numbers)]
        if batch > 1 and len(numbers) > batch and len(numbers) % batch == 1:
            cuts[-2:-1] = [cuts[-2] - 1] if batch > 2 else []
        for start, end in pairwise(cuts):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                found = [self._sample(samples, split, number) for number in numbers[start:end]]
                state = torch.get_rng_state()
            yield self._joined(found, split, device)

    def _sample(self, samples: MapDataset, split: str, number: int) -> Any:
        try:
            return samples[number]
        except MemoryError:
            raise
        except Exception as error:  # a user's own code
            raise DataError(f"sample {number} of the {split} data cannot be read ({reason_of(error)})") from error

    def _joined(self, samples: list[Any], split: str, device: torch.device) -> Batch:
        try:
            images, targets = self.collate(samples)
        except Exception as error:  # a user's own samples
            raise DataError(
                f"the samples of the {split} data must make a batch of images and targets, and do not "
                f"({reason_of(error)}); give samples (image, target) of equal shapes, or a collate function"
            ) from error
        if not isinstance(images, torch.Tensor) or tuple(images.shape[1:]) != self.shape:
            found = tuple(images.shape[1:]) if isinstance(images, torch.Tensor) else type(images).__name__
            raise DataError(f"images of the {split} data must have the shape {self.shape} of the example, got {found}")

        def placed(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return {"images": images.to(device, torch.float32), "targets": tree_map(placed, targets)}


def reason_of(error: BaseException) -> str:
    """Return the class of an error in a user's code and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
