"""Files of other people are data: a canary in any of them never sings, and the command runs or says one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from autoprune.cli.main import main
from autoprune.errors import ModelError
from autoprune.models import build_adapter, open_adapter
from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.building import activation_of, build
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.training.finetune import finetune
from tests.helpers.detectors import build as build_detector
from tests.helpers.detectors import tiny_yaml, write_data, write_detector
from tests.helpers.training import Stop, stop, write_training
from tests.helpers.world import SIZE, arguments, one_sentence, summary

pytestmark = pytest.mark.usefixtures("quick")


class Canary:
    """A file that code in somebody's file would make."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.expression = f"__import__('pathlib').Path({str(path)!r}).touch()"

    @property
    def sings(self) -> bool:
        return self.path.exists()


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self._call = (function, given)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


@pytest.fixture(scope="module")
def searched(tiny: Path, tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """A finished search, to take files from."""
    run = tmp_path_factory.mktemp("searched") / "run"
    assert main(arguments("search", tiny, run, "--budget", "flops=70%", "--strategy", "uniform")) == 0
    return run


# -- a configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["runtime_command", "workers"])
def test_a_configuration_runs_no_program_and_joins_no_cluster(
    tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    values = {"runtime_command": f"sh -c 'touch {canary.path}; echo 5' {{onnx}}", "workers": "ray://192.0.2.1:10001"}
    text = yaml.safe_dump({option: values[option], "budget": ["flops=90%"]})
    (tmp_path / "theirs.yaml").write_text(text)
    out = tmp_path / "run"
    assert main(["search", "--config", str(tmp_path / "theirs.yaml"), "--out", str(out)]) == 2
    assert "comes from a file and would be executed; if you trust that file, give --trust-checkpoint" in one_sentence(
        capsys.readouterr().err
    )
    assert not canary.sings
    assert not out.exists()


# -- the YAML of a network -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("search", ["--budget", "flops=50%"]),
        ("search", ["--budget", "flops=50%", "--stock-yaml"]),
        ("netadapt", ["--budget", "flops=50%"]),
        ("compare", ["--budget", "flops=50%"]),
        ("sensitivity", []),
        ("profile", []),
        ("apply", ["--policy"]),
        ("train", ["--policy"]),
        ("sparsify", []),
        ("slim", ["--budget", "flops=50%"]),
        ("mask", []),
        ("export", []),
        ("quantize", []),
    ],
)
def test_no_activation_of_a_checkpoint_is_evaluated(
    tiny: Path,
    searched: Path,
    tmp_path: Path,
    canary: Canary,
    capsys: pytest.CaptureFixture[str],
    command: str,
    extra: list[str],
) -> None:
    network = build_detector(32)
    network.yaml["activation"] = canary.expression
    write_detector(tmp_path / "best.pt", network)
    words = [command, "--model", str(tmp_path / "best.pt"), "--data", str(tiny / "data" / "data.yaml"), *extra]
    words += [str(searched / "policy.json")] if extra == ["--policy"] else []
    assert main([*words, "--imgsz", str(SIZE), "--out", str(tmp_path / "run")]) == 2
    assert "must name its activation as a class of torch.nn" in one_sentence(capsys.readouterr().err)
    assert not canary.sings


def test_a_plain_activation_is_built_and_kept(tiny: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "best.pt", build_detector(32, activation="nn.LeakyReLU(0.1)"))
    (tmp_path / "data").symlink_to(tiny / "data")
    before = stock.Conv.default_act
    words = arguments("search", tmp_path, tmp_path / "run", "--budget", "flops=70%", "--strategy", "uniform")
    assert main([*words, "--stock-yaml"]) == 0
    assert stock.Conv.default_act is before
    found = open_adapter(tmp_path / "run" / "pruned.pt").module
    assert yaml.safe_load((tmp_path / "run" / "pruned.yaml").read_text())["activation"] == "nn.LeakyReLU(0.1)"
    assert isinstance(found.get_submodule("model.0.act"), nn.LeakyReLU)


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("nn.SiLU()", "SiLU()"),
        ("torch.nn.LeakyReLU(0.1)", "LeakyReLU(negative_slope=0.1)"),
        (" nn.ReLU(inplace=True) ", "ReLU(inplace=True)"),
        ("nn.GELU(approximate='tanh')", "GELU(approximate='tanh')"),
    ],
)
def test_activations_are_read_as_data(spelled: str, expected: str) -> None:
    assert repr(activation_of(spelled, "mine.yaml")) == expected


