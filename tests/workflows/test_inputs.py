"""What a run reads, told apart by content."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.config import CompareConfig, MaskConfig, QuantizeConfig, SearchConfig, SlimConfig, TrainConfig
from autoprune.strategies.registry import StrategyName
from autoprune.workflows.inputs import Inputs
from tests.helpers.detectors import write_data
from tests.helpers.task_data import write_task_data


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a data set and files in place of networks: only their content counts here."""
    folder = tmp_path / "world"
    write_data(folder / "data", images=4)
    for name in ("best.pt", "other.pt", "net.cfg", "net.weights", "curves.json", "policy.json"):
        (folder / name).write_text(name)
    return folder


def search(world: Path, **options: object) -> SearchConfig:
    given = {"model": world / "best.pt", "data": world / "data" / "data.yaml", "budget": ("flops=50%",), **options}
    return SearchConfig(**given)  # type: ignore[arg-type]


def changed(config: SearchConfig, tmp_path: Path, change: Callable[[], object]) -> str:
    """Return what is said of a change."""
    before = Inputs.of(config)
    (tmp_path / "inputs.json").write_text(before.to_json())
    assert Inputs.of(config).changes(before.digests, tmp_path / "inputs.json") == ""
    change()
    return Inputs.of(config).changes(before.digests, tmp_path / "inputs.json")


IMAGES, LABELS = Path("data/images/train"), Path("data/labels/train")

CHANGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda world: (world / "best.pt").write_text("x"), "--model: world/best.pt has changed"),
    "weights gone": (lambda world: (world / "best.pt").unlink(), "--model: world/best.pt is gone"),
    "description": (
        lambda world: (world / "data/data.yaml").write_text((world / "data/data.yaml").read_text() + "# mine\n"),
        "--data: data.yaml has changed",
    ),
    "label": (
        lambda world: (world / LABELS / "2.txt").write_text("0 0.5 0.5 0.1 0.1\n"),
        "--data (train): labels/train/2.txt has changed",
    ),
    "label gone": (lambda world: (world / LABELS / "2.txt").unlink(), "--data (train): labels/train/2.txt is gone"),
    "labels": (
        lambda world: [(world / LABELS / f"{number}.txt").write_text("") for number in (3, 1, 2)],
        "--data (train): 3 files have changed, labels/train/1.txt the first",
    ),
    "image": (
        lambda world: (world / IMAGES / "0.png").write_bytes(b"x"),
        "--data (train): images/train/0.png has changed",
    ),
    "image gone": (
        lambda world: (world / IMAGES / "0.png").unlink(),
        "--data (train): 2 files are gone, images/train/0.png the first",
    ),
    "image new": (
        lambda world: shutil.copy(world / IMAGES / "0.png", world / IMAGES / "9.png"),
        "--data (train): images/train/9.png is new",
    ),
    "image renamed": (
        lambda world: (world / IMAGES / "0.png").rename(world / IMAGES / "9.png"),
        "--data (train): 2 files are gone, images/train/0.png the first, images/train/9.png is new",
    ),
    "validation": (
        lambda world: (world / "data/labels/val/0.txt").write_text(""),
        "--data (val): labels/val/0.txt has changed",
    ),
    "two": (
        lambda world: [(world / "best.pt").write_text("x"), (world / "data/labels/val/0.txt").write_text("")],
        "--model: world/best.pt has changed; --data (val): labels/val/0.txt has changed",
    ),
    "split gone": (
        lambda world: shutil.rmtree(world / "data/images/val"),
        "--data (val): 8 files are gone, images/val/0.png the first",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_named(world: Path, tmp_path: Path, change: str) -> None:
    make, said = CHANGES[change]
    assert changed(search(world), tmp_path, lambda: make(world)) == said


def test_where_and_when_files_lie_is_no_change(world: Path, tmp_path: Path) -> None:
    before = Inputs.of(search(world))
    for file in world.rglob("*"):
        os.utime(file, (1, 1))
    moved = shutil.move(world, tmp_path / "elsewhere" / "world")
    assert Inputs.of(search(Path(moved))).digests == before.digests


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (lambda w: search(w, model=w / "net.cfg"), "net.weights", "--model: world/net.weights has changed"),
        (lambda w: search(w, model=w / "net.cfg"), "net.cfg", "--model: world/net.cfg has changed"),
        (
            lambda w: search(w, model=Path(f"{w / 'net.py'}:make@{w / 'best.pt'}"), data=None),
            "net.py",
            "--model: world/net.py has changed",
        ),
        (
            lambda w: search(w, model=Path(f"{w / 'net.py'}:make@{w / 'best.pt'}"), data=None),
            "best.pt",
            "--model: world/best.pt has changed",
        ),
        (
            lambda w: search(w, strategy=StrategyName.SENSITIVITY, sensitivity=w / "curves.json"),
            "curves.json",
            "--sensitivity: world/curves.json has changed",
        ),
        (
            lambda w: search(w, warm_start=(str(w / "first"), str(w / "second"))),
            "second/journal.jsonl",
            "--warm-start: second/journal.jsonl has changed",
        ),
        (
            lambda w: SlimConfig(architecture=str(w / "own.yaml"), data=w / "data/data.yaml", budget=("flops=50%",)),
            "own.yaml",
            "--architecture: world/own.yaml has changed",
        ),
        (
            lambda w: TrainConfig(
                model=w / "best.pt", data=w / "data/data.yaml", policy=w / "policy.json", distill=w / "other.pt"
            ),
            "policy.json",
            "--policy: world/policy.json has changed",
        ),
        (
            lambda w: TrainConfig(
                model=w / "best.pt", data=w / "data/data.yaml", policy=w / "policy.json", distill=w / "other.pt"
            ),
            "other.pt",
            "--distill: world/other.pt has changed",
        ),
        (
            lambda w: QuantizeConfig(model=w / "best.pt", data=w / "data/data.yaml", dense=w / "other.pt"),
            "other.pt",
            "--dense: world/other.pt has changed",
        ),
        (
            lambda w: MaskConfig(model=w / "best.pt", data=w / "data/data.yaml"),
            "best.pt",
            "--model: world/best.pt has changed",
        ),
        (
            lambda w: CompareConfig(model=w / "best.pt", data=w / "data/data.yaml", budget=("flops=50%",)),
            "best.pt",
            "--model: world/best.pt has changed",
        ),
    ],
)
def test_every_file_that_an_option_names_counts(
    world: Path, tmp_path: Path, config: Callable[[Path], SearchConfig], change: str, said: str
) -> None:
    for name in ("net.py", "own.yaml", "first/journal.jsonl", "second/journal.jsonl"):
        (world / name).parent.mkdir(exist_ok=True)
        (world / name).write_text(name)
    assert changed(config(world), tmp_path, lambda: (world / change).write_text("changed")) == said


