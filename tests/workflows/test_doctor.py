"""``autoprune doctor``: what it tells, and that it lives through what is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import autoprune as ap
from autoprune import runtimes
from autoprune.choices import RUNTIMES
from autoprune.cli.main import main
from autoprune.errors import DeviceError
from autoprune.io.installed import install_extra
from autoprune.runtimes import BrokenRuntimeError, RuntimeSettings
from autoprune.runtimes.load import Load
from autoprune.workflows import doctor_checks
from autoprune.workflows.doctor import Check, Diagnosis, State

SECTIONS = ["Installation", "Packages", "Machine", "Devices", "Runtimes", "Optional", "Cache", "Ultralytics"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let runtimes start at once, look for no load, and install autoprune with two requirements."""
    monkeypatch.setattr(runtimes, "open_backend", lambda settings: None)
    monkeypatch.setattr(doctor_checks, "load", lambda: Check("load", "0.1 of 2 cores busy"))
    monkeypatch.setattr(doctor_checks, "requires", lambda _: ["torch>=2.8", 'nccma>=4; extra == "strategies"'])
    monkeypatch.setattr(doctor_checks, "metadata", lambda _: Recorded({"Requires-Python": ">=3.10"}))
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")  # as wide as it becomes: nothing is folded
    return monkeypatch


class Recorded(dict[str, str]):
    """The metadata of a distribution."""

    def get_all(self, name: str) -> list[str]:
        assert name == "Provides-Extra"
        return ["strategies", "test", "openvino"]


def found(title: str) -> Mapping[str, Check]:
    return {check.name: check for check in ap.doctor().sections[title]}


def test_it_looks_at_everything_and_is_well(quick: pytest.MonkeyPatch) -> None:
    diagnosis = ap.doctor()
    assert list(diagnosis.sections) == SECTIONS
    assert (diagnosis.broken, diagnosis.healthy) == ([], True)
    assert all(diagnosis.sections.values())
    said = str(diagnosis)
    assert repr(diagnosis) == said
    for words in (
        ap.__version__,
        importlib.metadata.version("torch"),
        sys.executable,
        "datasets_dir",
        "to clear it: rm -r",
    ):
        assert words in said.replace("\n", "")
    assert max(map(len, said.splitlines())) <= 140


def test_it_fits_the_terminal(quick: pytest.MonkeyPatch) -> None:
    quick.setenv("COLUMNS", "80")
    said = str(ap.doctor())
    assert max(map(len, said.splitlines())) <= 80


