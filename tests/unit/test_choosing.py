"""Which images are looked at: labelled ones are always among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import DataError
from autoprune.evaluation.pruning import evidence_of
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.models.detection.data_set import balanced
from autoprune.workflows.quantize import shared_out
from tests.helpers.darknet_detector import write_detector as write_darknet
from tests.helpers.detectors import write_data, write_detector
from tests.helpers.task_data import add_backgrounds

KINDS = st.text("lbx", max_size=30)
"""Images with labels, backgrounds, and images with labels that cannot be read."""


def order(kinds: str, *, rest: bool = True) -> list[str]:
    files = [f"{kind}{number}" for number, kind in enumerate(kinds)]
    return [
        str(sample["im_file"])
        for sample in balanced(
            files,
            labelled=lambda file: file[0] in "lx",
            read=lambda file: None if file[0] == "x" else {"im_file": file},
            rest=rest,
        )
    ]


@given(KINDS)
def test_at_least_half_of_the_first_images_have_labels_while_there_are_any(kinds: str) -> None:
    found = order(kinds)
    assert sorted(found) == sorted(f"{kind}{number}" for number, kind in enumerate(kinds) if kind != "x")
    for count in range(1, len(found) + 1):
        labelled = sum(file[0] == "l" for file in found[:count])
        assert 2 * labelled >= count or labelled == kinds.count("l")
    assert order(kinds, rest=False) == found[: 2 * kinds.count("l")]


@given(KINDS, st.integers(1, 30))
def test_where_half_of_the_images_drawn_have_labels_they_stay(kinds: str, count: int) -> None:
    drawn = [f"{kind}{number}" for number, kind in enumerate(kinds) if kind != "x"][:count]
    if 2 * sum(file[0] == "l" for file in drawn) >= len(drawn):
        assert sorted(order(kinds)[:count]) == sorted(drawn)


def test_labelled_images_alone_keep_their_order() -> None:
    assert order("lllxl") == ["l0", "l1", "l2", "l4"]


def test_no_more_labels_are_looked_for_than_it_takes() -> None:
    seen: list[int] = []

    def labelled(file: str) -> bool:
        seen.append(int(file))
        return int(file) % 10 == 9

    found = balanced(map(str, range(10**6)), labelled=labelled, read=lambda file: {"im_file": file}, rest=True)
    assert [next(found)["im_file"] for _ in range(4)] == ["9", "0", "19", "1"]
    assert len(seen) == 20


@pytest.fixture(scope="module", params=["ultralytics", "darknet"])
def rare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """A detector with data of which 1 image in 30 has labels."""
    folder = tmp_path_factory.mktemp("rare")
    data = write_data(folder, images=1)
    add_backgrounds(folder, 29)
    weights = write_detector(folder / "best.pt") if request.param == "ultralytics" else write_darknet(folder)
    return open_adapter(weights, data=data)


@pytest.mark.parametrize("seed", range(4))
def test_a_data_set_with_few_labels_is_never_refused(rare: Adapter, seed: int) -> None:
    for images in (1, 3):
        batches = rare.batches("train", images=images, batch=2, seed=seed)
        assert sum(len(rare.inputs(batch)) for batch in batches) == images
        assert [rare.labelled(batch) for batch in batches] == [True, False][: len(batches)]


@pytest.mark.parametrize("images", [1, 2, 20])
def test_what_scores_and_calibrates_has_no_more_backgrounds_than_labelled_images(rare: Adapter, images: int) -> None:
    (batch,) = rare.batches("train", images=images, batch=20, seed=0, balanced=True)
    (calibration,) = rare.calibration(images=images, batch=20, seed=0)
    assert len(rare.inputs(batch)) == len(calibration) == min(images, 2)
    assert rare.labelled(batch)


def test_a_split_without_any_label_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, images=3)
    for file in (tmp_path / "labels" / "train").iterdir():
        file.write_text(" \n")
    adapter = open_adapter(write_detector(tmp_path / "best.pt"), data=data)
    with pytest.raises(DataError, match=r"no image of the 'train' split .* that can be read has a label; labels are"):
        adapter.batches("train", images=1, batch=1, seed=0)


def test_criteria_look_at_no_batch_without_labels(rare: Adapter) -> None:
    (batch,) = evidence_of(rare).batches
    assert rare.labelled(batch)


@pytest.mark.parametrize("kinds", ["llllll", "lblblb", "lblbbbbb", "lbbbbb"])
def test_what_int8_is_decided_on_has_labels(kinds: str) -> None:
    batches = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    first, second = shared_out(batches, 3, lambda batch: batch["kind"] == "l")
    assert len(first) == 3
    assert sorted(batch["number"] for batch in (*first, *second)) == list(range(len(kinds)))
    assert any(batch["kind"] == "l" for batch in second)
    if set(kinds) == {"l"}:
        assert (*first, *second) == tuple(batches)