def test_runs_of_one_name_in_two_folders_count_both(world: Path, tmp_path: Path) -> None:
    runs = tuple(world / folder / "search-1" for folder in ("a", "b"))
    for run in runs:
        run.mkdir(parents=True)
        (run / "journal.jsonl").write_text("old")
    for run, name in zip(runs, ("search-1/journal.jsonl", "search-1/journal.jsonl (2)"), strict=True):
        said = changed(
            search(world, warm_start=runs), tmp_path, lambda run=run: (run / "journal.jsonl").write_text("x")
        )
        assert said == f"--warm-start: {name} has changed"


def test_a_module_by_its_name_counts_and_is_not_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mine_of_inputs"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('run')")
    (package / "nets.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    config = search(world, model=Path("mine_of_inputs.nets:make"), data=None)
    said = changed(config, tmp_path, lambda: (package / "nets.py").write_text("1"))
    assert said == "--model: mine_of_inputs/nets.py has changed"
    assert Inputs.of(replace(config, model=Path("not_there.nets:make"))).groups == {"--model": {}}


def test_class_folders_count(tmp_path: Path) -> None:
    data = write_task_data(tmp_path / "classes", "classify")
    (tmp_path / "best.pt").write_text("x")
    image = next((data / "train").rglob("*.png"))
    said = changed(search(tmp_path, data=data), tmp_path, image.unlink)
    assert said == f"--data (train): {image.relative_to(data)} is gone"


def test_the_bundled_detector_and_its_images_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    for name in ("demo_weights", "shapes_dataset"):
        (tmp_path / name).mkdir()
    (tmp_path / "demo_weights" / "demo.pt").write_text("x")
    monkeypatch.setattr("autoprune.workflows.inputs.demo_weights", lambda: tmp_path / "demo_weights" / "demo.pt")
    drawn = write_data(tmp_path / "shapes_dataset" / "data")
    monkeypatch.setattr("autoprune.workflows.inputs.shapes_dataset", lambda: drawn)
    inputs = Inputs.of(SearchConfig(budget=("flops=50%",)))
    assert list(inputs.groups) == ["--model", "--data", "--data (train)", "--data (val)"]


@pytest.mark.parametrize("name", ["absent", "x" * 5000, "nul\0", "."])
def test_what_cannot_be_read_is_left_to_those_who_read_it(world: Path, name: str) -> None:
    inputs = Inputs.of(search(world, model=Path(name), data=Path(name)))
    assert set(inputs.groups) <= {"--model"}
    assert not inputs.groups.get("--model")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"--data (train)": 3}', '{"--data (train)": {"a": 1}}', "[" * 100_000, "{}"]
)
def test_a_listing_that_does_not_fit_is_not_believed(world: Path, tmp_path: Path, text: str) -> None:
    before = Inputs.of(search(world)).digests
    (world / LABELS / "2.txt").write_text("")
    (tmp_path / "inputs.json").write_text(text)
    for listing in (tmp_path / "inputs.json", tmp_path / "absent"):
        assert Inputs.of(search(world)).changes(before, listing) == "--data (train): changed"


def test_a_hundred_thousand_images_are_bearable_and_keep_the_header_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of them here, in a tenth of the time."""
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for number in range(10_000):
        (images / f"{number}.jpg").touch()
        (labels / f"{number}.txt").touch()
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a]\n")
    start = time.process_time()
    inputs = Inputs.of(search(tmp_path, data=tmp_path / "data.yaml"))
    assert time.process_time() - start < 10  # 0.6 s where nothing else runs
    assert len(json.dumps(inputs.digests)) < 500


marks = st.dictionaries(st.text(max_size=8), st.text(max_size=4), max_size=6)


@given(before=st.dictionaries(st.text(max_size=5), marks, max_size=3), now=st.dictionaries(st.text(max_size=5), marks))
def test_any_difference_is_told_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]
) -> None:
    listing = tmp_path_factory.mktemp("listing") / "inputs.json"
    listing.write_text(Inputs(before).to_json(), encoding="utf-8")
    said = Inputs(now).changes(Inputs(before).digests, listing)
    assert bool(said) == (before != now)
    assert Inputs(now).changes(Inputs(now).digests, listing) == ""
    for name in before.keys() & now.keys():
        gone = before[name].keys() - now[name].keys()
        assert not gone or min(gone) in said
