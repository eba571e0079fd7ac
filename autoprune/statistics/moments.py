"""Collect mean and covariance of the channels that each layer of the dense network reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.listener import tracked, warn
from autoprune.statistics.layers import Reader, activation_hooks, evaluating, mixing_layers, norms_behind
from autoprune.structure.graph import ChannelGraph

POSITIONS = 200
"""Positions per image at which the channels are read."""

RIDGE = 1e-2
"""Added to the diagonal of a covariance, as a share of its mean: fewer positions than channels have no inverse."""

_ROUNDING = 1e-12
"""Rounding of squares in float32, as a share of the squared mean: what is left of the variance of a constant."""

MOMENT_BYTES = 2**30
"""Memory that all covariances may take; the widest layers go without beyond it."""

_NAMED = 3


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of what each layer reads in the dense network.

    Nothing takes up the constants that a layer adds which has neither a bias nor a batch norm behind it, as in
    pre-activation networks. It has squares about zero for a covariance, and zero for a mean: least squares without an
    intercept.

    Attributes:
        mean: by layer name, shape (input channels,), float64.
        covariance: by layer name, shape (input channels, input channels), float64.
        norms: by layer name, the batch norms that read the layer's outputs and nothing else.
    """

    mean: Mapping[str, torch.Tensor]
    covariance: Mapping[str, torch.Tensor]
    norms: Mapping[str, Sequence[str]]


def collect_moments(
    dense: nn.Module,
    graph: ChannelGraph,
    inputs: Iterable[torch.Tensor],
    *,
    criterion: str | None = None,
    notify: Callable[[str], None] = warn,
    limit: int = MOMENT_BYTES,
) -> Moments:
    """Return the moments of what the layers read that have channels which can be removed.

    A layer of several groups is not among them, nor one whose weight another module shares.

    Args:
        dense: the dense network; run in eval mode and not modified.
        graph: its channel groups.
        inputs: images, tensors of shape (B, C, H, W).
        criterion: the criterion that ranks channels by them; None if weights are compensated by them.
        notify: called with a sentence if layers go without, or if the images are few for them.
        limit: bytes that the covariances may take; the widest layers go without if they would take more.

    Raises:
        ModelError: a layer reads numbers that are not finite.
    """
    free = graph.prunable
    sizes = {
        name: len(graph.axes[layer.in_axis])
        for name, layer in mixing_layers(dense, graph).items()
        if layer.groups == 1 and free[graph.axes[layer.in_axis]].any()
    }
    wanted, skipped = _within(sizes, limit)
    if skipped:
        notify(
            f"{'Compensation' if criterion is None else f'The criterion {criterion}'} leaves out {len(skipped)} of "
            f"{len(sizes)} layers ({named(skipped)}): all channel covariances would take "
            f"{sum(map(_bytes, sizes.values())) / 1e9:.1f} GB, more than the limit of {limit / 1e9:.1f} GB."
        )
    sums = _Sums()
    with evaluating(dense), activation_hooks(dense, wanted, sums.add), norms_behind(dense, wanted) as norms:
        for batch in tracked(inputs, "Covariances"):
            dense(batch)
    idle = [name for name in wanted if not sums.count[name]]
    if idle and criterion is None:
        notify(
            f"Compensation leaves out {len(idle)} of {len(sizes)} layers ({named(idle)}), which run only while the "
            "network trains."
        )
    few = [name for name in wanted if 0 < sums.count[name] < sizes[name]]
    if few and criterion is None:
        notify(
            f"{len(few)} of {len(wanted)} layers ({named(few)}) are read at fewer positions than they have channels, "
            "so that the ridge decides how they are compensated; with more images these decide."
        )
    mean, covariance = sums.moments()
    for name, matrix in covariance.items():
        if not bool(torch.isfinite(matrix).all()):
            way_out = "take another `criterion`" if criterion else "switch compensation off (`compensate=False`)"
            raise ModelError(
                f"{name} reads numbers that are not finite, which have no covariance; check the weights and the "
                f"images, or {way_out}"
            )
        if dense.get_submodule(name).bias is None and name not in norms:
            matrix.add_(torch.outer(mean[name], mean[name]))
            mean[name] = torch.zeros_like(mean[name])
    return Moments(mean, covariance, norms)


def regression(
    mean: torch.Tensor, covariance: torch.Tensor, stays: torch.Tensor, goes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A, shape (removed, kept), and the removed channels' mean that A leaves over, shape (removed,)."""
    rows = covariance.index_select(0, stays)
    inner = rows.index_select(1, stays)
    add_ridge(inner, mean)
    coefficients = torch.cholesky_solve(rows.index_select(1, goes), torch.linalg.cholesky(inner)).T
    return coefficients, mean[goes] - coefficients @ mean[stays]


def add_ridge(covariance: torch.Tensor, mean: torch.Tensor) -> None:
    """Make a covariance, or a part of it, one that has an inverse.

    Args:
        covariance: shape (n, n); changed in place.
        mean: of all that the layer reads, shape (input channels,).
    """
    rounding = _ROUNDING * float(mean.square().mean()) + torch.finfo(covariance.dtype).tiny
    covariance.diagonal().add_(RIDGE * float(covariance.diagonal().mean()) + rounding)


def named(names: Sequence[str]) -> str:
    """Return the first few of some names, for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


# -- moments ---------------------------------------------------------------------------------------


def _within(sizes: Mapping[str, int], limit: int) -> tuple[list[str], list[str]]:
    """Return the layers whose covariances fit into ``limit`` bytes, narrow ones first, and those that do not."""
    found: tuple[list[str], list[str]] = ([], [])
    total = 0
    for name in sorted(sizes, key=sizes.__getitem__):
        total += _bytes(sizes[name])
        found[total > limit].append(name)
    return found


def _bytes(size: int) -> int:
    return 8 * size**2


class _Sums:
    """Sums of what layers read while a network runs."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._origin: dict[str, torch.Tensor] = {}
        self._sum: dict[str, torch.Tensor] = {}
        self._product: dict[str, torch.Tensor] = {}

    def add(self, name: str, layer: Reader, read: torch.Tensor, _: torch.Tensor) -> None:
        """Add what a layer reads in one run."""
        rows = _rows(layer, read)
        # Near its mean a square loses no digits to the mean's.
        rows = rows - self._origin.setdefault(name, rows.mean(0))
        total, product = rows.sum(0, dtype=torch.float64), (rows.T @ rows).double()
        if name in self._sum:
            self._sum[name] += total
            self._product[name] += product
        else:
            self._sum[name], self._product[name] = total, product
        self.count[name] += len(rows)

    def moments(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return mean and covariance by layer, in the order in which the layers ran; the sums are used up."""
        offset = {name: total / self.count[name] for name, total in self._sum.items()}
        mean = {name: self._origin[name].double() + shift for name, shift in offset.items()}
        for name, product in self._product.items():  # in place: all of them take as much as memory may hold
            product.div_(self.count[name]).sub_(torch.outer(offset[name], offset[name]))
        return mean, self._product


def _rows(layer: Reader, read: torch.Tensor) -> torch.Tensor:
    """Return the channels at sampled positions, shape (images × positions, channels)."""
    if isinstance(layer, nn.Linear):
        return read.reshape(-1, read.shape[-1]).float()
    positions = read.flatten(2)
    drawn = torch.randperm(positions.shape[2], generator=torch.Generator().manual_seed(0))[:POSITIONS]
    return positions[:, :, drawn.to(read.device)].transpose(1, 2).flatten(0, 1).float()
