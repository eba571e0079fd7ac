"""Policies applied to weights: by the commands and by the Python call, with the same result."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO

import autoprune as ap
from autoprune.cli.main import main
from autoprune.errors import ConfigError, DataError, ModelError, PolicyError
from autoprune.evaluation import pruning
from autoprune.models import open_adapter
from autoprune.policy import Policy, PolicyModel, PolicyUnit, PolicyWarning, Provenance
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.own_network import make
from tests.helpers.world import SIZE, analysed, one_sentence

pytestmark = [
    pytest.mark.filterwarnings("ignore:::ultralytics", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quick"),
]

TRAIN_ARGS = {"imgsz": SIZE, "task": "detect", "hsv_h": 0.3, "degrees": 20.0, "scale": 0.9, "box": 2.0}
"""What a network was trained with, far from Ultralytics' defaults: its augmentations are part of the result."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector and its data set."""
    folder = tmp_path_factory.mktemp("policies")
    write_detector(folder / "best.pt", build(), train_args=TRAIN_ARGS)
    write_data(folder / "data")
    return folder


def policy_of_units(units: Sequence[PolicyUnit], criterion: str = "l1") -> Policy:
    return Policy(
        model=PolicyModel("best", {unit.name: unit.channels for unit in units}),
        criterion=criterion,
        round_to=1,
        budget=("flops=50%",),
        costs={},
        score=None,
        units=tuple(units),
        provenance=Provenance("0", "by hand", "none", 0, 0, "today"),
    )


