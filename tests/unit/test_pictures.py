"""Pictures: what is drawn, that it can be read, and how it reaches its file."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.errors import RunError
from autoprune.report._base import shortened
from autoprune.report._scale import linear_until, log_ticks
from autoprune.report.comparison import ComparisonRow, RowKind, comparison_plot, correlation_plot
from autoprune.report.profile import BarKind, LayerBar, NetworkRole, PredictedNetwork, layer_bars, prediction_plot
from autoprune.report.progress import search_progress
from autoprune.report.sensitivity import UnitCurve, sensitivity_curves, sensitivity_heatmap
from autoprune.report.staircase import UnitSteps, staircases

NAN = math.nan


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def units(number: int, *, worst: float = 0.4) -> list[UnitCurve]:
    generator = np.random.default_rng(0)
    depths = [worst, *generator.uniform(0.01, 0.1, number - 1)]
    ratios = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    return [
        UnitCurve(f"model.{index}.m.0.cv1", 64, tuple((ratio, -depth * (1 - ratio) / ratio) for ratio in ratios))
        for index, depth in enumerate(depths)
    ]


ROWS = [
    ComparisonRow("random search", RowKind.STRATEGY, (-0.3, -0.31), (0.3, 0.33), (0.55, 0.56), (0.5, 0.49), 400.0),
    ComparisonRow("SAC", RowKind.STRATEGY, (-0.2, -0.22, NAN), (0.4, 0.41), (0.57, 0.56), (0.5,), 4000.0),
    ComparisonRow("nothing found", RowKind.STRATEGY, (NAN,), (NAN,), (), (), 12.0),
    ComparisonRow("dense", RowKind.DENSE, (0.0,), (0.6,), (), (1.0,)),
    ComparisonRow("smaller network", RowKind.REFERENCE, (), (), (0.55,), (0.45,)),
]

BARS = [
    LayerBar("model.1.conv  conv 3×3 s2  16→32", 0.1, 0.2),
    LayerBar("model.22.cv2.0.0.conv  conv 3×3  64→64", 0.05, 0.3),
    LayerBar("20 more layers", 0.5, 0.5, BarKind.SUM),
    LayerBar("operations without weights, and overhead", 0.35, 0.0, BarKind.SUM),
]


def steps(number: int) -> list[UnitSteps]:
    widths, times = tuple(range(8, 72, 8)), (9.0, 9.0, 9.4, 9.4, 9.7, 9.7, 10.0, 10.0)
    slope = tuple(float(time) for time in np.linspace(9.1, 10.0, 8))
    return [UnitSteps(f"model.{index}.m.0.cv1", widths, slope, times, (16, 32, 48, 64)) for index in range(number)]


NETWORKS = [
    *(PredictedNetwork(NetworkRole.FITTED, time, time * 1.02) for time in (4.0, 6.0, 9.0)),
    *(PredictedNetwork(NetworkRole.HELD_OUT, time, time * 0.95) for time in (5.0, 7.0)),
    PredictedNetwork(NetworkRole.FRESH, 8.0, 8.5),
]

DRAW: dict[str, Callable[[Path], Path]] = {
    "curves": lambda path: sensitivity_curves(units(6), path, title="Curves"),
    "heat map": lambda path: sensitivity_heatmap(units(6), path, title="Map"),
    "comparison": lambda path: comparison_plot(ROWS, path, title="Rows", cost_label="latency"),
    "correlation": lambda path: correlation_plot([(-0.1, 0.5), (-0.3, 0.4)], path, spearman=1.0, title="Pairs"),
    "layers": lambda path: layer_bars(BARS, path, title="Layers", note="measured alone"),
    "staircases": lambda path: staircases(steps(7), path, title="Steps"),
    "predictions": lambda path: prediction_plot(NETWORKS, path, title="Networks", errors=["off by 3%", "off by 4%"]),
    "progress": lambda path: search_progress({"SAC": [[NAN, -0.4, -0.5, -0.2]]}, path, title="Lines"),
}
EACH = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW.keys())


class Drawn:
    """The figures that were saved during a test."""

    def __init__(self) -> None:
        self.figures: list[Any] = []

    def axes(self, index: int = 0) -> Any:
        """Return a panel of the last figure."""
        return self.figures[-1].axes[index]

    def texts(self) -> list[str]:
        """Return what can be read in the last figure."""
        from matplotlib.text import Text

        return [text.get_text() for text in self.figures[-1].findobj(Text) if text.get_visible()]

    def values(self) -> list[str]:
        """Return what is written into the first panel of the last figure."""
        return [text.get_text() for text in self.axes().texts]

    def whole(self) -> bool:
        """Return whether all of the last figure, every label included, lies within its edges."""
        figure = self.figures[-1]
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        return bool(min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    from matplotlib.figure import Figure

    record, save = Drawn(), Figure.savefig

    def savefig(self: Figure, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        record.figures.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return record


@EACH
def test_a_picture_is_a_whole_png_and_its_path_is_returned(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    assert draw(path) == path
    width, height = png_size(path)
    assert 300 <= width <= 2000
    assert 300 <= height <= 2000
    assert os.listdir(tmp_path) == ["picture.png"]


@EACH
def test_the_same_numbers_give_the_same_bytes(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    import matplotlib

    first = draw(tmp_path / "a.png").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "text.color": "red"}):
        assert draw(tmp_path / "b.png").read_bytes() == first
    assert b"matplotlib" not in first.lower()


@EACH
def test_matplotlib_is_left_as_it_was(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@EACH
def test_a_missing_folder_is_named_and_not_made(draw: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/a\.png cannot be written: .*; its folder does not exist"):
        draw(tmp_path / "nowhere" / "a.png")
    assert os.listdir(tmp_path) == []


@EACH
def test_nothing_is_cut_off(draw: Callable[[Path], Path], tmp_path: Path, drawn: Drawn) -> None:
    draw(tmp_path / "a.png")
    assert drawn.whole()


def test_importing_pictures_leaves_matplotlib_alone(root: Path) -> None:
    code = "import sys, autoprune.report; print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_drawing_never_imports_pyplot(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from autoprune.report.comparison import correlation_plot;"
        "correlation_plot([(0.0, 0.5)], Path(sys.argv[1]), spearman=float('nan'), title='x');"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_long_title_is_broken_into_lines(tmp_path: Path, drawn: Drawn) -> None:
    title = "a title of many words " * 12 + "with $dollars$ and a_b^c"
    sensitivity_curves(units(1), tmp_path / "a.png", title=title)
    assert drawn.whole()
    assert any(text.replace("\n", " ") == title for text in drawn.texts())


def test_a_character_without_a_glyph_is_no_warning(tmp_path: Path) -> None:
    correlation_plot([(0.0, 0.5)], tmp_path / "a.png", spearman=NAN, title="数据")


# -- sensitivity -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 5, pytest.param(100, marks=pytest.mark.slow)])
def test_every_unit_has_a_panel(number: int, tmp_path: Path, drawn: Drawn) -> None:
    many = units(number)
    sensitivity_curves(many, tmp_path / "a.png", title="Curves")
    assert [axes.get_title() for axes in drawn.figures[-1].axes if axes.axison] == [unit.name for unit in many]
    assert drawn.whole()
    assert max(png_size(tmp_path / "a.png")) < 2200


@pytest.mark.parametrize("number", [1, 5, 100])
def test_every_unit_has_a_row(number: int, tmp_path: Path, drawn: Drawn) -> None:
    many = units(number)
    sensitivity_heatmap(many, tmp_path / "a.png", title="Map")
    rows = [label.get_text() for label in drawn.axes().get_yticklabels()]
    assert rows == [f"{unit.name}  (64)" for unit in many]
    assert drawn.whole()
    assert max(png_size(tmp_path / "a.png")) < 2200


def test_a_curve_is_sorted_ends_at_the_dense_network_and_skips_what_failed(tmp_path: Path, drawn: Drawn) -> None:
    unit = UnitCurve("model.0.conv", 16, ((0.75, -0.1), (0.25, -0.5), (0.5, NAN), (0.125, -math.inf)))
    sensitivity_curves([unit], tmp_path / "a.png", title="One")
    curve = drawn.axes().lines[-1].get_xydata()
    assert curve.tolist() == [[0.25, -0.5], [0.75, -0.1], [1.0, 0.0]]


@pytest.mark.parametrize("points", [(), ((1.0, 0.0),), ((0.5, NAN),)])
@pytest.mark.parametrize("draw", [sensitivity_curves, sensitivity_heatmap])
def test_a_unit_that_was_not_measured_is_drawn_empty(draw: Any, points: Any, tmp_path: Path) -> None:
    draw([UnitCurve("model.0.conv", 16, points)], tmp_path / "a.png", title="Empty")
    png_size(tmp_path / "a.png")


@pytest.mark.parametrize("draw", [sensitivity_curves, sensitivity_heatmap])
def test_no_units_are_refused(draw: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one unit, got none"):
        draw([], tmp_path / "a.png", title="None")


def test_an_outlier_makes_the_axis_logarithmic_and_the_label_says_so(tmp_path: Path, drawn: Drawn) -> None:
    sensitivity_curves(units(9, worst=0.05), tmp_path / "a.png", title="Alike")
    assert not any("logarithmic" in text for text in drawn.texts())
    sensitivity_curves(units(9, worst=30.0), tmp_path / "a.png", title="Outlier")
    assert any("logarithmic below" in text for text in drawn.texts())
    assert {axes.get_ylim() for axes in drawn.figures[-1].axes if axes.axison} == {drawn.axes().get_ylim()}


def test_the_heat_map_interpolates_inside_and_leaves_the_outside_empty(tmp_path: Path, drawn: Drawn) -> None:
    wide = UnitCurve("wide", 64, ((0.25, -0.8), (0.5, -0.4), (0.75, -0.1)))
    narrow = UnitCurve("narrow", 16, ((0.5, -0.2),))
    sensitivity_heatmap([wide, narrow], tmp_path / "a.png", title="Map")
    values = drawn.axes().images[0].get_array()
    np.testing.assert_allclose(values.filled(NAN), [[0.8, 0.4, 0.1], [NAN, 0.2, 0.1]])
    assert drawn.values() == ["0.80", "0.40", "0.10", "0.20", "0.10"]


def test_many_ratios_come_together_on_a_common_grid(tmp_path: Path, drawn: Drawn) -> None:
    curves = [UnitCurve(str(width), width, tuple((k / width, -1.0) for k in range(3, width))) for width in (8, 11, 13)]
    sensitivity_heatmap(curves, tmp_path / "a.png", title="Map")
    labels = [label.get_text() for label in drawn.axes().get_xticklabels()]
    assert labels == ["0.25", "0.375", "0.5", "0.625", "0.75", "0.875"]


def test_more_than_sixty_rows_are_not_annotated(tmp_path: Path, drawn: Drawn) -> None:
    sensitivity_heatmap(units(61), tmp_path / "a.png", title="Map")
    assert drawn.values() == []


def test_where_an_axis_stops_being_linear() -> None:
    alike = [np.array([-0.03, 0.0])] * 5
    assert linear_until(alike) is None
    assert linear_until([*alike, np.array([-3.0, 0.0])]) == 0.02
    assert linear_until([np.zeros(1)] * 3) is None
    assert log_ticks(0.02, 3.0) == [0.0, 0.02, 0.2, 2.0]
    assert log_ticks(0.02, 0.3) == [0.0, 0.02, 0.06, 0.2]
    assert len(log_ticks(1e-5, 1e3)) <= 6


def test_a_long_name_keeps_both_of_its_ends() -> None:
    assert shortened("model.24.cv2.0.0", 22) == "model.24.cv2.0.0"
    assert shortened("backbone.layer4.1.downsample.0.conv", 22) == "backbone.l…mple.0.conv"
    assert len(shortened("x" * 99, 22)) <= 22


# -- comparison --------------------------------------------------------------------------------


def test_strategies_stand_best_first_above_the_references(tmp_path: Path, drawn: Drawn) -> None:
    comparison_plot(ROWS, tmp_path / "a.png", title="Rows", cost_label="latency")
    left = drawn.axes()
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["SAC", "random search", "nothing found", "dense", "smaller network"]
    assert left.yaxis_inverted()
    texts = drawn.texts()
    assert {"50.0 %", "49.5 %", "100.0 %", "45.0 %", "67 min", "7 min", "12 s", "–"} <= set(texts)
    assert "latency\nof dense" in texts
    assert "dense network" in texts  # the key of the vertical line


def test_a_comparison_without_a_dense_row_has_no_line_for_it(tmp_path: Path, drawn: Drawn) -> None:
    comparison_plot(ROWS[:1], tmp_path / "a.png", title="One", cost_label="FLOPs")
    assert "dense network" not in drawn.texts()
    assert drawn.whole()


def test_an_empty_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row, got none"):
        comparison_plot([], tmp_path / "a.png", title="None", cost_label="latency")


def test_the_rank_correlation_stands_in_the_title(tmp_path: Path, drawn: Drawn) -> None:
    points = [(-0.3, 0.4), (-0.2, 0.5), (NAN, 0.6), (-0.1, NAN)]
    correlation_plot(points, tmp_path / "a.png", spearman=-0.804, title="Pairs")
    assert "Spearman rank correlation −0.80, 2 candidates" in drawn.texts()
    correlation_plot([], tmp_path / "a.png", spearman=NAN, title="None")
    assert "Spearman rank correlation undefined, 0 candidates" in drawn.texts()


# -- progress ----------------------------------------------------------------------------------


def test_progress_is_the_mean_best_so_far_from_where_every_seed_has_one(tmp_path: Path, drawn: Drawn) -> None:
    seeds = [[NAN, -0.4, -0.5, -0.2], [NAN, NAN, -0.6], [NAN, NAN]]
    search_progress({"SAC": seeds}, tmp_path / "a.png", title="Lines")
    evaluations, means = drawn.axes().lines[0].get_data()
    assert list(evaluations) == [1, 2, 3, 4]
    np.testing.assert_allclose(means, [NAN, NAN, -0.5, -0.4])
    assert "SAC (2 of 3 seeds)" in drawn.texts()


def test_the_legend_is_sorted_by_the_final_score(tmp_path: Path, drawn: Drawn) -> None:
    histories = {"worst": [[-0.9]], "none": [[NAN, NAN]], "best": [[-0.5, -0.1]], "empty": [[]]}
    search_progress(histories, tmp_path / "a.png", title="Lines")
    legend = drawn.axes().get_legend()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["best", "worst", "none (no score)", "empty (no score)"]
    assert drawn.whole()


def test_bad_beginnings_are_cut_off_and_the_label_says_so(tmp_path: Path, drawn: Drawn) -> None:
    search_progress({"SAC": [[-50.0, *np.linspace(-0.5, -0.1, 99)]]}, tmp_path / "a.png", title="Lines")
    assert any("worse beginnings cut off" in text for text in drawn.texts())
    assert drawn.axes().get_ylim()[0] > -1


def test_more_strategies_than_colours_still_differ(tmp_path: Path, drawn: Drawn) -> None:
    search_progress({f"s{index}": [[-0.1 * index]] for index in range(16)}, tmp_path / "a.png", title="Lines")
    looks = {(line.get_color(), line.get_marker()) for line in drawn.axes().lines}
    assert len(looks) == 16


def test_no_strategies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one strategy, got none"):
        search_progress({}, tmp_path / "a.png", title="None")


# -- profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 40])
def test_every_layer_has_a_row_and_sums_are_written_out(number: int, tmp_path: Path, drawn: Drawn) -> None:
    bars = [LayerBar(f"model.{index}.conv  conv 1×1  8→16", 0.6 / number, 0.5 / number) for index in range(number)]
    layer_bars([*bars, *BARS[2:]], tmp_path / "a.png", title="Layers", note="measured alone")
    assert [label.get_text() for label in drawn.axes().get_yticklabels()] == [bar.name for bar in [*bars, *BARS[2:]]]
    assert len(drawn.axes().patches) == 2 * number
    assert drawn.axes().get_xlim()[1] == pytest.approx(60 / number, rel=0.2)  # no sum presses the layers flat
    assert "50.0% of the latency, 50.0% of the FLOPs" in drawn.texts()
    assert "% of the whole network; measured alone" in drawn.texts()
    assert drawn.whole()
    assert max(png_size(tmp_path / "a.png")) < 2200


@pytest.mark.parametrize("number", [1, 3, 20])
def test_every_unit_has_its_steps_on_one_axis(number: int, tmp_path: Path, drawn: Drawn) -> None:
    units = steps(number)
    staircases(units, tmp_path / "a.png", title="Steps")
    panels = [axes for axes in drawn.figures[-1].axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [unit.name for unit in units]
    assert len({axes.get_ylim() for axes in panels}) == 1
    worth = panels[0].collections[-1].get_offsets()
    assert np.asarray(worth).tolist() == [[16, 9.0], [32, 9.4], [48, 9.7], [64, 10.0]]
    assert drawn.whole()
    assert max(png_size(tmp_path / "a.png")) < 2200


def test_steps_that_were_not_measured_are_drawn_as_predicted(tmp_path: Path, drawn: Drawn) -> None:
    unit = UnitSteps("model.1", (8, 16), (1.0, 2.0), None, (8, 16))
    staircases([unit], tmp_path / "a.png", title="Steps")
    assert "layers measured alone" not in drawn.texts()
    assert [line.get_xydata().tolist() for line in drawn.axes().lines] == [[[8, 1.0], [16, 2.0]]]


def test_networks_are_drawn_by_what_they_were_for(tmp_path: Path, drawn: Drawn) -> None:
    failed = PredictedNetwork(NetworkRole.FRESH, NAN, 8.5)
    prediction_plot([*NETWORKS, failed], tmp_path / "a.png", title="Networks", errors=["off by 3.0%"])
    texts = drawn.texts()
    assert {"the predictor was fitted to (3)", "held out of the fit (2)", "fresh, measured afterwards (1)"} <= {*texts}
    assert "off by 3.0%" in texts
    assert drawn.axes().get_xlim() == drawn.axes().get_ylim()
    prediction_plot(NETWORKS[:1], tmp_path / "b.png", title="One", errors=[])
    assert not any("fresh" in text for text in drawn.texts())


def test_profiles_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one bar, got none"):
        layer_bars([], tmp_path / "a.png", title="None", note="")
    with pytest.raises(ValueError, match="at least one unit, got none"):
        staircases([], tmp_path / "a.png", title="None")
    with pytest.raises(ValueError, match="at least one network, got none"):
        prediction_plot([], tmp_path / "a.png", title="None", errors=[])
