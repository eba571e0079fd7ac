"""The result model: what is written is read again as it was, and only what this version wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.budget import Limit
from autoprune.errors import RunError
from autoprune.evaluation.runners import Usage
from autoprune.listener import SilentListener
from autoprune.report.chart import Chart
from autoprune.report.sections import publish, sections
from autoprune.report.table import Table
from autoprune.report.tables import class_table, comparison_table, stage_table, workers_table
from autoprune.report.together import overview
from autoprune.results import RESULT_VERSION, Compared, LimitResult, Metrics, Result, Stage

TIME = {"median": 10.0, "p10": 9.0, "p90": 12.0, "runs": 40}
DENSE = Stage(
    Metrics({"mAP50-95": 0.5, "mAP50": 0.8}, {"cat": {"mAP50-95": 0.5, "mAP50": 0.8}}),
    {"flops": 100.0, "params": 20.0},
    {"latency": TIME},
)
PRUNED = Stage(
    Metrics({"mAP50-95": 0.4, "mAP50": 0.7}), {"params": 5.0, "flops": 25.0}, {"latency": {**TIME, "median": 5.0}}
)
UNMEASURED = Stage(None, {"params": 5.0}, details={"zeros": 0.5})
FOUND = Result(
    "search",
    "tiny, flops=30%",
    ("mAP50-95", "mAP50"),
    stages={"dense": DENSE, "pruned": PRUNED, "other": UNMEASURED},
    budget=[LimitResult.of(Limit.parse("flops=30%"), DENSE, PRUNED)],
    figures={"search": {"seconds": 1.5}},
    environment={"torch": "2"},
)


def comparison(*, points: int = 3) -> Result:
    before, after = [Metrics({"mAP50-95": 0.2})], [Metrics({"mAP50-95": 0.3})] * 2
    rows = [
        Compared(name, before, after, {"flops": [0.5, 0.6]}, scores=scores)
        for name, scores in (("random", [-0.4, -0.2]), ("ppo", [-0.1, -0.1]))
    ]
    dense = Compared("dense, trained on", [], after, {"flops": [1.0]})
    found = [[-0.1 * one, 0.3 - 0.1 * one] for one in range(points)]
    return replace(
        FOUND,
        stages={"dense": DENSE},
        budget=[],
        compared={"strategies": rows, "references": [dense]},
        figures={
            "correlation": {"spearman": 1.0, "networks": points, "points": found, "names": list("abcdefgh"[:points])},
            "histories": {"random": [[None, -0.4, -0.2]], "ppo": [[-0.1]]},
        },
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for one in (FOUND, comparison()):
        assert Result.load(one.save(tmp_path / "summary.json")) == one


def test_the_file_has_a_version_and_metrics_by_their_names(tmp_path: Path) -> None:
    found = json.loads(FOUND.save(tmp_path / "summary.json").read_text())
    assert found["version"] == RESULT_VERSION == 2
    assert found["stages"]["dense"]["metrics"] == {"mAP50-95": 0.5, "mAP50": 0.8}
    assert found["stages"]["dense"]["per_class"] == {"cat": {"mAP50-95": 0.5, "mAP50": 0.8}}
    assert found["stages"]["pruned"]["speed_up"] == {"flops": 4.0, "params": 4.0, "latency": 2.0}
    assert found["stages"]["other"]["speed_up"] == {"params": 4.0}, "what was not measured has no factor"
    assert found["stages"]["other"]["metrics"] is None
    assert found["budget"][0] == {
        **{
            "metric": "flops",
            "requested": "flops=30%",
            "limit": 30.0,
            "dense": 100.0,
            "achieved": 25.0,
            "satisfied": True,
        }
    }
    assert found["search"] == {"seconds": 1.5}


def test_metrics_are_a_mapping_whose_first_decides() -> None:
    found = Metrics({"mIoU": 0.3, "pixels": 0.9})
    assert (found.primary, list(found), found["pixels"], len(found)) == (0.3, ["mIoU", "pixels"], 0.9, 2)
    assert found != Metrics(found.values_by_name, {"cat": {"mIoU": 0.3}})


def test_costs_are_in_one_order_and_whole_where_they_are_counts() -> None:
    stage = Stage(None, {"channels": 8.2, "params": 20.4, "flops": 1.5})
    assert list(stage.costs.items()) == [("flops", 1.5), ("params", 20), ("channels", 8)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"dense": {"accuracy": {"main": 0.5, "lenient": 0.8}}}', "result of version 1, this autoprune reads 2; run"),
        ('{"version": 3}', "result of version 3, this autoprune reads 2; run the command again"),
        ('{"version": 2}', "is damaged"),
        ('{"version": 2, "command": "search", "title": "", "metric_names": [], "stages": []}', "is damaged"),
        ("[" * 100_000, "must be a result of autoprune, and cannot be read"),
        ("[]", "must be a result of autoprune, and cannot be read"),
        ("{", "must be a result of autoprune, and cannot be read"),
    ],
)
def test_what_another_version_wrote_is_refused_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(RunError) as refused:
        Result.load(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["command"], 5),
        (["metric_names"], "mAP50"),
        (["stages"], []),
        (["stages", "dense"], None),
        (["stages", "dense", "metrics"], {}),
        (["stages", "dense", "metrics"], {"mAP50-95": "high"}),
        (["stages", "dense", "costs"], {"flops": None}),
        (["stages", "dense", "costs"], ["flops"]),
        (["stages", "dense", "latencies"], {"latency": 8.0}),
        (["stages", "dense", "latencies"], {"latency": {"p10": 1.0}}),
        (["stages", "dense", "latencies"], {"latency@p95": {"median": 2.0, "p10": 1.0, "p90": 3.0}}),
        (["budget"], {}),
        (["budget"], [{"metric": "flops"}]),
        (["budget", 0, "limit"], "30%"),
        (["compared"], {"strategies": 1}),
        (["compared"], {"strategies": [{"name": "ppo"}]}),
        (["environment"], []),
    ],
)
def test_a_result_of_a_wrong_shape_is_refused_in_one_sentence(tmp_path: Path, place: list[Any], value: Any) -> None:
    path = FOUND.save(tmp_path / "summary.json")
    content = json.loads(path.read_text())
    at = content
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"summary\.json is damaged: .*; run the command again$"):
        Result.load(path)


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        Result.load(tmp_path / "summary.json")


def test_the_table_of_networks_has_metrics_costs_with_ratios_and_latencies(tmp_path: Path) -> None:
    table = stage_table(FOUND, tmp_path)
    assert table is not None
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["mAP50-95"] == ["0.500", "0.400", "–"]
    assert rows["FLOPs"] == ["100", "25 (25%)", "–"]
    assert rows["latency"] == ["10.00 ms", "5.00 ms (50%)", "–"]
    assert rows["p10 – p90"] == ["9.00 – 12.00 ms", "9.00 – 12.00 ms", "–"]
    assert rows["zeros"] == ["–", "–", "50.0%"]


def by_class(values: dict[str, float]) -> Stage:
    return Stage(
        Metrics({"mAP50-95": 0.5, "mAP50": 0.8}, {name: {"mAP50-95": value} for name, value in values.items()})
    )


def test_the_table_of_classes_has_their_primary_metric_and_how_it_changed(tmp_path: Path) -> None:
    stages = {"dense": by_class({"cat": 0.5, "dog": 0.4}), "pruned": by_class({"cat": 0.45}), "other": UNMEASURED}
    found = replace(FOUND, stages=stages)
    table = class_table(found, tmp_path)
    assert table is not None
    assert table.title == "tiny, flops=30%: mAP50-95 of each class"
    assert (table.header, table.rows) == (
        ["", "dense", "pruned"],
        [["cat", "0.500", "0.450 (-0.050)"], ["dog", "0.400", "–"]],
    )
    assert table in sections(found, tmp_path)


def test_a_page_shows_what_workers_were_used_for(tmp_path: Path) -> None:
    assert workers_table(FOUND, tmp_path) is None
    usage = Usage(workers=4, tasks=20, repeated=1, busy=36.0, wall=10.0)
    found = replace(FOUND, figures={"workers": usage.to_json()})
    (row,) = workers_table(found, tmp_path) or []
    assert list(row.values()) == ["4", "20", "3.6", "90%", "1"]
    assert "Workers" in [table.title for table in sections(found, tmp_path)]


@pytest.mark.parametrize("classes", [0, 1, 41])
def test_a_single_class_or_very_many_have_no_table(tmp_path: Path, classes: int) -> None:
    stages = {"dense": by_class({str(number): 0.5 for number in range(classes)})}
    assert class_table(replace(FOUND, stages=stages), tmp_path) is None


def test_the_table_marks_latencies_that_were_measured_under_load(tmp_path: Path) -> None:
    loaded = replace(PRUNED, latencies={"latency": {**TIME, "under_load": True}})
    table = stage_table(replace(FOUND, stages={"dense": DENSE, "pruned": loaded}), tmp_path)
    assert table is not None
    assert "latency (measured under load)" in [row[0] for row in table.rows]


def test_the_table_of_a_comparison_has_the_best_first_and_references_last(tmp_path: Path) -> None:
    assert stage_table(comparison(), tmp_path) is None
    table = comparison_table(comparison(), tmp_path)
    assert table is not None
    assert [row[0] for row in table.rows] == ["ppo", "random", "dense", "dense, trained on"]
    assert table.rows[1][1:5] == ["-0.3000 ± 0.1414", "0.200", "0.300 ± 0.000", "55.0%"]
    assert table.rows[2][2:4] == ["0.500", "–"], "nothing trained it"


def test_runs_that_make_no_network_have_no_costs_next_to_those_that_do() -> None:
    profiled = replace(FOUND, command="profile", title="profile")
    (table,) = overview([("a", FOUND), ("b", replace(comparison(), title="compared")), ("c", profiled)])
    assert isinstance(table, Table)
    assert [row[-1] for row in table.rows] == ["5 (25%)", "–", "–"], "parameters"


def test_sections_are_what_applies_in_order(tmp_path: Path) -> None:
    (only,) = sections(FOUND, tmp_path)
    assert isinstance(only, Table)
    charts = [one.name for one in sections(comparison(), tmp_path) if isinstance(one, Chart)]
    assert charts == ["comparison", "progress", "correlation"]
    few = [one.name for one in sections(comparison(points=2), tmp_path) if isinstance(one, Chart)]
    assert few == ["comparison", "progress"], "two networks have no correlation"
    assert not list(tmp_path.iterdir()), "nothing is written before it is published"


def test_a_fine_tune_that_lost_accuracy_is_told(tmp_path: Path) -> None:
    heard: list[str] = []

    class Heard(SilentListener):
        def warn(self, text: str) -> None:
            heard.append(text)

    for accuracy in (0.41, 0.36):
        tuned = replace(PRUNED, metrics=Metrics({"mAP50-95": accuracy, "mAP50": 0.7}))
        publish(replace(FOUND, stages={**FOUND.stages, "finetuned": tuned}), tmp_path / "summary.json", Heard())
    (said,) = heard
    assert "lowered mAP50-95 from 0.400 to 0.360: the network before it is the better one" in said


def test_publishing_writes_and_shows(tmp_path: Path) -> None:
    heard: list[str] = []

    class Heard(SilentListener):
        def table(self, title: str, header: object, rows: object) -> None:
            heard.append(title)

    found = replace(FOUND, stages={**FOUND.stages, "dense": by_class({"cat": 0.5, "dog": 0.4})})
    publish(found, tmp_path / "summary.json", Heard())
    assert heard == ["tiny, flops=30%"], "classes are for reports"
    publish(comparison(), tmp_path / "compare.json", Heard())
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == ["comparison", "correlation", "progress"]
    assert Result.load(tmp_path / "summary.json") == found
