"""Images with boxes, masks, keypoints or rotated boxes, one text file of labels each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from autoprune.models.detection.data_set import Label, Sample, has_labels, label_file, to_batch, verified
from autoprune.models.ultralytics.data import LabelledImages, StretchedImages
from autoprune.models.ultralytics.images._base import Images

_MIXING = ("mosaic", "mixup", "cutmix", "copy_paste")
"""Augmentations that put several images into one."""

_MASKS = ("overlap_mask", "mask_ratio")
"""How the training, and so its loss, has the masks."""

_LEAST_STRIDE = 32


class LabelledFiles(Images):
    """Letterboxed images."""

    kind: ClassVar[type[LabelledImages]] = LabelledImages
    """How images are brought to the network's size."""
    rectangles: ClassVar[bool] = True
    """Whether a batch may be padded to its own shape."""

    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch; see `Images`."""
        return to_batch(samples, device)

    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split; see `Images`. Its labels are verified once."""
        labels = self._verified
        images = self._images(labels, rectangular=batch if rectangular and self.rectangles else None)
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            images, batch_size=batch, collate_fn=list, num_workers=workers
        )
        return loader, max(len(label["cls"]) for label in labels)

    @cached_property
    def _verified(self) -> Sequence[Label]:
        found = []
        for file in self.data.files("val"):
            label = verified(file, self.data, self.task)
            if isinstance(label, str):
                self.skipped[file] = label
            else:
                found.append(label)
        self._check(found, "val")
        return found

    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        label = verified(file, self.data, self.task)
        if isinstance(label, str):
            return label
        augmentation = {**self.train_args, **dict.fromkeys(_MIXING, 0.0)} if augmented else None
        try:
            sample: Sample = self._images([label], augmentation=augmentation)[0]
        except (OSError, ValueError, RuntimeError) as error:  # the file's head is sound, its pixels are not
            return str(error)
        return sample

    def _images(
        self, labels: Sequence[Label], *, rectangular: int | None = None, augmentation: Mapping[str, Any] | None = None
    ) -> LabelledImages:
        return self.kind(
            labels,
            data=self.data,
            image_size=self.image_size,
            task=self.task,
            rectangular=rectangular,
            stride=max(self.stride, _LEAST_STRIDE),
            augmentation=augmentation,
            masks={name: self.train_args[name] for name in _MASKS if name in self.train_args},
        )

    def _labelled(self, file: str) -> bool:
        return has_labels(file)

    def _labels_lie(self, file: str) -> str:
        return label_file(file)


class StretchedFiles(LabelledFiles):
    """Images stretched to a square, as RT-DETR takes them."""

    kind = StretchedImages
    rectangles = False