def test_json_holds_the_same(quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is True
    assert list(told["sections"]) == SECTIONS
    (torch_there,) = told["sections"]["Packages"]
    version = importlib.metadata.version("torch")
    assert torch_there == {"name": "torch", "found": version, "state": "ok", "hint": ""}


@pytest.mark.parametrize(
    ("needed", "said"),
    [
        (["torch>=99"], "autoprune needs >=99: "),
        (["torch<1"], "autoprune needs <1: "),
        (["nothing-like-it>=1"], "install 'nothing-like-it>=1'"),
    ],
)
def test_a_package_that_does_not_fit_breaks_it(
    needed: list[str], said: str, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.setattr(doctor_checks, "requires", lambda _: needed)
    (broken,) = ap.doctor().broken
    assert said in broken.hint
    assert main(["doctor"]) == 1
    assert "broken" in capsys.readouterr().out


def test_a_missing_extra_is_named_with_its_command_and_breaks_nothing(quick: pytest.MonkeyPatch) -> None:
    (check,) = found("Optional").values()
    assert (check.name, check.state) == ("nccma (strategies)", State.MISSING)
    assert check.hint == install_extra("strategies")


def test_a_runtime_says_what_it_computes_in_and_why_not(quick: pytest.MonkeyPatch) -> None:
    def open_backend(settings: RuntimeSettings) -> None:
        if settings.runtime.value == "openvino" and settings.precision.value != "fp32":
            raise DeviceError(f"{settings.precision.value} needs a package: pip install it")
        if settings.runtime.value == "onnxruntime":
            raise DeviceError("onnxruntime is not installed: pip install it")
        if settings.runtime.value == "torch-compile":
            raise BrokenRuntimeError("torch-compile must start, and does not")

    quick.setattr(runtimes, "open_backend", open_backend)
    checks = found("Runtimes")
    assert checks["torch on cpu"].found.endswith(": fp32, bf16, fp16")
    assert checks["openvino"].found.endswith(": fp32")
    assert "int8 needs a package" in checks["openvino"].hint
    assert checks["onnxruntime on cpu"].state is State.MISSING
    assert checks["onnxruntime on cpu"].hint == "onnxruntime is not installed: pip install it"
    assert checks["torch-compile on cpu"].state is State.BROKEN
    if not torch.cuda.is_available():
        assert checks["tensorrt"].hint == "runs on cuda only"
    assert {name.split(" on ")[0] for name in checks} == {spec.name for spec in RUNTIMES}


def test_a_gpu_is_told_with_its_driver(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(torch.cuda, "is_available", lambda: True)
    quick.setattr(torch.cuda, "device_count", lambda: 1)
    quick.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    quick.setattr(doctor_checks, "_driver", lambda: "570.1")
    quick.setattr(torch.backends.mps, "is_available", lambda: True)
    checks = {check.name: check for check in doctor_checks.devices()}
    assert checks["cuda:0"].found == "NVIDIA Test, 80.0 GB"
    assert checks["cuda:0"].hint.endswith("driver 570.1")
    assert checks["mps"].found == "Apple GPU"
    quick.setattr(torch.cuda, "is_available", lambda: False)
    assert "not seen by torch" in next(doctor_checks.devices()).found


class Properties:
    """What torch tells of a GPU."""

    name, total_memory = "NVIDIA Test", 80 * 10**9


def test_the_driver_is_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert doctor_checks._driver() == ""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86.15\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(program))
    assert doctor_checks._driver() == "570.86.15"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert doctor_checks._driver() == ""


def test_the_cache_is_counted(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    latency = tmp_path / "cache" / "latency"
    latency.mkdir(parents=True)
    for name in "ab":
        (latency / f"{name}.json").write_text("x" * 1500)
    assert found("Cache")["latencies"].found == "2 entries, 3 kB"
    assert found("Cache")["folder"].hint == f"to clear it: rm -r {tmp_path / 'cache'}"
    quick.setattr(doctor_checks.os, "access", lambda *_: False)
    assert found("Cache")["folder"].state is State.BROKEN


def test_a_section_that_cannot_be_looked_at_is_broken_and_the_others_are_told(quick: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise ImportError("libcudart.so.12: cannot open shared object file\nmore")

    quick.setattr(doctor_checks, "devices", fail)
    diagnosis = ap.doctor()
    (broken,) = diagnosis.broken
    assert (broken.name, broken.found) == ("ImportError", "libcudart.so.12: cannot open shared object file")
    assert len(diagnosis.sections["Runtimes"]) >= len(RUNTIMES)


def test_it_works_without_torch(tmp_path: Path) -> None:
    """What is broken is what the doctor is for: a torch that cannot be imported does not stop it."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch.so is missing')\n")
    start = "import autoprune.cli.main as cli; sys.exit(cli.main(['doctor']))"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {start}"
    wide = {**os.environ, "COLUMNS": "140"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=wide)
    assert told.returncode == 1, told.stderr
    assert told.stdout.count("libtorch.so is missing") >= 2
    assert "Traceback" not in told.stderr
    assert "autoprune" in told.stdout


def test_brackets_are_printed_as_they_are() -> None:
    said = str(Diagnosis({"A": [Check("x", "", State.MISSING, "pip install 'autoprune[openvino]'")]}))
    assert "'autoprune[openvino]'" in said


@pytest.mark.slow
def test_the_runtimes_here_start_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("reached out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    checks = found("Runtimes")
    assert checks["torch on cpu"].state is State.OK
    assert not [check for check in checks.values() if check.state is State.BROKEN]


@pytest.mark.parametrize(
    ("load", "said", "hint"),
    [
        (Load(cores=2, busy=0.1, share=1.0), "0.1 of 2 cores used by others", ""),
        (
            Load(cores=2, busy=1.0, share=1.0, busiest="python (process 7) 1.0"),
            "1.0 of 2 cores used by others",
            "mostly by python (process 7) 1.0; latencies that are measured now are too high",
        ),
        (
            Load(cores=2, busy=0.0, share=0.3),
            "0.0 of 2 cores used by others",
            "latencies that are measured now are too high",
        ),
    ],
)
def test_load_is_told_with_what_follows(load: Load, said: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.runtimes.load.measure_load", lambda: load)
    assert doctor_checks.load() == Check("load", said, hint=hint)
