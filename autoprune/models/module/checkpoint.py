"""Checkpoints of pruned networks of any class: tensors and plain numbers, which run no code when they are read.

A pruned network differs from the dense one in its tensors and in the attributes that repeat widths (``in_channels``,
``num_features``, …). Both are in the file; the classes come with the dense network, which the user's own code builds.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from autoprune.choices import MODULE_FORMAT
from autoprune.errors import ModelError
from autoprune.io.files import saying_why, why_no_file, write_atomic
from autoprune.structure.slicing import state_tensors

VERSION = 1

Numbers = Mapping[str, Mapping[str, Any]]
"""Path of a submodule → its number attributes that differ from the dense network's."""


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        name: of the dense network.
        tensors: parameters and buffers by name, including non-persistent ones; on the CPU.
        numbers: attributes that repeat widths.
        notes: plain JSON values.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    numbers: Numbers
    notes: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, dense: nn.Module, *, name: str, notes: Mapping[str, Any] | None) -> Checkpoint:
        """Return the checkpoint of a network relative to its dense one; neither is modified."""
        own = state_tensors(module)
        copies = {id(tensor): tensor.detach().cpu().clone() for tensor in own.values()}  # shared tensors once
        tensors = {key: copies[id(tensor)] for key, tensor in own.items()}
        return cls(name, tensors, _changed(module, dense), json.loads(json.dumps(dict(notes or {}))))

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        content = {"format": MODULE_FORMAT, "version": VERSION, **vars(self)}
        buffer = io.BytesIO()  # to a path, torch.save would put the file's name inside and so change the length
        torch.save(content, buffer)
        return buffer.getvalue()

    def rebuild(self, dense: nn.Module, file: Path) -> nn.Module:
        """Return a network with these tensors and numbers, on the dense one's device, in eval mode.

        Args:
            dense: of the same classes; it is not modified.
            file: named in the message.

        Raises:
            ModelError: the dense network has other tensors or submodules.
        """
        own = state_tensors(dense)
        if missing := sorted(own.keys() ^ self.tensors.keys()):
            raise ModelError(
                f"{file} must belong to the network {self.name!r} that it was made of, and {missing[0]} is only in one "
                "of the two; build the network as it was built then"
            )
        memo: dict[int, Any] = {}
        for key, tensor in own.items():
            if tensor.ndim != self.tensors[key].ndim:
                raise ModelError(f"{file} must belong to the network that it was made of, and {key} is another there")
            memo.setdefault(id(tensor), _like(self.tensors[key], tensor))
        network = copy.deepcopy(dense, memo)
        modules = dict(network.named_modules())
        for path, values in self.numbers.items():
            if path not in modules:
                raise ModelError(f"{file} must belong to the network that it was made of, which had a module {path}")
            for key, value in values.items():
                if not _is_number(getattr(modules[path], key, 0)):
                    raise ModelError(f"{file} must change numbers of the network alone, and has {key} of {path}")
                setattr(modules[path], key, value)
        return network.eval()


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint completely or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomic(path, checkpoint.to_bytes())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint with torch's safe loader.

    Raises:
        ModelError: it is missing, corrupt, or no such checkpoint.
    """
    if reason := why_no_file(path):
        raise ModelError(f"the checkpoint {path} {reason}")
    try:
        with saying_why(path, "read"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch lets through what its unpickler and its archive reader raise
        raise ModelError(f"{path} is corrupt, or no checkpoint that autoprune wrote of a module") from error
    if not isinstance(content, dict) or content.get("format") != MODULE_FORMAT:
        raise ModelError(f"{path} must be a checkpoint that autoprune wrote of a module, such as a run's model.pt")
    if content.get("version") != VERSION:
        raise ModelError(
            f"{path} has version {content.get('version')!s:.20} of its format, this autoprune reads {VERSION}"
        )
    name, tensors, numbers, notes = (content.get(key) for key in ("name", "tensors", "numbers", "notes"))
    if not (isinstance(name, str) and isinstance(notes, dict) and _are_tensors(tensors) and _are_numbers(numbers)):
        raise ModelError(f"{path} is damaged: it must have tensors and whole numbers by their names")
    return Checkpoint(name, tensors, numbers, notes)


def _are_tensors(value: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    """Return whether a value maps names to tensors with complete storage in the file."""
    return isinstance(value, dict) and all(
        isinstance(key, str)
        and isinstance(one, torch.Tensor)
        and one.layout is torch.strided
        and one.numel() * one.element_size() <= one.untyped_storage().nbytes()
        for key, one in value.items()
    )


def _are_numbers(value: Any) -> TypeGuard[dict[str, dict[str, Any]]]:
    """Return whether a value maps paths to number attributes of modules."""
    return isinstance(value, dict) and all(
        isinstance(numbers, dict) and all(map(_is_number, numbers.values())) for numbers in value.values()
    )


def _like(tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    placed = tensor.to(own.device).clone()
    return nn.Parameter(placed, requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else placed


def _changed(module: nn.Module, dense: nn.Module) -> Numbers:
    changed = {}
    originals = dict(dense.named_modules())
    for path, child in module.named_modules():
        before = _numbers(originals[path]) if path in originals else {}
        values = {key: value for key, value in _numbers(child).items() if before.get(key) != value}
        if values:
            changed[path] = values
    return changed


def _numbers(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes that are integers, or tuples and lists of them."""
    return {key: value for key, value in vars(module).items() if _is_number(value)}


def _is_number(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, int) and not isinstance(value, bool)
