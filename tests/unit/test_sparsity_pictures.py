"""Charts of sparsity: what is drawn, and that it can be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from autoprune.report.chart import Chart
from autoprune.report.sparsity import channels_chart, histogram_chart, quintiles_chart, watched_chart
from autoprune.results import Result
from tests.unit.test_pictures import layers_of, made, png_size, result, rows_of

EPOCHS, EDGES = list(range(21)), np.linspace(0, 2, 51).tolist()
QUINTILES = [[scale * 0.85**epoch for scale in (0.5, 0.8, 1.0, 1.3, 2.0)] for epoch in EPOCHS]
COUNTS = [
    [*(10 * epoch for _ in range(2)), *(40 - epoch for _ in range(20)), *(0 for _ in range(28))] for epoch in EPOCHS
]
UNITS = {f"model.{index}.m.0.cv1": 16 + index for index in range(24)}
KEPT = {name: max(width - 12, 1) for name, width in UNITS.items() if width % 3}


def watched(count: int, channels: int = 16) -> list[list[float]]:
    random = np.random.default_rng(0)
    return [(random.uniform(0.5, 1.5, channels) * 0.995**step).tolist() for step in range(count)]


def slimmed(before: dict[str, int], after: dict[str, int]) -> Chart:
    return made(channels_chart(result("slim", channels={"before": before, "after": after}), Path()))


def drawn(draw: Callable[[Result, Path], Chart | None], **record: Any) -> Chart | None:
    """Draw a chart of the record that a sparsity training has left in its folder."""
    epochs = [
        {"epoch": epoch, "quintiles": quintiles, "counts": counts}
        for epoch, quintiles, counts in zip(EPOCHS, QUINTILES, COUNTS, strict=True)
    ]
    values = {"penalty": "l1", "epochs": epochs, "edges": EDGES, "watched": "model.0", "iterations": [], **record}
    with TemporaryDirectory() as folder:
        (Path(folder) / "sparsity.json").write_text(json.dumps(values))
        return draw(result("sparsify"), Path(folder))


def watched_layer(count: int, channels: int = 16) -> Chart:
    scales = enumerate(watched(count, channels))
    return made(drawn(watched_chart, iterations=[{"iteration": step, "scales": found} for step, found in scales]))


CHARTS: dict[str, Callable[[], Chart]] = {
    "quintiles": lambda: made(drawn(quintiles_chart)),
    "watched": lambda: watched_layer(100),
    "histogram": lambda: made(drawn(histogram_chart, penalty="group-lasso")),
    "channels": lambda: slimmed(UNITS, KEPT),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_picture_is_whole_and_the_same_numbers_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = CHARTS[name]().png(tmp_path).path
    first = path.read_bytes()
    assert path == tmp_path / f"{name}.png"
    assert all(300 <= side <= 2000 for side in png_size(path))
    assert CHARTS[name]().png(tmp_path).path.read_bytes() == first


def test_each_quintile_is_a_line_that_the_key_names_from_the_top() -> None:
    spec = CHARTS["quintiles"]().spec()
    assert spec["encoding"]["color"]["scale"]["domain"] == ["largest", "80%", "60%", "40%", "20%"]
    assert spec["encoding"]["x"]["axis"]["values"] == list(EPOCHS)[::2], "no label between epochs"
    largest = [(row["epoch"], row["scale"]) for row in rows_of(spec) if row["channels"] == "largest"]
    assert largest == [(epoch, values[-1]) for epoch, values in zip(EPOCHS, QUINTILES, strict=True)]


def test_every_channel_of_the_watched_layer_is_a_line() -> None:
    chart = CHARTS["watched"]()
    lines, median = layers_of(chart.spec())
    assert len(set(lines["transform"][0]["fold"])) == 16
    assert median["encoding"]["y"]["field"] == "median"
    rows = rows_of(chart.spec())
    assert len(rows) == 100
    assert rows[7]["median"] == np.median(watched(100)[7])
    assert [rows[7][str(channel)] for channel in range(16)] == watched(100)[7]
    assert "each of 16 channels" in chart.caption


def test_many_channels_and_iterations_are_thinned_out_evenly_and_the_caption_says_so() -> None:
    chart = watched_layer(1000, 200)
    rows = rows_of(chart.spec())
    assert (len(rows), rows[0]["iteration"], rows[-1]["iteration"]) == (120, 0, 999)
    assert rows[-1]["median"] == np.median(watched(1000, 200)[-1]), "the median is that of all channels"
    shown = {value for name, value in rows[-1].items() if name.isdigit()}
    assert len(shown) == 64
    assert {min(watched(1000, 200)[-1]), max(watched(1000, 200)[-1])} <= shown
    assert "64 of 200 channels" in chart.caption


def test_the_histogram_has_a_column_per_epoch_and_nothing_where_there_is_none() -> None:
    rows = rows_of(CHARTS["histogram"]().spec())
    for epoch in EPOCHS:
        column = [row for row in rows if row["epoch"] == epoch]
        assert sum(row["share"] for row in column) == pytest.approx(1)
        assert {(row["left"], row["right"]) for row in column} == {(epoch - 0.5, epoch + 0.5)}
    assert all(row["share"] > 0 for row in rows)
    assert max(row["high"] for row in rows) == EDGES[22]


def test_one_epoch_alone_and_a_network_that_is_dead_can_be_drawn(tmp_path: Path) -> None:
    epochs = [{"epoch": 0, "quintiles": QUINTILES[0], "counts": [7, *([0] * 49)]}]
    for draw in (quintiles_chart, histogram_chart, watched_chart):
        iterations = [{"iteration": 0, "scales": [0.0, 0.0]}]
        made(drawn(draw, epochs=epochs, iterations=iterations)).png(tmp_path)
    for name in ("quintiles", "histogram", "watched"):
        assert png_size(tmp_path / f"{name}.png")


def test_bars_say_how_many_channels_are_left() -> None:
    rows = rows_of(slimmed({"a": 64, "b": 32, "c": 16}, {"a": 24, "b": 32}).spec())
    found = [(row["unit"], row["dense"], row["kept"], row["text"]) for row in rows]
    assert found == [("a", 64, 24, "24 of 64"), ("b", 32, 32, "32"), ("c", 16, 16, "16")]


def test_many_units_stand_in_panels_side_by_side() -> None:
    panels = slimmed({f"model.{index}.cv1": 64 for index in range(137)}, {}).spec()["hconcat"]
    shown = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in panels]
    assert [len(names) for names in shown] == [46, 46, 45]
    assert [name for names in shown for name in names] == [f"model.{index}.cv1" for index in range(137)]


@pytest.mark.parametrize("draw", [quintiles_chart, histogram_chart, watched_chart])
def test_without_what_a_training_noted_there_is_no_chart(draw: Callable[[Result, Path], Chart | None]) -> None:
    assert drawn(draw, epochs=[]) is None
    assert draw(result("search"), Path("no such folder")) is None


def test_a_result_without_slimming_has_no_channels() -> None:
    assert channels_chart(result("search"), Path()) is None
