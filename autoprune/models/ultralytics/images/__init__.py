"""How the images of a data set come to a network: one implementation per kind of label."""

from __future__ import annotations

from autoprune.models.ultralytics.images._base import Images
from autoprune.models.ultralytics.images.folders import FolderImages
from autoprune.models.ultralytics.images.labelled import LabelledFiles, StretchedFiles

__all__ = ["FolderImages", "Images", "LabelledFiles", "StretchedFiles"]
