"""``autoprune data`` as a user runs it, on made-up data sets in the published layouts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from autoprune.cli.main import main
from autoprune.data.oxford_hand import FOLDERS, hull
from autoprune.models.detection.data_set import read_data_set, verified
from tests.helpers.world import one_sentence

WIDTH, HEIGHT = 64, 48
Corners = Sequence[tuple[float, float]]
TURNED: Corners = ((10.5, 20.5), (20.5, 30.5), (30.5, 20.5), (20.5, 10.5))
"""Corners (y, x) of a square on its tip; in x and y its hull spans 10 to 30 pixels."""
OUTSIDE: Corners = ((-9.5, 60.5), (-9.5, 80.5), (10.5, 80.5), (10.5, 60.5))
"""Sticks out of the image: x from 60 to its right edge, y from its upper edge to 10."""
BEYOND: Corners = ((5.5, 70.5), (5.5, 80.5), (9.5, 80.5), (9.5, 70.5))
"""Lies right of the image."""


def write_image(folder: Path, name: str) -> None:
    """Write an image where Oxford Hand has those of a split."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{name}.jpg"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def write_annotation(folder: Path, name: str, boxes: Sequence[Any]) -> Path:
    """Write a 1×n cell array of structs, as the published annotations are."""
    cells = np.empty((1, len(boxes)), dtype=object)
    for index, corners in enumerate(boxes):
        fields = zip("abcd", corners, strict=False)
        cells[0, index] = {**{field: np.array([corner]) for field, corner in fields}, "hand": "L"}
    return save(folder, name, {"boxes": cells})


def save(folder: Path, name: str, content: dict[str, Any]) -> Path:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    path = folder / "annotations" / f"{name}.mat"
    savemat(path, content)
    return path


@pytest.fixture
def hands(tmp_path: Path) -> Path:
    """Oxford Hand in miniature: an image of one hand in each split, and some special ones in training."""
    root = tmp_path / "hand_dataset"
    for folder in FOLDERS.values():
        write_image(root / folder, "one")
        write_annotation(root / folder, "one", [TURNED])
    training = root / FOLDERS["train"]
    for name, boxes in {"several": [TURNED, OUTSIDE, BEYOND], "none": []}.items():
        write_image(training, name)
        write_annotation(training, name, boxes)
    return root


def convert(source: Path, target: Path) -> int:
    return main(["data", "oxford-hand", str(source), str(target)])


# -- what it writes ----------------------------------------------------------------------------------


def test_the_result_is_read_as_ultralytics_reads_it(hands: Path, tmp_path: Path) -> None:
    assert convert(hands, tmp_path / "made") == 0
    shutil.move(tmp_path / "made", tmp_path / "moved")
    data = read_data_set(tmp_path / "moved" / "oxford-hand.yaml")
    assert data.names == ("hand",)
    assert {split: len(data.files(split)) for split in FOLDERS} == {"train": 3, "val": 1, "test": 1}
    found: dict[str, Any] = {Path(file).stem: verified(file, data, "detect") for file in data.files("train")}
    assert all(isinstance(label, dict) and not label["cls"].any() for label in found.values())
    turned = [20 / WIDTH, 20 / HEIGHT, 20 / WIDTH, 20 / HEIGHT]
    np.testing.assert_allclose(found["one"]["bboxes"], [turned], atol=1e-6)
    outside = [62 / WIDTH, 5 / HEIGHT, 4 / WIDTH, 10 / HEIGHT]
    np.testing.assert_allclose(found["several"]["bboxes"], [turned, outside], atol=1e-6)
    assert found["none"]["bboxes"].shape == (0, 4)


def test_images_are_copied_and_the_source_is_left_alone(hands: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in hands.rglob("*") if path.is_file()}
    assert convert(hands, tmp_path / "made") == 0
    assert {path: path.read_bytes() for path in hands.rglob("*") if path.is_file()} == before
    image = hands / FOLDERS["test"] / "images" / "one.jpg"
    assert (tmp_path / "made" / "images" / "test" / "one.jpg").read_bytes() == before[image]


def test_it_says_what_there_is_what_was_left_out_and_what_comes_next(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "made"
    write_image(hands / FOLDERS["val"], "lonely")
    write_annotation(hands / FOLDERS["test"], "forlorn", [TURNED])
    (hands / FOLDERS["val"] / "images" / "._one.jpg").write_bytes(b"what macOS packs next to a file")
    assert convert(hands, target) == 0
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines() if line.split()[:1] in (["train"], ["val"], ["test"])] == [
        ["train", "3", "3", "1"],
        ["val", "1", "1", "0"],
        ["test", "1", "1", "0"],
    ]
    assert f"autoprune search --model best.pt --data {target / 'oxford-hand.yaml'} --budget" in said.out
    unpaired, dropped = said.err.splitlines()
    assert unpaired.startswith("Left out, because an image lacks its annotation or an annotation its image: 2 files")
    assert "lonely.jpg" in unpaired
    assert dropped == "Left out, because less than a pixel of them lies within their image: 1 boxes"
    assert not (target / "images" / "val" / "lonely.jpg").exists()


