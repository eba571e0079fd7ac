"""Pictures of sparsity: what is drawn, and that it can be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import RunError
from autoprune.report.sparsity import scale_histogram, scale_quintiles, slimmed_channels, watched_scales
from tests.unit import test_pictures
from tests.unit.test_pictures import Drawn, png_size

drawn = test_pictures.drawn

EPOCHS, EDGES = list(range(21)), np.linspace(0, 2, 51).tolist()
QUINTILES = [[scale * 0.85**epoch for scale in (0.5, 0.8, 1.0, 1.3, 2.0)] for epoch in EPOCHS]
COUNTS = [
    [*(10 * epoch for _ in range(2)), *(40 - epoch for _ in range(20)), *(0 for _ in range(28))] for epoch in EPOCHS
]
UNITS = {f"model.{index}.m.0.cv1": 16 + index for index in range(24)}
KEPT = {name: max(width - 12, 1) for name, width in UNITS.items() if width % 3}


def watched(count: int) -> list[list[float]]:
    random = np.random.default_rng(0)
    return [(random.uniform(0.5, 1.5, 16) * 0.995**step).tolist() for step in range(count)]


DRAW: dict[str, Callable[[Path], Path]] = {
    "quintiles": lambda path: scale_quintiles(EPOCHS, QUINTILES, path, title="Quintiles", symbol="|γ|"),
    "watched": lambda path: watched_scales(range(300), watched(300), path, title="Watched", symbol="|γ|"),
    "histogram": lambda path: scale_histogram(EPOCHS, COUNTS, EDGES, path, title="All", symbol="‖w‖₂ / √n"),
    "slimmed": lambda path: slimmed_channels(UNITS, KEPT, path, title="Channels"),
}
EACH = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW.keys())


@EACH
def test_a_picture_is_whole_and_the_same_numbers_give_the_same_bytes(
    draw: Callable[[Path], Path], tmp_path: Path, drawn: Drawn
) -> None:
    first, second = draw(tmp_path / "a.png"), draw(tmp_path / "b.png")
    assert first == tmp_path / "a.png"
    assert first.read_bytes() == second.read_bytes()
    assert all(300 <= side <= 2000 for side in png_size(first))
    assert drawn.whole()


@EACH
def test_a_missing_folder_is_named(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/a\.png cannot be written"):
        draw(tmp_path / "nowhere" / "a.png")
    assert os.listdir(tmp_path) == []


def test_each_quintile_is_a_line_that_the_key_names_from_the_top(tmp_path: Path, drawn: Drawn) -> None:
    DRAW["quintiles"](tmp_path / "a.png")
    lines = drawn.axes().get_lines()
    assert [line.get_label() for line in lines] == ["largest", "80%", "60%", "40%", "20%"]
    assert list(lines[0].get_ydata()) == [values[-1] for values in QUINTILES]
    assert list(lines[0].get_xdata()) == EPOCHS


def test_every_channel_of_the_watched_layer_is_a_line(tmp_path: Path, drawn: Drawn) -> None:
    DRAW["watched"](tmp_path / "a.png")
    assert sum(len(line.get_xdata()) == 300 for line in drawn.axes().get_lines()) == 16 + 1
    assert "each of 16 channels" in drawn.texts()


def test_the_histogram_has_a_column_per_epoch(tmp_path: Path, drawn: Drawn) -> None:
    DRAW["histogram"](tmp_path / "a.png")
    (mesh,) = drawn.axes().collections
    shares = mesh.get_array()
    assert shares.shape == (50, 21)
    np.testing.assert_allclose(shares.sum(axis=0), 100)
    assert shares.mask[-1].all()  # white where there is none


def test_one_epoch_alone_and_a_network_that_is_dead_can_be_drawn(tmp_path: Path, drawn: Drawn) -> None:
    scale_quintiles([0], QUINTILES[:1], tmp_path / "a.png", title="One", symbol="|γ|")
    scale_histogram([0], [[7, *([0] * 49)]], EDGES, tmp_path / "b.png", title="Dead", symbol="|γ|")
    watched_scales([0], [[0.0, 0.0]], tmp_path / "c.png", title="Dead", symbol="|γ|")
    assert drawn.whole()


def test_bars_say_how_many_channels_are_left(tmp_path: Path, drawn: Drawn) -> None:
    slimmed_channels({"a": 64, "b": 32, "c": 16}, {"a": 24, "b": 32}, tmp_path / "a.png", title="Channels")
    assert drawn.values() == ["24 of 64", "32", "16"]
    assert [bar.get_width() for bar in drawn.axes().patches] == [64, 32, 16, 24, 32, 16]


def test_many_units_stand_in_panels_side_by_side(tmp_path: Path, drawn: Drawn) -> None:
    slimmed_channels({f"model.{index}.cv1": 64 for index in range(137)}, {}, tmp_path / "a.png", title="Channels")
    assert len(drawn.figures[-1].axes) == 3
    assert drawn.whole()
    assert max(png_size(tmp_path / "a.png")) <= 2000


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: scale_quintiles([], [], path, title="", symbol=""),
        lambda path: watched_scales([], [], path, title="", symbol=""),
        lambda path: scale_histogram([], [], EDGES, path, title="", symbol=""),
        lambda path: slimmed_channels({}, {}, path, title=""),
    ],
)
def test_nothing_to_draw_is_refused(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        draw(tmp_path / "a.png")
