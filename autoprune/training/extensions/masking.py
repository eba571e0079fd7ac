"""Masks: single weights of convolutions set to zero, and held there while the others are fine-tuned.

Which weights go is decided once, by magnitude (Han et al., "Learning both Weights and Connections for Efficient Neural
Networks", NIPS 2015, section 3); what remains then learns to do without them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from autoprune.errors import TrainingError
from autoprune.training.extensions._base import Event, Training, TrainingExtension, networks_of

Weights = Mapping[str, torch.Tensor]
"""Weights of convolutions by their names, each of shape (outputs, inputs per group, height, width)."""

Masks = Mapping[str, torch.Tensor]
"""Which weights stay, by the names of the tensors that they are in, each of its tensor's shape."""

_FOUR, _TWO = 4, 2


def two_of_four(weights: Weights) -> Masks:
    """Keep the two largest of every four weights that read neighbouring input channels at the same place.

    Weights whose inputs are no multiple of four cannot have the pattern and get no mask: a network's first layer,
    depthwise convolutions.

    Source:
        Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, sections 3 (the pattern) and 4 (by magnitude,
        once, then trained on).
    """
    return {name: _two_of_four(weight) for name, weight in weights.items() if weight.shape[1] % _FOUR == 0}


def _two_of_four(weight: torch.Tensor) -> torch.Tensor:
    inputs_last = weight.detach().abs().movedim(1, -1)
    fours = inputs_last.reshape(*inputs_last.shape[:-1], -1, _FOUR)
    kept = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, fours.topk(_TWO).indices, True)
    return kept.flatten(-2).movedim(-1, 1)


def has_two_of_four(weight: torch.Tensor) -> bool:
    """Return whether at most two of every four weights along the input channels are not zero."""
    if weight.shape[1] % _FOUR:
        return False
    fours = weight.detach().movedim(1, -1).reshape(-1, _FOUR)
    return bool((fours.count_nonzero(-1) <= _TWO).all())


def largest_of_layer(weights: Weights, share: float) -> Masks:
    """Drop the same share, in (0, 1), of the smallest weights of every layer."""
    return {name: _largest(weight.detach().abs(), share) for name, weight in weights.items()}


def largest_of_network(weights: Weights, share: float) -> Masks:
    """Drop a share, in (0, 1), of the smallest weights of all layers together: wide layers lose more than narrow."""
    kept = _largest(torch.cat([weight.detach().abs().flatten() for weight in weights.values()]), share)
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _largest(sizes: torch.Tensor, share: float) -> torch.Tensor:
    """Return where the largest sizes are, all but a share of them; no more, even if sizes are equal."""
    kept = torch.ones(sizes.numel(), dtype=torch.bool, device=sizes.device)
    kept[sizes.flatten().argsort(stable=True)[: round(share * sizes.numel())]] = False
    return kept.view_as(sizes)


def convolution_weights(module: nn.Module) -> Weights:
    """Return the weights of a network's convolutions, but for fixed ones: the bins of a detector's box sides."""
    convolutions = {
        f"{name}.weight"
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and ".dfl." not in f".{name}."
    }
    return {name: weight for name, weight in module.named_parameters() if name in convolutions}  # shared ones once


def apply_masks(module: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks leave out."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, kept in masks.items():
            parameters[name].mul_(kept.to(parameters[name].device))


def check_masks(module: nn.Module, masks: Masks) -> None:
    """Make sure that a network, as it was saved, is exactly zero where its masks leave weights out.

    Raises:
        TrainingError: it is not.
    """
    parameters = dict(module.named_parameters())
    for name, kept in masks.items():
        left = int(parameters[name].detach().cpu()[~kept.cpu()].count_nonzero())
        if left:
            raise TrainingError(f"{name} must be zero where it is masked, and {left} of those weights are not")


class Masking(TrainingExtension):
    """Holds masked weights at zero: after every step, and so in the averaged weights too.

    Args:
        masks: which weights stay.
    """

    def __init__(self, masks: Masks) -> None:
        self._masks = masks

    def attach(self, training: Training) -> None:
        """Listen to the start and to the optimizer's steps."""
        training.listen(Event.START, self._begin)
        training.listen(Event.STEPPED, lambda running: apply_masks(running.model, self._masks))

    def _begin(self, training: Training) -> None:
        self._masks = {name: kept.to(training.device) for name, kept in self._masks.items()}
        for network in networks_of(training):
            apply_masks(network, self._masks)
