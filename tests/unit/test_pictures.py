"""Charts: what is drawn, that it can be read, and how it reaches its file."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.errors import RunError
from autoprune.report.chart import DARK, THEME, Chart, shortened, values
from autoprune.report.comparison import comparison_chart, correlation_chart, label_places
from autoprune.report.profile import blocks, layers_chart, prediction_chart, staircase_chart
from autoprune.report.progress import search_progress
from autoprune.report.sensitivity import curves_chart, heatmap_chart, linear_until, log_ticks
from autoprune.results import Compared, Metrics, Result, Stage

NAN = math.nan
HERE = Path()
RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def made(chart: Chart | None) -> Chart:
    assert chart is not None
    return chart


def layers_of(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the single views of a specification, from the back to the front."""
    parts = [part for name in ("layer", "hconcat", "vconcat", "concat") for part in spec.get(name, ())]
    parts += [spec["spec"]] if "spec" in spec else []
    return [view for part in parts for view in layers_of(part)] if parts else [spec]


def rows_of(spec: Mapping[str, Any], view: Mapping[str, Any] | None = None) -> list[Mapping[str, Any]]:
    """Return all rows of data that a specification carries, or those of one of its views."""
    sets: Mapping[str, Any] = spec.get("datasets", {})
    if view is not None and "data" in view:
        return list(sets[view["data"]["name"]])
    return [*spec.get("data", {}).get("values", ()), *(row for data in sets.values() for row in data)]


def result(command: str, **figures: Any) -> Result:
    return Result(command, "tiny, flops=50%", ("mAP50-95",), figures=figures)