def test_the_folder_that_holds_the_archives_is_found_too(hands: Path, tmp_path: Path) -> None:
    assert convert(hands.parent, tmp_path / "made") == 0
    assert (tmp_path / "made" / "oxford-hand.yaml").exists()


numbers = st.floats(-100, 200)


@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=4))
def test_any_corners_give_a_box_in_the_image_around_what_lies_in_it(corners: list[tuple[float, float]]) -> None:
    edges = np.array(corners) - 0.5
    inside = np.clip(edges, 0, [HEIGHT, WIDTH])
    box = hull(np.array(corners)).within(WIDTH, HEIGHT)
    if box is None:
        assert np.ptp(inside, axis=0).min() < 1
        return
    assert 0 <= box.left < box.right <= WIDTH
    assert 0 <= box.top < box.bottom <= HEIGHT
    assert ((inside >= [box.top, box.left]) & (inside <= [box.bottom, box.right])).all()
    kind, *shares = box.label(WIDTH, HEIGHT).split()
    assert kind == "0"
    x, y, width, height = map(float, shares)
    assert all(0 <= share <= 1 for share in (x, y, width, height))
    assert (x - width / 2) * WIDTH == pytest.approx(box.left, abs=1e-4)
    assert (y + height / 2) * HEIGHT == pytest.approx(box.bottom, abs=1e-4)


# -- what it refuses ---------------------------------------------------------------------------------


def refused(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a conversion that must fail says; it must leave nothing behind."""
    before = sorted(target.parent.iterdir())
    capsys.readouterr()
    assert convert(source, target) == 2
    assert sorted(target.parent.iterdir()) == before
    return one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"hands": np.zeros(2)}, "it has no variable boxes"),
        ({"boxes": np.ones((1, 2))}, "a box must be a struct with the corners a, b, c, d, got no struct"),
    ],
)
def test_an_annotation_without_boxes_is_named(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], said: str
) -> None:
    file = save(hands / FOLDERS["val"], "one", content)
    assert f"The annotation {file} cannot be read: {said}" in refused(hands, tmp_path / "made", capsys)


@pytest.mark.parametrize(
    ("corners", "said"),
    [
        (TURNED[:3], "a box must be a struct with the corners a, b, c, d, got the fields a, b, c, hand"),
        ([*TURNED[:3], (1.0, np.nan)], "a corner must be two finite numbers, got [["),
        ([(1.0, 2.0, 3.0)] * 4, "a corner must be two finite numbers, got [["),
        ([*TURNED[:3], (1.0,)], ""),
    ],
)
def test_a_malformed_box_is_named(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], corners: Any, said: str
) -> None:
    file = write_annotation(hands / FOLDERS["val"], "one", [corners])
    assert f"The annotation {file} cannot be read: {said}" in refused(hands, tmp_path / "made", capsys)


@pytest.mark.parametrize("content", [b"", b"not MATLAB's", bytes(range(256)) * 4])
def test_a_broken_file_is_named(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    training = hands / FOLDERS["train"]
    (training / "annotations" / "one.mat").write_bytes(content)
    assert f"{training / 'annotations' / 'one.mat'} cannot be read: " in refused(hands, tmp_path / "made", capsys)
    write_annotation(training, "one", [TURNED])
    (training / "images" / "one.jpg").write_bytes(content)
    assert "one.jpg cannot be read (it is of no known format)" in refused(hands, tmp_path / "made", capsys)


def test_another_layout_says_what_was_looked_for(
    hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(hands / FOLDERS["test"] / "annotations")
    said = refused(hands, tmp_path / "made", capsys)
    assert all(str(folder) in said for folder in FOLDERS.values())
    assert "nowhere must be the folder" in refused(tmp_path / "nowhere", tmp_path / "made", capsys)


def test_a_split_without_a_pair_is_named(hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hands / FOLDERS["test"] / "images" / "one.jpg").unlink()
    said = refused(hands, tmp_path / "made", capsys)
    assert f"{hands / FOLDERS['test']} must hold images with annotations of the same name" in said


def test_a_folder_that_exists_is_refused(hands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    assert f"{tmp_path / 'made'} exists already" in refused(hands, tmp_path / "made", capsys)


def test_an_interrupt_leaves_nothing(hands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.data._base.shutil.copyfile", interrupted)
    assert convert(hands, tmp_path / "made") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["hand_dataset"]
