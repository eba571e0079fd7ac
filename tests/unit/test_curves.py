"""Sensitivity curves: what is read between the measured points, and the file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import ConfigError
from autoprune.policy import PolicyModel
from autoprune.strategies.curves import Curve, CurvesHeader, SensitivityCurves, curves_from, probe_plan
from autoprune.structure.space import Space
from tests.helpers.toy import chain_graph

SPACE = Space(chain_graph((16, 32, 8, 64)), round_to=8)
HEADER = CurvesHeader(PolicyModel("yolov8n", {"conv0": 16, "conv1": 32}), criterion="l1", images=60, seed=3)
CURVES = SensitivityCurves(
    (
        Curve("conv0", 16, ((8, -0.25),)),
        Curve("conv1", 32, ((8, -0.9), (16, -0.2), (24, 0.01))),
        Curve("conv2", 8, ()),
        Curve("conv3", 64, ((32, -0.125),)),
    )
)

TEXT = """\
{
  "schema_version": 1,
  "model": {
    "name": "yolov8n",
    "fingerprint": "FINGERPRINT",
    "layers": {
      "conv0": 16,
      "conv1": 32
    }
  },
  "criterion": "l1",
  "images": 60,
  "seed": 3,
  "units": [
    {"name": "conv0", "channels": 16, "scores": [{"keep": 8, "score": -0.25}]},
    {"name": "conv1", "channels": 32, "scores": [{"keep": 8, "score": -0.9}, {"keep": 16, "score": -0.2}, \
{"keep": 24, "score": 0.01}]},
    {"name": "conv2", "channels": 8, "scores": []},
    {"name": "conv3", "channels": 64, "scores": [{"keep": 32, "score": -0.125}]}
  ]
}
""".replace("FINGERPRINT", HEADER.model.fingerprint)


def test_one_point_is_continued_with_the_square_of_the_pruned_share() -> None:
    rises = CURVES.rises(SPACE)[3]
    pruned = 1 - SPACE.choices[3] / 64
    np.testing.assert_allclose(rises, 0.125 * (pruned / 0.5) ** 2, atol=1e-12)


def test_measured_points_are_met_and_joined() -> None:
    rises = dict(zip(SPACE.choices[1].tolist(), CURVES.rises(SPACE)[1], strict=True))
    assert rises[8] == pytest.approx(0.9)
    assert rises[16] == pytest.approx(0.2)
    assert 0 < rises[24] < 1e-3  # a better score than the dense network's is noise
    assert rises[32] == 0


def test_a_power_law_is_found_again_between_the_points() -> None:
    keeps = np.array([7, 30, 55])
    curve = Curve("unit", 64, tuple((int(keep), -0.8 * (1 - keep / 64) ** 1.3) for keep in keeps))
    between = np.arange(7, 56)
    np.testing.assert_allclose(curve.rises(between), 0.8 * (1 - between / 64) ** 1.3, rtol=1e-9)


points = st.integers(2, 300).flatmap(
    lambda width: st.builds(
        lambda keeps, scores: Curve("unit", width, tuple(zip(sorted(keeps), scores, strict=False))),
        st.sets(st.integers(1, width - 1), min_size=1, max_size=6),
        st.lists(st.floats(-50, 50), min_size=6, max_size=6),
    )
)


@given(points)
def test_no_rise_grows_with_more_channels(curve: Curve) -> None:
    rises = curve.rises(np.arange(1, curve.width + 1))
    assert (np.diff(rises) <= 1e-12 * rises[:-1]).all()
    assert rises[-1] == 0
    assert (rises[:-1] > 0).all()


def test_the_plan_prunes_one_unit_at_a_time_to_choices() -> None:
    plan = probe_plan(SPACE, (0.75, 0.5, 0.25))
    # 16 channels: 8 for all three ratios; 8 channels have no choice.
    assert plan == [
        (8, 32, 8, 64),
        (16, 24, 8, 64),
        (16, 16, 8, 64),
        (16, 8, 8, 64),
        (16, 32, 8, 48),
        (16, 32, 8, 32),
        (16, 32, 8, 16),
    ]


def test_a_plan_and_its_scores_are_curves() -> None:
    plan = probe_plan(SPACE, (0.75, 0.5))
    curves = curves_from(SPACE, plan, [-0.1 * index for index in range(len(plan))])
    assert [curve.points for curve in curves.curves] == [
        ((8, 0.0),),
        ((16, -0.2), (24, -0.1)),
        (),
        ((32, -0.4), (48, pytest.approx(-0.3))),
    ]
    curves.check(SPACE)


def test_the_file_is_laid_out_for_people(tmp_path: Path) -> None:
    CURVES.save(tmp_path / "curves.json", HEADER)
    assert (tmp_path / "curves.json").read_text() == TEXT
    assert SensitivityCurves.load(tmp_path / "curves.json") == (HEADER, CURVES)


names = st.text(min_size=1, max_size=12)
headers = st.builds(
    CurvesHeader,
    model=st.builds(PolicyModel, name=names, layers=st.dictionaries(names, st.integers(1, 4096), max_size=4)),
    criterion=names,
    images=st.integers(1),
    seed=st.integers(),
)


@given(headers, st.lists(points, max_size=4))
def test_json_round_trips_exactly(header: CurvesHeader, found: list[Curve]) -> None:
    curves = SensitivityCurves(tuple(found))
    assert SensitivityCurves.from_json(curves.to_json(header)) == (header, curves)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema_version is 2, this autoprune reads 1"),
        ('"images": 60', '"images": "60"', 'images must be a whole number, got "60"'),
        ('"seed": 3', '"sed": 3', "lacks the entry 'seed'"),
        ('"seed": 3', '"seed": 3, "x": 1', "unknown entry 'x'"),
        ('"keep": 32, "score": -0.125', '"keep": 64, "score": -0.125', "keep 1 to 63 channels of conv3, got 64"),
        ('"keep": 32, "score": -0.125', '"keep": 32, "score": null', "score must be a number, got null"),
        ('"keep": 24', '"keep": 16', "ascend by keep, got 16 after 16 for conv1"),
        ('"keep": 24, "score"', '"keep": 24, "mAP": 1, "score"', "unknown entry 'mAP'"),
        ('"channels": 8', '"channels": 0', "conv2 must have at least 1 channel, got 0"),
        ('"conv0": 16', '"conv0": 17', "fingerprint does not belong to layers"),
        ('"seed": 3,', '"seed": 3', "not valid JSON at line"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_that_names_it(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in TEXT
    path = tmp_path / "curves.json"
    path.write_text(TEXT.replace(before, after, 1) if before != '"conv0": 16' else TEXT.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        SensitivityCurves.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read: No such file"):
        SensitivityCurves.load(tmp_path / "absent.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.json has no sensitivity curves"):
        SensitivityCurves.load(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        (CURVES.curves[:3], "unit 4 is absent in the curves, conv3 with 64 channels in the model"),
        ((*CURVES.curves, Curve("conv4", 8, ())), "unit 5 is conv4 with 8 channels in the curves, absent in the model"),
        (
            (CURVES.curves[0], replace(CURVES.curves[1], width=48), *CURVES.curves[2:]),
            "unit 2 is conv1 with 48 channels in the curves, conv1 with 32 channels in the model",
        ),
        ((replace(CURVES.curves[0], points=()), *CURVES.curves[1:]), "no score of conv0, which may keep 8 to 16"),
    ],
)
def test_curves_of_another_model_are_refused(curves: tuple[Curve, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SensitivityCurves(curves).rises(SPACE)


def test_curves_serve_a_finer_rounding_too() -> None:
    curves = SensitivityCurves((*CURVES.curves[:2], Curve("conv2", 8, ((4, -0.3),)), CURVES.curves[3]))
    fine = curves.rises(Space(SPACE.graph, round_to=4))
    assert fine[1][3] == pytest.approx(0.2)  # 4, 8, 12, 16 …
    assert json.loads(curves.to_json(HEADER))["units"][2]["scores"] == [{"keep": 4, "score": -0.3}]
