"""Commands on a network of one's own: ``--model FILE.py:FUNCTION``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import autoprune as ap
from autoprune.cli.main import main
from autoprune.models import open_adapter
from autoprune.models.module import load
from autoprune.policy import Policy
from tests.helpers.own_network import make
from tests.helpers.packages import need
from tests.helpers.training import Stop
from tests.helpers.world import one_sentence, quick_commands, summary

OWN = f"{Path(__file__).parents[1] / 'helpers' / 'own_network.py'}:make"


@pytest.fixture(autouse=True)
def quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with quick_commands(tmp_path_factory.mktemp("cache")):
        yield


def words(command: str, out: Path, *extra: str, model: str = OWN) -> list[str]:
    options = {"--model": model, "--device": "cpu", "--threads": "1", "--out": str(out)}
    return [command, *(word for option in options.items() for word in option), *extra]


SEARCH = (
    *("--budget", "flops=50%", "--strategy", "random", "--episodes", "3", "--images", "8", "--batch", "8"),
    *("--finetune-epochs", "3"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module") / "search"
    with quick_commands(tmp_path_factory.mktemp("cache")):
        assert main(words("search", folder, *SEARCH)) == 0
    return folder


def test_a_search_holds_the_budget_and_its_network_opens_again(run: Path) -> None:
    found = summary(run)
    assert found.stages["finetuned"].cost("flops") <= 0.5 * found.stages["dense"].cost("flops")
    assert found["metric_names"] == ["accuracy"]
    opened = load(str(run / "model.pt"), make)
    assert sum(map(torch.numel, opened.module.parameters())) == found.stages["finetuned"].cost("params")
    assert dict(opened.validate(opened.module)) == found["stages"]["finetuned"]["metrics"]
    named = open_adapter(Path(f"{OWN}@{run / 'model.pt'}"))
    with torch.no_grad():
        assert torch.equal(named.module(named.example()), opened.module(opened.example()))


def test_a_search_killed_while_it_fine_tunes_ends_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import autoprune.workflows.tuning as tuning

    whole, finetune = tmp_path / "killed", tuning.finetune

    def kill(report: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "finetune", lambda *given, **options: finetune(*given, **{**options, "on_epoch": kill}))
        with pytest.raises(Stop):
            main(words("search", whole, *SEARCH))
    assert (whole / "finetune" / "weights" / "last.pt").exists()
    capsys.readouterr()
    assert main(["search", "--resume", str(whole)]) == 2, "a run's folder may be somebody else's"
    assert "comes from a file and would be executed" in one_sentence(capsys.readouterr().err)
    assert main(["search", "--resume", str(whole), "--trust-checkpoint"]) == 0
    assert (whole / "model.pt").read_bytes() == (run / "model.pt").read_bytes()
    assert summary(whole)["stages"]["finetuned"]["metrics"] == summary(run)["stages"]["finetuned"]["metrics"]


@pytest.mark.filterwarnings("ignore::autoprune.errors.AutopruneWarning")  # a few images for many channels
def test_a_network_that_was_saved_is_what_commands_read(tmp_path: Path) -> None:
    net = ap.load(OWN, device="cpu")
    small = net.policy({"stem.0": 6}, criterion="l1").apply(net)
    small.save(tmp_path / "small.pt")
    assert small.path == Path(f"{OWN}@{tmp_path / 'small.pt'}")
    written = ap.sensitivity(small, images=4, batch=4, criterion="l1", ratios="0.5", out=tmp_path / "sensitivity")
    assert written.config.model == small.path


@pytest.mark.filterwarnings("ignore::autoprune.errors.AutopruneWarning")
def test_a_pruned_network_that_is_opened_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    """Its file is relative to what the function builds, not to the pruned network."""
    small = ap.load(OWN, device="cpu")
    for number in range(3):
        keep = {unit: max(1, int(width) - 2) for unit, width in small.units.rows}
        small = small.policy(keep, criterion="l1").apply(small, compensate=False)
        small.save(tmp_path / f"{number}.pt")
        again = ap.load(f"{OWN}@{tmp_path / f'{number}.pt'}", device="cpu")
        assert again.units.rows == small.units.rows
        image = again.adapter.example(1)
        with torch.no_grad():
            assert torch.equal(again.module.eval()(image), small.module.eval()(image))
        assert again.module.stem[0].out_channels == again.module.stem[0].weight.shape[0]
        small = again


EDITED = """
from torch import nn, zeros
from autoprune.models.module import ModuleAdapter

