"""Images that lie in one folder per class, for classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import PIL.Image
import torch

from autoprune.models import stock
from autoprune.models.detection.data_set import Sample, cut_short
from autoprune.models.ultralytics.class_folders import class_of
from autoprune.models.ultralytics.images._base import Images

_AUGMENTATIONS = {
    "hflip": "fliplr",
    "vflip": "flipud",
    "erasing": "erasing",
    "auto_augment": "auto_augment",
    "hsv_h": "hsv_h",
    "hsv_s": "hsv_s",
    "hsv_v": "hsv_v",
}
"""Arguments of Ultralytics' ``classify_augmentations``, with those of its training that they come from."""


class FolderImages(Images):
    """Images scaled and cropped to a square; the class is the folder's name."""

    def collate(self, samples: Sequence[Sample], device: torch.device) -> dict[str, Any]:
        """Return samples as one batch; see `Images`."""
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        images = torch.stack([sample["img"] for sample in samples]).to(device)
        return {
            "img": images.contiguous(memory_format=layout),
            "cls": torch.tensor([sample["cls"] for sample in samples], device=device),
            "im_file": [sample["im_file"] for sample in samples],
        }

    def validation(self, *, batch: int, rectangular: bool, workers: int = 0) -> tuple[Iterable[Sequence[Sample]], int]:
        """Return the validation split; see `Images`. A classifier's images are squares always."""
        files = self.data.files("val")
        parts = (map(self._read, files[start : start + batch]) for start in range(0, len(files), batch))
        return filter(None, ([sample for sample in part if sample is not None] for part in parts)), 1

    def _sample(self, file: str, *, augmented: bool) -> Sample | str:
        problem = cut_short(file)
        pixels = None if problem else stock.ClassificationDataset.imread(file)
        if pixels is None:
            return problem or "the image cannot be decoded"
        name = class_of(file, self.data)
        if name not in self._index:
            return f"its folder {name!r} is none of the classes"
        image = PIL.Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        transform = self._augmented if augmented else self._plain
        return {"img": transform(image), "cls": self._index[name], "im_file": file}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.data.names)}

    @cached_property
    def _plain(self) -> Any:
        return stock.classify_transforms(size=self.image_size)

    @cached_property
    def _augmented(self) -> Any:
        settings = {**stock.DEFAULT_CFG_DICT, **self.train_args}
        return stock.classify_augmentations(
            size=self.image_size,
            scale=(1.0 - settings["scale"], 1.0),
            **{argument: settings[name] for argument, name in _AUGMENTATIONS.items()},
        )

    def _labelled(self, file: str) -> bool:
        return True

    def _labels_lie(self, file: str) -> str:
        return f"a class is a folder such as {Path(file).parent}"
