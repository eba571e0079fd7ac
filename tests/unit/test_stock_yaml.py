"""Networks that a stock YAML can express: ties, the YAML itself, and stock training that keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.cli.main import main
from autoprune.costs import ChannelsCost, ParamsCost, parameter_shapes
from autoprune.criteria.registry import make_criterion
from autoprune.errors import ModelError
from autoprune.models import open_adapter
from autoprune.models.ultralytics import stock
from autoprune.models.ultralytics.stock_yaml import StockYaml
from autoprune.policy import Policy
from autoprune.strategies.threshold import unit_scores
from autoprune.structure.graph import ChannelGraph, Tie, tie
from autoprune.structure.slicing import Pruner
from autoprune.structure.space import Space
from tests.helpers.detectors import build
from tests.helpers.toy import chain_graph
from tests.helpers.world import SIZE, analysed, arguments, one_sentence, quick_commands, summary, write_world

FAMILIES = ("yolov8n", *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolov5n", "yolo11n")))
Described = tuple[Space, Pruner]


def described(architecture: str, classes: int) -> Described:
    """Return the describable allocations of a family, its widths halved, and what makes them."""
    with stock.quiet():
        given = stock.tasks.yaml_model_load(f"{architecture}.yaml")
        depth, width, most = given["scales"]["n"]
        given["scales"] = {"n": [depth, width / 2, most]}
        module = stock.DetectionModel(given, nc=classes, verbose=False).eval()
    free = analysed(module, torch.rand(2, 3, SIZE, SIZE), free_outputs={"feats"})
    space = Space(tie(free, StockYaml().ties(module)))
    return space, Pruner(module, space, make_criterion("l1").order(module, space.graph))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Described:
    return described(request.param, 20)


@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_the_yaml_builds_what_was_pruned_and_takes_its_weights(family: Described, data: st.DataObject) -> None:
    space, pruner = family
    counts = [data.draw(st.sampled_from(choices.tolist())) for choices in space.choices]
    pruned = pruner.materialise(space.allocation(counts))
    carrying, text = StockYaml().described(pruned)
    description = yaml.safe_load(text)
    assert description == {key: value for key, value in carrying.yaml.items() if key != "yaml_file"}
    with stock.quiet():
        built: Any = stock.DetectionModel(description, verbose=False)
    built.load_state_dict(pruned.state_dict(), strict=True)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = pruned.eval()(image)[0], built.eval()(image)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_search_keeps_most_of_its_freedom(family: Described) -> None:
    space, _ = family
    ratios = space.lower / space.dense
    assert len(space) > 20
    assert np.mean(ratios) < 0.6


def test_the_closed_form_of_the_parameters_holds_for_tied_units(family: Described) -> None:
    space, pruner = family
    cost = ParamsCost(space, parameter_shapes(pruner.module))
    pruned = pruner.materialise(space.allocation(space.lower))
    assert float(cost(space.lower)) == sum(parameter.numel() for parameter in pruned.parameters())


def test_the_head_follows_its_first_input_no_further_than_its_classes_allow() -> None:
    """The class branch is max(P3, min(nc, 100)) wide (``Detect.__init__``)."""
    space, pruner = described("yolov8n", 20)
    head = pruner.materialise(space.allocation(space.lower)).model[-1]  # type: ignore[index, union-attr]
    assert {tower[0].conv.out_channels for tower in head.cv3} == {24}
    assert head.cv3[0][0].conv.in_channels == 24
    assert {tower[0].conv.out_channels for tower in head.cv2} == {64}


@pytest.mark.parametrize(
    ("architecture", "named"),
    [("yolov9t", "ELAN1"), ("yolov10n", "SCDown"), ("yolo12n", "A2C2f"), ("yolo26n", "Detect")],
)
def test_a_family_without_a_writer_is_refused_in_one_sentence(architecture: str, named: str) -> None:
    with stock.quiet():
        module = stock.DetectionModel(f"{architecture}.yaml", verbose=False)
    with pytest.raises(ModelError, match=rf"row \d+ is an? .*{named}.*`stock_yaml`"):
        StockYaml().ties(module)


def test_what_no_yaml_expresses_is_refused_by_its_first_row() -> None:
    module = build(32)
    graph = analysed(module, torch.rand(2, 3, SIZE, SIZE), free_outputs={"feats"})
    space = Space(graph)
    pruner = Pruner(module, space, make_criterion("l1").order(module, graph))
    widths = {unit.name: unit.width for unit in space.units}
    pruned = pruner.materialise(space.from_names({**widths, "model.2.m.0.cv1": 8, "model.5.cv1": 16}))
    with pytest.raises(ModelError, match=r"row 2 \(C2f\) has model\.2\.m\.0\.cv1\.conv\.weight"):
        StockYaml().described(pruned)


# -- ties --------------------------------------------------------------------------------------------------------------

WIDTHS = (32, 16, 48, 24)


def chain(*widths: int) -> ChannelGraph:
    """A chain of convolutions whose weights are known to the graph."""
    graph = chain_graph(widths)
    tensors = {f"{layer.name}.weight": ((0, layer.out_axis), (1, layer.in_axis)) for layer in graph.layers}
    return replace(graph, tensors=tensors)


def place(index: int) -> tuple[str, int]:
    return f"conv{index}.weight", 0


def test_tied_units_keep_their_proportion() -> None:
    space = Space(tie(chain(*WIDTHS), [Tie((place(0), place(1)))]), round_to=8)
    assert [unit.name for unit in space.units] == ["conv0", "conv2", "conv3"]
    counts = np.array([24, 48, 24])
    assert space.group_counts(counts) == [3, 24, 12, 48, 24, 8]
    assert list(space.axis_widths(counts)) == [3, 24, 12, 48, 24, 8]
    assert ChannelsCost(space)(counts) == 24 + 12 + 48 + 24


def test_a_chain_of_ties_is_one_unit_with_the_strictest_bound() -> None:
    ties = [Tie((place(0), place(1)), least=9), Tie((place(1), place(2)), least=24)]
    space = Space(tie(chain(*WIDTHS), ties), round_to=8)
    assert [unit.name for unit in space.units] == ["conv2", "conv3"]
    assert list(space.choices[0]) == [24, 48]  # of multiples of 8, thirds are whole numbers at these alone


@pytest.mark.parametrize(
    "ties",
    [
        [Tie((place(0), place(1)), pinned="so")],
        [Tie((place(0), place(1))), Tie((place(1), ("absent", 0)))],
        [Tie((place(0), place(1))), Tie((place(0), ("conv0.weight", 1)))],
    ],
)
def test_one_pinned_width_pins_all_that_are_tied_to_it(ties: list[Tie]) -> None:
    graph = tie(chain(*WIDTHS), ties)
    assert [unit.name for unit in graph.units] == ["conv2", "conv3"]
    assert all(group.pinned for group in graph.groups[1:3])


def test_a_narrower_group_gives_its_scores_to_several_ranks() -> None:
    space = Space(tie(chain(4, 2), [Tie((place(0), place(1)))]), round_to=1)
    importance = [np.zeros(3), np.array([1.0, 3.0, 4.0, 2.0]), np.array([10.0, 20.0]), np.zeros(8)]
    np.testing.assert_allclose(unit_scores(space, importance)[0], [12.0, 11.5, 6.0, 5.5])


# -- commands ----------------------------------------------------------------------------------------------------------

SEARCH = ("--budget", "flops=60%", "--episodes", "4", "--strategy", "random", "--finalists", "1", "--no-tensorboard")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny detector with data, on a quick device."""
    with quick_commands(tmp_path_factory.mktemp("cache")):
        yield write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def searched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search among describable networks."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert main(arguments("search", world, out, *SEARCH, "--stock-yaml")) == 0
    return out


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_yaml_beside_the_checkpoint_builds_its_network(searched: Path) -> None:
    with stock.quiet():
        built = stock.DetectionModel(stock.tasks.yaml_model_load(searched / "pruned.yaml"), verbose=False)
    assert (
        parameters(built)
        == summary(searched).stages["pruned"].cost("params")
        < summary(searched).stages["dense"].cost("params")
    )


