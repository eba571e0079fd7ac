"""Networks built by Ultralytics from the rows of a YAML, with nothing of the YAML evaluated.

Ultralytics evaluates a YAML's ``activation`` as Python, takes a row's class from all names that its module has, and
lets a ``TorchVision`` row download weights (``parse_model`` in ``nn/tasks.py``). A YAML comes with every checkpoint and
is not trusted: here the activation is parsed as data, a row must name a layer, and nothing is downloaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn

from autoprune.errors import ModelError, first_line
from autoprune.models import stock
from autoprune.models.ultralytics.plain import is_plain, shown

ACTIVATIONS = (
    "CELU",
    "ELU",
    "GELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSigmoid",
    "Mish",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
)
"""Classes of ``torch.nn`` that a YAML may name as its activation: one number in, one number out."""

OWN = "The YAML in the checkpoint"
"""Name of a network's own YAML in messages."""

MOST_REPEATS = 1000
"""How often a row may be repeated, and how much deeper or wider a scale may make a network."""


def build(kind: type, description: Mapping[str, Any], *, name: str, **options: Any) -> nn.Module:
    """Build a network as its YAML describes it, with fresh weights, on the CPU.

    Args:
        kind: the network's class.
        description: the YAML; it is not changed. The network carries a copy.
        name: of the YAML, for the message.
        options: of the class.

    Raises:
        ModelError: the YAML is malformed, names an unknown layer or activation, or Ultralytics cannot build it.
    """
    check_description(description, name)
    rows: dict[str, Any] = deepcopy(dict(description))
    spelled = rows.pop("activation", None)
    for row in (*rows["backbone"], *rows["head"]):
        if row[2] == "TorchVision":
            row[3][2:3] = [None]  # the weights that torchvision would download
    with stock.quiet(), _default_activation(activation_of(spelled, name) if spelled else None):
        try:
            network: Any = kind(rows, verbose=False, **options)
        except MemoryError:
            raise
        except Exception as error:  # whatever a wrong entry leads to
            raise ModelError(f"{name} describes no network that Ultralytics can build: {first_line(error)}") from error
    if spelled:
        network.yaml["activation"] = spelled
    built: nn.Module = network
    return built


def check_description(description: Any, name: str) -> None:
    """Check that a YAML has plain values only, and rows that name layers.

    Raises:
        ModelError: it has others; the message names the first wrong row.
    """
    if not isinstance(description, Mapping) or not is_plain(description):
        raise ModelError(f"{name} must map names to texts, numbers and lists, and does not")
    for part in ("backbone", "head"):
        rows = description.get(part)
        if not isinstance(rows, list) or not rows:
            raise ModelError(f"{name} must have a list of layers as its {part}, got {shown(rows)}")
        for row in rows:
            if not _is_row(row):
                raise ModelError(
                    f"{name} must have layers of the form [from, repeats, class, arguments] in its {part}, got "
                    f"{shown(row)}"
                )
            if not _is_layer(row[2]):
                raise ModelError(
                    f"{name} names {shown(row[2])}, which is no layer of Ultralytics, torch.nn or torchvision.ops"
                )
    scales = description.get("scales") or {}
    sizes = scales.values() if isinstance(scales, Mapping) else [scales]
    multiples = [description.get(key, 1.0) for key in ("depth_multiple", "width_multiple")]
    if not all(map(_is_scale, sizes)) or not all(map(_is_multiple, multiples)):
        raise ModelError(f"{name} must have scales of the form [depth, width, most channels], got {shown(scales)}")


def activation_of(spelled: Any, name: str) -> nn.Module:
    """Return the activation that a YAML names, such as ``nn.SiLU()`` or ``torch.nn.LeakyReLU(0.1)``.

    Raises:
        ModelError: it is not one of ``ACTIVATIONS`` with plain arguments.
    """
    try:
        return _called(ast.parse(spelled.strip() if len(spelled) <= 100 else "", mode="eval").body)
    except Exception as error:  # of ast, which refuses in many ways, or of the class
        raise ModelError(
            f"{name} must name its activation as a class of torch.nn with plain arguments, such as nn.SiLU() or "
            f"torch.nn.LeakyReLU(0.1), got {shown(spelled)}; nothing else is evaluated"
        ) from error


def _called(call: ast.expr) -> nn.Module:
    """Return the activation of an expression; any error if it is none."""
    if not isinstance(call, ast.Call):
        raise ValueError("no call")
    home, _, kind = ast.unparse(call.func).rpartition(".")
    if home not in ("nn", "torch.nn") or kind not in ACTIVATIONS:
        raise ValueError("no activation")
    arguments = [ast.literal_eval(one) for one in call.args]
    named = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    if any(isinstance(one, int) and one > MOST_REPEATS for one in (*arguments, *named.values())):
        raise ValueError("a width that no network has")
    made: nn.Module = getattr(nn, kind)(*arguments, **named)
    return made


@contextmanager
def _default_activation(activation: nn.Module | None) -> Iterator[None]:
    """Set the default activation of Ultralytics' convolutions, which is global, within the context."""
    before = stock.Conv.default_act
    if activation is not None:
        stock.Conv.default_act = activation
    try:
        yield
    finally:
        stock.Conv.default_act = before


def _is_row(row: Any) -> bool:
    if not (isinstance(row, list) and len(row) == 4):
        return False
    source, repeats, _, arguments = row
    sources = source if isinstance(source, list) else [source]
    return (
        all(type(one) is int for one in sources)
        and type(repeats) is int
        and 1 <= repeats <= MOST_REPEATS
        and isinstance(arguments, list)
    )


def _is_layer(name: Any) -> bool:
    """Return whether a row's class is a layer: not a whole network, whose constructor reads files."""
    if not isinstance(name, str):
        return False
    home: Any = stock.tasks
    if name.startswith("nn."):
        home, name = nn, name.removeprefix("nn.")
    elif name.startswith("torchvision.ops."):
        import torchvision.ops  # slow, and hardly ever named

        home, name = torchvision.ops, name.removeprefix("torchvision.ops.")
    found = vars(home).get(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        return False
    origin = found.__module__
    return not origin.startswith("ultralytics.") or origin.startswith("ultralytics.nn.modules.")


def _is_scale(scale: Any) -> bool:
    """Return whether an entry of ``scales`` is [depth, width, most channels]."""
    return isinstance(scale, list) and len(scale) == 3 and all(map(_is_multiple, scale[:2])) and _is_number(scale[2])


def _is_multiple(value: Any) -> bool:
    return _is_number(value) and value <= MOST_REPEATS


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
