"""Wider and narrower networks of the same family."""

from __future__ import annotations

from autoprune.models.darknet.cfg import Cfg

_MULTIPLE = 8
"""Widths of scaled networks are multiples of this."""


def scaled_cfg(cfg: Cfg, width: float) -> Cfg | None:
    """Return a cfg whose ``filters`` are so many times as many; None where convolutions have groups.

    Args:
        cfg: the dense network's.
        width: the factor.
    """
    values: dict[tuple[int, str], int] = {}
    following = [*(section.name for section in cfg.layers[1:]), ""]
    for index, section in enumerate(cfg.layers):
        if section.name != "convolutional" or following[index] == "yolo":
            continue
        if section.integer("groups", 1) > 1:
            return None
        if "filters" in section.options:
            values[index, "filters"] = max(1, round(section.integer("filters") * width / _MULTIPLE)) * _MULTIPLE
    return cfg.replaced(values)
