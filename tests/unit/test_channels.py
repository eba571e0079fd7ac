"""Detectors of images that have other channels than three: grey ones, RGBA, several bands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from autoprune.cli.main import main
from autoprune.errors import DataError, ModelError
from autoprune.models import build_adapter, open_adapter
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.policy import Policy
from autoprune.training import PrunedTrainer
from tests.contracts.adapters import check_adapter
from tests.helpers.darknet_detector import CFG
from tests.helpers.darknet_detector import build as build_darknet
from tests.helpers.darknet_detector import write_detector as write_darknet
from tests.helpers.detectors import IMAGE_SIZE, NAMES, build, write_data, write_detector, write_image, write_yaml
from tests.helpers.packages import need
from tests.helpers.stock_val import stock_val
from tests.helpers.training import teach
from tests.helpers.world import arguments, one_sentence, summary

BANDS = 5
"""So many channels are the pages of a TIFF file."""

GREY_AND_RGBA = (1, 4)
both = pytest.mark.parametrize("channels", GREY_AND_RGBA)
both_where_slow = pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 4])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold, for every number of channels, a folder with ``best.pt``, which finds the boxes, and ``data``."""
    folder = tmp_path_factory.mktemp("channels")
    for channels in GREY_AND_RGBA:
        weights, data = (
            folder / str(channels) / "best.pt",
            write_data(folder / str(channels) / "data", channels=channels),
        )
        adapter = UltralyticsAdapter.load(write_detector(weights, build(32, channels=channels)), data=data)
        adapter.save(teach(adapter), weights)
    return folder


def opened(worlds: Path, channels: int) -> UltralyticsAdapter:
    here = worlds / str(channels)
    return UltralyticsAdapter.load(here / "best.pt", data=here / "data" / "data.yaml")


