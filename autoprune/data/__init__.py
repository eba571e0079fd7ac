"""Convert published data sets to Ultralytics' format; one file per data set."""

from autoprune.data._base import SPLITS, Box, Published, Written, write_description, write_split
from autoprune.data.oxford_hand import oxford_hand

__all__ = ["SPLITS", "Box", "Published", "Written", "oxford_hand", "write_description", "write_split"]