@pytest.mark.parametrize(
    "spelled",
    [
        "nn.SiLU",
        "SiLU()",
        "nn.Linear(9, 9)",
        "torch.nn.functional.relu()",
        "nn.modules.SiLU()",
        "nn.ReLU(open('x'))",
        "nn.PReLU(10**10)",
        "nn.PReLU(9999999999)",
        "nn.ReLU(**{'inplace': True})",
        "[nn.ReLU()][0]",
        "(lambda: nn.ReLU())()",
        "nn.ReLU() or 1",
        "(" * 5000,
        "",
        5,
        ["nn.SiLU()"],
        {"a": 1},
    ],
)
def test_what_is_no_activation_is_refused(spelled: object) -> None:
    with pytest.raises(ModelError, match="must name its activation as a class of torch") as caught:
        activation_of(spelled, "mine.yaml")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "CANARY"},
        {"backbone": [[-1, 1, "os", [8]]]},
        {"backbone": [[-1, 1, "nn.functional", [8]]]},
        {"backbone": [[-1, 1, "nn.Module.__init__", [8]]]},
        {"backbone": [[-1, 1, "torchvision.ops.misc", [8]]]},
        {"backbone": [[-1, 1, "DetectionModel", ["https://example.org/a.yaml"]]]},
        {"backbone": [[-1, 1, "DistillationModel", ["other.pt"]]]},
        {"backbone": [[-1, 1, "check_requirements", ["CANARY"]]]},
        {"backbone": [[-1, 1, "Conv", ["CANARY", 3, 2]]]},
        {"backbone": [[-1, 10**9, "Conv", [8, 3, 2]]]},
        {"backbone": [["CANARY", 1, "Conv", [8, 3, 2]]]},
        {"backbone": [[-1, 1, ["CANARY"], [8]]]},
        {"backbone": "CANARY"},
        {"backbone": [["CANARY"]]},
        {"scales": {"n": ["CANARY", 1, 1]}},
        {"scales": "CANARY"},
        {"depth_multiple": 10**9},
    ],
)
def test_an_architecture_file_runs_nothing(tiny: Path, tmp_path: Path, canary: Canary, change: dict[str, Any]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**tiny_yaml(), **_with_canary(change, canary)}))
    with pytest.raises(ModelError, match=r"mine\.yaml"):
        build_adapter(str(file), data=tiny / "data" / "data.yaml", image_size=SIZE)
    assert not canary.sings


def _with_canary(value: Any, canary: Canary) -> Any:
    """Put the canary's expression wherever the word stands for it."""
    if isinstance(value, dict):
        return {key: _with_canary(one, canary) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_canary(one, canary) for one in value]
    return canary.expression if value == "CANARY" else value


def test_slim_refuses_such_a_file_in_one_sentence(
    tiny: Path, tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny_yaml(activation=canary.expression)))
    words = ["slim", "--architecture", str(tmp_path / "mine.yaml"), "--data", str(tiny / "data" / "data.yaml")]
    assert main([*words, "--budget", "flops=50%", "--imgsz", str(SIZE), "--out", str(tmp_path / "run")]) == 2
    assert "nothing else is evaluated" in one_sentence(capsys.readouterr().err)
    assert not canary.sings


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "5\n", "", "head: &a [*a]\n"])
def test_a_file_that_is_no_architecture_is_told(tiny: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"mine\.yaml"):
        build_adapter(str(tmp_path / "mine.yaml"), data=tiny / "data" / "data.yaml")


