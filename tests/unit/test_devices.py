"""Devices by the names that Ultralytics' users type, and what is refused."""

from __future__ import annotations

import pytest
import torch

from autoprune.choices import Runtime, device_name
from autoprune.config import SearchConfig, TrainConfig, devices_of
from autoprune.errors import ConfigError, DeviceError
from autoprune.runtimes.settings import resolve_device, runtime_settings


@pytest.mark.parametrize(
    ("typed", "meant"), [("0", "cuda:0"), ("1", "cuda:1"), ("CPU", "cpu"), ("mps", "mps"), (" cuda:2 ", "cuda:2")]
)
def test_a_device_has_one_spelling(typed: str, meant: str) -> None:
    assert device_name(typed) == meant
    assert SearchConfig(budget=("flops=50%",), device=typed).device == meant


def test_several_gpus_are_numbers_with_commas() -> None:
    config = TrainConfig(policy="p.json", model="m.pt", data="d.yaml", device="0,1")  # type: ignore[arg-type]
    assert devices_of(config.device) == ("cuda:0", "cuda:1")
    with pytest.raises(ConfigError, match="each once, got 'cuda:0,0'"):
        TrainConfig(policy="p.json", model="m.pt", data="d.yaml", device="0,0")  # type: ignore[arg-type]


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
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime_settings("mps", image_size=64).runtime is Runtime("torch")
    for name in ("cudagraph", "openvino", "onnxruntime", "torch-compile", "tensorrt"):
        with pytest.raises(DeviceError, match=r"on mps there are torch$"):
            runtime_settings("mps", image_size=64, runtime=Runtime(name))
