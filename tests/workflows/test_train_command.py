"""``autoprune train`` as a user runs it, small: what can be added to it, and kills in between."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import ProfileConfig, TrainConfig
from autoprune.errors import ConfigError
from autoprune.image_size import ImageSize
from autoprune.listener import SilentListener
from autoprune.models import open_adapter
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.policy import Policy, PolicyUnit, Provenance
from autoprune.results import Metrics
from autoprune.training.ultralytics.session import Session
from autoprune.workflows.network import open_network
from tests.helpers.detectors import build, write_detector
from tests.helpers.training import parameters
from tests.helpers.world import SIZE, arguments, one_sentence, summary

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def policy(tiny: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that keeps half of every unit."""
    config = ProfileConfig(model=tiny / "best.pt", imgsz=ImageSize.of(SIZE), device="cpu")
    network = open_network(config, criterion="l1", listener=SilentListener())
    units = tuple(PolicyUnit(unit.name, unit.width, max(unit.width // 2, 1)) for unit in network.space.units)
    made = Policy(
        model=network.described,
        criterion="l1",
        round_to=1,
        units=units,
        budget=("flops=50%",),
        costs={},
        score=None,
        provenance=Provenance("0", "by hand", "none", 0, 0, "today"),
    )
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    made.save(path)
    return path


def train(tiny: Path, policy: Path, out: Path, *extra: str) -> list[str]:
    return [
        "train",
        "--policy",
        str(policy),
        "--model",
        str(tiny / "best.pt"),
        "--data",
        str(tiny / "data" / "data.yaml"),
        "--imgsz",
        str(SIZE),
        "--batch",
        "3",
        "--device",
        "cpu",
        "--no-report",
        "--out",
        str(out),
        *extra,
    ]


def epochs(folder: Path) -> list[int]:
    with (folder / "results.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


class Killed:
    """Ends the process after a number of saved checkpoints."""

    def __init__(self, patch: pytest.MonkeyPatch, *, after: int) -> None:
        save = Session.save_model
        left = [after]

        def saved(session: Session) -> bool:
            done = save(session)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return done

        patch.setattr(Session, "save_model", saved)


@pytest.mark.parametrize(
    "after", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["after softening", "in the fine-tuning"]
)
def test_a_killed_run_goes_on_from_anywhere(
    tiny: Path,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    out, validate, validated = tmp_path / "run", UltralyticsAdapter.validate, []

    def counting(adapter: UltralyticsAdapter, module: nn.Module) -> Metrics:
        validated.append(module)
        return validate(adapter, module)

    monkeypatch.setattr(UltralyticsAdapter, "validate", counting)
    options = ("--epochs", "3", "--soften", "--soften-epochs", "1", "--distill", str(tiny / "best.pt"))
    with pytest.MonkeyPatch.context() as patch:
        Killed(patch, after=after)
        assert main(train(tiny, policy, out, *options)) == 130
    assert f"autoprune train --resume {out}" in capsys.readouterr().err
    assert not (out / "model.pt").exists()
    assert main(["train", "--resume", str(out)]) == 0
    assert epochs(out / "soften") == [1]
    assert epochs(out / "finetune") == [1, 2]
    found = summary(out)
    assert list(found) == ["version", "command", "title", "metric_names", "stages", "budget", "compared", "environment"]
    assert list(found["stages"]) == ["dense", "pruned", "softened", "finetuned"]
    assert len(validated) == 4, "each once, however often the run goes on"
    assert main(["train", "--resume", str(out)]) == 0
    assert len(validated) == 4
    assert summary(out)["stages"] == found["stages"]
    counts = {name: parameters(open_adapter(out / f"{name}.pt").module) for name in ("pruned", "softened", "model")}
    assert set(counts.values()) == {found.stages["pruned"].cost("params")} == {found.stages["finetuned"].cost("params")}
    assert (
        found.stages["finetuned"].cost("flops")
        == found.stages["pruned"].cost("flops")
        < found.stages["dense"].cost("flops")
    )


def test_early_stopping_is_told(
    tiny: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = Session.validate

    def worse(self: Session) -> tuple[object, float]:
        metrics, _ = validate(self)
        self.best_fitness = 0.5
        return metrics, 0.5 if self.epoch == 0 else 0.1

    monkeypatch.setattr(Session, "validate", worse)
    assert main(train(tiny, policy, tmp_path / "run", "--epochs", "5", "--patience", "1")) == 0
    assert "Stopped after 2 of 5 epochs: the last 1 brought nothing better" in capsys.readouterr().out
    assert epochs(tmp_path / "run" / "finetune") == [1, 2]


def test_a_result_that_is_not_the_pruned_network_is_refused(
    tiny: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        Killed(patch, after=1)
        assert main(train(tiny, policy, out, "--epochs", "1")) == 130
    capsys.readouterr()
    shutil.copy(tiny / "best.pt", out / "model.pt")
    assert main(["train", "--resume", str(out)]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "model.pt does not hold the pruned network: model.0.conv.weight is 8×3×3×3 there and 4×3×3×3" in said


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_made(
    tiny: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write_detector(tmp_path / "teacher.pt", build(16, reg_max=8))
    assert main(train(tiny, policy, tmp_path / "run", "--epochs", "1", "--distill", str(teacher))) == 2
    assert "the same number of bins per box side" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_the_dense_network_teaches_after_a_search(tiny: Path, tmp_path: Path) -> None:
    options = ("--strategy", "uniform", "--budget", "flops=60%", "--finetune-epochs", "1", "--distill")
    assert main(arguments("search", tiny, tmp_path / "run", *options)) == 0
    header = (tmp_path / "run" / "finetune" / "results.csv").read_text().splitlines()[0]
    assert "train/distill_cls" in header


def test_gpus_that_are_not_there_are_named(
    tiny: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = ("--device", "cuda:0,1", "--batch", "4")
    assert main(train(tiny, policy, tmp_path / "run", *options)) == 2
    assert "device cuda:1 was asked for, but there are 1 CUDA devices" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--soften --epochs 1", "--soften leaves no epoch for fine-tuning: it takes 1 of --epochs 1"),
        ("--soften --epochs 4 --soften-epochs 4", "it takes 4 of --epochs 4"),
        ("--soften-epochs 2", "--soften-epochs is for --soften"),
        ("--patience -1", "--patience must be a whole number of at least 0, got -1"),
        ("--distill-weight 0", "--distill-weight must be above 0, got 0"),
        ("--device cuda:0,1 --soften", "are for training on one device, got --device cuda:0,1"),
        ("--device cuda:0,1 --distill m.pt", "--distill, --soften and --ultralytics-callbacks are for training on one"),
        ("--device cuda:0,1 --ultralytics-callbacks", "are for training on one device"),
        ("--train-args lr0=0.1 --lr-scale 2", "--train-args lr0 is the first learning rate itself, and --lr-scale 2"),
        ("--device cuda:0,1 --batch 15", "--batch must be a multiple of the 2 devices that share it, got 15"),
        ("--device cuda:0,0", "--device takes several GPUs as 0,1 or cuda:0,1, each once, got 'cuda:0,0'"),
        ("--device cpu,cuda:0", "--device takes several GPUs as 0,1 or cuda:0,1"),
    ],
)
def test_options_that_make_no_sense_are_named(options: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(["train", "--policy", "p.json", "--model", "m.pt", "--data", "d.yaml", *options.split()])
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("model", "said"), [("nets.py:make", "training on several GPUs is for"), ("a.cfg", "several GPUs")]
)
def test_several_gpus_train_networks_of_ultralytics(model: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(["train", "--policy", "p.json", "--model", model, "--device", "cuda:0,1"])


@pytest.mark.parametrize(("total", "softening"), [(2, 1), (4, 1), (20, 5)])
def test_softening_takes_a_quarter_of_the_epochs(total: int, softening: int) -> None:
    config = TrainConfig(policy=Path("p"), model=Path("m"), data=Path("d"), epochs=total, soften=True)
    assert (config.softening_epochs, config.tuning_epochs) == (softening, total - softening)


def test_distillation_without_fine_tuning_is_refused() -> None:
    with pytest.raises(ConfigError, match="--distill is a way of fine-tuning, and --finetune-epochs 0 leaves that out"):
        parse(["search", "--budget", "flops=50%", "--distill", "--finetune-epochs", "0"])