def half(module: nn.Module, example: torch.Tensor, criterion: str, *, free: frozenset[str]) -> Policy:
    """Return the policy that keeps half of every unit."""
    graph = analysed(module, example, free_outputs=free)
    units = [PolicyUnit(unit.name, unit.width, max(unit.least, unit.width // 2)) for unit in graph.units]
    return policy_of_units(units, criterion)


def policy_of(world: Path, criterion: str) -> Policy:
    adapter = open_adapter(world / "best.pt")
    return half(adapter.module, adapter.example(2), criterion, free=adapter.free_outputs)


def applied(world: Path, out: Path, policy: Path, *extra: str, command: str = "apply") -> int:
    words = ["--policy", str(policy), "--model", str(world / "best.pt"), "--device", "cpu", "--out", str(out)]
    return main([command, *words, "--no-report", *extra])


# -- a policy that does not fit --------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], str]:
    """Return what edits a policy's JSON."""

    def edit(file: Path) -> str:
        document = json.loads(file.read_text())
        change(document)
        return json.dumps(document)

    return edit


def other_network(file: Path) -> str:
    """Return the policy of a network of the same names with another width."""
    policy = Policy.load(file)
    units = tuple(PolicyUnit(unit.name, 2 * unit.channels, unit.keep) for unit in policy.units)
    model = PolicyModel("best", {unit.name: unit.channels for unit in units})
    return Policy(**{**vars(policy), "units": units, "model": model}).to_json()


MISFITS: Mapping[str, tuple[Callable[[Path], str], str]] = {
    "unknown unit": (edited(lambda one: one["units"][0].update(name="model.77")), "model.77 ("),
    "no units": (edited(lambda one: one.update(units=[])), "model.0 (absent in units, 8 in the model's layers)"),
    "one unit missing": (edited(lambda one: one["units"].pop()), "absent in units"),
    "another width": (edited(lambda one: one["units"][0].update(channels=9, ratio=4 / 9)), "model.0 (9 in units, 8 in"),
    "another network": (other_network, "model.0 (16 in the policy, 8 in the model)"),
}


@pytest.mark.parametrize("command", ["apply", "train"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_policy_that_does_not_fit_is_refused_by_name_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], misfit: str, command: str
) -> None:
    edit, said = MISFITS[misfit]
    file = tmp_path / "policy.json"
    policy_of(world, "l1").save(file)
    file.write_text(edit(file))
    data = ["--data", str(world / "data" / "data.yaml")]
    assert applied(world, tmp_path / "run", file, *data, command=command) == 2
    assert said in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
    with pytest.raises(PolicyError):
        Policy.load(file).apply(open_adapter(world / "best.pt").module)


# -- batch norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [pytest.param("l1", marks=pytest.mark.slow), "bn", "taylor"])
def test_the_python_call_gives_the_network_that_the_command_writes(world: Path, tmp_path: Path, criterion: str) -> None:
    policy, data = policy_of(world, criterion), world / "data" / "data.yaml"
    policy.save(tmp_path / "policy.json")
    assert applied(world, tmp_path / "run", tmp_path / "policy.json", "--data", str(data)) == 0
    written = open_adapter(tmp_path / "run" / "pruned.pt").module.state_dict()
    yolo = YOLO(world / "best.pt")
    before = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}
    pruned = Policy.load(tmp_path / "policy.json").apply(yolo.model, data=data)
    assert pruned.state_dict().keys() == written.keys()
    for name, tensor in pruned.state_dict().items():
        stored = tensor.half().float() if tensor.is_floating_point() else tensor  # as checkpoints are
        assert torch.equal(stored, written[name]), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in yolo.model.state_dict().items())
    assert pruned.args == yolo.model.args  # what else YOLO keeps in its network stays there
    yolo.model = pruned
    yolo.predict(torch.rand(1, 3, SIZE, SIZE), imgsz=SIZE, verbose=False)


def test_compensation_can_be_left_out(world: Path, tmp_path: Path) -> None:
    policy, data = policy_of(world, "l1"), world / "data" / "data.yaml"
    policy.save(tmp_path / "policy.json")
    words = ["--data", str(data), "--no-compensate"]
    assert applied(world, tmp_path / "run", tmp_path / "policy.json", *words) == 0
    written = open_adapter(tmp_path / "run" / "pruned.pt").module.state_dict()
    module = YOLO(world / "best.pt").model
    plain, compensated = (policy.apply(module, data=data, compensate=chosen) for chosen in (False, True))
    name = "model.2.cv1.conv.weight" if "model.2.cv1.conv.weight" in written else "model.1.conv.weight"
    assert torch.equal(plain.state_dict()[name].half().float(), written[name])
    assert torch.isin(written[name], module.state_dict()[name].half().float()).all()
    assert not torch.equal(compensated.state_dict()[name], plain.state_dict()[name])


def test_other_image_sizes_are_taken(world: Path) -> None:
    module, policy = YOLO(world / "best.pt").model, policy_of(world, "l1")
    trained, larger = (policy.apply(module, data=world / "data" / "data.yaml", imgsz=size) for size in (None, 96))
    name = "model.0.bn.running_mean"
    assert not torch.equal(trained.state_dict()[name], larger.state_dict()[name])


def test_settings_that_yolo_forgets_are_read_again_or_else_ultralytics_own(world: Path, tmp_path: Path) -> None:
    write_detector(tmp_path / "moved.pt", build(), train_args=TRAIN_ARGS)
    policy, data = policy_of(world, "l1"), str(world / "data" / "data.yaml")
    module = YOLO(tmp_path / "moved.pt").model
    with_file = policy.apply(module, data=data, reconstruct=False).state_dict()
    (tmp_path / "moved.pt").unlink()
    without = policy.apply(module, data=data, reconstruct=False).state_dict()
    assert not torch.equal(with_file["model.0.bn.running_var"], without["model.0.bn.running_var"])


def test_without_data_it_warns_and_batch_norm_stays(world: Path) -> None:
    module, policy = open_adapter(world / "best.pt").module, policy_of(world, "l1")
    with pytest.warns(
        PolicyWarning, match=r"neither compensated nor recalibrated .*give the data set .*data=\"data\.yaml\""
    ) as told:
        pruned = policy.apply(module)
    assert told[0].filename == __file__
    name = "model.0.bn.running_mean"
    mean, dense = pruned.state_dict()[name], module.state_dict()[name]
    assert all(value in dense for value in mean)


def test_without_data_a_network_without_batch_norm_is_not_compensated_and_it_warns() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    policy = half(module, torch.zeros(2, 3, SIZE, SIZE), "l1", free=frozenset())
    with pytest.warns(PolicyWarning, match=r"network is not compensated, .*give the data set"):
        policy.apply(module)
    policy.apply(module, compensate=False)  # nothing is missing


def test_a_network_that_was_loaded_without_data_warns_and_takes_data(world: Path) -> None:
    net, policy = ap.load(world / "best.pt", device="cpu"), policy_of(world, "taylor")
    with pytest.raises(ConfigError, match=r"taylor looks at training images, and there are none; give `data`$"):
        policy.apply(net)
    plain = policy_of(world, "l1")
    with pytest.warns(PolicyWarning, match="neither compensated nor recalibrated"):
        assert isinstance(plain.apply(net), ap.Network)
    data = world / "data" / "data.yaml"
    state, expected = policy.apply(net, data=data).module.state_dict(), policy.apply(net.module, data=data).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


@pytest.mark.filterwarnings("ignore:.*fewer positions than they have channels")
def test_a_network_is_computed_as_its_adapters_images_are() -> None:
    """A caller's network can lie elsewhere, or have another precision."""
    adapter = make()
    policy = half(adapter.module, adapter.example(2), "taylor", free=adapter.free_outputs)
    doubled = copy.deepcopy(adapter.module).double()
    found, expected = (policy.apply(module, data=adapter) for module in (doubled, adapter.module))
    assert next(doubled.parameters()).dtype == torch.float64
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_in_another_precision_takes_a_data_set(world: Path, dtype: torch.dtype) -> None:
    policy, data = policy_of(world, "l1"), world / "data" / "data.yaml"
    module = YOLO(world / "best.pt").model
    found = policy.apply(copy.deepcopy(module).to(dtype), data=data)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    expected = policy.apply(module.half().float() if dtype is torch.float16 else module, data=data).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*fewer positions than they have channels")
def test_a_frozen_network_is_solved_as_the_adapters_is() -> None:
    adapter = make()
    policy = half(adapter.module, adapter.example(2), "l1", free=adapter.free_outputs)
    frozen = copy.deepcopy(adapter.module).requires_grad_(False)
    found, expected = (policy.apply(module, data=adapter).state_dict() for module in (frozen, adapter.module))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_layers_that_are_left_out_are_told(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "RECONSTRUCTION_BYTES", 1.0)
    policy, module = policy_of(world, "l1"), YOLO(world / "best.pt").model
    with pytest.warns(ap.AutopruneWarning, match=r"solved .* on \d+ of \d+ images: all .* limit") as told:
        policy.apply(module, data=world / "data" / "data.yaml")
    assert told[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*fewer positions than they have channels")
def test_a_network_of_ones_own_takes_the_adapter_with_its_data() -> None:
    adapter = make()
    policy = half(adapter.module, adapter.example(2), "taylor", free=adapter.free_outputs)
    pruned = policy.apply(adapter.module, data=adapter, reconstruct=False)
    assert 0 <= adapter.validate(pruned).primary <= 1
    norms = [child for child in pruned.modules() if isinstance(child, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}  # its 24 images, 16 at once
    with pytest.raises(ModelError, match=r"the network holds a .*only networks of the YOLO"):
        policy.apply(adapter.module, data="data.yaml")


def test_a_data_set_that_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    policy, module = policy_of(world, "l1"), YOLO(world / "best.pt").model
    with pytest.raises(DataError, match=r"absent\.yaml does not exist"):
        policy.apply(module, data=tmp_path / "absent.yaml")
    (tmp_path / "data.yaml").write_text("train: x\nnames: [one]\n")
    with pytest.raises(DataError, match="tells 2 classes apart"):
        policy.apply(module, data=tmp_path / "data.yaml")


@pytest.mark.shared
@pytest.mark.slow
def test_on_a_real_detector_the_readmes_call_keeps_it_working(shared: Path) -> None:
    weights, data = shared / "models" / "bccd-yolov5nu-320.pt", shared / "data" / "bccd" / "bccd.yaml"
    adapter = open_adapter(weights, data=data)
    graph = analysed(adapter.module, adapter.example(2), free_outputs=adapter.free_outputs)
    units = tuple(PolicyUnit(unit.name, unit.width, unit.width * 3 // 4) for unit in graph.units)
    policy = policy_of_units(units)
    yolo = YOLO(weights)
    recalibrated = policy.apply(yolo.model, data=data)
    with pytest.warns(PolicyWarning):
        plain = policy.apply(yolo.model)
    batches = adapter.batches("val", images=24, batch=8, seed=0)
    found, without = (adapter.accuracy(module, batches).primary for module in (recalibrated, plain))
    assert found > 0.2  # 0.490 dense
    assert found > 2 * without


@pytest.mark.parametrize("command", ["apply", "train"])
def test_a_folder_that_is_there_is_told_before_anything_is_pruned(
    world: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"autoprune.workflows.{command}.apply_policy", None)
    policy_of(world, "l1").save(tmp_path / "policy.json")
    (tmp_path / "there").mkdir()
    data = ("--data", str(world / "data" / "data.yaml"))
    assert applied(world, tmp_path / "there", tmp_path / "policy.json", *data, command=command) == 2
    assert "there exists already; choose another --out" in one_sentence(capsys.readouterr().err)