def test_a_layer_of_torchvision_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("weights were to be downloaded")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    network = build(stock.DetectionModel, torchvision_yaml("DEFAULT"), name="mine.yaml")
    assert "torchvision.models.resnet" in {type(part).__module__ for part in network.modules()}


def torchvision_yaml(*weights: object) -> dict[str, Any]:
    """A detector on the first stages of torchvision's ResNet-18."""
    return {
        "nc": 2,
        "backbone": [[-1, 1, "TorchVision", [128, "resnet18", *weights, True, 4, False]]],
        "head": [[-1, 1, "Conv", [16, 3, 2]], [[0, 1], 1, "Detect", ["nc"]]],
    }


# -- pickles ---------------------------------------------------------------------------------------


def test_a_checkpoint_does_not_open_another_one(tmp_path: Path, canary: Canary) -> None:
    """Constructors of known classes open files by the loader that is not safe: such a pair ran code."""
    from ultralytics.nn.distill_model import DistillationModel

    torch.save({"model": Call(os.system, f"touch {canary.path}")}, tmp_path / "second.pt")
    network = build_detector()
    first = {"extra": Call(DistillationModel, str(tmp_path / "second.pt"), network), "model": network}
    torch.save(first, tmp_path / "first.pt")
    with pytest.raises(ModelError, match=r"would construct a DistillationModel.*`trust_checkpoint`"):
        read_checkpoint(tmp_path / "first.pt")
    assert not canary.sings


def test_what_one_checkpoint_names_is_not_known_to_the_next_file(tmp_path: Path, canary: Canary) -> None:
    """Ultralytics registers a file's classes for good, and so for the states of trainings, which torch reads itself."""
    from ultralytics.nn.distill_model import DistillationModel

    network = build_detector()
    torch.save({"extra": DistillationModel, "model": network}, tmp_path / "first.pt")
    torch.save({"model": Call(os.system, f"touch {canary.path}")}, tmp_path / "second.pt")
    torch.save({"extra": Call(DistillationModel, str(tmp_path / "second.pt"), network)}, tmp_path / "state.pt")
    known = set(torch.serialization.get_safe_globals())
    read_checkpoint(tmp_path / "first.pt")
    assert set(torch.serialization.get_safe_globals()) == known
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pt", weights_only=True)
    assert not canary.sings


def test_a_checkpoint_constructs_no_network(tmp_path: Path) -> None:
    from ultralytics.nn.modules import TorchVision

    construct = nn.Module.__init__
    torch.save({"extra": Call(TorchVision, "resnet18", None), "model": build_detector()}, tmp_path / "best.pt")
    with pytest.raises(ModelError, match="would construct a TorchVision"):
        read_checkpoint(tmp_path / "best.pt")
    assert nn.Module.__init__ is construct


def test_a_checkpoint_has_no_hooks_and_no_parts_that_are_no_modules(tmp_path: Path) -> None:
    for change in ({"_forward_hooks": {0: nn.ReLU()}}, {"_modules": {"0": nn.ReLU}}, {"_modules": 5}):
        network = build_detector()
        vars(network.model[1]).update(change)
        torch.save({"model": network}, tmp_path / "best.pt")
        with pytest.raises(ModelError, match=r"best\.pt (has hooks|is damaged)"):
            read_checkpoint(tmp_path / "best.pt")


