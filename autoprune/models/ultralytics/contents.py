"""Check the content of a checkpoint before it is used, as the file may come from anyone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.choices import MODULE_FORMAT
from autoprune.errors import AutopruneError, ModelError, first_line, is_out_of_memory
from autoprune.models import stock
from autoprune.models.ultralytics.building import OWN, activation_of
from autoprune.models.ultralytics.plain import is_plain, shown

_ENTRIES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "train_args": ((Mapping,), "a dictionary"),
    "epoch": ((Integral,), "a whole number"),
    "best_fitness": ((Real, np.ndarray, torch.Tensor), "a number"),
    "updates": ((Integral,), "a whole number"),
    "optimizer": ((Mapping,), "a dictionary"),
    "scaler": ((Mapping,), "a dictionary"),
    "stopper": ((Mapping,), "a dictionary"),
    "modelopt": ((Mapping,), "a dictionary"),
}
"""Entries next to the network that are read: their types, and the types' names. None counts as absent."""

MOST_STRIDE = 256
"""Pixels of a network's coarsest cells; Ultralytics' have 64."""

_UNREAD = ("distill_model", "pretrained")
"""Settings that have Ultralytics open a file; the dense network's training is over."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn errors of Ultralytics' code on a network with wrong attributes into a ``ModelError``.

    Raises:
        ModelError: the block raised another error than autoprune's or a lack of memory.
    """
    try:
        yield
    except AutopruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{path} holds a network that cannot be used ({type(error).__name__}: {first_line(error)}); give a "
            "checkpoint as training wrote it"
        ) from error


def network_of(content: Mapping[str, Any], path: Path) -> nn.Module:
    """Return the network of a checkpoint, or the moving average of an interrupted training.

    Raises:
        ModelError: there is none; the message names the actual content.
    """
    if content.get("format") == MODULE_FORMAT:
        raise ModelError(f"{path} is of a network of one's own; name the function too, `model` FILE.py:FUNCTION@{path}")
    module = content.get("ema") if content.get("ema") is not None else content.get("model")
    if isinstance(module, nn.DataParallel):
        module = module.module
    if isinstance(module, nn.Sequential) and set(content) == {"model"}:  # so the loader turns a bare network
        raise ModelError(
            f"{path} is a bare network, saved without the dictionary that makes it a checkpoint; save it as "
            'torch.save({"model": network, "train_args": {"imgsz": 640}}, FILE)'
        )
    if _is_state(content) or _is_state(module):
        raise ModelError(
            f"{path} is a state dict, which has a network's weights and not the network; load it into the network, and "
            'save that as torch.save({"model": network, "train_args": {"imgsz": 640}}, FILE)'
        )
    if not isinstance(module, nn.Module):
        found = f"only {shown(module)} as its model" if module is not None else "neither a model nor an ema"
        raise ModelError(f"{path} holds no network, {found}; give the .pt file that Ultralytics' training wrote")
    return module


def check_entries(content: Mapping[str, Any], path: Path) -> None:
    """Check that the entries next to the network have the types that Ultralytics writes.

    Raises:
        ModelError: an entry has another one.
    """
    for name, (kinds, called) in _ENTRIES.items():
        value = content.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ModelError(
                f"{path} is no checkpoint as Ultralytics writes it: its {name} must be {called}, got {shown(value)}"
            )


def train_args_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the training's settings, all of Ultralytics' keys; missing ones are the defaults.

    Raises:
        ModelError: Ultralytics does not accept them.
    """
    known = stock.DEFAULT_CFG_DICT
    # None, a newer release's automatic choice, is refused by an older one: its default is used.
    settings = (content.get("train_args") or {}).items()
    given = {name: value for name, value in settings if name in known and value is not None}
    given |= {name: known[name] for name in _UNREAD if name in known}
    for name, value in given.items():
        if not is_plain(value):
            raise ModelError(f"{path} must have plain values as its train_args, got {shown(value)} for {name}")
    complete: dict[str, Any] = {**known, **given}
    try:
        with stock.quiet():
            stock.get_cfg(complete)
    except Exception as error:  # of its checks, which assume the types that they check
        raise ModelError(f"{path} has train_args that Ultralytics does not take: {first_line(error)}") from error
    return complete


def check_network(module: nn.Module, path: Path, *, trust: bool) -> None:
    """Check that a network has the attributes of Ultralytics' networks, and add those that old ones lack.

    Args:
        module: changed in place: an absent ``yaml`` and ``stride`` are set, and a list of names gets its numbers, as
            Ultralytics does.
        path: named in messages.
        trust: also allow hooks, and any activation in the YAML; neither is evaluated here.

    Raises:
        ModelError: a part is no module or has a wrong type, or a tensor is larger than its storage in the file.
    """
    network: Any = module
    for part in module.modules():
        _check_part(part, path)
        if not trust and any(vars(part).get(name) for name in _HOOKS):
            raise ModelError(
                f"{path} has hooks on a {type(part).__name__}, which would run with it; save it without them, or add "
                "`trust_checkpoint`"
            )
    layers = getattr(network, "model", None)
    if not isinstance(layers, nn.Sequential) or not len(layers):
        raise ModelError(f"{path} holds a {type(module).__name__} without a sequence of layers, as Ultralytics has")
    if not hasattr(network, "yaml"):
        network.yaml = {}
    if not hasattr(network, "stride"):
        network.stride = torch.tensor([32.0])
    if not isinstance(network.yaml, dict) or not is_plain(network.yaml):
        raise ModelError(f"{path} must carry its YAML as a dictionary of plain values, got {shown(network.yaml)}")
    if network.yaml.get("activation") and not trust:
        activation_of(network.yaml["activation"], f"{OWN} {path}")
    names = getattr(network, "names", None)
    network.names = dict(enumerate(names)) if isinstance(names, (list, tuple)) else names
    if not _is_naming(network.names):
        raise ModelError(f"{path} must name its classes by their numbers from 0 on, got {shown(names)}")
    for stride in (network.stride, getattr(layers[-1], "stride", network.stride)):
        if not _is_stride(stride):
            raise ModelError(f"{path} must have strides of 1 to {MOST_STRIDE} pixels, and has not")


def _check_part(part: nn.Module, path: Path) -> None:
    """Check that a module's children are modules, and its tensors complete."""
    own = [vars(part).get(kind) for kind in ("_modules", "_parameters", "_buffers")]
    if not all(isinstance(one, dict) for one in own):
        raise ModelError(f"{path} is damaged: a {type(part).__name__} in it has no lists of its parts")
    children, *tensors = (one or {} for one in own)
    if not all(child is None or isinstance(child, nn.Module) for child in children.values()):
        raise ModelError(f"{path} is damaged: a {type(part).__name__} in it has parts that are no modules")
    for name, tensor in (item for kind in tensors for item in kind.items()):
        if tensor is not None and not _is_held(tensor):
            raise ModelError(f"{path} is damaged: it does not hold all numbers of a {type(part).__name__}'s {name}")


def _is_held(tensor: Any) -> bool:
    """Return whether a tensor is an ordinary one, with storage for each number."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _is_naming(names: Any) -> bool:
    return (
        isinstance(names, dict)
        and 0 < len(names) <= 2**16
        and set(names) == set(range(len(names)))
        and all(isinstance(name, (str, int, float)) for name in names.values())
    )


def _is_stride(stride: Any) -> bool:
    return (
        isinstance(stride, torch.Tensor)
        and stride.numel() > 0
        and bool(((stride >= 1) & (stride <= MOST_STRIDE)).all())
    )


def _is_state(value: Any) -> bool:
    """Return whether a value maps names to tensors."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())
