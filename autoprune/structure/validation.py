"""Validate channel groups by values: prune every unit a little, compare with the dense network, pin what differs.

The pruned network must give the dense network's outputs if nothing reads the removed channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autoprune.arrays import Mask
from autoprune.errors import ModelError, first_line
from autoprune.structure.graph import ChannelGraph, Unit, copied, trace
from autoprune.structure.slicing import Slicer, state_tensors

PROOF_SIZE = 64
"""Height and width of the crop on which networks are compared, if the network takes one that small."""

NOISE = 0.3
"""How far parameters are moved, as a share of their root mean square: enough that nothing is dead or neutral."""

USED_AS_NUMBER = "its width is used as a number in forward"
CHANGES_SHAPE = "an output of the network changes its shape"

Outputs = Mapping[str, torch.Tensor]


class DenseNetwork:
    """A copy of the dense network with which pruned ones are compared.

    The copy computes in float64, so that rounding is far below any difference, and its parameters are moved at random,
    so that a layer that is dead or switched off (a zero scale, as before training) hides nothing: whether channels can
    be removed depends on the structure alone. A network that cannot be run like that is compared as it is.

    Args:
        module: the network; it is not modified.
        example: an input of shape (B ≥ 2, C, H, W).
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network does not run on its example.
    """

    def __init__(self, module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> None:
        self._free = frozenset(free_outputs)
        crop = example[..., :PROOF_SIZE, :PROOF_SIZE]
        for moved in (True, False):
            for images in (crop, example):
                try:
                    self._prepare(module, images, moved=moved)
                except (MemoryError, ModelError):
                    raise
                except Exception as error:  # the network's own
                    reason = first_line(error)
                else:
                    return
        raise ModelError(f"A network must run on its example input; {type(module).__name__} fails with: {reason}")

    def _prepare(self, module: nn.Module, images: torch.Tensor, *, moved: bool) -> None:
        self.module = _moved(module) if moved else copied(module)
        self._images = images.double() + _noise(images) if moved else images
        self._run(self.module, training=True)
        outputs = self._run(self.module)
        if moved and any(bool(value.isnan().any()) for value in outputs.values()):
            raise ArithmeticError("the moved parameters are none that the network computes with")
        self._tolerance = math.sqrt(_precision(images.device, self._images.dtype))  # half of the digits
        if _difference(self._run(self.module, seed=1), outputs, self._tolerance) is not None:
            self._tolerance = math.inf  # it draws random numbers, so that no two passes are equal

    def fault(self, surgeon: Slicer, keep: Mask) -> str | None:
        """Return why the network cannot do without some of its channels, or None.

        Args:
            surgeon: of ``module``.
            keep: which channels stay, shape (channels of the graph,).
        """
        pruned = surgeon.materialise(keep)
        try:
            found = self._run(pruned)
            self._run(pruned, training=True)
        except MemoryError:
            raise
        except Exception as error:  # the network's own
            return f"the network fails without some of its channels: {first_line(error)}"
        with unread(self.module, surgeon.graph, keep):
            expected = self._run(self.module)
        return _difference(found, expected, self._tolerance)

    def _run(self, network: nn.Module, *, training: bool = False, seed: int = 0) -> Outputs:
        """Return the outputs that pruning must not change, by where they are."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            output = network.train(training)(self._images)
        leaves, _ = pytree.tree_flatten_with_path(output)
        return {
            pytree.keystr(path): leaf.cpu()
            for path, leaf in leaves
            if isinstance(leaf, torch.Tensor) and not {getattr(key, "key", None) for key in path} & self._free
        }


@contextmanager
def unread(module: nn.Module, graph: ChannelGraph, keep: Mask) -> Iterator[None]:
    """Put zeros, for the time of a ``with``, into every weight that reads a channel that does not stay."""
    state = state_tensors(module)
    with ExitStack() as undo:
        for name, dimension in sorted(graph.reads):
            axis = dict(graph.tensors[name])[dimension]
            tensor = state[name].detach()
            removed = torch.from_numpy(np.flatnonzero(~keep[graph.axes[axis]])).to(tensor.device)
            undo.callback(tensor.index_copy_, dimension, removed, tensor.index_select(dimension, removed))
            tensor.index_fill_(dimension, removed, 0.0)
        yield


def _difference(found: Outputs, expected: Outputs, tolerance: float) -> str | None:
    """Return how outputs differ, or None; values may by the tolerance, a share of the output's largest."""
    if {key: value.shape for key, value in found.items()} != {key: value.shape for key, value in expected.items()}:
        return CHANGES_SHAPE
    equal = (_agree(found[key], value, tolerance) for key, value in expected.items())
    return None if tolerance == math.inf or all(equal) else USED_AS_NUMBER


