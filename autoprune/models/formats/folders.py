"""Formats that are a folder with the metadata as Ultralytics writes it: OpenVINO's, NCNN's and ExecuTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.models._base import Convert


def write_openvino(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write ``model.xml`` with its ``model.bin`` into a folder."""
    _write(traced, to / "model.xml", metadata, convert)


def write_ncnn(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write ``model.ncnn.param`` with its ``model.ncnn.bin`` into a folder."""
    _write(traced, to / "model.ncnn.param", metadata, convert)


def write_executorch(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write ``model.pte`` into a folder."""
    _write(traced, to / "model.pte", metadata, convert)


def _write(traced: Path, to: Path, metadata: Mapping[str, Any], convert: Convert) -> None:
    """Write the files, and the metadata, if any, next to them."""
    to.parent.mkdir()
    convert(traced, to)
    if metadata:
        from autoprune.models import stock  # late: networks of other classes do without Ultralytics

        stock.YAML.save(to.with_name("metadata.yaml"), dict(metadata))