def make():
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 4, 1))
    images = [(zeros(3, 8, 8), 0)] * 4
    options = {"loss": lambda network, x, y: network(x).mean(), "metric": lambda predict, batches: 1.0}
    return ModuleAdapter(network, example=zeros(1, 3, 8, 8), train=images, val=images, **options)
"""


def test_a_file_that_was_edited_is_executed_anew(tmp_path: Path) -> None:
    file, widths = tmp_path / "edited_net.py", []
    for width in (16, 32):
        file.write_text(f"{EDITED}\nWIDTH = {width}\n")
        widths.append(ap.load(f"{file}:make", device="cpu").module.get_submodule("0").out_channels)
    assert widths == [16, 32]
    before = sys.modules["autoprune_own_edited_net"]
    ap.load(f"{file}:make", device="cpu")
    assert sys.modules["autoprune_own_edited_net"] is before, "what is as it was is not executed again"


def test_a_policy_is_applied_and_trained(run: Path, tmp_path: Path) -> None:
    policy = str(run / "policy.json")
    assert main(words("apply", tmp_path / "apply", "--policy", policy, "--images", "8", "--batch", "8")) == 0
    pruned = load(tmp_path / "apply" / "pruned.pt", make).module
    kept = Policy.load(run / "policy.json").keep
    assert pruned.get_submodule("stem.0").out_channels == kept["stem.0"]
    trained = words("train", tmp_path / "train", "--policy", policy, "--epochs", "2", "--batch", "8", "--patience", "1")
    assert main(trained) == 0
    assert load(tmp_path / "train" / "model.pt", make).module.get_submodule("stem.0").out_channels == kept["stem.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("sensitivity", ("--images", "8", "--batch", "8")),
        ("profile", ()),
        (
            "compare",
            (
                *("--budget", "flops=50%", "--strategies", "uniform,random", "--evaluations", "3", "--seeds", "1"),
                *("--images", "8", "--batch", "8", "--finetune-epochs", "1"),
            ),
        ),
        (
            "netadapt",
            (
                *("--budget", "flops=70%,50%", "--short-term-steps", "2", "--images", "8", "--batch", "4"),
                *("--finetune-epochs", "1", "--round-to", "4"),
            ),
        ),
        ("search", (*SEARCH, "--criterion", "taylor")),
        ("search", (*SEARCH, "--no-reconstruct")),
    ],
)
def test_every_command_that_prunes_takes_it(tmp_path: Path, command: str, extra: tuple[str, ...]) -> None:
    assert main(words(command, tmp_path / "run", *extra)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "torchscript", "openvino"])
def test_its_network_is_exported_and_still_the_same(
    run: Path, tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if file_format != "torchscript":
        need("onnx", {"onnx": "onnxruntime"}.get(file_format, file_format))
    model = f"{OWN}@{run / 'model.pt'}"
    assert main(words("export", tmp_path / "out", "--format", file_format, model=model)) == 0
    assert "YOLO" not in capsys.readouterr().out


SOURCES = {
    "raises.py": "def make():\n    return 1 / 0\n",
    "wrong.py": "def make():\n    return 3\n",
    "broken.py": "import nothing_of_this_name\n",
    "syntax.py": "def make(:\n",
    "empty.py": "",
    "json.py": "def make():\n    return []\n",
    "leaves.py": "import sys\ndef make():\n    sys.exit(0)\n",
    "gone.py": "raise SystemExit\n",
    "nothing.py": "def make():\n    pass\n",
}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("none.py:make", "the file none.py does not exist; --model takes FILE.py:FUNCTION"),
        ("empty.py:make", "empty.py must have a function make, and has none"),
        (
            "raises.py:make",
            "raises.py:make must return a ModuleAdapter, and raised ZeroDivisionError: division by zero",
        ),
        ("wrong.py:make", "wrong.py:make must return an autoprune.models.module.ModuleAdapter, got a int"),
        (
            "broken.py:make",
            "broken.py cannot be imported (ModuleNotFoundError: No module named 'nothing_of_this_name')",
        ),
        ("syntax.py:make", "syntax.py cannot be imported (SyntaxError: invalid syntax"),
        ("json.py:make", "json.py:make must return an autoprune.models.module.ModuleAdapter, got a list"),
        ("leaves.py:make", "leaves.py:make must return a ModuleAdapter, and raised SystemExit: 0"),
        ("gone.py:make", "gone.py cannot be imported (SystemExit: )"),
        ("nothing.py:make", "nothing.py:make must return an autoprune.models.module.ModuleAdapter, got nothing"),
        ("no.such.package:make", "no.such.package cannot be imported (ModuleNotFoundError"),
        (f"{OWN}@none.pt", "the checkpoint none.pt does not exist"),
    ],
)
def test_what_is_wrong_with_a_function_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in SOURCES.items():
        Path(name).write_text(text)
    assert main(words("search", tmp_path / "run", *SEARCH, model=model)) == 2
    assert message in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("command", "extra", "message"),
    [
        ("search", (*SEARCH, "--stock-yaml"), "--stock-yaml is for networks of Ultralytics"),
        ("search", (*SEARCH, "--data", "d.yaml"), "brings its own data; leave --data d.yaml out"),
        ("search", (*SEARCH, "--imgsz", "64"), "brings its own image size, (2, 24, 32); leave --imgsz 64 out"),
        ("quantize", ("--data", "d.yaml"), "autoprune quantize is for networks of Ultralytics"),
        ("export", ("--format", "onnx", "--dynamic"), "exported with the shape of its example; leave --dynamic out"),
    ],
)
def test_what_it_cannot_do_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, extra: tuple[str, ...], message: str
) -> None:
    given = words(command, tmp_path / "run", *extra)
    if command == "quantize":
        given = [word for word in given if word not in ("--device", "cpu")]
    assert main(given) == 2
    assert message in one_sentence(capsys.readouterr().err)


def test_a_run_s_checkpoint_alone_says_what_it_needs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run / "model.pt", tmp_path / "model.pt")
    assert main(words("export", tmp_path / "run", "--format", "onnx", model=str(tmp_path / "model.pt"))) == 2
    assert "FILE.py:FUNCTION@" in one_sentence(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "segmenter"])
def test_a_network_of_torchvision_is_searched_and_exported(tmp_path: Path, name: str) -> None:
    model = f"{Path(__file__).parents[1] / 'helpers' / 'torchvision_networks.py'}:{name}"
    options = ("--budget", "flops=60%", "--strategy", "uniform", "--images", "32", "--finetune-epochs", "1")
    assert main(words("search", tmp_path / "run", *options, model=model)) == 0
    found = summary(tmp_path / "run")
    assert found.stages["finetuned"].cost("flops") <= 0.6 * found.stages["dense"].cost("flops")
    exported = words(
        "export", tmp_path / "out", "--format", "torchscript", model=f"{model}@{tmp_path / 'run/model.pt'}"
    )
    assert main(exported) == 0


def test_a_training_of_a_file_that_was_changed_is_another_one(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    shutil.copy(Path(__file__).parents[1] / "helpers" / "own_network.py", source)
    ap.finetune(ap.load(f"{source}:make", device="cpu"), epochs=1, batch=8, out=tmp_path / "tuned")
    source.write_text(source.read_text() + "\n# another learning rate, say\n")
    with pytest.raises(ap.TrainingError, match="has another training: the file of the network has changed"):
        ap.finetune(ap.load(f"{source}:make", device="cpu"), epochs=1, batch=8, out=tmp_path / "tuned")
