"""TensorRT's engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.models._base import Convert


def write(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write an engine with the header that Ultralytics reads: the metadata's length, four bytes, and the metadata."""
    plan = to.with_suffix(".plan")
    convert(traced, plan)
    header = json.dumps(dict(metadata)).encode()
    to.write_bytes(len(header).to_bytes(4, "little", signed=True) + header + plan.read_bytes())
    plan.unlink()
