"""How much memory activations take, told from runs at two small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.image_size import ImageSize
from autoprune.models import _memory
from autoprune.models._memory import check_memory, free_bytes, living_bytes

CPU = torch.device("cpu")


class Attention(nn.Module):
    """Takes memory that grows with the square of the image's area, once there is more of it than of anything else."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.avg_pool2d(image, 32).flatten(2)
        return (cells.transpose(1, 2) @ cells).softmax(-1).sum()


class Halving(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        wide = torch.cat([image] * 4, 1)
        del image
        return wide[..., ::2, ::2].clone()


def test_tensors_are_counted_while_they_live() -> None:
    image = torch.zeros(1, 3, 64, 64)
    series = living_bytes(Halving(), image)
    assert series.max() == image.nbytes * (1 + 4 + 1)
    assert series.argmax() == len(series) - 1


@pytest.mark.parametrize("network", [Attention(), Halving()], ids=["square", "area"])
@pytest.mark.parametrize("size", [1024, 2048])
def test_what_a_larger_image_takes_follows_from_small_ones(network: nn.Module, size: int) -> None:
    few, many = (living_bytes(network, torch.zeros(1, 3, side, side)) for side in (128, 256))
    expected = living_bytes(network, torch.zeros(1, 3, size, size)).max()
    assert _memory._at(size, (128, few), (256, many)) == pytest.approx(expected, rel=0.05)


def test_the_message_names_the_largest_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "free_bytes", lambda _: 2 * 6 * 1.3 * 4 * 3 * 1024**2)
    check_memory(Halving(), ImageSize(1024, 1024), name="net", channels=3, stride=32, images=2, device=CPU)
    with pytest.raises(ModelError, match=r"net at 1056 px .* for 2 images at once.*give `imgsz` 1024 or less"):
        check_memory(Halving(), ImageSize(1056, 1056), name="net", channels=3, stride=32, images=2, device=CPU)
    check_memory(Halving(), ImageSize(512, 2048), name="net", channels=3, stride=32, images=2, device=CPU)
    with pytest.raises(ModelError, match=r"net at 1024x2048 px .* give `imgsz` 704,1408 or less"):
        check_memory(Halving(), ImageSize(1024, 2048), name="net", channels=3, stride=32, images=2, device=CPU)


def test_a_network_that_does_not_run_is_told() -> None:
    with pytest.raises(ModelError, match=r"net does not run on an image of 128×128 pixels: Given groups=1"):
        check_memory(nn.Conv2d(4, 4, 1), ImageSize(64, 64), name="net", channels=3, stride=32, images=2, device=CPU)


def test_a_container_may_have_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = free_bytes(CPU)
    limit, taken = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(_memory, "_GROUPS", ((limit, taken),))
    limit.write_text("max\n")
    taken.write_text("500\n")
    assert free_bytes(CPU) > machine / 2
    limit.write_text("1500\n")
    assert free_bytes(CPU) == 1000
