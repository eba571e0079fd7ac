"""Quantisation-aware fine-tuning: the network is trained as if its convolutions were already in int8.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3: the forward pass rounds weights and activations as the quantised network will, the backward pass does not see
the rounding (the straight-through estimator of Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013, section 4) where a value lies within its range. The weights stay floats, and learn to be rounded.

The paper folds a batch norm into its convolution before it rounds the weights (section 3.2). Here that needs no code:
with one symmetric scale per output channel, rounding the folded weights γ/σ·w is γ/σ times rounding w. So batch norms
are trained as in every other fine-tune, and their statistics made to fit the weights at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from autoprune.training.extensions._base import Event, Training, TrainingExtension

_FORGOTTEN = 0.01
"""Share of a range that each batch renews: the ranges are smoothed over many batches (section 3.1)."""

_MOST = 255
"""The largest unsigned byte."""

_SMALLEST = 1e-8
"""The smallest scale, of channels and tensors that are zero everywhere."""

_NAME = "fake quantization"


def rounded_weights(weight: torch.Tensor, *, bits: int = 8) -> torch.Tensor:
    """Return weights that a symmetric integer with one scale per output channel can hold.

    Args:
        weight: shape (outputs, ...).
        bits: of the integer.
    """
    most = 2 ** (bits - 1) - 1
    scale = (weight.detach().flatten(1).abs().amax(1) / most).clamp(min=_SMALLEST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


class ActivationRange:
    """Rounds one of the network's tensors to unsigned bytes over the range that its batches had so far.

    Attributes:
        ends: of the range, shape (2,); None before the first batch.
    """

    def __init__(self) -> None:
        self.ends: torch.Tensor | None = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Look at the range of a batch, and return its values rounded, in their own number format."""
        with torch.no_grad():
            ends = torch.stack(torch.aminmax(values)).float()
            self.ends = ends if self.ends is None else self.ends.lerp(ends, _FORGOTTEN)
            low, high = self.ends[0].clamp(max=0.0), self.ends[1].clamp(min=0.0)  # 0 has an integer of its own
            scale = ((high - low) / _MOST).clamp(min=_SMALLEST)
            zero = (-low / scale).round().int()
        rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, _MOST)
        return rounded.to(values.dtype)


class FakeQuantization(TrainingExtension):
    """Rounds what int8 files round: the weights and inputs of convolutions, and what they give with their batch norm.

    Only the network in training does so. What is validated and saved computes with plain floats.

    Args:
        weight_bits: of the weights.
    """

    def __init__(self, *, weight_bits: int = 8) -> None:
        self._weight_bits = weight_bits
        self._ranges: dict[str, ActivationRange] = {}
        self._undo: list[Callable[[], None]] = []

    def attach(self, training: Training) -> None:
        """Listen to the start and the end of the training; the ranges go on where it was interrupted."""
        training.listen(Event.START, self._begin)
        training.listen(Event.END, lambda _: self._end())
        training.keep(_NAME, self._state)

    def _begin(self, training: Training) -> None:
        for name, layer in training.model.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
                self._round(layer, self._range(f"{name}:before"))
            if isinstance(layer, nn.BatchNorm2d) or (isinstance(layer, nn.Conv2d) and layer.bias is not None):
                after = self._range(f"{name}:after")
                self._undo.append(layer.register_forward_hook(lambda _, __, output, after=after: after(output)).remove)
        training.put_back(_NAME, lambda kept: self._put_back(kept, training.device))

    def _state(self) -> Mapping[str, torch.Tensor]:
        return {name: one.ends for name, one in self._ranges.items() if one.ends is not None}

    def _put_back(self, kept: Mapping[str, torch.Tensor], device: torch.device) -> None:
        for name, ends in kept.items():
            self._ranges[name].ends = ends.to(device)

    def _range(self, name: str) -> ActivationRange:
        self._ranges[name] = found = ActivationRange()
        return found

    def _round(self, layer: nn.Conv2d, before: ActivationRange) -> None:
        """Let a convolution compute with rounded inputs and weights, whose parameter stays the layer's own."""

        def forward(images: torch.Tensor) -> torch.Tensor:
            weight = rounded_weights(layer.weight, bits=self._weight_bits).to(images.dtype)
            output: torch.Tensor = layer._conv_forward(before(images), weight, layer.bias)
            return output

        layer.forward = forward  # type: ignore[method-assign, assignment]
        self._undo.append(lambda: delattr(layer, "forward"))

    def _end(self) -> None:
        while self._undo:
            self._undo.pop()()
