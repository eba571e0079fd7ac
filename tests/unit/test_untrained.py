"""Networks that have learnt nothing yet, from an architecture's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoprune.errors import ModelError
from autoprune.models import build_adapter, open_adapter


def test_a_stock_architecture_is_built_for_the_classes_of_the_data(tiny: Path, tmp_path: Path) -> None:
    data = tiny / "data" / "data.yaml"
    trained = open_adapter(tiny / "best.pt", data=data)
    built = build_adapter("yolov5n.yaml", data=data, image_size=64)
    assert built.name == "yolov5n"
    assert built.image_size == (64, 64)
    assert built.module.names == trained.module.names
    built.save(built.module, tmp_path / "fresh.pt")
    again = open_adapter(tmp_path / "fresh.pt", data=data)
    assert sum(p.numel() for p in again.module.parameters()) == sum(p.numel() for p in built.module.parameters())


def test_the_seed_says_the_weights_and_nothing_else_changes(tiny: Path) -> None:
    data = tiny / "data" / "data.yaml"
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    built = [build_adapter("yolov5n.yaml", data=data, image_size=64, seed=seed).module for seed in (0, 0, 1)]
    first, second, other = (next(module.parameters()) for module in built)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("yolov99.yaml", "There is no architecture"),
        ("https://example.org/yolov8n.yaml", "There is no architecture"),
        ("yolov8-world.yaml", "the head WorldDetect"),
        ("yolov3.cfg", "There is no architecture"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny: Path, name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_adapter(name, data=tiny / "data" / "data.yaml")


def test_a_broken_file_is_named(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("nc: 1\nbackbone:\n  - [-1, 1, Cnov, [16, 3, 2]]\nhead:\n  - [[0], 1, Detect, [nc]]\n")
    with pytest.raises(ModelError, match=r"mine\.yaml names 'Cnov', which is no layer of Ultralytics"):
        build_adapter(str(file), data=tiny / "data" / "data.yaml")
