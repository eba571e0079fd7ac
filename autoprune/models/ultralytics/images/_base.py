"""The images of a data set as the networks of a task take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from autoprune.models.detection.data_set import DataSet, Sample, balanced, check_samples, shuffled


class Images(ABC):
    """Reads images, brings them to the network's size, and notes those that cannot be read.

    Args:
        data: the data set.
        task: Ultralytics' name of the task.
        image_size: square input size in pixels.
        stride: the network's largest stride.
        train_args: the settings that the dense network was trained with.
        skipped: where images that cannot be read are noted, by file, with the reason.

    Attributes:
        data: the data set.
    """

    def __init__(
        self,
        data: DataSet,
        *,
        task: str,
        image_size: int,
        stride: int,
        train_args: Mapping[str, Any],
        skipped: dict[str, str],
    ) -> None:
        self.data = data
        self.task, self.image_size, self.stride, self.train_args = task, image_size, stride, train_args
        self.skipped = skipped

    def chosen(self, split: str, *, images: int, seed: int, rest: bool, augmented: bool = False) -> list[Sample]:
        """Return images of a split: its sorted files in an order drawn from the seed, the first that can be read.

        Those without labels wait for as many with labels; see `balanced`.

        Args:
            split: of the data set.
            images: how many; fewer are returned where the split holds fewer.
            seed: of the order.
            rest: return more images without labels than with, too.
            augmented: with the augmentations of the dense training's last epochs, which mix no images.

        Raises:
            DataError: the split is missing, or has no readable image or no labels.
        """
        files = shuffled(self.data, split, seed)
        read = partial(self._read, augmented=augmented)
        samples = balanced(files, labelled=self._labelled, read=read, rest=rest)
        found = list(islice(samples, images))
        self._check(found, split)
        return found

    @abstractmethod
    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch on the device, pixels in [0, 1]."""

    @abstractmethod
    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split in batches, as Ultralytics' ``val`` makes them, and the fullest image's labels.

        Args:
            batch: images per batch.
            rectangular: pad each batch to its own shape where the task does that; else every image is a square.
            workers: processes that read images, where the task uses any.

        Raises:
            DataError: as ``chosen``.
        """

    def _read(self, file: str, *, augmented: bool = False) -> Sample | None:
        """Read an image; note why, if it cannot be used."""
        sample = self._sample(file, augmented=augmented)
        if not isinstance(sample, str):
            return sample
        self.skipped[file] = sample
        return None

    @abstractmethod
    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        """Read an image, or say why it cannot be used."""

    @abstractmethod
    def _labelled(self, file: str) -> bool:
        """Return whether an image has labels, without reading it."""

    @abstractmethod
    def _labels_lie(self, file: str) -> str:
        """Say where the labels of an image are looked for."""

    def _check(self, samples: Sequence[Sample], split: str) -> None:
        check_samples(samples, self.data, split, self.skipped, labelled=self._labelled, expected=self._labels_lie)
