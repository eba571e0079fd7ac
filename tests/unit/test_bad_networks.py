"""Bad input that only a network's or a data set's files show."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.refusals import refuse, words
from tests.unit.test_description import BOMB, write_png

Capsys = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")


# -- networks --------------------------------------------------------------------------------------

MODELS: list[tuple[str, str]] = [
    ("nowhere.pt", "does not exist"),
    ("folder", "is a folder"),
    ("folder.pt", "is a folder"),
    ("fifo.pt", "fifo.pt"),
    ("/dev/null", "/dev/null"),
    ("loop.pt", "does not exist"),
    ("gone.pt", "does not exist"),
    ("empty.pt", "is corrupt, cut short, or no checkpoint"),
    ("text.pt", "is corrupt, cut short, or no checkpoint"),
    ("noise.pt", "is corrupt, cut short, or no checkpoint"),
    ("cut.pt", "is corrupt, cut short, or no checkpoint"),
    ("text.json", "must be a .pt file"),
    ("list.pt", "list.pt"),
    ("other.pt", "other.pt"),
    ("fused.pt", "was fused already"),
    ("nowhere.cfg", "cannot be read"),
    ("fifo.cfg", "fifo.cfg"),
    ("empty.cfg", "empty.cfg"),
    ("text.cfg", "text.cfg"),
    ("noise.cfg", "noise.cfg"),
    ("noise.weights", "give the cfg of that network"),
    ("nowhere.py:make", "does not exist; --model takes FILE.py:FUNCTION"),
]


@pytest.mark.parametrize(("name", "said"), MODELS)
def test_models(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    argv = words("sensitivity", tiny, "--model", str(zoo / name))
    if ".py:" in name:
        del argv[argv.index("--data") : argv.index("--data") + 2]
    refuse(argv, [said], capsys, folder=folder)


@pytest.mark.parametrize("name", ["none.pt", "state.pt", "layer.pt"])
def test_checkpoints_without_a_network(name: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    refuse(words("sensitivity", tiny, "--model", str(zoo / name)), [name], capsys, folder=folder)


@pytest.mark.parametrize("command", ["search", "netadapt", "compare", "sensitivity", "profile", "export", "apply"])
def test_every_command_refuses_a_missing_network(command: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    options = {"profile": (), "export": (), "apply": ("--policy", str(tiny / "best.pt"))}
    argv = (
        [command, "--model", "nowhere.pt", *options[command]]
        if command in options
        else words(command, tiny, "--model", "nowhere.pt")
    )
    refuse(argv, ["nowhere.pt does not exist"], capsys, folder=folder)


SOURCES: list[tuple[str, str]] = [
    ("def make():\n    raise ValueError('no')\n", "raised ValueError: no"),
    ("import sys\ndef make():\n    sys.exit(0)\n", "raised SystemExit: 0"),
    ("def make():\n    raise SystemExit\n", "raised SystemExit"),
    ("import sys\nsys.exit(3)\n", "cannot be imported (SystemExit: 3)"),
    ("def make():\n    pass\n", "got nothing"),
    ("def make():\n    return make\n", "must return an autoprune.models.module.ModuleAdapter"),
    ("make = 3\n", "must have a function make"),
    ("def make(wanted):\n    pass\n", "raised TypeError"),
    ("def make(:\n", "cannot be imported (SyntaxError"),
    ("import no_such_module_here\n", "cannot be imported (ModuleNotFoundError"),
    ("def make():\n    return make()\n", "raised RecursionError"),
    ("\0", "cannot be imported"),
]


@pytest.mark.parametrize(("text", "said"), SOURCES)
def test_functions_that_build_a_network(text: str, said: str, folder: Path, capsys: Capsys) -> None:
    Path("own.py").write_text(text)
    refuse(["sensitivity", "--model", "own.py:make", "--threads", "1", "--out", "run"], [said], capsys, folder=folder)


# -- checkpoints -----------------------------------------------------------------------------------

CHECKPOINTS: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
    ({"train_args": {"imgsz": 10**7}}, ("imgsz",)),
    ({"train_args": {"imgsz": "large"}}, ("imgsz",)),
    ({"train_args": [1]}, ("train_args",)),
    ({"epoch": "last"}, ("epoch",)),
    ({"stopper": 3}, ("stopper",)),
    ({"modelopt": {"state": 1}}, ("quantization",)),
    ({"modelopt": 1}, ("modelopt must be a dictionary, got 1",)),
    ({"model": "a text"}, ("b.pt",)),
    ({"format": "autoprune.module"}, ("FILE.py:FUNCTION@",)),
]


@pytest.mark.parametrize(("changes", "said"), CHECKPOINTS, ids=lambda value: str(value)[:40])
def test_checkpoints(
    changes: Mapping[str, Any], said: tuple[str, ...], tiny: Path, folder: Path, capsys: Capsys
) -> None:
    content = torch.load(tiny / "best.pt", weights_only=False)
    torch.save({**content, **changes}, "b.pt")
    argv = words("sensitivity", tiny, "--model", "b.pt")
    del argv[argv.index("--imgsz") : argv.index("--imgsz") + 2]
    refuse(argv, said, capsys, folder=folder)


@pytest.mark.parametrize("command", ["search", "sensitivity", "compare"])
def test_an_image_size_beyond_the_memory(
    command: str, tiny: Path, folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.models._memory.free_bytes", lambda device: 2**30)
    said = ["at 32032 px would take about", "1.1 GB are free on cpu", "the largest image size that fits is"]
    refuse(words(command, tiny, "--imgsz", "32032"), said, capsys, folder=folder)


# -- data sets -------------------------------------------------------------------------------------

PATHS: list[tuple[str, str]] = [
    ("nowhere.yaml", "does not exist"),
    ("folder", "is a folder"),
    ("fifo.yaml", "fifo.yaml"),
    ("/dev/null", "/dev/null"),
    ("empty.yaml", "must map names to values"),
    ("text.yaml", "must map names to values"),
    ("noise.yaml", "noise.yaml"),
    ("text.json", "must be described by a .yaml file"),
]


@pytest.mark.parametrize(("name", "said"), PATHS)
def test_what_is_no_data_set(name: str, said: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    refuse(words("sensitivity", tiny, "--data", str(zoo / name)), [said], capsys, folder=folder)


DATA: list[tuple[Mapping[str, Any], str]] = [
    ({"names": {0: "green"}}, "tells 2 classes apart, but"),
    ({"names": {0: "green"}, "nc": 2}, "contradicts itself"),
    ({"names": None}, "must name its classes"),
    ({"names": ["blue", "green"]}, "in another order"),
    ({"names": [["green"], "blue"]}, "must be texts"),
    ({"names": {"a": "green", 1: "blue"}}, "must be numbered"),
    ({"nc": "two"}, "'nc' of"),
    ({"nc": 10**10, "names": None}, "'nc' of"),
    ({"train": 5}, "must be a path or a list of paths"),
    ({"train": None, "val": None}, "names no 'train' and no 'val' split"),
    ({"train": None}, "names no 'train' split; the training images"),
    ({"train": "nowhere"}, "does not exist"),
    ({"path": ["a"]}, "must be the path of a folder"),
    ({"path": 5}, "must be the path of a folder"),
    ({"path": "nowhere"}, "does not exist"),
    ({"path": "a" * 5000}, "names a path that no file can have"),
    ({"kpt_shape": "abc"}, "'kpt_shape' of"),
    ({"kpt_shape": [17, "x"]}, "'kpt_shape' of"),
]


@pytest.mark.parametrize(("changes", "said"), DATA, ids=lambda value: str(value)[:40])
def test_descriptions_of_data_sets(
    changes: Mapping[str, Any], said: str, tiny: Path, folder: Path, capsys: Capsys
) -> None:
    described = {"path": str(tiny / "data"), "train": "images/train", "val": "images/val", "names": ["green", "blue"]}
    Path("d.yaml").write_text(json.dumps({**described, **changes}, ensure_ascii=False))
    if any(isinstance(name, int) for name in changes.get("names") or {} if isinstance(changes["names"], dict)):
        names = ", ".join(f"{index}: {name}" for index, name in changes["names"].items())
        rest = {name: value for name, value in {**described, **changes}.items() if name != "names"}
        Path("d.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in rest.items()) + f"names: {{{names}}}\n")
    refuse(words("sensitivity", tiny, "--data", "d.yaml"), [said], capsys, folder=folder)


@pytest.mark.parametrize(
    ("channels", "said"), [("1", "3 channels"), ("three", "'channels' of"), ("0", "'channels' of")]
)
def test_channels(channels: str, said: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    text = (tiny / "data" / "data.yaml").read_text()
    Path("d.yaml").write_text(f"path: {tiny / 'data'}\nchannels: {channels}\n{text}")
    refuse(words("sensitivity", tiny, "--data", "d.yaml"), [said], capsys, folder=folder)


ARCHITECTURES: list[tuple[str, str]] = [
    ("", "must map names to values"),
    ("- a\n", "must map names to values"),
    ("nc: 2\nbackbone: &b [*b]\nhead: [[-1, 1, Detect, [nc]]]\n", "refers to an anchor in line 2"),
    (BOMB + "nc: 2\n", "refers to an anchor"),
    ("nc: 2\nbackbone: !!python/name:os.system x\n", "has the tag"),
    ("\0", "must map names to values"),
    ("nc: 2\nbackbone: []\nhead: []\n", "describes a network with the head"),
]


@pytest.mark.parametrize(("text", "said"), ARCHITECTURES)
def test_architectures(text: str, said: str, tiny: Path, folder: Path, capsys: Capsys) -> None:
    Path("a.yaml").write_text(text)
    data = str(tiny / "data" / "data.yaml")
    argv = ["slim", "--budget", "flops=60%", "--architecture", "a.yaml", "--data", data, "--threads", "1"]
    refuse([*argv, "--out", "run"], [said], capsys, folder=folder)


@pytest.mark.parametrize("name", ["fifo.yaml", "folder.yaml", "nowhere.yaml", "https://x/y.yaml", "x.json"])
def test_what_is_no_architecture(name: str, zoo: Path, tiny: Path, folder: Path, capsys: Capsys) -> None:
    data = str(tiny / "data" / "data.yaml")
    place = name if "://" in name else str(zoo / name)
    argv = ["slim", "--budget", "flops=60%", "--architecture", place, "--data", data, "--threads", "1"]
    refuse([*argv, "--out", "run"], [name], capsys, folder=folder)


def only_image(make: Callable[[Path], None]) -> Callable[[Path], str]:
    """Return what writes a data set whose training image is made so, with a label."""

    def write(data: Path) -> str:
        for kind in ("images", "labels"):
            shutil.rmtree(data / kind / "train")
            (data / kind / "train").mkdir()
        make(data / "images" / "train" / "a.png")
        (data / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        return str(data / "data.yaml")

    return write


def labels(text: str) -> Callable[[Path], str]:
    """Return what gives every training image of a data set these labels."""

    def write(data: Path) -> str:
        for file in (data / "labels" / "train").glob("*.txt"):
            file.write_text(text)
        return str(data / "data.yaml")

    return write


IMAGES: list[tuple[str, Callable[[Path], str], str]] = [
    ("bomb", only_image(lambda path: write_png(path, 20_000, 20_000)), "decompression bomb"),
    ("empty", only_image(lambda path: path.write_bytes(b"")), "can be read"),
    ("noise", only_image(lambda path: path.write_bytes(bytes(range(256)) * 20)), "can be read"),
    ("fifo", only_image(os.mkfifo), "can be read"),
    ("folder", only_image(Path.mkdir), "image"),
    ("link", only_image(lambda path: path.symlink_to(path)), "can be read"),
    ("none", only_image(lambda path: None), "holds no image"),
    ("no labels", labels(""), "label"),
    ("class 7", labels("7 0.5 0.5 0.2 0.2\n"), "can be read"),
    ("outside", labels("0 1.5 0.5 0.2 0.2\n"), "can be read"),
    ("text", labels("a b c d e\n"), "can be read"),
]


@pytest.mark.parametrize(("write", "said"), [case[1:] for case in IMAGES], ids=[case[0] for case in IMAGES])
def test_images_and_labels(
    write: Callable[[Path], str],
    said: str,
    tiny: Path,
    folder: Path,
    capsys: Capsys,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("data") / "data"
    shutil.copytree(tiny / "data", data)
    argv = words("sensitivity", tiny, "--data", write(data))
    before = len(os.listdir(data / "labels"))
    refuse(argv, [said], capsys, folder=folder)
    assert len(os.listdir(data / "labels")) == before
