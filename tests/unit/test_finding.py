"""Weights and data sets are found where Ultralytics finds them, and fetched only if that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import ProfileConfig, SearchConfig, to_yaml
from autoprune.errors import DataError, ModelError
from autoprune.listener import SilentListener
from autoprune.models import stock
from autoprune.models.finding import find_data, find_weights
from autoprune.workflows.call import located
from tests.helpers.detectors import write_data, write_detector

OWN = Path(stock.ROOT) / "cfg" / "datasets"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with Ultralytics' two folders next to it; whatever reaches out fails."""
    for name in ("here", "weights", "datasets"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setitem(stock.SETTINGS, "weights_dir", str(tmp_path / "weights"))
    monkeypatch.setattr(stock, "DATASETS_DIR", tmp_path / "datasets")
    for owner, name in ((stock, "attempt_download_asset"), (stock.data_utils, "check_det_dataset")):
        monkeypatch.setattr(owner, name, refused)
    return tmp_path / "here"


def refused(*_: Any, **__: Any) -> None:
    raise AssertionError("reached out without being asked")


def test_weights_are_found_in_the_working_folder_first_then_in_weights_dir(here: Path) -> None:
    (here.parent / "weights" / "yolo11n.pt").touch()
    assert find_weights(Path("yolo11n.pt")) == here.parent / "weights" / "yolo11n.pt"
    Path("yolo11n.pt").touch()
    assert find_weights(Path("yolo11n.pt")) == Path("yolo11n.pt")


def test_weights_under_their_old_name_are_found(here: Path) -> None:
    Path("yolov5nu.pt").touch()
    assert find_weights(Path("yolov5n.pt")) == Path("yolov5nu.pt")


@pytest.mark.parametrize("name", ["best.pt", "net.cfg", "net.py:make", "/nowhere/yolo11n.pt"])
def test_other_names_stay_as_they_are(here: Path, name: str) -> None:
    assert find_weights(Path(name), download=True) == Path(name)


def test_published_weights_that_are_not_here_are_refused_and_the_way_named(here: Path) -> None:
    with pytest.raises(ModelError, match=r"yolo11n\.pt is neither in the working folder nor in .*`download`"):
        find_weights(Path("yolo11n.pt"))


def test_weights_are_fetched_only_if_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "attempt_download_asset", lambda name: Path(name).touch())
    assert find_weights(Path("yolo11n.pt"), download=True) == Path("yolo11n.pt")
    assert Path("yolo11n.pt").is_file()


@pytest.mark.parametrize("fails", [lambda _: None, lambda _: 1 / 0])
def test_weights_that_cannot_be_fetched_are_told(
    here: Path, fails: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "attempt_download_asset", fails)
    with pytest.raises(ModelError, match=r"yolo11n\.pt could not be fetched by Ultralytics") as caught:
        find_weights(Path("yolo11n.pt"), download=True)
    assert "\n" not in str(caught.value)


def test_a_data_set_is_found_here_then_among_ultralytics_own_then_in_datasets_dir(here: Path) -> None:
    datasets = here.parent / "datasets"
    assert find_data(Path("coco8.yaml")) == find_data(Path("coco8")) == OWN / "coco8.yaml"
    (datasets / "hands").mkdir()
    (datasets / "hands" / "hands.yaml").touch()
    assert find_data(Path("hands.yaml")) == find_data(Path("hands")) == datasets / "hands" / "hands.yaml"
    (datasets / "flat.yml").touch()
    assert find_data(Path("flat.yml")) == datasets / "flat.yml"
    (datasets / "digits" / "train").mkdir(parents=True)
    assert find_data(Path("digits")) == datasets / "digits"
    Path("coco8.yaml").touch()
    assert find_data(Path("coco8.yaml")) == Path("coco8.yaml")
    assert find_data(Path("unknown.yaml")) == Path("unknown.yaml")


def test_images_are_fetched_only_if_asked_and_missing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(stock.data_utils, "check_det_dataset", fetched.append)
    assert find_data(Path("coco8.yaml"), download=True) == OWN / "coco8.yaml"
    assert fetched == [str(OWN / "coco8.yaml")]
    for split in ("train", "val"):
        (here.parent / "datasets" / "coco8" / "images" / split).mkdir(parents=True)
    find_data(Path("coco8.yaml"), download=True)
    assert len(fetched) == 1


@pytest.mark.parametrize("script", ["print('run')", "bash get.sh", "https://a.zip\nprint('run')"])
def test_a_script_of_a_data_set_is_not_run(here: Path, script: str) -> None:
    text = f"train: images\nval: images\nnames: [a]\ndownload: {script!r}\n"
    Path("own.yaml").write_text(text)
    with pytest.raises(DataError, match=r"own\.yaml are fetched by a script in that file, and autoprune runs no code"):
        find_data(Path("own.yaml"), download=True)


def test_the_scripts_of_ultralytics_own_files_are_theirs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(stock.data_utils, "check_det_dataset", fetched.append)
    assert "\n" in stock.YAML.load(OWN / "coco.yaml")["download"]
    find_data(Path("coco.yaml"), download=True)
    assert fetched == [str(OWN / "coco.yaml")]


def test_class_folders_are_fetched_by_their_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str) -> None:
        (here.parent / "datasets" / name / "train").mkdir(parents=True)

    monkeypatch.setattr(stock.data_utils, "check_cls_dataset", fetch)
    assert find_data(Path("imagenette160"), download=True) == here.parent / "datasets" / "imagenette160"


def test_a_run_keeps_where_it_found_its_files_and_not_that_it_may_fetch(here: Path) -> None:
    weights = here.parent / "weights" / "yolo11n.pt"
    weights.touch()
    config = located(SearchConfig(budget=("flops=50%",), model=Path("yolo11n.pt"), data=Path("coco8.yaml")), Notes())
    assert isinstance(config, SearchConfig)
    assert (config.model, config.data) == (weights, OWN / "coco8.yaml")
    kept = to_yaml(SearchConfig(budget=("flops=50%",), download=True))
    assert "download" not in kept


class Notes(SilentListener):
    """Hears where something was found."""

    def note(self, text: str) -> None:
        assert text.endswith(".")
        assert text.split(" is ")[0] in ("yolo11n.pt", "coco8.yaml")


def test_the_command_line_names_download(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--model", "yolo11n.pt"]) == 2
    assert "or fetch it with --download" in capsys.readouterr().err
    write_detector(here / "best.pt")
    Path("d.yaml").write_text("path: nowhere\ntrain: a\nval: b\nnames: [a, b]\ndownload: https://example.com/a.zip\n")
    assert main(["search", "--model", "best.pt", "--data", "d.yaml", "--budget", "flops=50%"]) == 2
    assert "fetch it with --download" in capsys.readouterr().err
    command, config = parse(["profile", "--model", "yolo11n.pt", "--download"])
    assert (command, config) == ("profile", ProfileConfig(model=Path("yolo11n.pt"), download=True))


@pytest.mark.network
def test_ultralytics_own_functions_fetch_weights_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for owner in (stock, stock.data_utils):
        monkeypatch.setattr(owner, "DATASETS_DIR", tmp_path / "datasets")
    assert find_weights(Path("yolo11n.pt"), download=True).stat().st_size > 10**6
    data = find_data(Path("coco8.yaml"), download=True)
    assert data.is_file()
    assert len(list((tmp_path / "datasets" / "coco8" / "images" / "train").iterdir())) == 4


def test_data_that_is_here_is_not_looked_for(here: Path) -> None:
    data = write_data(here / "data", images=2)
    assert find_data(data, download=True) == data
