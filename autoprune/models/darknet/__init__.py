"""Darknet's networks, YOLOv3, v3-tiny, v3-spp, v4 and their like: read, pruned, and written back as Darknet's files."""

from autoprune.models.darknet.adapter import DarknetAdapter
from autoprune.models.darknet.cfg import Cfg, Option, Section, parse_cfg, read_cfg
from autoprune.models.darknet.files import read, write
from autoprune.models.darknet.network import DarknetNetwork
from autoprune.models.darknet.pruning import prune
from autoprune.models.darknet.weights import Header, read_weights, weights_bytes

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
