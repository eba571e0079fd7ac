"""Commands on Darknet's files: what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from autoprune.cli.main import main
from autoprune.models.darknet import read
from autoprune.policy import Policy
from tests.helpers.darknet_detector import CFG, load, write_detector
from tests.helpers.detectors import write_data
from tests.helpers.packages import need
from tests.helpers.world import arguments, one_sentence, summary


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("darknet")
    load(folder)
    return folder


@pytest.fixture(scope="module")
def searched(world: Path, quick: None) -> Path:
    """A search with one epoch of fine-tuning."""
    words = ("--budget", "flops=60%", "--strategy", "random", "--episodes", "2", "--round-to", "4")
    assert main(words_of("search", world, world / "run", *words, "--finetune-epochs", "1")) == 0
    return world / "run"


def words_of(command: str, world: Path, out: Path, *extra: str) -> list[str]:
    return arguments(command, world, out, "--model", str(world / "tiny.cfg"), *extra)


def test_a_search_leaves_pairs_of_files_within_the_budget(world: Path, searched: Path) -> None:
    found = summary(searched)
    dense = read(world / "tiny.cfg", world / "tiny.weights")[0]
    for name, stage in (("pruned", "pruned"), ("model", "finetuned")):
        files = [searched / f"{name}{suffix}" for suffix in (".cfg", ".weights")]
        network, header = read(files[0], files[1])
        assert header.seen == 32_000
        assert sum(one.numel() for one in network.parameters()) == found.stages[stage].cost("params")
        assert sum(file.stat().st_size for file in files) == found.stages[stage].cost("size")
    assert found.stages["pruned"].cost("params") < sum(one.numel() for one in dense.parameters())
    assert found.stages["finetuned"].cost("flops") <= 0.6 * found.stages["dense"].cost("flops")
    widths = {f"layers.{index}": layer.conv.out_channels for index, layer in network.convolutions()}
    assert Policy.load(searched / "policy.json").keep.items() <= widths.items()


def test_the_policy_gives_the_same_widths_again(world: Path, searched: Path, tmp_path: Path) -> None:
    words = ["--policy", str(searched / "policy.json"), "--model", str(world / "tiny.cfg"), "--threads", "1"]
    words += ["--data", str(world / "data" / "data.yaml")]
    assert main(["apply", *words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "pruned.weights").stat().st_size == (searched / "pruned.weights").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "openvino", "torchscript"])
def test_an_export_is_the_network_and_yolo_opens_it(
    searched: Path, world: Path, tmp_path: Path, file_format: str
) -> None:
    if file_format != "torchscript":
        need({"onnx": "onnxruntime"}.get(file_format, file_format))
    words = ["--model", str(searched / "model.cfg"), "--data", str(world / "data" / "data.yaml"), "--threads", "1"]
    assert main(["export", *words, "--format", file_format, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    told = json.loads((tmp_path / "run" / "export.json").read_text())
    assert told["parity"]["passed"]
    if file_format == "torchscript":
        from ultralytics import YOLO

        (found,) = YOLO(tmp_path / "run" / told["file"], task="detect").predict(
            str(next((world / "data" / "images" / "val").iterdir())), imgsz=64, verbose=False
        )
        assert found.names == {0: "green", 1: "blue"}


@pytest.mark.slow
def test_netadapt_and_sensitivity_know_darknet(world: Path, tmp_path: Path, quick: None) -> None:
    words = ("--budget", "flops=80%", "--round-to", "4", "--short-term-steps", "1")
    assert main(words_of("netadapt", world, tmp_path / "netadapt", *words)) == 0
    assert list((tmp_path / "netadapt" / "iterations").glob("*.weights"))
    assert main(words_of("sensitivity", world, tmp_path / "sensitivity")) == 0


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            lambda cfg: cfg.write_text(CFG.replace("[upsample]", "[crnn]")),
            r"tiny.cfg, line 59: a section must be one of",
        ),
        (
            lambda cfg: os.truncate(cfg.with_suffix(".weights"), 4000),
            r"tiny.weights must hold 7846 numbers .* it ends within layer 1, line 17 of the cfg",
        ),
        (
            lambda cfg: cfg.with_suffix(".weights").write_bytes(bytes(32_000)),
            r"got 7996; it goes on after the last layer, and so belongs to another cfg",
        ),
        (lambda cfg: cfg.write_text(CFG.replace("filters=24", "filters=32")), r"tiny.weights must hold .* numbers"),
        (lambda cfg: cfg.with_suffix(".weights").unlink(), r"tiny.weights does not exist"),
        (lambda cfg: cfg.unlink(), r"tiny.cfg cannot be read: No such file"),
        (lambda cfg: cfg.write_text(CFG.replace("filters=7", "filters=9", 1)), r"\[yolo\] with 1 anchors"),
    ],
)
def test_bad_files_are_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, problem: str
) -> None:
    cfg = write_detector(tmp_path)
    spoil(cfg)  # type: ignore[operator]
    assert main(["export", "--model", str(cfg), "--format", "torchscript", "--out", str(tmp_path / "run")]) == 2
    assert re.search(problem, one_sentence(capsys.readouterr().err))


def test_weights_without_their_cfg_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_detector(tmp_path).with_suffix(".weights")
    assert main(["export", "--model", str(weights), "--format", "torchscript", "--out", str(tmp_path / "run")]) == 2
    assert "give the cfg of that network" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(("command", "words"), [("search", ("--budget", "flops=50%", "--stock-yaml"))])
def test_what_only_ultralytics_networks_have_is_refused_at_once(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: tuple[str, ...]
) -> None:
    assert main(words_of(command, world, tmp_path / "run", *words)) == 2
    assert "is for networks of Ultralytics" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("mask", "--epochs", "1"), ("sparsify", "--epochs", "1")], ids=lambda one: one[0])
def test_extensions_take_part_in_its_training(world: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    named = ["--model", str(world / "tiny.cfg"), "--data", str(world / "data" / "data.yaml"), "--device", "cpu"]
    out = tmp_path / "run"
    assert main([*words, *named, "--threads", "1", "--out", str(out)]) == 0
    name = {"mask": "model", "sparsify": "sparse"}[words[0]]
    network, _ = read(out / f"{name}.cfg", out / f"{name}.weights")
    zeros = sum(int((one == 0).sum()) for one in network.parameters() if one.ndim == 4)
    assert (zeros > 0) == (name == "model")


@pytest.mark.slow
def test_it_is_softened_and_taught(searched: Path, world: Path, tmp_path: Path) -> None:
    given = ["--policy", str(searched / "policy.json"), "--model", str(world / "tiny.cfg"), "--epochs", "2"]
    given += ["--data", str(world / "data" / "data.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["train", *given, "--soften", "--distill", str(world / "tiny.cfg")]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]["finetuned"]


@pytest.mark.slow
def test_it_is_tuned_for_int8(tmp_path: Path) -> None:
    need("onnxruntime")
    model, data = write_detector(tmp_path), write_data(tmp_path / "data", images=17)
    words = ["--model", str(model), "--data", str(data), "--qat-epochs", "1", "--max-drop", "0.9", "--batch", "2"]
    out = tmp_path / "run"
    assert main(["quantize", *words, "--threads", "1", "--device", "cpu", "--out", str(out)]) == 0
    given, tuned = (read(path, path.with_suffix(".weights"))[0] for path in (model, out / "qat.cfg"))
    pairs = list(zip(given.parameters(), tuned.parameters(), strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    assert not all(one.equal(other) for one, other in pairs)
    assert (out / "model.int8.onnx").exists()
