"""Darknet's networks, YOLOv3, v3-tiny, v3-spp, v4 and their like: read, pruned, and written back as Darknet's files."""

from autoprune.models.darknet.adapter import DarknetAdapter
from autoprune.models.darknet.cfg import Cfg, Option, Section, parse_cfg, read_cfg
from autoprune.models.darknet.files import Header, read, read_weights, weights_bytes, write
from autoprune.models.darknet.network import DarknetNetwork, prune

__all__ = [
    "Cfg",
    "DarknetAdapter",
    "DarknetNetwork",
    "Header",
    "Option",
    "Section",
    "parse_cfg",
    "prune",
    "read",
    "read_cfg",
    "read_weights",
    "weights_bytes",
    "write",
]
