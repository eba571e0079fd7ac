"""``autoprune sparsify`` as a user runs it, small."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autoprune.workflows.tuning
from autoprune.choices import PenaltyName
from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import SparsifyConfig
from autoprune.config.files import load, save
from autoprune.criteria._base import ranking
from autoprune.criteria.registry import make_criterion
from autoprune.errors import ConfigError
from autoprune.evaluation.compensation import fold_constants
from autoprune.image_size import ImageSize
from autoprune.models import open_adapter
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from autoprune.training.finetune import EpochReport, finetune
from tests.helpers.detectors import build, write_detector
from tests.helpers.world import SIZE, WIDTH, analysed, one_sentence, stages_of, summary

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]


def words(world: Path, out: Path, *extra: str) -> list[str]:
    """Return the command on the tiny world."""
    options = {
        "--model": str(world / "best.pt"),
        "--data": str(world / "data" / "data.yaml"),
        "--imgsz": str(SIZE),
        "--epochs": "2",
        "--batch": "3",
        "--sparsity": "50",
        "--device": "cpu",
        "--threads": "1",
        "--out": str(out),
    }
    return [
        "sparsify",
        *(word for option in options.items() if option[0] not in extra for word in option),
        "--no-report",
        *extra,
    ]


@pytest.fixture(scope="module")
def finished(quick: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(tiny, out)) == 0
    return out


def test_the_sparse_network_has_smaller_scales_and_opens_as_it_is(finished: Path, tiny: Path) -> None:
    def mean_scale(path: Path) -> float:
        module = open_adapter(path).module
        norms = [child for child in module.modules() if isinstance(child, torch.nn.BatchNorm2d)]
        return float(torch.cat([norm.weight.detach().abs() for norm in norms]).mean())

    assert mean_scale(finished / "sparse.pt") < 0.9 * mean_scale(tiny / "best.pt")


def test_the_log_names_its_stages(finished: Path) -> None:
    assert stages_of(finished) == ["Open the network", "Train sparse", "Measure the result"]


def test_the_summary_says_how_sparse_and_how_accurate(finished: Path) -> None:
    found = summary(finished)
    dense, sparse = (found["stages"][name] for name in ("dense", "sparse"))
    assert {"mAP50-95", "mAP50"} == set(dense["metrics"]) == set(sparse["metrics"])
    assert dense["details"]["scale_quintiles"] == [1.0] * 5  # an untrained network
    assert sparse["details"]["scale_quintiles"][2] < 0.9
    assert dense["details"]["scales_near_zero"] == 0
    assert found["dead_units"] == []
    assert (found["penalty"], found["sparsity"], found["epochs"], found["lr"]) == ("l1", 50.0, 2, 0.001)
    assert "torch" in found["environment"]


def test_record_pictures_and_events_are_there(finished: Path) -> None:
    record = json.loads((finished / "sparsity.json").read_text())
    assert [seen["epoch"] for seen in record["epochs"]] == [0, 1, 2]
    assert record["watched"] == "model.0.bn"
    for name in ("quintiles.png", "watched.png", "histogram.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))


def test_a_finished_run_is_told_again_without_training(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "sparse.pt").read_bytes(), summary(finished)
    assert main(["sparsify", "--resume", str(finished)]) == 0
    assert ((finished / "sparse.pt").read_bytes(), summary(finished)) == before
    said = capsys.readouterr().out
    assert f"autoprune search --model {finished / 'sparse.pt'} --data" in said
    assert "--strategy global --criterion bn --budget flops=50%" in said


def test_a_record_of_another_training_is_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "sparsity.json").read_text())
    (run / "sparsity.json").write_text(json.dumps({**record, "watched": "model.99.bn"}))
    assert main(["sparsify", "--resume", str(run)]) == 2
    assert "sparsity.json is of another training (l1, model.99.bn); remove it" in one_sentence(capsys.readouterr().err)


def test_ctrl_c_prints_the_command_that_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*positional: Any, **options: Any) -> Any:
        def stop(report: EpochReport) -> None:
            raise KeyboardInterrupt

        return finetune(*positional, **{**options, "on_epoch": stop})

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(autoprune.workflows.tuning, "finetune", interrupted)
        assert main(words(tiny, out, "--penalty", "group-lasso", "--watch", "model.2.cv1")) == 130
    assert f"go on with: autoprune sparsify --resume {out}" in one_sentence(capsys.readouterr().err)
    assert not (out / "sparse.pt").exists()
    assert main(["sparsify", "--resume", str(out)]) == 0
    record = json.loads((out / "sparsity.json").read_text())
    assert [seen["epoch"] for seen in record["epochs"]] == [0, 1, 2]
    assert [seen["iteration"] for seen in record["iterations"]] == [0, 1, 2, 3]
    assert (record["penalty"], record["watched"]) == ("group-lasso", "model.2.cv1")
    assert "--criterion l2" in capsys.readouterr().out


def test_a_layer_that_dies_is_told_with_the_way_out(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build(WIDTH)
    network.model[1].bn.weight.data.fill_(1e-4)
    weights = write_detector(tmp_path / "best.pt", network)
    options = ("--model", str(weights), "--epochs", "1", "--sparsity", "1e-6", "--lr", "1e-6")
    assert main(words(tiny, tmp_path / "run", *options)) == 0
    said = one_sentence(capsys.readouterr().err)
    assert said.startswith("Every channel has died in 1 of ")
    assert "units (model.1); pruning leaves each unit its minimum" in said
    assert "less than --sparsity 1e-06" in said
    assert summary(tmp_path / "run")["dead_units"] == ["model.1"]


def test_a_training_that_makes_nothing_small_says_what_would(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny, tmp_path / "run", "--epochs", "1", "--sparsity", "1e-6")) == 0
    assert "Only 0.0% of the scales are near zero after epoch 1; more than --sparsity 1e-06" in (
        capsys.readouterr().out
    )


def test_a_layer_that_cannot_be_watched_is_told(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tiny, tmp_path / "run", "--watch", "model.0.cv")) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "--watch must name one of the" in said
    assert "such as model.0.bn" in said
    assert said.endswith("got model.0.cv")


@pytest.mark.shared
@pytest.mark.slow
def test_a_real_detector_becomes_sparse_and_its_dead_channels_go_at_no_cost(shared: Path, tmp_path: Path) -> None:
    data, out = shared / "data/bccd/bccd.yaml", tmp_path / "run"
    words = ["--model", str(shared / "models/bccd-yolov5nu-320.pt"), "--data", str(data), "--imgsz", "160"]
    options = ["--epochs", "12", "--sparsity", "0.1", "--lr", "0.01", "--device", "cpu", "--out", str(out)]
    assert main(["sparsify", *words, *options]) == 0
    found = summary(out)
    dense, sparse = (found["stages"][name]["details"]["scales_near_zero"] for name in ("dense", "sparse"))
    assert sparse > 0.2 > 0.05 > dense
    adapter = open_adapter(out / "sparse.pt", data=data, image_size=160)
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    importance = make_criterion("bn")(adapter.module, graph)
    limit, space = found["zero_below"], Space(graph, round_to=1)
    gammas = dict(adapter.module.named_parameters())
    alive = np.zeros(graph.channels)
    for name, pairs in graph.tensors.items():
        if name.endswith("bn.weight"):
            np.maximum.at(alive, graph.axes[pairs[0][1]], gammas[name].detach().abs().numpy())
    kept = [
        max(1, *(int((alive[group.offset : group.offset + group.size] >= limit).sum()) for group in groups))
        for groups in ([graph.groups[index] for index in unit.groups] for unit in graph.units)
    ]
    allocation, pruner = space.allocation(kept), Pruner(adapter.module, space, ranking(importance))
    accuracies = [adapter.validate(adapter.module).primary]
    for folded in (True, False):
        module = pruner.materialise(allocation)
        if folded:
            fold_constants(module, adapter.module, graph, pruner.kept(allocation), adapter.example(1))
        accuracies.append(adapter.validate(module).primary)
    assert accuracies[1] > accuracies[0] - 0.02
    assert accuracies[1] > accuracies[2]


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": Path("best.pt")}, "`model` needs `data`"),
        ({"data": Path("data.yaml")}, "`data` needs `model`"),
        ({"imgsz": ImageSize(100, 100)}, "`imgsz` must be a multiple of 32"),
        ({"device": "tpu"}, "`device` must be"),
        ({"epochs": 0}, "`epochs` must be"),
        ({"batch": 0}, "`batch` must be"),
        ({"threads": 0}, "`threads` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"lr": 0.0}, r"`lr` must lie in \(0, 1\], got 0.0"),
        ({"sparsity": 0.0}, "`sparsity` must be a number above 0, got 0.0"),
        ({"sparsity": float("nan")}, "`sparsity` must be a number above 0, got nan"),
        ({"sparsity": float("inf")}, "`sparsity` must be a number above 0, got inf"),
        ({"sparsity_warmup": 1.0}, r"`sparsity_warmup` must lie in \[0, 1\), got 1.0"),
        ({"sparsity_decay": -0.1}, r"`sparsity_decay` must lie in \[0, 1\], got -0.1"),
        ({"sparsity_decay": float("nan")}, "`sparsity_decay` must lie in"),
    ],
)
def test_a_value_out_of_range_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SparsifyConfig(), **change)


def test_the_command_line_and_the_file_say_the_same(tmp_path: Path) -> None:
    line = "sparsify --model /m.pt --data /d.yaml --penalty group-lasso --sparsity 1e-3 --watch model.0 --lr 0.01"
    command, config = parse(line.split())
    assert isinstance(config, SparsifyConfig)
    assert (config.penalty, config.sparsity, config.watch) == (PenaltyName.GROUP_LASSO, 1e-3, "model.0")
    assert load(command, save(config, tmp_path)) == config
    assert parse(["sparsify"]) == ("sparsify", SparsifyConfig())
