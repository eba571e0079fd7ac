"""``autoprune slim``: train, sparsify, prune, fine-tune in one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.cli.arguments import parse
from autoprune.cli.main import main
from autoprune.config import SlimConfig
from autoprune.errors import ConfigError
from autoprune.models import open_adapter
from tests.helpers.world import arguments, cut, one_sentence, summary

pytestmark = pytest.mark.filterwarnings("ignore")

SHORT = ("--budget", "channels=50%", "--sparsity-epochs", "1", "--sparsity", "0.1", "--finetune-epochs", "1")


def parameters(path: Path) -> int:
    return sum(parameter.numel() for parameter in open_adapter(path).module.parameters())


@pytest.fixture(scope="module")
def finished(tiny: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, its network taught by the one from before."""
    out = tmp_path_factory.mktemp("slim") / "run"
    assert main(arguments("slim", tiny, out, *SHORT, "--distill")) == 0
    return out


def test_the_stages_are_told_side_by_side(finished: Path) -> None:
    found = summary(finished)
    assert list(found.stages) == ["dense", "sparse", "pruned", "finetuned"]
    assert found.stages["dense"].cost("channels") == found.stages["sparse"].cost("channels")
    assert found.stages["pruned"].cost("channels") <= found.stages["sparse"].cost("channels") / 2
    assert (
        found.stages["finetuned"].cost("params")
        == found.stages["pruned"].cost("params")
        == parameters(finished / "model.pt")
    )
    assert parameters(finished / "sparse.pt") > parameters(finished / "model.pt")
    (row,) = found["budget"]
    assert row["satisfied"]


def test_the_pictures_are_there(finished: Path) -> None:
    for name in ("quintiles", "histogram", "watched", "channels"):
        assert (finished / f"{name}.png").stat().st_size > 0


@pytest.mark.slow
def test_the_network_from_before_the_sparsity_teaches(
    tiny: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import autoprune.workflows.tuning as tuning

    taught = []

    class Spy(tuning.Distillation):
        def __init__(self, teacher: object, *, weight: float) -> None:
            taught.append(teacher)
            super().__init__(teacher, weight=weight)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "Distillation", Spy)
    assert main(arguments("slim", tiny, tmp_path / "run", *SHORT, "--distill")) == 0
    dense = open_adapter(tiny / "best.pt").module.state_dict()
    (teacher,) = taught
    assert all((tensor == dense[name]).all() for name, tensor in teacher.state_dict().items())  # type: ignore[attr-defined]


@pytest.mark.slow  # `test_kills` kills it everywhere
def test_a_run_that_was_killed_goes_on(finished: Path, quick: None, tmp_path: Path) -> None:
    copy = cut(finished, tmp_path / "copy", keep=3)
    (copy / "sparse.pt").write_bytes((finished / "sparse.pt").read_bytes())
    (copy / "sparsity.json").write_bytes((finished / "sparsity.json").read_bytes())
    assert main(["slim", "--resume", str(copy)]) == 0
    assert summary(copy).stages["pruned"] == summary(finished).stages["pruned"]


@pytest.mark.slow
def test_a_network_is_trained_from_nothing_first(tiny: Path, quick: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = arguments("slim", tiny, out, *SHORT, "--architecture", "yolov5n.yaml", "--train-epochs", "1")
    at = words.index("--model")
    del words[at : at + 2]
    assert main(words) == 0
    assert parameters(out / "dense" / "model.pt") == parameters(out / "sparse.pt")


@pytest.mark.parametrize(
    "words", [["--architecture", "yolov3-tiny.yaml"], ["--architecture", "yolov3-tiny.yaml", "--model", "best.pt"]]
)
def test_an_architecture_takes_the_place_of_weights(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="in place of a --model"):
        parse(["slim", "--budget", "flops=50%", *words])


def test_slimming_is_the_default() -> None:
    config = parse(["slim", "--budget", "channels=15%"])[1]
    assert isinstance(config, SlimConfig)
    assert (config.strategy.value, config.criterion) == ("global", "bn")


def test_an_unknown_architecture_is_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tiny / "data" / "data.yaml")
    words = ["slim", "--budget", "flops=50%", "--architecture", "yolov99.yaml", "--data", data]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "no architecture yolov99.yaml" in one_sentence(capsys.readouterr().err)
