"""What ``autoprune quantize`` refuses, and what it tells of a processor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from autoprune.choices import Runtime
from autoprune.cli.main import main
from autoprune.config import QuantizeConfig
from autoprune.errors import ConfigError
from autoprune.image_size import ImageSize
from autoprune.io.installed import install_extra
from autoprune.runtimes import settings
from autoprune.runtimes.settings import has_int8_instructions
from tests.helpers.detectors import write_data, write_detector
from tests.helpers.world import one_sentence


def words(world: Path, *more: str) -> list[str]:
    named = [
        "--model",
        str(world / "best.pt"),
        "--data",
        str(world / "data" / "data.yaml"),
        "--out",
        str(world / "run"),
    ]
    return ["quantize", *named, "--threads", "1", *more]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runtime": Runtime.TORCH}, "int8 files are written for `runtime` onnxruntime, openvino, litert, got torch"),
        ({"max_drop": -0.1}, r"`max_drop` must lie in \[0, 1\), got -0.1"),
        ({"max_drop": float("nan")}, r"`max_drop` must lie in \[0, 1\), got nan"),
        ({"calibration_images": 7}, "`calibration_images` must be a whole number of at least 8, got 7"),
        ({"images": 7}, "`images` must be a whole number of at least 8, got 7"),
        ({"imgsz": ImageSize(50, 50)}, "`imgsz` must be a multiple of 32"),
        ({"threads": 0}, "`threads` must be"),
        ({"batch": 0}, "`batch` must be"),
        ({"qat_epochs": -1}, "`qat_epochs` must be a whole number of at least 0, got -1"),
        ({"qat_lr_scale": 0.0}, r"`qat_lr_scale` must lie in \(0, 1\], got 0.0"),
        ({"device": "tpu"}, "`device` must be"),
        ({"seed": -1}, "`seed` must be"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        QuantizeConfig(model=Path("best.pt"), data=Path("data.yaml"), **options)


def test_too_few_training_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_detector(tmp_path / "best.pt")
    write_data(tmp_path / "data", images=15)
    assert main(words(tmp_path)) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "needs at least 16 training images" in said
    assert "holds 15; give it more images" in said


@pytest.mark.parametrize(
    ("runtime", "missing", "extra"),
    [("onnxruntime", "onnxruntime", "onnxruntime"), ("openvino", "nncf", "openvino-int8")],
)
def test_a_missing_package_is_named_with_its_extra(
    runtime: str,
    missing: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_detector(tmp_path / "best.pt")
    write_data(tmp_path / "data", images=16)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == missing else there("os"))
    assert main(words(tmp_path, "--runtime", runtime)) == 2
    wanted = f"needs the package {missing}, which is not installed: {install_extra(extra)}"
    assert wanted in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("listing", "there"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_vnni\nflags\t: fpu\n", True),
        ("flags\t\t: avx2 avx_vnni", True),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("", None),
    ],
)
def test_the_processors_flags_are_read(
    listing: str, there: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(listing)
    monkeypatch.setattr(settings, "_LISTING", tmp_path / "cpuinfo")
    assert has_int8_instructions() is there
