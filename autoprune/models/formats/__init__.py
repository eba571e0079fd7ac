"""Formats that are made of a traced network, one file each; `autoprune.formats.FORMATS` has their records."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from autoprune.formats import FormatSpec
from autoprune.models._base import Convert

Write: TypeAlias = "Callable[[Path, Path, Mapping[str, Any], Convert], None]"
"""Makes of a traced network, the first path, the file or folder of a format, the second.

It is given the metadata that Ultralytics reads (empty for networks of other classes), and what writes a traced network
in the own format of the runtime.
"""


def finish(traced: Path, spec: FormatSpec, metadata: Mapping[str, Any], convert: Convert) -> Path:
    """Return the file or folder of a format, made of the network traced for it, which it takes the place of."""
    if not spec.write:
        return traced
    write: Write = pkgutil.resolve_name(spec.write)
    target = traced.with_name(spec.file)
    write(traced, target, metadata, convert)
    traced.unlink()
    return target
