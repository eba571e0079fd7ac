"""OpenVINO's format: a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.models._base import Convert


def write(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write ``model.xml`` with its ``model.bin``, and the metadata, if any, next to them as Ultralytics does."""
    to.mkdir()
    convert(traced, to / "model.xml")
    if metadata:
        from autoprune.models import stock  # late: networks of other classes do without Ultralytics

        stock.YAML.save(to / "metadata.yaml", dict(metadata))
