"""Collect mean and covariance of the channels that each layer of the dense network reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.listener import tracked
from autoprune.statistics.layers import Reader, evaluating, norms_behind
from autoprune.structure.graph import ChannelGraph, Layer, LayerKind

POSITIONS = 200
"""Positions per image at which the channels are read."""

RIDGE = 1e-2
"""Added to the diagonal of a covariance, as a share of its mean: fewer positions than channels have no inverse."""

_ROUNDING = 1e-12
"""Rounding of squares in float32, as a share of the squared mean: what is left of the variance of a constant."""

MOMENT_BYTES = 2**30
"""Memory that all covariances may take; the largest layers go without beyond it."""

_READERS = (LayerKind.CONV, LayerKind.TRANSPOSED, LayerKind.LINEAR)


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of what each layer reads in the dense network.

    Attributes:
        mean: by layer name, shape (input channels,), float64.
        covariance: by layer name, shape (input channels, input channels), float64.
        norm: by layer name, the batch norm that reads the layer's output and nothing else in between.
        skipped: layers whose covariance did not fit into the memory allowed.
    """

    mean: Mapping[str, torch.Tensor]
    covariance: Mapping[str, torch.Tensor]
    norm: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Memory of the covariances in bytes."""
        return sum(matrix.nbytes for matrix in self.covariance.values())


def collect_moments(
    dense: nn.Module,
    graph: ChannelGraph,
    inputs: Iterable[torch.Tensor],
    *,
    notify: Callable[[str], None] = lambda note: None,
    seed: int = 0,
    limit: int = MOMENT_BYTES,
) -> Moments:
    """Return the moments of what the layers read that have channels which can be removed.

    Args:
        dense: the dense network; run in eval mode and not modified.
        graph: its channel groups.
        inputs: images, tensors of shape (B, C, H, W).
        notify: called with a sentence if layers go without.
        seed: of the positions.
        limit: bytes that the covariances may take; the widest layers go without if they would take more.

    Raises:
        ModelError: a layer reads numbers that are not finite.
    """
    wanted, skipped = _within(_readers(dense, graph), graph, limit)
    if skipped:
        notify(
            f"Compensation leaves out {len(skipped)} layers ({skipped[0]} the narrowest of them), whose channel "
            f"covariances would take more than {limit / 1e9:.1f} GB together."
        )
    collector = _Collector(seed)
    with evaluating(dense), collector.watching(dense, wanted), norms_behind(dense, wanted) as norms:
        for batch in tracked(inputs, "Covariances"):
            dense(batch)
    return Moments(*collector.moments(), norms, skipped)


def regression(
    mean: torch.Tensor, covariance: torch.Tensor, stays: torch.Tensor, goes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A, shape (removed, kept), and the removed channels' mean that A leaves over, shape (removed,)."""
    rows = covariance.index_select(0, stays)
    inner = rows.index_select(1, stays)
    rounding = _ROUNDING * float(mean.square().mean()) + torch.finfo(inner.dtype).tiny
    inner.diagonal().add_(RIDGE * float(inner.diagonal().mean()) + rounding)
    coefficients = torch.cholesky_solve(rows.index_select(1, goes), torch.linalg.cholesky(inner)).T
    return coefficients, mean[goes] - coefficients @ mean[stays]


# -- moments ---------------------------------------------------------------------------------------


def _readers(dense: nn.Module, graph: ChannelGraph) -> list[Layer]:
    """Return the layers that mix channels of which some can be removed.

    A layer of several groups is not among them, nor one whose weight another module shares: what fits the one would
    not fit the other.
    """
    uses = Counter(id(tensor) for _, tensor in dense.named_parameters(remove_duplicate=False))
    free = graph.prunable
    found = {}
    for layer in graph.layers:
        reader = dense.get_submodule(layer.name) if layer.kind in _READERS and layer.groups == 1 else None
        if isinstance(reader, Reader) and free[graph.axes[layer.in_axis]].any() and uses[id(reader.weight)] == 1:
            found[layer.name] = layer
    return list(found.values())


def _within(layers: list[Layer], graph: ChannelGraph, limit: int) -> tuple[list[str], tuple[str, ...]]:
    """Return the layers whose covariances fit into ``limit`` bytes, narrow ones first, and those that do not."""
    chosen: list[str] = []
    skipped: list[str] = []
    total = 0
    for layer in sorted(layers, key=lambda layer: len(graph.axes[layer.in_axis])):
        total += 8 * len(graph.axes[layer.in_axis]) ** 2
        (chosen if total <= limit else skipped).append(layer.name)
    return chosen, tuple(skipped)


class _Collector:
    """Sums what layers read while a network runs.

    Args:
        seed: of the positions.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count: Counter[str] = Counter()
        self._origin: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        self._product: dict[str, torch.Tensor] = {}

    def watching(self, dense: nn.Module, names: Sequence[str]) -> ExitStack:
        """Return a context in which layers of the network are watched."""
        hooks = ExitStack()
        for name in names:
            hooks.enter_context(dense.get_submodule(name).register_forward_hook(self._hook(name)))
        return hooks

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows = self._rows(layer, inputs[0])
            # Near its mean a square loses no digits to the mean's.
            rows = rows - self._origin.setdefault(name, rows.mean(0))
            self._count[name] += len(rows)
            total, product = rows.sum(0, dtype=torch.float64), (rows.T @ rows).double()
            self._sum[name] = self._sum[name] + total if name in self._sum else total
            self._product[name] = self._product[name] + product if name in self._product else product

        return note

    def _rows(self, layer: nn.Module, read: torch.Tensor) -> torch.Tensor:
        """Return the channels at sampled positions, shape (images × positions, channels)."""
        if isinstance(layer, nn.Linear):
            return read.reshape(-1, read.shape[-1]).float()
        positions = read.flatten(2)
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randperm(positions.shape[2], generator=generator)[:POSITIONS].to(read.device)
        return positions[:, :, drawn].transpose(1, 2).flatten(0, 1).float()

    def moments(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return mean and covariance by layer, in the order in which the layers ran."""
        offset = {name: total / self._count[name] for name, total in self._sum.items()}
        mean = {name: self._origin[name].double() + shift for name, shift in offset.items()}
        covariance = {
            name: product / self._count[name] - torch.outer(offset[name], offset[name])
            for name, product in self._product.items()
        }
        for name, matrix in covariance.items():
            if not bool(torch.isfinite(matrix).all()):
                raise ModelError(
                    f"{name} reads numbers that are not finite, so what it reads cannot be compensated; check the "
                    "weights and the images, or switch compensation off (`compensate=False`)"
                )
        return mean, covariance