def test_what_stock_training_builds_from_the_checkpoint_is_the_pruned_network(searched: Path) -> None:
    module = open_adapter(searched / "model.pt").module
    trainer = stock.DetectionTrainer.__new__(stock.DetectionTrainer)
    trainer.data = {"nc": 2, "channels": 3, "names": {0: "green", 1: "blue"}}
    trainer.args = stock.get_cfg()
    with stock.quiet():
        rebuilt = trainer.get_model(cfg=module.yaml, weights=module, verbose=False)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(rebuilt.state_dict()[name], tensor)


def test_the_run_says_what_stock_training_does_and_what_the_limit_costs(searched: Path) -> None:
    assert "keeps this network pruned" in (searched / "model.txt").read_text()
    scores = summary(searched)["search"]["stock_yaml"]
    assert set(scores) == {"uniform", "uniform_untied"}
    assert all(-5 < score < 1 for score in scores.values())


def test_the_policy_names_all_units_and_applies_without_the_option(searched: Path, world: Path) -> None:
    dense, data = open_adapter(world / "best.pt").module, world / "data" / "data.yaml"
    pruned = Policy.load(searched / "policy.json").apply(dense, data=data, imgsz=SIZE)
    assert parameters(pruned) == summary(searched).stages["pruned"].cost("params")


@pytest.mark.parametrize("command", [["apply"], ["train", "--epochs", "2", "--soften", "--lr-scale", "0.01"]])
def test_its_policy_applied_to_weights_gives_what_stock_training_keeps(
    command: list[str], searched: Path, world: Path, tmp_path: Path
) -> None:
    options = {
        "--model": world / "best.pt",
        "--data": world / "data" / "data.yaml",
        "--policy": searched / "policy.json",
        "--imgsz": SIZE,
        "--batch": 2,
        "--out": tmp_path / "run",
    }
    assert main([*command, "--no-report", *(str(word) for option in options.items() for word in option)]) == 0
    assert "keeps this network pruned" in (tmp_path / "run" / "model.txt").read_text()
    for file in (tmp_path / "run").glob("*.pt"):
        StockYaml().described(open_adapter(file).module)
        assert open_adapter(file).module.yaml["head"] == yaml.safe_load((searched / "pruned.yaml").read_text())["head"]