def curve(name: str, width: int, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {"unit": name, "channels": width, "scores": [list(point) for point in points], "kept": {}}


def curves(number: int, *, worst: float = 0.4, best: float = 0.0) -> Result:
    depths = [worst, *np.random.default_rng(0).uniform(0.01, 0.1, number - 1).tolist()]
    units = [
        curve(f"model.{index}.m.0.cv1", 64, [(int(64 * ratio), best - depth * (1 - ratio) / ratio) for ratio in RATIOS])
        for index, depth in enumerate(depths)
    ]
    return result("sensitivity", curves=units)


def metrics(*found: float) -> list[Metrics]:
    return [Metrics({"mAP50-95": value}) for value in found]


def comparison(*, points: Sequence[Sequence[float]] = ((-0.3, 0.4), (-0.2, 0.5), (-0.1, 0.45)), **more: Any) -> Result:
    rows = [
        Compared(
            "random",
            metrics(0.3, 0.33),
            metrics(0.55, 0.56),
            {"flops": [0.5, 0.49]},
            scores=[-0.3, -0.31],
            seconds=[400.0],
        ),
        Compared(
            "SAC",
            metrics(0.4, 0.41),
            metrics(0.57, 0.56),
            {"flops": [0.5]},
            scores=[-0.2, -0.22, NAN],
            seconds=[4000.0],
        ),
    ]
    references = [Compared("smaller network", [], metrics(0.55), {"flops": [0.45]})]
    names = [f"network-{place}" for place in range(len(points))]
    found = {"spearman": -0.804, "networks": len(points), "points": [list(one) for one in points], "names": names}
    return Result(
        "compare",
        "tiny, flops=50%",
        ("mAP50-95",),
        stages={"dense": Stage(metrics(0.6)[0])},
        compared={"strategies": rows, "references": references},
        figures={"correlation": found, **more},
    )


def layer(name: str, share: float, flops: float = 0.1) -> dict[str, Any]:
    sizes = {"c_in": 8, "c_out": 16, "height": 4, "width": 4, "flops": flops * 1e6, "bytes": 1.0}
    return {
        "name": name,
        "operation": "conv 1×1",
        **sizes,
        "share": share,
        "milliseconds": 10 * share,
        "flops_share": flops,
    }


def profile(layers: Sequence[Mapping[str, Any]], *, units: int = 2, measured: bool = True, roles: int = 3) -> Result:
    rest = [{"name": "operations without weights, and overhead", "share": 0.4, "milliseconds": 4.0}]
    widths, times = list(range(8, 72, 8)), [9.0, 9.0, 9.4, 9.4, 9.7, 9.7, 10.0, 10.0]
    slope = np.linspace(9.1, 10.0, 8).tolist()
    stairs = [
        {"unit": f"model.{index}.m.0.cv1", "widths": widths, "predicted": slope, "worth": [16, 32, 48, 64]}
        | {"measured": times if measured else None}
        for index in range(units)
    ]
    networks = [
        {"role": role, "predicted": time, "measured": time * 1.02}
        for role, times in (("fitted", (4.0, 6.0, 9.0)), ("held_out", (5.0, 7.0)), ("fresh", (8.0,)))[:roles]
        for time in times
    ]
    error = {"median_abs_rel": 0.03, "p90_abs_rel": 0.05, "spearman": 0.9, "n": 2}
    return result(
        "profile",
        layers={"source": "measured alone", "scale": 1.0, "rows": list(layers), "rest": rest, "rest_flops": 1e5},
        staircases=stairs,
        predictor={"held_out": error, "check": None, "networks": networks},
    )


LAYERS = [layer("model.1.conv", 0.1), layer("model.2.cv1.conv", 0.3), layer("model.2.cv2.conv", 0.2)]

CHARTS: dict[str, Callable[[], Chart]] = {
    "curves": lambda: made(curves_chart(curves(6), HERE)),
    "heatmap": lambda: made(heatmap_chart(curves(6), HERE)),
    "comparison": lambda: made(comparison_chart(comparison(), HERE)),
    "correlation": lambda: made(correlation_chart(comparison(), HERE)),
    "layers": lambda: made(layers_chart(profile(LAYERS), HERE)),
    "staircase": lambda: made(staircase_chart(profile(LAYERS), HERE)),
    "predicted": lambda: made(prediction_chart(profile(LAYERS), HERE)),
    "progress": lambda: search_progress({"SAC": [[NAN, -0.4, -0.5, -0.2]]}, title="Lines"),
}
EACH = pytest.mark.parametrize("name", CHARTS)


@pytest.mark.parametrize("metric", ["latency@cuda:0", "latency@ssh://pi@cam1/openvino"])
def test_a_comparison_shows_the_share_of_a_latency_elsewhere(metric: str) -> None:
    found = comparison()
    rows = {kind: [replace(row, costs={metric: [0.4321]}) for row in rows] for kind, rows in found.compared.items()}
    spec = made(comparison_chart(replace(found, compared=rows), HERE)).spec()
    assert "43.2 %" in {row["text"] for row in rows_of(spec) if "text" in row}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the specifications that are drawn as PNG files during a test, without drawing them."""
    import vl_convert

    found: list[dict[str, Any]] = []

    def draw(spec: dict[str, Any], **options: Any) -> bytes:
        found.append({**spec, "options": options})
        return b"png"

    monkeypatch.setattr(vl_convert, "vegalite_to_png", draw)
    return found


# -- files -------------------------------------------------------------------------------------


@EACH
def test_a_chart_is_a_whole_png_and_the_same_numbers_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    picture = CHARTS[name]().png(tmp_path)
    assert picture.path == tmp_path / f"{name}.png"
    assert os.listdir(tmp_path) == [f"{name}.png"]
    assert all(250 <= side <= 2400 for side in png_size(picture.path))
    first = picture.path.read_bytes()
    assert CHARTS[name]().png(tmp_path).path.read_bytes() == first


@EACH
def test_a_page_gets_valid_json_without_theme_or_title(name: str) -> None:
    spec = CHARTS[name]().spec()
    json.dumps(spec, allow_nan=False)
    assert not spec.keys() & {"config", "title", "background"}
    assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite/v")
    assert "url" not in json.dumps(spec.get("data", {})), "all data are in the page"
    assert spec.get("width", "container") == "container"


@EACH
def test_everything_that_is_drawn_tells_its_numbers(name: str) -> None:
    assert any("tooltip" in view.get("encoding", {}) for view in layers_of(CHARTS[name]().spec()))


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    with pytest.raises(RunError, match=r"nowhere/progress\.png cannot be written: .*; its folder does not exist"):
        CHARTS["progress"]().png(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_a_long_title_is_broken_into_lines_and_stays_plain_text(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    title = "a title of many words " * 12 + "with $dollars$, <b>, {x} and a_b^c"
    search_progress({"SAC": [[-0.1]]}, title=title).png(tmp_path)
    lines = drawn[0]["title"]["text"]
    assert " ".join(lines) == title
    assert 1 < len(lines) <= 6
    assert drawn[0]["options"]["config"] == THEME
    assert drawn[0]["options"]["allowed_base_urls"] == []


def test_a_character_without_a_glyph_can_be_drawn(tmp_path: Path) -> None:
    search_progress({"数据": [[-0.1]]}, title="数据").png(tmp_path)
    png_size(tmp_path / "progress.png")


def test_importing_charts_leaves_altair_alone(root: Path) -> None:
    code = "import sys, autoprune.report; print({'altair', 'vl_convert', 'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_numbers_that_json_has_not_become_null() -> None:
    data = values([{"a": NAN, "b": math.inf, "c": 1.5, "d": "nan"}])
    assert data.to_dict()["values"] == [{"a": None, "b": None, "c": 1.5, "d": "nan"}]


def test_no_text_of_a_look_is_small_and_both_looks_have_the_same_parts() -> None:
    def sizes(part: Any) -> list[int]:
        if not isinstance(part, Mapping):
            return []
        found = [value for name, value in part.items() if name.lower().endswith("fontsize")]
        return found + [size for value in part.values() for size in sizes(value)]

    assert min(sizes(THEME)) >= 11
    assert {name: THEME["style"].keys() for name in THEME} == {name: DARK["style"].keys() for name in DARK}
    assert THEME["background"] != DARK["background"]


def test_a_long_name_keeps_both_of_its_ends() -> None:
    assert shortened("model.24.cv2.0.0", 22) == "model.24.cv2.0.0"
    assert shortened("backbone.layer4.1.downsample.0.conv", 22) == "backbone.l…mple.0.conv"
    assert len(shortened("x" * 99, 22)) <= 22


# -- sensitivity -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 5, 100])
def test_every_unit_has_a_panel_and_a_row(number: int) -> None:
    names = [f"model.{index}.m.0.cv1 (64)" for index in range(number)]
    spec = made(curves_chart(curves(number), HERE)).spec()
    assert spec["facet"]["sort"] == names
    assert spec["columns"] <= 8
    assert list(dict.fromkeys(row["unit"] for row in rows_of(spec))) == names
    spec = made(heatmap_chart(curves(number), HERE)).spec()
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == names


def test_a_curve_is_sorted_ends_at_the_dense_network_and_skips_what_failed() -> None:
    unit = curve("model.0.conv", 16, [(12, -0.1), (4, -0.5), (8, NAN), (2, -math.inf)])
    rows = rows_of(made(curves_chart(result("sensitivity", curves=[unit]), HERE)).spec())
    assert [(row["kept"], row["channels"], row["score"]) for row in rows] == [
        (0.25, 4, -0.5),
        (0.75, 12, -0.1),
        (1, 16, 0),
    ]


@pytest.mark.parametrize("points", [[], [(16, 0.0)], [(8, NAN)]])
@pytest.mark.parametrize("draw", [curves_chart, heatmap_chart])
def test_a_unit_that_was_not_measured_is_drawn_empty(draw: Any, points: Any, tmp_path: Path) -> None:
    draw(result("sensitivity", curves=[curve("model.0.conv", 16, points)]), tmp_path).png(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("draw", [curves_chart, heatmap_chart])
def test_no_units_are_nothing_to_draw(draw: Any) -> None:
    assert draw(result("sensitivity", curves=[]), HERE) is None
    assert draw(result("search"), HERE) is None


def score_scale(found: Result) -> Mapping[str, Any]:
    spec = made(curves_chart(found, HERE)).spec()
    scale: Mapping[str, Any] = spec["spec"]["layer"][1]["encoding"]["y"]["scale"]
    return scale


def test_an_outlier_makes_the_axis_logarithmic_and_the_caption_says_so() -> None:
    assert "logarithmic" not in made(curves_chart(curves(9, worst=0.05), HERE)).caption
    assert score_scale(curves(9, worst=0.05)).get("type") is None
    assert "logarithmic beyond ±0.2" in made(curves_chart(curves(9, worst=30.0), HERE)).caption
    assert score_scale(curves(9, worst=30.0))["type"] == "symlog"


@pytest.mark.parametrize("worst", [0.05, 30.0])
def test_scores_above_the_dense_network_are_within_the_axis(worst: float) -> None:
    found = curves(9, worst=worst, best=0.3)
    scores = [row["score"] for row in rows_of(made(curves_chart(found, HERE)).spec())]
    low, high = score_scale(found)["domain"]
    assert max(scores) > 0.2
    assert low <= min(scores)
    assert high >= max(scores)


def test_the_heat_map_interpolates_inside_and_leaves_the_outside_empty() -> None:
    wide, narrow = curve("wide", 64, [(16, -0.8), (32, -0.4), (48, -0.1)]), curve("narrow", 16, [(8, -0.2)])
    rows = rows_of(made(heatmap_chart(result("sensitivity", curves=[wide, narrow]), HERE)).spec())
    found = {(row["unit"], row["keep"]): (round(row["drop"], 9), row["text"]) for row in rows}
    assert found == {
        ("wide (64)", "0.25"): (0.8, "0.80"),
        ("wide (64)", "0.5"): (0.4, "0.40"),
        ("wide (64)", "0.75"): (0.1, "0.10"),
        ("narrow (16)", "0.5"): (0.2, "0.20"),
        ("narrow (16)", "0.75"): (0.1, "0.10"),
    }


def test_the_heat_map_has_a_colour_for_rising_scores() -> None:
    def colours(found: Result) -> Mapping[str, Any]:
        spec = made(heatmap_chart(found, HERE)).spec()
        scale: Mapping[str, Any] = spec["layer"][0]["encoding"]["color"]["scale"]
        return scale

    assert colours(curves(5))["domain"][0] == 0
    for worst in (0.05, 30.0):
        found = curves(9, worst=worst, best=0.3)
        risen, drops = colours(found), [row["drop"] for row in rows_of(made(heatmap_chart(found, HERE)).spec())]
        assert risen["domain"][0] <= min(drops) < -0.2
        assert risen["domain"][-1] == pytest.approx(max(drops))
        assert risen["domain"] == sorted(risen["domain"])
        assert len(risen["domain"]) == len(risen["range"])


def test_many_ratios_come_together_on_a_common_grid() -> None:
    units = [curve(str(width), width, [(k, -1.0) for k in range(3, width)]) for width in (8, 11, 13)]
    spec = made(heatmap_chart(result("sensitivity", curves=units), HERE)).spec()
    domain = spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert domain == ["0.25", "0.375", "0.5", "0.625", "0.75", "0.875"]


def test_where_an_axis_stops_being_linear() -> None:
    alike = [np.array([-0.03, 0.0])] * 5
    assert linear_until(alike) is None
    assert linear_until([*alike, np.array([-3.0, 0.0])]) == 0.02
    assert linear_until([np.zeros(1)] * 3) is None
    assert log_ticks(0.02, 3.0) == [0.0, 0.02, 0.2, 2.0]
    assert log_ticks(0.02, 0.3) == [0.0, 0.02, 0.06, 0.2]
    assert log_ticks(0.02, 0.0) == [0.0]
    assert len(log_ticks(1e-5, 1e3)) <= 6


# -- comparison --------------------------------------------------------------------------------


def test_strategies_stand_best_first_above_the_references() -> None:
    spec = made(comparison_chart(comparison(), HERE)).spec()
    domains = [view["encoding"]["y"]["scale"]["domain"] for view in layers_of(spec) if "y" in view["encoding"]]
    assert all(domain == ["random", "SAC", " ", "dense", "smaller network"] for domain in domains)
    assert {(row["row"], row["text"]) for row in rows_of(spec) if "text" in row} == {
        *(("random", "49.5 %"), ("random", "7 min"), ("SAC", "50.0 %"), ("SAC", "67 min")),
        *(("dense", "100.0 %"), ("dense", "–"), ("smaller network", "45.0 %"), ("smaller network", "–")),
    }


def test_every_seed_has_a_dot_and_the_dense_network_a_line() -> None:
    spec = made(comparison_chart(comparison(), HERE)).spec()
    rows = rows_of(spec, spec["hconcat"][0])
    sac = [(row["seed"], row["score"]) for row in rows if row["row"] == "SAC"]
    assert sac == [(0, -0.2), (1, -0.22), (2, None)]
    assert len({row["offset"] for row in rows if row["row"] == "SAC"}) == 3, "equal seeds stay countable"
    marks = [view["mark"]["type"] for view in layers_of(spec["hconcat"][1])]
    assert marks == ["rule", "tick", "point", "tick", "point"]
    assert {row["level"] for row in rows_of(spec) if "level" in row} == {0.6}


def test_a_result_without_strategies_has_no_comparison() -> None:
    assert comparison_chart(result("search"), HERE) is None
    assert correlation_chart(result("search"), HERE) is None


def test_every_dot_of_the_correlation_has_its_name_in_the_picture_and_under_the_mouse() -> None:
    points = [(-0.3, 0.4), (-0.2, 0.5), (NAN, 0.6), (-0.1, NAN), (-0.15, 0.45)]
    chart = made(correlation_chart(comparison(points=points), HERE))
    assert "Spearman rank correlation −0.80, 3 networks" in chart.caption
    rows = rows_of(chart.spec())
    assert [(row["network"], row["label"]) for row in rows] == [(f"network-{k}", f"network-{k}") for k in (0, 1, 4)]
    views = layers_of(chart.spec())
    assert sorted(view["transform"][0]["filter"] for view in views if view["mark"]["type"] == "text") == [
        f"datum.align == '{align}'" for align in sorted({row["align"] for row in rows})
    ]
    assert {row["align"] for row in rows} <= {"center", "left", "right"}


def test_labels_keep_clear_of_each_other() -> None:
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.505, 0.5], [0.5, 0.505]])
    places = label_places(["one", "two", "three", "four", "five"], points)
    assert places[0][2] == "left"
    assert places[1][2] == "right", "it stays within the picture"
    assert len({place[:2] for place in places[2:]}) == 3


# -- progress ----------------------------------------------------------------------------------


def test_progress_is_the_mean_best_so_far_from_where_every_seed_has_one() -> None:
    seeds = [[NAN, -0.4, -0.5, -0.2], [None, NAN, -0.6], [NAN, NAN]]
    rows = rows_of(search_progress({"SAC": seeds}, title="Lines").spec())
    found = [(row["evaluations"], row["best"], row["worst_seed"], row["best_seed"]) for row in rows]
    np.testing.assert_allclose(found, [(3, -0.5, -0.6, -0.4), (4, -0.4, -0.6, -0.2)])
    assert {row["strategy"] for row in rows} == {"SAC (2 of 3 seeds)"}


def test_only_changes_are_drawn_and_the_end_has_a_dot() -> None:
    rows = rows_of(search_progress({"SAC": [[-0.5] * 50 + [-0.1] * 50]}, title="Lines").spec())
    assert [(row["evaluations"], row["best"], row["last"]) for row in rows] == [
        (1, -0.5, False),
        (51, -0.1, False),
        (100, -0.1, True),
    ]


def test_the_legend_is_sorted_by_the_final_score() -> None:
    histories = {"worst": [[-0.9]], "none": [[NAN, NAN]], "best": [[-0.5, -0.1]], "empty": [[]]}
    spec = search_progress(histories, title="Lines").spec()
    domain = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert domain == ["best", "worst", "none (no score)", "empty (no score)"]


def test_bad_beginnings_are_cut_off_and_the_caption_says_so() -> None:
    chart = search_progress({"SAC": [[-50.0, *np.linspace(-0.5, -0.1, 99)]]}, title="Lines")
    assert "worse beginnings cut off" in chart.caption
    assert chart.spec()["layer"][0]["encoding"]["y"]["scale"]["domain"][0] > -1
    assert min(row["worst_seed"] for row in rows_of(chart.spec())) > -1
    assert "cut off" not in search_progress({"SAC": [[-0.5, -0.1]]}, title="Lines").caption


def test_more_strategies_than_colours_still_differ() -> None:
    spec = search_progress({f"s{index}": [[-0.1 * index]] for index in range(16)}, title="Lines").spec()
    dashes = spec["layer"][0]["encoding"]["strokeDash"]["scale"]["range"]
    colours = THEME["range"]["category"]
    looks = {(colours[place % len(colours)], tuple(dash)) for place, dash in enumerate(dashes)}
    assert len(looks) == 16


def test_no_strategies_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one strategy, got none"):
        search_progress({}, title="None")


# -- profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 40, 300])
def test_the_bars_of_layers_add_up_to_the_whole_latency(number: int) -> None:
    found = [layer(f"model.{index}.conv", 0.6 / number, 0.9 / number) for index in range(number)]
    spec = made(layers_chart(profile(found), HERE)).spec()
    segments = rows_of(spec, spec["layer"][0])
    assert math.fsum(row["share"] for row in segments) == pytest.approx(1.0)
    assert math.fsum(row["milliseconds"] for row in segments) == pytest.approx(10.0)
    blocks_shown = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert len(blocks_shown) <= 26
    assert len(blocks_shown) == len(set(blocks_shown))
    texts = {row["block"]: row["text"] for row in rows_of(spec, spec["layer"][1])}
    assert texts["operations without weights, and overhead"] == "40.0%, 4.00 ms"
    if number == 300:
        assert "276 other layers" in blocks_shown


def test_layers_are_grouped_by_block_as_finely_as_there_is_room() -> None:
    assert list(blocks(LAYERS, 9)) == ["model.2.cv1.conv", "model.2.cv2.conv", "model.1.conv"]
    assert list(blocks(LAYERS, 2)) == ["model.2  (2 layers)", "model.1.conv"]
    assert list(blocks([layer("conv", 0.5)], 2)) == ["conv"]
    assert blocks([], 2) == {}
    assert list(blocks([layer("conv", 0.5), layer("conv", 0.1)], 2)) == ["conv  (2 layers)"], "a layer called twice"


@pytest.mark.parametrize("number", [1, 3, 20])
def test_every_unit_has_its_steps_on_one_axis(number: int) -> None:
    spec = made(staircase_chart(profile(LAYERS, units=number), HERE)).spec()
    assert spec["facet"]["sort"] == [f"model.{index}.m.0.cv1" for index in range(number)]
    assert spec["resolve"]["scale"] == {"x": "independent"}, "y is shared"
    rows = [row for row in rows_of(spec) if row["unit"] == "model.0.m.0.cv1" and row["worth"]]
    assert [(row["channels"], row["measured"]) for row in rows] == [(16, 9.0), (32, 9.4), (48, 9.7), (64, 10.0)]
    assert [view["mark"]["type"] for view in layers_of(spec)] == ["line", "line", "point", "point"]


def test_steps_that_were_not_measured_are_drawn_as_predicted() -> None:
    chart = made(staircase_chart(profile(LAYERS, measured=False), HERE))
    assert "measured" not in chart.caption
    assert [view["mark"]["type"] for view in layers_of(chart.spec())] == ["line", "point", "point"]
    assert all(row["measured"] == row["predicted"] for row in rows_of(chart.spec()))


def test_networks_are_drawn_by_what_they_were_for() -> None:
    found = profile(LAYERS)
    found.figures["predictor"]["networks"].append({"role": "fresh", "predicted": NAN, "measured": 8.5})
    chart = made(prediction_chart(found, HERE))
    encoding = layers_of(chart.spec())[-1]["encoding"]
    named = ["the predictor was fitted to (3)", "held out of the fit (2)", "fresh, measured afterwards (1)"]
    assert encoding["color"]["scale"]["domain"] == named
    assert encoding["x"]["scale"] == encoding["y"]["scale"]
    assert "off by 3.0%" in chart.caption
    assert "fresh" not in json.dumps(made(prediction_chart(profile(LAYERS, roles=1), HERE)).spec())


def test_profiles_of_nothing_are_nothing_to_draw() -> None:
    for draw in (layers_chart, staircase_chart, prediction_chart):
        assert draw(result("search"), HERE) is None
