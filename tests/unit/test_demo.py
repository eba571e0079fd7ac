"""The demo: its data set is reproducible and right, its weights are small and portable."""

from __future__ import annotations

import hashlib
import pickletools
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoprune.demo import demo_weights, shapes_dataset
from autoprune.demo.shapes import CLASSES, Shape, draw_shape, label_line
from autoprune.errors import DataError

ABSOLUTE_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/])")


def small_dataset(root: Path, *, seed: int = 0) -> Path:
    return shapes_dataset(root, train=6, val=4, size=128, seed=seed)


def digests(data: Path) -> dict[str, str]:
    files = sorted(path for path in data.parent.rglob("*") if path.is_file())
    return {str(path.relative_to(data.parent)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("cache"))


def test_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    again = digests(small_dataset(tmp_path))
    assert again == digests(data)
    assert len(again) == 2 * (6 + 4) + 1


def test_another_seed_gives_other_pictures(data: Path, tmp_path: Path) -> None:
    first, other = digests(data), digests(small_dataset(tmp_path, seed=1))
    assert first["images/train/00000.jpg"] != other["images/train/00000.jpg"]


def test_train_and_val_share_no_picture(data: Path) -> None:
    pictures = [digest for name, digest in digests(data).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)


def test_labels_are_valid(data: Path) -> None:
    labels = sorted((data.parent / "labels").rglob("*.txt"))
    lines = [line.split() for path in labels for line in path.read_text().splitlines()]
    assert len(lines) >= 3 * len(labels)
    assert {int(line[0]) for line in lines} == set(range(len(CLASSES)))
    boxes = np.array([[float(value) for value in line[1:]] for line in lines])
    assert boxes.shape[1] == 4
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all()
    assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 1 + 1e-6).all()


def drawn_box(mask: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.max(axis=1) > 127), np.flatnonzero(mask.max(axis=0) > 127)
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@pytest.mark.parametrize("kind", range(len(CLASSES)), ids=CLASSES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_a_box_holds_the_drawn_pixels_tightly(kind: int, angle: float) -> None:
    shape = Shape(kind, x=40.3, y=60.8, radius=25.0, angle=angle)
    mask = np.zeros((100, 100), dtype=np.uint8)
    draw_shape(mask, shape, colour=(255.0,))
    # A corner that is narrower than a pixel leaves no pixel more than half covered.
    assert shape.box(100) == pytest.approx(drawn_box(mask), abs=2.0)


def test_a_label_is_the_box_as_shares_of_the_image() -> None:
    square = Shape(CLASSES.index("square"), x=50.0, y=25.0, radius=10.0)
    assert label_line(square, size=100) == "1 0.500000 0.250000 0.200000 0.200000"


def test_a_box_ends_at_the_picture() -> None:
    square = Shape(CLASSES.index("square"), x=2.0, y=50.0, radius=10.0)
    assert square.box(100) == pytest.approx((0.0, 40.0, 12.0, 60.0))


def test_an_existing_dataset_is_returned_untouched(data: Path) -> None:
    before = data.stat().st_mtime_ns
    assert small_dataset(data.parent.parent) == data
    assert data.stat().st_mtime_ns == before


def test_the_cache_folder_is_the_default(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(data.parent.parent))
    assert shapes_dataset(train=6, val=4, size=128) == data


def test_leftovers_of_a_killed_run_do_no_harm(data: Path, tmp_path: Path) -> None:
    name = data.parent.name
    for leftover in (f".{name}-killed/{name}/images/train", f"{name}/images/train"):
        (tmp_path / leftover).mkdir(parents=True)
        (tmp_path / leftover / "00000.jpg").write_bytes(b"half a pict")
    assert digests(small_dataset(tmp_path)) == digests(data)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.demo.shapes.random_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small_dataset(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_slower_process_takes_what_the_faster_one_made(data: Path, tmp_path: Path) -> None:
    from autoprune.demo import shapes

    late = tmp_path / "late"
    late.mkdir()
    shapes._put_in_place(late, data.parent)
    assert data.is_file()


@pytest.mark.parametrize("option", [{"train": 0}, {"val": 0}, {"size": 10}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, option: dict[str, int]) -> None:
    (name, value) = next(iter(option.items()))
    with pytest.raises(DataError, match=rf"{name} .* must be at least \d+, got {value}"):
        shapes_dataset(tmp_path, **option)


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="AUTOPRUNE_CACHE"):
        small_dataset(tmp_path / "file")


def test_the_demo_imports_no_torch() -> None:
    code = "import sys, autoprune.demo; sys.exit('torch' in sys.modules or 'ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_weights_are_small() -> None:
    assert demo_weights().stat().st_size <= 2_000_000


def test_the_weights_name_no_absolute_path() -> None:
    with zipfile.ZipFile(demo_weights()) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = pickletools.genops(archive.read(pickled))
        strings = [argument for _, argument, _ in operations if isinstance(argument, str)]
    assert "shapes.yaml" in strings
    assert [text for text in strings if ABSOLUTE_PATH.match(text)] == []


def test_the_weights_load_in_stock_ultralytics() -> None:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import torch_safe_load

    checkpoint, _ = torch_safe_load(demo_weights(), safe_only=True)
    assert checkpoint["optimizer"] is None
    assert str(next(checkpoint["model"].parameters()).dtype) == "torch.float16"
    assert tuple(YOLO(demo_weights()).names.values()) == CLASSES