@pytest.fixture(scope="module")
def runs(worlds: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Give the folder of a search with its fine-tune, by the number of channels."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def run(channels: int) -> Path:
        options = ("--budget", "flops=90%", "--episodes", "2", "--finetune-epochs", "1")
        assert main(arguments("search", worlds / str(channels), folder / str(channels), *options)) == 0
        return folder / str(channels)

    return run


# -- the adapter -------------------------------------------------------------------------------------


@both
def test_keeps_the_contract_of_adapters(worlds: Path, tmp_path: Path, channels: int) -> None:
    adapter = opened(worlds, channels)
    assert adapter.input_shape == (channels, IMAGE_SIZE, IMAGE_SIZE)
    check_adapter(adapter, build(16, seed=1, channels=channels), tmp_path)


def test_images_are_what_stock_ultralytics_reads(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", channels=BANDS, suffix=".tiff")
    adapter = UltralyticsAdapter.load(write_detector(tmp_path / "best.pt", build(channels=BANDS)), data=data)
    (batch,) = adapter.batches("val", images=1, batch=1, seed=0)
    assert batch["img"].shape == (1, BANDS, IMAGE_SIZE, IMAGE_SIZE)
    _, pages = cv2.imreadmulti(batch["im_file"][0], flags=cv2.IMREAD_UNCHANGED)
    inside = batch["img"][0, :, 8:56]  # 64×48 pixels, with bars above and below
    assert torch.equal(inside, torch.from_numpy(np.stack(pages)).float() / 255)


@both
def test_validates_as_stock_val_does(worlds: Path, channels: int) -> None:
    adapter = opened(worlds, channels)
    found = adapter.validate(adapter.module)
    assert found.primary > 0.2
    assert tuple(found.values()) == pytest.approx(
        stock_val(worlds / str(channels) / "best.pt", worlds / str(channels) / "data" / "data.yaml"), abs=1e-6
    )


@both
def test_an_untrained_network_takes_the_images_of_its_data(worlds: Path, tmp_path: Path, channels: int) -> None:
    yaml = write_yaml(tmp_path / "own.yaml", build().yaml)
    adapter = build_adapter(str(yaml), data=worlds / str(channels) / "data" / "data.yaml", image_size=IMAGE_SIZE)
    assert adapter.input_shape == (channels, IMAGE_SIZE, IMAGE_SIZE)
    assert adapter.module(adapter.example()) is not None


# -- the commands ------------------------------------------------------------------------------------


@both_where_slow
def test_a_search_with_its_finetune_reports_what_stock_val_does(
    worlds: Path, runs: Callable[[int], Path], channels: int
) -> None:
    run, data = runs(channels), worlds / str(channels) / "data" / "data.yaml"
    for stage, file in (("pruned", "pruned.pt"), ("finetuned", "model.pt")):
        reported, (expected, _) = summary(run)["stages"][stage]["metrics"]["mAP50-95"], stock_val(run / file, data)
        assert expected > 0.01
        assert reported == pytest.approx(expected, abs=0.03)  # the file's weights have half precision


@both_where_slow
def test_a_policy_is_applied_to_a_stock_network(worlds: Path, runs: Callable[[int], Path], channels: int) -> None:
    dense: Any = stock.YOLO(worlds / str(channels) / "best.pt").model
    data = worlds / str(channels) / "data" / "data.yaml"
    pruned = Policy.load(runs(channels) / "policy.json").apply(dense, data=data)
    assert pruned(torch.zeros(1, channels, IMAGE_SIZE, IMAGE_SIZE)) is not None


@both_where_slow
def test_an_exported_network_is_the_network(
    worlds: Path, runs: Callable[[int], Path], tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    need("onnx", "onnxruntime")
    weights, out = runs(channels) / "model.pt", tmp_path / "run"
    words = ["--model", str(weights), "--out", str(out), "--format", "onnx", "--threads", "1"]
    assert main(["export", *words]) == 0, capsys.readouterr().err
    assert json.loads((out / "export.json").read_text())["parity"]["passed"]
    data = worlds / str(channels) / "data" / "data.yaml"
    expected = stock_val(weights, data, rect=False)  # squares, as the file takes
    assert stock_val(out / "model.onnx", data) == pytest.approx(expected, abs=0.03)


_COMMANDS = {
    "apply": ["--policy", "POLICY"],
    "train": ["--policy", "POLICY", "--epochs", "1"],
    "sensitivity": ["--ratios", "0.5"],
    "profile": [],
    "netadapt": ["--budget", "flops=85%", "--short-term-steps", "1", "--images", "4", "--finetune-epochs", "1"],
    "compare": ["--budget", "flops=80%", "--strategies", "uniform,random", "--evaluations", "6", "--seeds", "1"],
    "quantize": ["--calibration-images", "8", "--images", "8"],
    "mask": ["--epochs", "1"],
}


@both
@pytest.mark.slow
@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_takes_them(
    worlds: Path,
    runs: Callable[[int], Path],
    quick: None,
    tmp_path: Path,
    channels: int,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, policy = worlds / str(channels), str(runs(channels) / "policy.json")
    data = here / "data" / "data.yaml"
    if command == "quantize":
        need("onnx", "onnxruntime")
    if command in ("quantize", "netadapt"):
        data = write_data(tmp_path / "data", channels=channels, images=17)
    words = ["--model", str(here / "best.pt"), "--data", str(data), "--threads", "1", "--out", str(tmp_path / "run")]
    more = [policy if word == "POLICY" else word for word in _COMMANDS[command]]
    assert main([command, *words, *more]) == 0, capsys.readouterr().err


# -- what is refused ---------------------------------------------------------------------------------


def test_a_data_set_of_other_channels(
    worlds: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments("search", tiny, tmp_path / "run", "--data", str(worlds / "1" / "data" / "data.yaml"))
    assert main([*words, "--budget", "flops=60%"]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "best.pt takes images of 3 channels, but those of" in said
    assert "data.yaml have 1 ('channels' of a YAML file, 3 if it is left out)" in said


def test_a_training_on_images_of_other_channels(worlds: Path, tiny: Path, tmp_path: Path) -> None:
    options = {"imgsz": IMAGE_SIZE, "epochs": 1, "device": "cpu", "plots": False, "project": str(tmp_path)}
    with stock.quiet(), pytest.raises(DataError, match=r"takes images of 1 channel, but those of .* have 3"):
        stock.YOLO(worlds / "1" / "best.pt").train(
            trainer=PrunedTrainer, data=str(tiny / "data" / "data.yaml"), **options
        )


@pytest.mark.parametrize("named", [0, -1, 1.0, True, "grey", [3], 513])
def test_what_is_no_number_of_channels(worlds: Path, tmp_path: Path, named: object) -> None:
    data = write_yaml(tmp_path / "data.yaml", {"train": "x", "val": "x", "names": NAMES, "channels": named})
    with pytest.raises(DataError, match=r"'channels' of .*data\.yaml must be a whole number from 1 to 512, got "):
        UltralyticsAdapter.load(worlds / "1" / "best.pt", data=data)
    network = build()
    network.yaml["channels"] = named
    with pytest.raises(ModelError, match="'channels' of the YAML inside the network must be a whole number"):
        UltralyticsAdapter.load(write_detector(tmp_path / "best.pt", network))


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_of_other_channels(worlds: Path, tmp_path: Path, split: str) -> None:
    shutil.copytree(worlds / "4", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "data" / "images" / split / "3.png"
    write_image(file, cv2.imread(str(file)), 3)
    adapter = UltralyticsAdapter.load(tmp_path / "best.pt", data=tmp_path / "data" / "data.yaml")
    with pytest.raises(DataError, match=r"3\.png has 3 channels, and 'channels' of its data set's YAML file is 4"):
        adapter.batches(split, images=6, batch=6, seed=0) if split == "train" else adapter.validate(adapter.module)


# -- Darknet -----------------------------------------------------------------------------------------


def grown(channels: int) -> str:
    return CFG.replace("channels=3", f"channels={channels}\nhue=.1\nsaturation=1.5\nexposure=1.5")


@both
def test_darknet_detectors_keep_the_contract(tmp_path: Path, channels: int) -> None:
    data = write_data(tmp_path / "data", channels=channels)
    adapter = open_adapter(write_darknet(tmp_path, grown(channels)), data=data)
    narrow = build_darknet(grown(channels).replace("filters=24", "filters=8"))
    (tmp_path / "saved").mkdir()
    check_adapter(adapter, narrow, tmp_path / "saved")


@both
def test_darknet_images_keep_their_values(tmp_path: Path, channels: int) -> None:
    data = write_data(tmp_path / "data", channels=channels)
    adapter = open_adapter(write_darknet(tmp_path, grown(channels)), data=data)
    (batch,) = adapter.batches("val", images=1, batch=1, seed=0)
    pixels = cv2.imread(batch["im_file"][0], cv2.IMREAD_UNCHANGED).reshape(48, 64, channels)
    order = [2, 1, 0, 3][:channels] if channels == 4 else [0]
    expected = torch.from_numpy(pixels[..., order]).permute(2, 0, 1) / 255
    torch.testing.assert_close(adapter.inputs(batch)[0, :, 8:56], expected)


def test_darknet_data_of_other_channels(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    with pytest.raises(DataError, match=r"tiny\.cfg takes images of 1 channel, but those of .* have 3"):
        open_adapter(write_darknet(tmp_path, grown(1)), data=data)


def test_an_exported_darknet_detector_takes_grey_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("onnx", "onnxruntime")
    data = write_data(tmp_path / "data", channels=1)
    words = ["--model", str(write_darknet(tmp_path, grown(1))), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["export", "--format", "onnx", "--threads", "1", *words]) == 0, capsys.readouterr().err
    (file,) = (tmp_path / "run").glob("**/*.onnx")
    with stock.quiet():
        stock.YOLO(file, task="detect").predict(np.zeros((64, 64), np.uint8), imgsz=64, verbose=False)
