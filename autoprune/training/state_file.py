"""The file in which a trainer keeps a training between two epochs: tensors and plain values, no code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import ModelError
from autoprune.io.files import saying_why

State = Mapping[str, Any]
"""What such a file holds, by name."""

_DAMAGED = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)
"""What torch's loader, and a look into what it gives, raise for a file that is not a state."""


@contextmanager
def telling_damage(file: Path) -> Iterator[None]:
    """Turn what a damaged state makes the block raise into one sentence.

    Raises:
        ModelError: the block failed of what is in the file.
    """
    try:
        yield
    except _DAMAGED as error:
        raise ModelError(
            f"{file} is damaged or not of this training; remove its folder, and the training starts anew"
        ) from error


def state_bytes(state: State) -> bytes:
    """Return the content of the file of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(file: Path) -> State:
    """Read a state with torch's safe loader, without running code from it.

    Raises:
        ModelError: the file is damaged, or holds something else.
        RunError: it cannot be read.
    """
    with saying_why(file, "read"):
        data = file.read_bytes()
    with telling_damage(file):
        return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
