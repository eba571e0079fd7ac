"""Devices by the names that Ultralytics' users type, and what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from autoprune.api.network import Network
from autoprune.choices import Runtime, device_name
from autoprune.config import SearchConfig, TrainConfig, devices_of
from autoprune.errors import ConfigError, DeviceError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.runtimes._torch import make_runner
from autoprune.runtimes.settings import resolve_device, runtime_settings
from autoprune.training.plan import TrainingContext
from autoprune.training.ultralytics.launch import _Training
from tests.helpers.detectors import write_data, write_detector


@pytest.mark.parametrize(
    ("typed", "meant"), [("0", "cuda:0"), ("1", "cuda:1"), ("CPU", "cpu"), ("mps", "mps"), (" cuda:2 ", "cuda:2")]
)
def test_a_device_has_one_spelling(typed: str, meant: str) -> None:
    assert device_name(typed) == meant
    assert SearchConfig(budget=("flops=50%",), device=typed).device == meant


def test_several_gpus_are_numbers_with_commas() -> None:
    files = {"policy": Path("p.json"), "model": Path("m.pt"), "data": Path("d.yaml")}
    config = TrainConfig(**files, device="0,1")  # type: ignore[arg-type]
    assert devices_of(config.device) == ("cuda:0", "cuda:1")
    with pytest.raises(ConfigError, match="each once, got 'cuda:0,0'"):
        TrainConfig(**files, device="0,0")  # type: ignore[arg-type]


@pytest.mark.parametrize("typed", ["0,1", "-1", "gpu", "cuda:", "1.5", "", "cpu:1"])
def test_other_names_are_refused_in_one_sentence(typed: str) -> None:
    with pytest.raises(ConfigError, match="`device` must be auto, cpu, cuda, cuda:N, mps, or N for cuda:N, got") as why:
        SearchConfig(budget=("flops=50%",), device=typed)
    assert "\n" not in str(why.value)


@pytest.mark.parametrize(
    ("device", "said"),
    [("0", "sees no CUDA device here"), ("cuda:3", "sees no CUDA device here"), ("mps", "torch sees no Apple GPU")],
)
def test_a_device_that_is_not_there_is_refused(device: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for refused in (lambda: resolve_device(device), lambda: runtime_settings(device, image_size=64)):
        with pytest.raises(DeviceError, match=said):
            refused()


def test_an_apple_gpu_is_measured_by_torch_and_by_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    assert runtime_settings("mps", image_size=64).runtime is Runtime("torch")
    for name in ("cudagraph", "openvino", "onnxruntime", "torch-compile", "tensorrt"):
        with pytest.raises(DeviceError, match=r"on mps there are torch, command$"):
            runtime_settings("mps", image_size=64, runtime=Runtime(name))


def test_with_an_apple_gpu_the_cpu_scores_and_the_gpu_measures_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    write_detector(tmp_path / "best.pt")
    adapter = UltralyticsAdapter.load(tmp_path / "best.pt", data=write_data(tmp_path / "data"), device="mps")
    assert adapter.device == next(adapter.module.parameters()).device == torch.device("cpu")
    arguments = _Training(adapter, TrainingContext(out=tmp_path)).settings()
    assert (arguments["device"], arguments["amp"]) == ("mps", False)
    options = {"opened": tmp_path / "best.pt", "path": None, "data": None, "trust_checkpoint": False}
    network = Network(adapter, adapter.module, **options)
    assert network.device == "mps"


def test_an_apple_gpu_is_timed_once_it_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: order.append("idle"))
    runner = make_runner(lambda: (lambda: order.append("run"), None), runtime_settings("mps", image_size=64))
    assert runner.elapsed() >= 0
    assert order == ["idle", "run", "idle"]
