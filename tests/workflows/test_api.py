"""The Python API: networks in variables, commands as functions, results as objects."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from ultralytics import YOLO

import autoprune as ap
from autoprune import tracking
from autoprune.api.commands import make_config
from autoprune.api.network import options_of
from autoprune.cli.main import main
from autoprune.config import COMMANDS
from autoprune.config.reading import from_python
from autoprune.image_size import ImageSize
from autoprune.listener import Advance
from autoprune.report import Table
from autoprune.strategies.registry import StrategyName
from autoprune.tracking import TrackerSpec
from tests.helpers import darknet_detector
from tests.helpers.detectors import build, write_detector
from tests.helpers.world import SIZE, arguments

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick")]

QUICK: dict[str, Any] = {
    "images": 4,
    "batch": 2,
    "episodes": 6,
    "finalists": 2,
    "finetune_epochs": 0,
    "criterion": "l1",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def net(quick: None, tiny: Path) -> ap.Network:
    return ap.load(tiny / "best.pt", data=tiny / "data" / "data.yaml", imgsz=SIZE, device="cpu")


@pytest.fixture(scope="module")
def run(net: ap.Network, tmp_path_factory: pytest.TempPathFactory) -> ap.Run:
    return ap.search(net, budget="flops=60%", out=tmp_path_factory.mktemp("runs") / "first", **QUICK)


# -- a network as commands find it -----------------------------------------------------------------


def test_a_command_reads_a_network_at_the_size_that_it_was_loaded_with(tiny: Path) -> None:
    alone = ap.load(tiny / "best.pt", imgsz=2 * SIZE, device="cpu")
    found = options_of(alone)
    assert (found["imgsz"], "data" in found) == (2 * SIZE, False)
    assert make_config("profile", found).imgsz == ImageSize(2 * SIZE, 2 * SIZE)


@pytest.mark.parametrize("given", [{"model": YOLO}, {"model": "best.pt", "data": 5}], ids=["model", "data"])
def test_what_is_no_path_is_refused_in_one_sentence(given: dict[str, Any]) -> None:
    with pytest.raises(ap.ConfigError, match=r"must be a path or a name, got a \w+"):
        ap.load(**given)


def test_a_network_is_saved_as_its_family_s_file_so_that_nothing_else_is_replaced(
    net: ap.Network, tmp_path: Path
) -> None:
    (tmp_path / "dense").mkdir()
    darknet = ap.load(darknet_detector.write_detector(tmp_path / "dense"), device="cpu")
    before = {file.name: file.read_bytes() for file in (tmp_path / "dense").iterdir()}
    for name in ("tiny.pruned", "tiny.pt", "tiny"):
        with pytest.raises(ap.RunError, match=r"saved as a \.cfg file, got .*tiny"):
            darknet.save(tmp_path / "dense" / name)
    assert {file.name: file.read_bytes() for file in (tmp_path / "dense").iterdir()} == before
    with pytest.raises(ap.RunError, match=r"saved as a \.pt file, got .*small\.onnx; `export`"):
        net.save(tmp_path / "small.onnx")


def test_an_object_around_a_network_is_refused_before_it_trains(run: ap.Run, tiny: Path) -> None:
    model = YOLO(tiny / "best.pt")
    for data in (None, tiny / "data" / "data.yaml"):
        with pytest.raises(ap.ModelError, match=r"this YOLO object holds one; give its `model`|holds a YOLO, and only"):
            run.policy.apply(model, data=data)


@pytest.mark.parametrize("device", ["ssh://pi@cam1", "cpu"])
def test_a_run_s_model_is_opened_on_this_machine(run: ap.Run, device: str) -> None:
    config = replace(run.config, device=device)  # type: ignore[type-var]
    other = ap.Run("search", run.folder, config, held=True, tables=(), notes=())
    assert other.model.device == "cpu"


def test_a_tracker_that_is_not_there_leaves_no_folder(
    net: ap.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = TrackerSpec("mlflow", "autoprune.tracking:MLflowTracker", "no_such_package", extra="mlflow")
    monkeypatch.setattr(tracking, "TRACKERS", (missing,))
    with pytest.raises(ap.ConfigError, match=r"needs no_such_package, .*\[mlflow\]"):
        ap.search(net, budget="flops=60%", tracker="mlflow", out=tmp_path / "new" / "run", **QUICK)
    assert not (tmp_path / "new").exists()


def test_latency_with_its_suppression_is_refused_where_a_runtime_cannot(net: ap.Network) -> None:
    with pytest.raises(ap.AutopruneError, match="measure without it"):
        net.latency("litert", with_nms=True)


# -- the package -----------------------------------------------------------------------------------


def test_importing_it_loads_no_torch() -> None:
    code = "import autoprune, sys; print({'torch', 'ultralytics'} & set(sys.modules), 'search' in dir(autoprune))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set() True"


def test_every_public_name_is_there_and_documented() -> None:
    assert set(ap.__all__) <= set(dir(ap))
    for name in ap.__all__:
        assert (getattr(ap, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        ap.serch  # noqa: B018


@pytest.mark.parametrize("name", ap.COMMANDS)
def test_a_command_has_the_options_of_the_command_line(name: str) -> None:
    function, kind = getattr(ap, name), COMMANDS[name]
    parameters = inspect.signature(function).parameters
    assert {*parameters} - {"network", "listener"} == {item for item in kind.__dataclass_fields__ if item != "model"}
    for parameter in parameters:
        assert f"    {parameter}: " in function.__doc__


# -- networks ------------------------------------------------------------------------------------------


def test_a_network_tells_its_units_costs_and_accuracy(net: ap.Network) -> None:
    assert all(int(row["channels"]) > 0 for row in net.units)
    assert set(net.costs()) == {"flops", "params", "size", "memory", "channels"}
    assert net.costs()["params"] == sum(parameter.numel() for parameter in net.module.parameters())
    assert set(net.validate()) == {"mAP50", "mAP50-95"}
    assert "units" in repr(net)


def test_a_network_is_measured_as_it_is_deployed(net: ap.Network) -> None:
    timing = net.latency("torch", threads=1)
    assert 0 < timing.p10 <= timing.median <= timing.p90
    with pytest.raises(ap.ConfigError, match=r"`runtime` must be one of torch, .*, got tensorflow"):
        net.latency("tensorflow")
    with pytest.raises(ap.ConfigError, match="`runtime_pattern` belongs to `runtime_command`, which is not given"):
        net.latency(runtime_pattern="([0-9]+) ms")
    with pytest.raises(ap.ConfigError, match="`runtime_command` takes the place of `runtime`"):
        net.latency("torch", runtime_command="bench {onnx}")


def test_a_policy_is_applied_to_a_network_and_the_result_saved(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    small = run.policy.apply(net)
    assert isinstance(small, ap.Network)
    assert small.costs()["flops"] <= 0.6 * net.costs()["flops"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.module.state_dict().items())
    with pytest.raises(ap.ConfigError, match=r"has none: network\.save"):
        ap.search(small, budget="flops=50%")
    path = small.save(tmp_path / "small.pt")
    opened = ap.load(path, data=net.data, imgsz=SIZE, device="cpu")
    assert opened.costs() == small.costs()
    assert opened.validate() == small.validate()


def test_channels_chosen_by_other_means_become_a_policy(net: ap.Network, tmp_path: Path) -> None:
    first = next(iter(net.units))
    half = net.policy({first["unit"]: int(first["channels"]) // 2}, criterion="l1")
    assert half.apply(net).costs()["channels"] < net.costs()["channels"]
    half.save(tmp_path / "policy.json")
    assert ap.Policy.load(tmp_path / "policy.json") == half
    everything = net.policy([int(row["channels"]) for row in net.units], criterion="l1")
    assert everything.apply(net).costs()["params"] == net.costs()["params"]
    with pytest.raises(ap.PolicyError, match=r"has no unit model\.99"):
        net.policy({"model.99": 3})
    with pytest.raises(ap.PolicyError, match="must keep 1 to"):
        net.policy({first["unit"]: 10**6})
    for count in ("x", 7.5, None, float("nan")):
        with pytest.raises(ap.PolicyError, match="Kept channels are whole numbers"):
            net.policy({first["unit"]: count})
    with pytest.raises(ap.PolicyError, match=r"The network has [0-9]+ units, got channels of 2"):
        net.policy([8, 8])


def test_a_pruned_network_is_trained(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    small = run.policy.apply(net)
    trained = ap.finetune(small, epochs=1, batch=2, out=tmp_path / "tuned", teacher=net)
    assert trained.path == tmp_path / "tuned" / "model.pt"
    assert trained.costs()["params"] == small.costs()["params"]
    assert any(
        not torch.equal(one, other)
        for one, other in zip(trained.module.parameters(), small.module.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"batch": 0}, "`batch` must be a whole number of at least 1, got 0"),
        ({"patience": -1}, "`patience` must be a whole number of at least 0, got -1"),
        ({"lr_scale": 20}, r"`lr_scale` must lie in \(0, 10\], got 20"),
        ({"train_args": {"optimizer": "AdmaW"}}, "optimizer must be one of SGD"),
        ({"train_args": {"lr0": 0.1}, "lr_scale": 2}, "`train_args` lr0 is the first learning rate itself"),
        ({"train_args": "mosaic"}, "`train_args` are written key=value"),
        ({"train_args": 5}, "`train_args`"),
        ({"epochs": 1.5}, "`epochs` must be a whole number .*, got 1.5"),
        ({"teacher": "best.pt"}, r"`teacher` must be a network as autoprune\.load returns it, got 'best\.pt'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_folder(
    net: ap.Network, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ap.ConfigError, match=message):
        ap.finetune(net, out=tmp_path / "tuned", **options)
    assert not (tmp_path / "tuned").exists()


def test_a_teacher_of_other_classes_is_refused(net: ap.Network, tmp_path: Path) -> None:
    network = build(nc=5)
    network.names = {index: str(index) for index in range(5)}
    other = ap.load(write_detector(tmp_path / "other.pt", network), device="cpu")
    with pytest.raises(ap.TrainingError, match="a teacher must have the same number of classes"):
        ap.finetune(net, out=tmp_path / "tuned", teacher=other)
    assert not (tmp_path / "tuned").exists()


def test_a_repeated_fine_tune_goes_on_with_its_own_training_only(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    small, out = run.policy.apply(net), tmp_path / "tuned"
    trained = ap.finetune(small, epochs=1, batch=2, out=out)
    again = ap.finetune(run.policy.apply(net), epochs=1, batch=2, out=out)
    assert all(map(torch.equal, again.module.state_dict().values(), trained.module.state_dict().values()))
    other = small.with_module(copy.deepcopy(small.module))
    next(other.module.parameters()).data.mul_(1.1)
    for network, options, message in (
        (small, {"epochs": 2}, "`epochs` was 1 and is 2"),
        (small, {"train_args": {"mosaic": 0.5}}, "`train_args` was"),
        (small, {"teacher": net}, "the teacher is another one"),
        (other, {}, "the network is another one"),
    ):
        with pytest.raises(ap.TrainingError, match=f"has another training: {message}"):
            ap.finetune(network, **{"epochs": 1, "batch": 2, "out": out, **options})


def test_a_refused_fine_tune_leaves_no_folder_that_refuses_the_corrected_one(net: ap.Network, tmp_path: Path) -> None:
    with pytest.raises(ap.AutopruneError, match="no_such_setting"):
        ap.finetune(net, epochs=1, train_args={"no_such_setting": 0}, out=tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "notes.txt").touch()
    with pytest.raises(ap.AutopruneError, match="no_such_setting"):
        ap.finetune(net, epochs=1, train_args={"no_such_setting": 0}, out=tmp_path / "tuned")
    assert [path.name for path in (tmp_path / "tuned").iterdir()] == ["notes.txt"]


def test_gradients_that_a_notebook_switched_off_are_switched_on_inside(
    net: ap.Network, run: ap.Run, tmp_path: Path
) -> None:
    policy = replace(run.policy, criterion="taylor")
    with torch.no_grad():
        small = policy.apply(net)
        ap.finetune(small, epochs=1, batch=2, out=tmp_path / "tuned")
        ap.make_env(net, budget="flops=60%", images=4, batch=2, criterion="covariance").close()
        assert not torch.is_grad_enabled()


def test_a_network_in_train_mode_is_not_changed_by_being_shown(net: ap.Network) -> None:
    other = net.with_module(copy.deepcopy(net.module).train())
    other.module.model[0].bn.eval()
    before = copy.deepcopy(other.module.state_dict())
    assert "FLOPs" in repr(other) or repr(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.module.state_dict().items())
    assert other.module.training
    assert not other.module.model[0].bn.training


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda net, policy: policy.apply("best.pt"), ap.ModelError, "applied to a torch network.*got a str"),
        (lambda net, policy: policy.apply(None), ap.ModelError, "applied to a torch network.*got a NoneType"),
        (
            lambda net, policy: policy.apply(net, imgsz=128),
            ap.ConfigError,
            "`data` and `imgsz` are those of the network",
        ),
        (lambda net, policy: net.policy(None), ap.PolicyError, "a mapping by unit or a sequence, got a NoneType"),
        (lambda net, policy: net.policy({}, criterion="foo"), ap.PolicyError, "criterion"),
        (lambda net, policy: net.latency(batch="two"), ap.ConfigError, "`batch` must be a whole number.*got two"),
        (lambda net, policy: net.latency(batch=0), ap.ConfigError, "`batch` and `threads` must be at least 1"),
        (lambda net, policy: net.latency(threads=1.5), ap.ConfigError, "`threads` must be a whole number"),
        (lambda net, policy: net.latency(device=99), ap.DeviceError, "cuda:99"),
        (lambda net, policy: ap.load(imgsz=0), ap.ModelError, "image size must be a positive multiple.*got 0"),
        (lambda net, policy: ap.profile(net, listener=print), ap.ConfigError, "`listener` must be an object"),
        (
            lambda net, policy: ap.profile(net, listener=ap.SilentListener),
            ap.ConfigError,
            "`listener` must be an object",
        ),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused_in_one_sentence(
    net: ap.Network, run: ap.Run, act: Callable[..., object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        act(net, run.policy)
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_stands_for_its_file(net: ap.Network, run: ap.Run) -> None:
    given = {**options_of(net), "policy": run.policy}
    assert make_config("train", {**given, "distill": net}).distill == net.path  # type: ignore[union-attr]
    with pytest.raises(ap.ConfigError, match=r"`distill` is read from its file, and this network has none"):
        make_config("train", {**given, "distill": net.with_module(net.module)})
    with pytest.raises(ap.ConfigError, match="`policy` must be a path, got a dict"):
        make_config("apply", {"policy": {"model.0": 8}})


def test_a_listener_may_hear_one_thing_alone_and_a_budget_is_one(net: ap.Network, tmp_path: Path) -> None:
    class Stages:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def stage(self, name: str) -> None:
            self.heard.append(name)

    listener: Any = Stages()
    budget = ap.Budget.parse(["flops=70%", "params=80%"])
    run = ap.search(net, budget=budget, listener=listener, out=tmp_path / "run", **{**QUICK, "strategy": "uniform"})
    assert len(listener.heard) > 2
    assert run.config.budget == ("flops=70%", "params=80%")
    assert make_config("search", {"budget": "flops=50%", "agent": "ddpg"}).strategy.value == "ddpg"  # type: ignore[union-attr]


def test_a_fine_tune_does_not_take_what_another_command_left(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    small = run.policy.apply(net)
    small.save(tmp_path / "model.pt")
    with pytest.raises(ap.TrainingError, match=r"model\.pt is there, and no training\.json says"):
        ap.finetune(small, epochs=1, out=tmp_path)
    with pytest.raises(ap.TrainingError, match="choose another `out`"):
        ap.finetune(small, epochs=1, out=run.folder)
    (tmp_path / "training.json").write_text('{"settings": 5}')
    with pytest.raises(ap.TrainingError, match=r"training\.json cannot be read"):
        ap.finetune(small, epochs=1, out=tmp_path)


def test_a_network_is_not_loaded_on_a_board(net: ap.Network) -> None:
    with pytest.raises(ap.DeviceError, match="a board only measures"):
        ap.load(net.path, device="ssh://pi@cam1")
    with pytest.raises(ap.ConfigError, match="`device` must be a text, got null"):
        ap.load(net.path, device=None)
    with pytest.raises(ap.DeviceError, match="cuda:99"):
        ap.load(net.path, device=99)


def test_a_network_that_cannot_be_saved_has_no_file(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    small = run.policy.apply(net)
    with pytest.raises(ap.RunError, match="its folder does not exist"):
        small.save(tmp_path / "missing" / "small.pt")
    assert small.path is None


def test_data_without_a_model_is_refused(tiny: Path) -> None:
    with pytest.raises(ap.ConfigError, match="`data` needs `model`"):
        ap.load(data=tiny / "data" / "data.yaml")


# -- commands ------------------------------------------------------------------------------------------


def test_a_command_does_what_the_command_line_does(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    options = ("--episodes", "6", "--finalists", "2", "--criterion", "l1", "--budget", "flops=60%")
    assert main(arguments("search", net.path.parent, tmp_path / "cli", *options)) == 0
    assert ap.Policy.load(tmp_path / "cli" / "policy.json").keep == run.policy.keep


def test_a_run_is_its_folder_and_prints_as_the_command_line_does(run: ap.Run, net: ap.Network) -> None:
    assert run.held
    assert run.summary["budget"][0]["satisfied"]
    assert run.model.costs()["flops"] == run.summary.stages["pruned"].cost("flops")
    assert run.policy.provenance.command.startswith("autoprune.search(…, budget='flops=60%'")
    best = max(candidate.score for candidate in run.history)
    assert best >= run.policy.score  # type: ignore[operator]  # the finalists are compared by accuracy
    for text in ("mAP50-95", "parameters", "Budget flops=60% is held"):
        assert text in str(run)
    assert "<td" in run._repr_html_()
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert "progress" in run.pictures


def test_texts_stand_for_choices_and_lists_for_several(net: ap.Network, tmp_path: Path) -> None:
    options = {**QUICK, "strategy": "uniform", "rule": "capped", "precision": "fp32"}
    run = ap.search(net, budget=["flops=70%", "params=80%"], out=str(tmp_path / "run"), **options)
    assert [row["requested"] for row in run.summary["budget"]] == ["flops=70%", "params=80%"]


@pytest.mark.parametrize(
    ("hint", "given", "read"),
    [
        (tuple[str, ...], "flops=50%", ("flops=50%",)),
        (tuple[str, ...], ["flops=50%", "params=1M"], ("flops=50%", "params=1M")),
        (str, ["uniform", "random"], "uniform,random"),
        (Path | None, Path("a.pt"), Path("a.pt")),
        (Path | None, None, None),
        (StrategyName, "ppo", StrategyName.PPO),
        (StrategyName, StrategyName.PPO, StrategyName.PPO),
        (bool, True, True),
        (float, 1e-7, 1e-7),
        (int, np.int64(3), 3),
    ],
)
def test_values_are_read_in_their_own_type_and_as_texts(hint: Any, given: object, read: object) -> None:
    assert from_python("option", hint, given) == read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "flops=50%", "episode": 3}, "episode is not an option of autoprune search; did you mean episodes?"),
        ({"budget": "flops=50%", "strategy": "pppo"}, "`strategy` must be one of ppo, .*, got pppo"),
        ({"budget": "flops=50%", "min_keep": 0}, r"`min_keep` must lie in \(0, 1\], got 0"),
        ({"budget": "flops=50%", "images": "many"}, "`images` must be a whole number"),
        ({"budget": "flops=50%", "images": 2.5}, r"`images` must be a whole number \(digits 0-9\), got 2.5"),
        ({"budget": "flopps=50%"}, "A budget limits one of .*, got 'flopps'"),
        ({}, "budget"),
    ],
)
def test_bad_input_gets_the_sentence_of_the_command_line(
    net: ap.Network, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ap.AutopruneError, match=message) as caught:
        ap.search(net, out=tmp_path / "run", **options)
    assert "--" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_resumed(net: ap.Network, run: ap.Run) -> None:
    again = ap.search(resume=run.folder)
    assert again.policy.keep == run.policy.keep
    with pytest.raises(ap.ConfigError, match=r"`resume` stands alone.*; remove `images`"):
        ap.search(resume=run.folder, images=3)


def test_an_interrupted_run_says_what_goes_on_with_it(net: ap.Network, tmp_path: Path) -> None:
    class Impatient(ap.SilentListener):
        def progress(self, label: str, total: int) -> AbstractContextManager[Advance]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"go on with: autoprune\.search\(resume='.*run'\)"):
        ap.search(net, budget="flops=60%", listener=Impatient(), out=tmp_path / "run", **QUICK)


def test_code_in_a_file_is_not_run_unasked(run: ap.Run, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(run.folder, folder)
    config = (folder / "config.yaml").read_text().replace(str(run.config.model), "/somebody/net.py:make")  # type: ignore[union-attr]
    (folder / "config.yaml").write_text(config)
    for doubt in ({}, {"trust_checkpoint": False}):
        with pytest.raises(ap.ConfigError, match="comes from a file and would be executed"):
            ap.search(resume=folder, **doubt)


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ap.RunError, match="is not a run that can be resumed: it has no config"):
        ap.search(resume=tmp_path)


def test_a_listener_hears_everything_of_a_policy_in_a_variable_and_nothing_is_printed(
    net: ap.Network, run: ap.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Heard(ap.SilentListener):
        def __init__(self) -> None:
            self.notes: list[str] = []
            self.titles: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

        def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
            self.titles.append(title)

    heard = Heard()
    applied = ap.apply(net, policy=run.policy, images=4, batch=2, out=tmp_path / "run", listener=heard)
    assert applied.policy == run.policy, "a policy in a variable"
    assert applied.model.costs()["flops"] == run.summary.stages["pruned"].cost("flops")
    kept = (applied.folder / "config.yaml").read_text()
    assert f"policy: {json.dumps(str(applied.folder / 'policy.json'))}" in kept
    assert heard.titles == [table.title for table in applied.tables] == ["best, flops=60%"]
    assert set(heard.notes) <= set(applied.notes)
    assert capfd.readouterr() == ("", "")


def test_warnings_are_pythons_and_threads_are_put_back(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "data").mkdir()
    shutil.copytree(Path(str(net.data)).parent, tmp_path / "data", dirs_exist_ok=True)
    broken = next((tmp_path / "data").rglob("*train*/*.png"), None) or next((tmp_path / "data").rglob("*.png"))
    broken.write_bytes(b"no image")
    data = tmp_path / "data" / "data.yaml"
    data.write_text(data.read_text().replace(str(Path(str(net.data)).parent), str(tmp_path / "data")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ap.apply(
            net.path,
            data=data,
            imgsz=SIZE,
            policy=run.policy,
            threads=2,
            device="cpu",
            images=4,
            batch=2,
            out=tmp_path / "run",
        )
    ours, *_ = [one for one in caught if issubclass(one.category, ap.AutopruneWarning)]
    assert "Skipped" in str(ours.message)
    assert ours.filename == __file__, "the line of the caller, not one of autoprune's"
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_training_with_a_policy_in_a_variable_is_resumed(net: ap.Network, run: ap.Run, tmp_path: Path) -> None:
    trained = ap.train(net, policy=run.policy, epochs=1, batch=2, out=tmp_path / "trained")
    again = ap.train(resume=trained.folder)
    assert again.policy == run.policy
    assert again.summary.stages == trained.summary.stages


@pytest.mark.slow
def test_a_level_of_netadapt_is_a_run(net: ap.Network, tmp_path: Path) -> None:
    run = ap.netadapt(
        net,
        budget="flops=90%,80%",
        images=4,
        batch=2,
        finetune_epochs=0,
        short_term_steps=0,
        initial_step=0.2,
        out=tmp_path / "run",
    )
    shares = [level.summary.stages["pruned"].cost("flops") / net.costs()["flops"] for level in run.levels.values()]
    assert sorted(share <= 0.8 for share in shares) == [False, True]
    assert all(level.held and "FLOPs" in str(level) for level in run.levels.values())
    with pytest.raises(ap.RunError, match="no scored candidates to draw"):
        run.plot()


# -- the environment -----------------------------------------------------------------------------------


def test_the_environment_of_a_network_scores_what_ends_an_episode(net: ap.Network) -> None:
    env = ap.make_env(net, budget="flops=60%", images=4, batch=2, criterion="l1")
    check_env(env.unwrapped)
    env.reset()
    done, info, reward = False, {}, 0.0
    while not done:
        _, reward, done, _, info = env.step(np.zeros(1, dtype=np.float32))
    assert info["score"] == reward != 0
    assert info["costs"]["flops"] <= 0.6 * net.costs()["flops"]


def test_the_problem_of_an_environment_scores_allocations_when_the_environment_is_gone(net: ap.Network) -> None:
    problem = ap.make_env(net, budget="flops=50%", images=4, batch=2, criterion="l1").unwrapped.problem  # type: ignore[attr-defined]
    gc.collect()
    assert np.isfinite(problem.scores([problem.constraint.allocation(np.zeros(len(problem.space)))])).all()


@pytest.mark.slow
def test_the_environment_starts_at_a_prior_if_asked_and_walks_by_either_rule(net: ap.Network) -> None:
    env = ap.make_env(
        net,
        budget="flops=60%",
        rule="capped",
        prior=True,
        render_mode="ansi",
        images=4,
        batch=2,
        criterion="l1",
        threads=2,
    )
    assert env.action_space.low == 0  # type: ignore[attr-defined]
    env.reset()
    env.step(env.action_space.sample())
    assert " of " in str(env.render())
    assert torch.get_num_threads() == 2
    env.close()
    assert torch.get_num_threads() == 1
    with pytest.raises(ap.ConfigError, match="`rule` must be one of projected, capped, got loose"):
        ap.make_env(net, budget="flops=60%", rule="loose")


@pytest.mark.slow
def test_the_environment_works_in_processes(net: ap.Network) -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return ap.make_env(net.path, data=net.data, imgsz=SIZE, device="cpu", budget="flops=60%", images=4, batch=2)

    workers = SubprocVecEnv([make, make], start_method="spawn")
    try:
        workers.reset()
        steps = int(workers.get_attr("episode_steps")[0])
        for _ in range(steps):
            _, rewards, dones, _ = workers.step(np.zeros((2, 1), dtype=np.float32))
        assert dones.all()
        assert rewards[0] == rewards[1] != 0
    finally:
        workers.close()


def test_an_environment_can_be_sent_to_another_process(net: ap.Network) -> None:
    env = ap.make_env(net, budget="flops=60%", images=4, batch=2, criterion="l1").unwrapped
    copied = pickle.loads(pickle.dumps(env))
    ends = []
    for one in (env, copied):
        one.reset()
        done, reward = False, 0.0
        while not done:
            _, reward, done, _, _ = one.step(np.full(1, 0.2, dtype=np.float32))
        ends.append(reward)
    assert ends[0] == ends[1]


# -- tables --------------------------------------------------------------------------------------------


def test_a_table_is_read_printed_and_shown() -> None:
    table = Table("a <title>", ["unit", "channels"], [["conv1", "16"], ["conv2", "32"]])
    assert [row["channels"] for row in table] == ["16", "32"]
    assert len(table) == 2
    assert "conv2" in str(table)
    assert "a &lt;title&gt;" in table._repr_html_()
