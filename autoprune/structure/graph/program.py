"""Export a network by ``torch.export``, in silence, and with one sentence if that fails."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from autoprune.errors import ModelError, first_line

_OTHERS = ("<", *(f"{Path(path).parent}{os.sep}" for path in (torch.__file__, __file__)))
"""How the names of files begin that are no part of the network."""


def export_program(network: nn.Module, example: torch.Tensor, rule: str) -> ExportedProgram:
    """Export a network with the shape of an example input.

    Args:
        network: in the mode that is exported; it is not modified.
        example: its input.
        rule: how the message begins if it cannot be exported, up to its name.

    Raises:
        ModelError: the network cannot be exported; the message has the line of its source.

    Example:
        >>> program = export_program(nn.Linear(2, 3), torch.zeros(1, 2), "A network must be exportable, and Linear")
        >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        ['aten.linear.default']
    """
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(network, (example,), strict=False)
    except Exception as error:
        raise ModelError(f"{rule} {_reason(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch warns, logs and prints; of a network that it refuses it prints all operations."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _reason(error: Exception) -> str:
    """Return why a network cannot be exported, and where in its source that is."""
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode  # late: sympy changes warnings

    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OTHERS)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return f"lets the values of a tensor decide{place} what it computes, where torch.where could choose"
    return f"fails{place} with: {first_line(error)}"