def _agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    found, expected = (one if one.is_complex() else one.double() for one in (found, expected))
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    values = expected[finite]
    largest = float(values.abs().max()) if len(values) else 0.0
    return bool(((found[finite] - values).abs() <= tolerance * max(largest, tolerance)).all())


def _precision(device: torch.device, dtype: torch.dtype) -> float:
    """Return the relative distance of neighbouring numbers; a GPU may multiply in TF32, which has ten bits."""
    return 2.0**-10 if device.type == "cuda" and dtype == torch.float32 else torch.finfo(dtype).eps


def _moved(module: nn.Module) -> nn.Module:
    """Return a copy in float64 with all parameters moved, whose batch norms take their statistics from the next pass.

    So signals neither die nor explode, however deep the network is and whatever its weights were.
    """
    network = copied(module).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and parameter.numel():
                inputs = math.prod(parameter.shape[1:])
                size = max(float(parameter.square().mean().sqrt()), inputs**-0.5)
                step = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(step, alpha=NOISE * size)
    for child in network.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.momentum = 1.0
    return network


def _noise(images: torch.Tensor) -> torch.Tensor:
    """Return numbers in [0, 1), so that an example without content has some."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(images.shape, dtype=torch.float64, generator=generator).to(images.device)


Check = Callable[[Sequence[Unit]], str | None]
"""Units → why the network cannot do without some of their channels, or None."""


def analyse(module: nn.Module, example: torch.Tensor, *, free_outputs: Collection[str] = ()) -> ChannelGraph:
    """Return the network's channel groups, with every unit pinned that cannot really be pruned.

    A unit can be pruned if the smaller network runs, and computes what the dense one does where nothing reads the
    removed channels.

    Args:
        module: the network; it is not modified.
        example: an input of shape (B ≥ 2, C, H, W); layer sizes are recorded for it.
        free_outputs: keys of an output dictionary whose tensors may change their channel count.

    Raises:
        ModelError: the network cannot be copied or exported, or fails even unpruned.
    """
    graph = trace(module, example, free_outputs=free_outputs)
    dense = DenseNetwork(module, example, free_outputs=free_outputs)
    for removal in (_few, _first_half, _last_half, *map(_down_to, _compared_widths(graph))):
        while faults := _faults(_check(dense, graph, removal), list(graph.units)):  # some fail only with others
            graph = graph.pin(faults)
    return graph


def _check(dense: DenseNetwork, graph: ChannelGraph, removal: Removal) -> Check:
    surgeon = Slicer(dense.module, graph)

    def fault(units: Sequence[Unit]) -> str | None:
        keep = np.ones(graph.channels, dtype=np.bool_)
        for position, unit in enumerate(units):
            for index in unit.groups:
                keep[graph.groups[index].span][removal(position, unit.width)] = False
        return dense.fault(surgeon, keep)

    return fault


Removal = Callable[[int, int], slice]
"""A unit's position and its width → its channels that are removed, not all of them."""


def _few(position: int, width: int) -> slice:
    """Remove one channel or two: that shows what a width is divided by."""
    return slice(min(1 + position % 2, width - 1))


def _first_half(position: int, width: int) -> slice:
    """Remove so many that steps of a width show."""
    return slice(width // 2)


def _last_half(position: int, width: int) -> slice:
    """Remove the others: so every channel was away once."""
    return slice(max(width // 2, 1), width)


def _down_to(most: int) -> Removal:
    """Make all wider units as wide as that: equal widths show where a network compares them."""
    return lambda position, width: slice(max(width - most, 0))


def _compared_widths(graph: ChannelGraph) -> Sequence[int]:
    """Return the widths that units can be brought down to and others have, and half of the narrowest unit's."""
    if not graph.units:
        return ()
    widths = [unit.width for unit in graph.units]
    there = {max(min(widths) // 2, 1), *(group.size for group in graph.groups)}
    return sorted(width for width in there if width < max(widths))


def _faults(check: Check, units: list[Unit]) -> dict[str, str]:
    """Return the units at fault with the reason: halves that pass together are clean, one that fails alone is not."""
    reason = check(units)
    if reason is None:
        return {}
    if len(units) == 1:
        return {units[0].name: reason}
    half = len(units) // 2
    faults = _faults(check, units[:half]) | _faults(check, units[half:])
    # Where each half passes alone, the first of the second half is blamed; the next round looks again.
    return faults or {units[half].name: f"fails together with others: {reason}"}
