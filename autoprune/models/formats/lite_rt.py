"""TensorFlow Lite's format, for LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.models._base import Convert


def write(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write the file; the metadata is in the traced one, and the conversion takes it along."""
    convert(traced, to)