def test_a_training_that_goes_on_in_a_folder_of_others_runs_nothing(tmp_path: Path, canary: Canary) -> None:
    """Neither a cache of labels, which Ultralytics keeps as a pickle, nor a checkpoint, nor what its settings name."""
    adapter = write_training(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        finetune(adapter, adapter.module, epochs=2, batch=3, out=out, on_epoch=stop)
    assert not list(tmp_path.rglob("*.cache")), "no cache is kept"
    call = Call(os.system, f"touch {canary.path}")
    for name in ("train.cache", "val.cache"):
        for folder in (out, tmp_path / "labels"):
            with (folder / name).open("wb") as file:
                np.save(file, np.array(call, dtype=object), allow_pickle=True)
    evil = {"model": call, "ema": call, "train_args": dict.fromkeys(("distill_model", "pretrained", "cfg"), "evil.pt")}
    torch.save(evil, out / "weights" / "last.pt")
    assert finetune(adapter, adapter.module, epochs=2, batch=3, out=out, resume=True).epochs == 2
    assert not canary.sings
    torch.save({"epoch": call}, out / "weights" / "state.pt")
    with pytest.raises(ModelError, match="state"):
        finetune(adapter, adapter.module, epochs=2, batch=3, out=out, resume=True)
    assert not canary.sings


# -- what runs leave -------------------------------------------------------------------------------


def test_nothing_in_a_policy_is_evaluated(
    tiny: Path, searched: Path, tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (searched / "policy.json").read_text()
    for old in _texts(json.loads(good))[:6]:
        (tmp_path / "policy.json").write_text(good.replace(json.dumps(old), json.dumps(canary.expression)))
        words = ["apply", "--policy", str(tmp_path / "policy.json"), "--model", str(tiny / "best.pt")]
        check_silent([*words, "--imgsz", str(SIZE), "--out", str(tmp_path / "run")], canary, capsys, old)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_nothing_in_a_journal_is_evaluated(
    searched: Path, tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (searched / "journal.jsonl").read_text().splitlines()
    for number, line in enumerate(lines[:3]):
        for old in _texts(json.loads(line))[:4]:
            run = shutil.copytree(searched, tmp_path / "run")
            changed = line.replace(json.dumps(old), json.dumps(canary.expression))
            (run / "journal.jsonl").write_text("\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n")
            check_silent(["search", "--resume", str(run)], canary, capsys, old)
            shutil.rmtree(run)


def check_silent(words: list[str], canary: Canary, capsys: pytest.CaptureFixture[str], changed: str) -> None:
    """Make sure that a command ends well or in a sentence, and that nothing was evaluated of the text changed."""
    code = main(words)
    said = capsys.readouterr().err
    assert code == 0 or one_sentence(said)
    assert not canary.sings, changed


def _texts(value: Any) -> list[str]:
    """Return all texts of a JSON value, names of entries too, each once."""
    if isinstance(value, dict):
        found = [text for item in value.items() for one in item for text in _texts(one)]
    elif isinstance(value, list):
        found = [text for one in value for text in _texts(one)]
    else:
        found = [value] if isinstance(value, str) else []
    return list(dict.fromkeys(found))


def test_nothing_in_a_sensitivity_file_is_evaluated(
    tiny: Path, tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments("sensitivity", tiny, tmp_path / "curves", "--ratios", "0.5")) == 0
    good = (tmp_path / "curves" / "sensitivity.json").read_text()
    capsys.readouterr()
    for old in _texts(json.loads(good))[:4]:
        file = tmp_path / "sensitivity.json"
        file.write_text(good.replace(json.dumps(old), json.dumps(canary.expression)))
        words = ("--budget", "flops=70%", "--strategy", "sensitivity", "--episodes", "2", "--sensitivity", str(file))
        check_silent(arguments("search", tiny, tmp_path / "run", *words), canary, capsys, old)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_a_run_of_others_is_not_trusted_because_it_says_so(
    searched: Path, tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(searched, tmp_path / "run")
    (tmp_path / "net.py").write_text(f"def make():\n    {canary.expression}\n")
    config = (run / "config.yaml").read_text()
    lines = [line for line in config.splitlines() if not line.startswith(("model:", "data:"))]
    for more in ([f'model: "{tmp_path / "net.py"}:make"', "data: null"], ["trust_checkpoint: true"]):
        (run / "config.yaml").write_text("\n".join([*(lines if len(more) == 2 else config.splitlines()), *more]))
        for words in (["--resume", str(run)], ["--config", str(run / "config.yaml"), "--out", str(tmp_path / "out")]):
            assert main(["search", *words]) == 2
            assert "give --trust-checkpoint" in one_sentence(capsys.readouterr().err)
            assert not canary.sings


# -- a network that is trusted ---------------------------------------------------------------------


class Own(nn.Module):
    """An activation that the safe loader does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


def test_a_trusted_run_reads_what_it_wrote(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build_detector(32)
    network.model[1].act = Own()
    write_detector(tmp_path / "best.pt", network)
    (tmp_path / "data").symlink_to(tiny / "data")
    run = tmp_path / "run"
    words = arguments(
        "search", tmp_path, run, "--budget", "flops=70%", "--strategy", "uniform", "--finetune-epochs", "1"
    )
    assert main(words) == 2
    assert "add --trust-checkpoint" in one_sentence(capsys.readouterr().err)
    shutil.rmtree(run, ignore_errors=True)
    assert main([*words, "--trust-checkpoint"]) == 0
    assert summary(run).stages["finetuned"].cost("flops") <= 0.7 * summary(run).stages["dense"].cost("flops")
    capsys.readouterr()
    (run / "model.pt").unlink()
    (run / "summary.json").unlink()
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:-1]))
    assert main(["search", "--resume", str(run)]) == 2
    assert "add --trust-checkpoint" in one_sentence(capsys.readouterr().err)
    assert main(["search", "--resume", str(run), "--trust-checkpoint"]) == 0
    assert (run / "model.pt").exists()
    out = str(tmp_path / "exported")
    words = ["export", "--model", str(run / "model.pt"), "--imgsz", str(SIZE), "--format", "torchscript", "--out", out]
    assert main([*words, "--trust-checkpoint"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train", ("--epochs", "1")),
        ("sparsify", ("--epochs", "1")),
        ("slim", ("--budget", "flops=80%", "--sparsity-epochs", "1", "--finetune-epochs", "1")),
        ("mask", ("--epochs", "1", "--granularity", "unstructured")),
        ("quantize", ("--qat-epochs", "1", "--max-drop", "0.9")),
        ("netadapt", ("--budget", "flops=90%", "--images", "4", "--finetune-epochs", "1", "--short-term-steps", "1")),
    ],
)
def test_every_command_reads_what_it_wrote_of_a_trusted_network(
    tiny: Path, searched: Path, tmp_path: Path, command: str, extra: tuple[str, ...]
) -> None:
    network = build_detector(32)
    network.model[1].act = Own()
    write_detector(tmp_path / "best.pt", network)
    data = write_data(tmp_path / "data", images=17)  # as many as the last two need
    words = [command, "--model", str(tmp_path / "best.pt"), "--data", str(data), *extra]
    words += ["--policy", str(searched / "policy.json")] if command == "train" else []
    words += ["--imgsz", str(SIZE), "--device", "cpu", "--batch", "2", "--out", str(tmp_path / "run")]
    words += ["--trust-checkpoint"]
    assert main([word for word in words if command != "quantize" or word not in ("--device", "cpu")]) == 0


@pytest.mark.slow
def test_a_backbone_of_torchvision_needs_no_trust(tiny: Path, tmp_path: Path) -> None:
    network = build(stock.DetectionModel, torchvision_yaml(None), name="mine.yaml").eval()
    network.names = {0: "green", 1: "blue"}
    network.args = stock.get_cfg()
    write_detector(tmp_path / "best.pt", network)
    (tmp_path / "data").symlink_to(tiny / "data")
    words = ("--budget", "flops=80%", "--strategy", "uniform", "--finetune-epochs", "1")
    assert main(arguments("search", tmp_path, tmp_path / "run", *words)) == 0
    assert summary(tmp_path / "run").stages["finetuned"].cost("flops") <= 0.8 * summary(tmp_path / "run").stages[
        "dense"
    ].cost("flops")
