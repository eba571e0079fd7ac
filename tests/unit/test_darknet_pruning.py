"""Darknet networks pruned: exact, and the same when their files are read again."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.criteria.registry import make_criterion
from autoprune.errors import ConfigError, ModelError
from autoprune.models.darknet import DarknetNetwork, Header, parse_cfg, prune, read, write
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.slicing import Slicer
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from tests.helpers.darknet_families import FAMILIES
from tests.helpers.darknet_networks import HEADER, build, images, last_channels, write_files
from tests.unit.test_structure import random_keep, zeroed

WIDTHS = {"layers.0": 16, "layers.1": 8, "layers.3": 8, "layers.4": 8, "layers.6": 16, "layers.9": 24, "layers.21": 16}


@lru_cache(maxsize=1)
def tiny() -> tuple[DarknetNetwork, ChannelGraph]:
    network = build().double()
    return network, analyse(network, network.example())


def test_every_channel_but_the_heads_and_the_image_can_be_pruned() -> None:
    _, graph = tiny()
    assert {unit.name: unit.width for unit in graph.units} == WIDTHS
    assert {unit.name: len(unit.groups) for unit in graph.units}["layers.1"] == 2  # halves keep equal numbers
    assert {group.name: group.pinned for group in graph.groups if group.pinned} == {
        "images": "network input",
        "layers.18": "network output",
        "layers.24": "network output",
    }
    assert not graph.uncounted


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_any_allocation_is_the_masked_network_and_survives_its_files(seed: int) -> None:
    dense, graph = tiny()
    keep = random_keep(Space(graph, round_to=1, min_keep=1e-6), seed)
    pruned = Slicer(dense, graph).materialise(keep)
    assert isinstance(pruned, DarknetNetwork)
    with TemporaryDirectory() as folder, torch.no_grad():
        again, header = read(*write_files(pruned, Path(folder)))
        expected = zeroed(dense, graph, keep).eval()(images(dtype=torch.float64))
        torch.testing.assert_close(pruned.eval()(images(dtype=torch.float64)), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            again.double()(images(dtype=torch.float64)), pruned(images(dtype=torch.float64)), rtol=1e-6, atol=1e-6
        )
    assert header == HEADER
    assert again.current_cfg().text == pruned.current_cfg().text


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "tiny" in name else pytest.mark.slow) for name in FAMILIES]
)
def test_families_are_pruned_exactly_and_read_again(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = DarknetNetwork(parse_cfg(FAMILIES[name](16, 64), name)).eval()
    for child in dense.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.bias, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    graph = analyse(dense, dense.example())
    pinned = {group.pinned for group in graph.groups} - {None}
    assert pinned == {"network input", "network output"}
    keep = random_keep(Space(graph, round_to=1, min_keep=1e-6), 1)
    pruned = Slicer(dense, graph).materialise(keep)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        again, _ = read(*write_files(pruned, tmp_path))
        torch.testing.assert_close(again(image), pruned(image), rtol=1e-6, atol=1e-6)
        expected = zeroed(dense, graph, keep).eval()(image)
        torch.testing.assert_close(pruned(image), expected, rtol=1e-4, atol=1e-5)


def test_a_ratio_rounds_down_and_leaves_the_dense_network_alone() -> None:
    dense = build()
    before = copy.deepcopy(dense.state_dict())
    smaller = prune(dense, 0.7, order=make_criterion("l1").order)
    filters = {index: layer.conv.out_channels for index, layer in smaller.convolutions()}
    assert filters == {0: 8, 1: 16, 3: 8, 4: 8, 6: 8, 9: 16, 10: 16, 11: 16, 18: 21, 21: 8, 24: 14}
    assert dict(smaller.convolutions())[10].conv.groups == 16
    for key, value in dense.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_what_was_written_can_be_pruned_again(tmp_path: Path) -> None:
    first = prune(build(), {"layers.9": 12}, order=last_channels)
    again, header = read(*write_files(first, tmp_path))
    second = prune(again, {"layers.9": 6, "layers.0": 3}, order=last_channels)
    cfg, _ = write_files(second, tmp_path, "second")
    text = cfg.read_text()
    assert text.count("filters=6\n") == 3
    assert "groups=6\n" in text
    assert "filters=3   # the first" in text
    assert header == HEADER


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (0.0, r"keep ratio must lie in \(0, 1\], got 0"),
        (1.5, r"keep ratio must lie in \(0, 1\], got 1.5"),
        ({"layers.10": 5}, r"layers\.10 is no unit of tiny\.cfg that can be pruned"),
        ({"layers.0": 0}, r"layers\.0 must keep 1 to 16 channels, got 0"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep: float | dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prune(build(), keep, order=last_channels)


def test_a_network_that_no_cfg_expresses_is_not_written(tmp_path: Path) -> None:
    network = build()
    network.layers[3].conv = nn.Conv2d(7, 8, 3, padding=1, bias=False)  # half of a route would be 7 of 8
    with pytest.raises(ModelError, match=r"layers\.3\.conv\.weight has shape \(8, 7, 3, 3\) and would be read as"):
        write(network, Header(), cfg=tmp_path / "odd.cfg", weights=tmp_path / "odd.weights")
    assert not list(tmp_path.iterdir())


def test_reading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    paths = write_files(build(), tmp_path)
    before = torch.get_rng_state()
    network, _ = read(*paths)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert np.isfinite(network(images(1)).detach().numpy()).all()
