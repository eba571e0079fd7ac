"""Networks that cannot be analysed: one sentence that says where and what to do, and nothing printed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
    spectral_norm,
    weight_norm,
)

from autoprune.errors import ModelError
from autoprune.models.module import ModuleAdapter
from autoprune.structure.validation import analyse

IMAGES = torch.rand(2, 3, 8, 8)


class Branching(nn.Module):
    """Lets values decide, in one of the ways there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.how == "if" and x.sum() > 0:
            x = -x
        if self.how == "item":
            x = x[..., : 1 + int(x.abs().max().item())]
        while self.how == "while" and x.max() > 1:
            x = x / 2
        return x


@pytest.mark.parametrize(
    "line",
    [
        'if self.how == "if" and x.sum() > 0:',
        "x = x[..., : 1 + int(x.abs().max().item())]",
        'while self.how == "while" and x.max() > 1:',
    ],
)
def test_what_values_decide_is_told_with_its_place_and_nothing_is_printed(
    line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how = next(word for word in ("while", "if", "item") if word in line)
    lines = [text.strip() for text in Path(__file__).read_text(encoding="utf-8").splitlines()]
    level = logging.root.manager.disable
    with pytest.raises(ModelError) as raised:
        analyse(Branching(how), IMAGES)
    said = str(raised.value)
    assert said.startswith("torch.export must be able to export a network")
    assert f"{__file__}:{lines.index(line) + 1} ({line})" in said
    assert "torch.where" in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


def test_any_other_failure_is_told_with_its_place_too() -> None:
    class Strange(Branching):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * float(x.detach().numpy().mean())

    with pytest.raises(ModelError, match=r"Strange fails at .*test_refused_networks\.py:\d+ \(return .*\) with: "):
        analyse(Strange(""), IMAGES)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight + weight.flip(2)) / 2


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def symmetric(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def parametrized(layer: nn.Module) -> None:
    parametrize.remove_parametrizations(layer, "weight")


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str, Callable[[nn.Module], object]]] = {
    "weight norm": (weight_norm, "torch.nn.utils.remove_weight_norm(network.1, 'weight')", remove_weight_norm),
    "spectral norm": (spectral_norm, "torch.nn.utils.remove_spectral_norm(network.1, 'weight')", remove_spectral_norm),
    "masks": (pruned, "torch.nn.utils.prune.remove(network.1, 'weight')", lambda layer: prune.remove(layer, "weight")),
    **{
        name: (wrap, "torch.nn.utils.parametrize.remove_parametrizations(network.1, 'weight')", parametrized)
        for name, wrap in {
            "new weight norm": parametrizations.weight_norm,
            "new spectral norm": parametrizations.spectral_norm,
            "own parametrization": symmetric,
        }.items()
    },
}
"""Ways to compute a layer's weight at every pass: what wraps a layer, the advice, and what the advice does."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_a_weight_that_is_computed_at_every_pass_is_named_and_the_advice_helps(name: str) -> None:
    wrap, advice, unwrap = WRAPPED[name]
    module = nn.Sequential(nn.Conv2d(3, 6, 1), wrap(nn.Conv2d(6, 5, 1)), nn.Conv2d(5, 2, 1))
    module(IMAGES)

    def adapter(network: nn.Module) -> ModuleAdapter:
        data = [(IMAGES[0], 0)]
        return ModuleAdapter(
            network, example=IMAGES, loss=lambda *_: torch.zeros(()), train=data, val=data, metric=lambda *_: 0.0
        )

    for opened in (lambda: analyse(module, IMAGES), lambda: adapter(module)):
        with pytest.raises(ModelError) as raised:
            opened()
        assert f"1 computes its weight at every pass; call {advice} before" in str(raised.value)
    unwrap(module[1])
    assert [unit.name for unit in analyse(adapter(module).module, IMAGES).units] == ["0", "1"]


def test_a_network_that_cannot_be_copied_is_refused_in_a_sentence() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1))
    module.tensor = module[0].weight * 2
    with pytest.raises(ModelError, match=r"^copy\.deepcopy must be able to copy a network, and Sequential fails with"):
        analyse(module, IMAGES)