def test_without_the_option_the_run_warns_of_stock_training(world: Path, tmp_path: Path) -> None:
    assert main(arguments("search", world, tmp_path / "run", *SEARCH)) == 0
    assert "NOT" in (tmp_path / "run" / "model.txt").read_text()
    assert not (tmp_path / "run" / "pruned.yaml").exists()
    assert "stock_yaml" not in summary(tmp_path / "run")["search"]


def test_a_budget_that_holds_already_leaves_a_yaml_too(world: Path, tmp_path: Path) -> None:
    words = ("--budget", "flops=100%", "--stock-yaml", "--no-tensorboard")
    assert main(arguments("search", world, tmp_path / "run", *words)) == 0
    assert (tmp_path / "run" / "pruned.yaml").exists()


def test_netadapt_takes_the_option(world: Path, tmp_path: Path) -> None:
    words = ("--budget", "flops=80%", "--stock-yaml", "--short-term-steps", "0", "--initial-step", "0.2")
    assert main(arguments("netadapt", world, tmp_path / "run", *words)) == 0
    carrying = open_adapter(tmp_path / "run" / "model.pt").module
    StockYaml().described(carrying)
    assert yaml.safe_load((tmp_path / "run" / "pruned.yaml").read_text())["head"] == carrying.yaml["head"]


@pytest.mark.slow
def test_under_a_latency_budget_the_price_is_told_too(world: Path, tmp_path: Path) -> None:
    words = [*SEARCH[2:], "--stock-yaml"]
    assert main(arguments("search", world, tmp_path / "run", "--budget", "latency=80%", *words)) == 0
    assert set(summary(tmp_path / "run")["search"]["stock_yaml"]) == {"uniform", "uniform_untied"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "slim --budget channels=60% --sparsity-epochs 1",
        "compare --budget flops=80% --evaluations 2 --strategies uniform --seeds 1 --no-references --finetune-epochs 1",
    ],
)
def test_other_commands_take_the_option(command: str, world: Path, tmp_path: Path) -> None:
    name, *words = command.split()
    assert main(arguments(name, world, tmp_path / "run", *words, "--stock-yaml")) == 0
    assert list((tmp_path / "run").rglob("pruned.yaml"))
    for file in [*(tmp_path / "run").rglob("model.pt"), *(tmp_path / "run").rglob("pruned.pt")]:
        StockYaml().described(open_adapter(file).module)


def test_widths_that_no_yaml_has_are_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments("search", world, tmp_path / "run", *SEARCH, "--stock-yaml", "--round-to", "4")) == 2
    assert "--round-to" in one_sentence(capsys.readouterr().err)


STOCK = """
import sys
sys.modules["autoprune"] = None
from pathlib import Path
from ultralytics import YOLO

def count(yolo):
    return sum(parameter.numel() for parameter in yolo.model.parameters())

data, size = sys.argv[2], int(sys.argv[3])
options = dict(data=data, imgsz=size, batch=2, workers=0, device="cpu", plots=False, verbose=False, amp=False)
counts = [count(YOLO(sys.argv[1]))]
stopped = YOLO(sys.argv[1])
stopped.add_callback("on_model_save", lambda trainer: trainer.epoch == 0 and (_ for _ in ()).throw(KeyboardInterrupt))
try:
    stopped.train(epochs=2, project=str(Path.cwd()), name="stock", **options)
except KeyboardInterrupt:
    pass
last = Path("stock/weights/last.pt")
counts.append(count(YOLO(last)))
resumed = YOLO(last)
resumed.train(resume=True)
counts.append(count(YOLO("stock/weights/best.pt")))
trained = YOLO("stock/weights/best.pt")
trained.val(data=data, imgsz=size, workers=0, plots=False, verbose=False)
import torch
exported = torch.jit.load(YOLO("stock/weights/best.pt").export(format="torchscript", imgsz=size))
fused = YOLO("stock/weights/best.pt")
fused.fuse()
print("COUNTS", *counts, count(fused) - sum(parameter.numel() for parameter in exported.parameters()))
"""


@pytest.mark.slow
def test_stock_train_resume_val_and_export_keep_the_pruned_network(world: Path, tmp_path: Path) -> None:
    """All of it in a process that cannot import autoprune, after a fine-tune of ours."""
    out = tmp_path / "run"
    assert main(arguments("search", world, out, *SEARCH, "--stock-yaml", "--finetune-epochs", "1")) == 0
    words = [str(out / "model.pt"), str(world / "data" / "data.yaml"), str(SIZE)]
    environment = {**os.environ, "PYTHONPATH": "", "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("COUNTS")]
    *counts, difference = (int(word) for word in line.split()[1:])
    assert set(counts) == {summary(out).stages["finetuned"].cost("params")}
    assert difference == 0
