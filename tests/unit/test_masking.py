"""Masks: which weights go, that they stay away in training, and what the command leaves and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoprune.choices import Granularity, Scope
from autoprune.cli.main import main
from autoprune.config import MaskConfig
from autoprune.errors import ConfigError, TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.models.ultralytics.checkpoint import read_checkpoint
from autoprune.training.extensions.masking import (
    Masking,
    apply_masks,
    check_masks,
    convolution_weights,
    has_two_of_four,
    largest_of_layer,
    largest_of_network,
    two_of_four,
)
from autoprune.training.finetune import finetune
from tests.helpers.detectors import write_detector
from tests.helpers.training import Stop, stop, write_training
from tests.helpers.world import cut, one_sentence, stages_of


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return write_training(tmp_path_factory.mktemp("masking"))


def drawn(seed: int, *shape: int, equal: bool = False) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(2, shape, generator=random).float() if equal else torch.randn(shape, generator=random)


@given(seed=st.integers(0, 1000), fours=st.integers(1, 4), side=st.sampled_from([1, 3]), equal=st.booleans())
def test_the_two_largest_of_every_four_inputs_stay(seed: int, fours: int, side: int, equal: bool) -> None:
    weight = drawn(seed, 3, 4 * fours, side, side, equal=equal)
    kept = two_of_four({"w": weight})["w"]
    for output, row, column in torch.cartesian_prod(torch.arange(3), torch.arange(side), torch.arange(side)):
        for start in range(0, 4 * fours, 4):
            chosen = kept[output, start : start + 4, row, column]
            sizes = weight[output, start : start + 4, row, column].abs()
            assert chosen.sum() == 2
            assert sizes[chosen].min() >= sizes[~chosen].max()
    assert has_two_of_four(weight * kept)


@pytest.mark.parametrize("inputs", [1, 3, 6])
def test_inputs_that_are_no_multiple_of_four_keep_all(inputs: int) -> None:
    weight = drawn(0, 4, inputs, 1, 1)
    assert not two_of_four({"w": weight})
    assert not has_two_of_four(weight)


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 0.99), equal=st.booleans())
def test_the_smallest_go_and_exactly_their_share(seed: int, share: float, equal: bool) -> None:
    weights = {"a": drawn(seed, 4, 3, 3, 3, equal=equal), "b": drawn(seed + 1, 5, 4, 1, 1, equal=equal) / 10}
    for name, kept in largest_of_layer(weights, share).items():
        sizes = weights[name].abs()
        assert int((~kept).sum()) == round(share * kept.numel())
        if 0 < kept.sum() < kept.numel():
            assert sizes[kept].min() >= sizes[~kept].max()
    masks = largest_of_network(weights, share)
    assert {name: kept.shape for name, kept in masks.items()} == {name: one.shape for name, one in weights.items()}
    everything = sum(one.numel() for one in weights.values())
    assert sum(int((~kept).sum()) for kept in masks.values()) == round(share * everything)


def test_what_is_small_everywhere_goes_first_in_the_whole_network() -> None:
    masks = largest_of_network({"large": torch.ones(2, 2, 1, 1), "small": torch.full((2, 2, 1, 1), 0.1)}, 0.5)
    assert masks["large"].all()
    assert not masks["small"].any()


def test_what_was_not_masked_is_found(adapter: UltralyticsAdapter) -> None:
    masks = largest_of_layer(convolution_weights(adapter.module), 0.5)
    with pytest.raises(TrainingError, match=r"model\.0\.conv\.weight must be zero where it is masked, and 108 of"):
        check_masks(adapter.module, masks)


@pytest.mark.slow
def test_masked_weights_stay_zero_in_every_checkpoint(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    masks = two_of_four(convolution_weights(adapter.module))
    with pytest.raises(Stop):
        finetune(adapter, adapter.module, epochs=2, batch=3, out=tmp_path, on_epoch=stop, extensions=[Masking(masks)])
    check_masks(read_checkpoint(tmp_path / "weights" / "last.pt").module, masks)
    result = finetune(
        adapter, adapter.module, epochs=2, batch=3, out=tmp_path, resume=True, extensions=[Masking(masks)]
    )
    check_masks(result.module, masks)
    before, after = (convolution_weights(one)["model.1.conv.weight"] for one in (adapter.module, result.module))
    kept = masks["model.1.conv.weight"]
    assert not torch.equal(before[kept], after[kept]), "what stays is trained"
    assert before[~kept].all(), "the network that was given is as it was"


# -- the command -------------------------------------------------------------------------------------


def words(adapter: UltralyticsAdapter, out: Path, *more: str) -> list[str]:
    assert adapter.data is not None
    folder = adapter.data.file.parent
    named = ["--model", str(folder / "tiny.pt"), "--data", str(adapter.data.file), "--out", str(out)]
    return ["mask", *named, "--epochs", "1", "--batch", "3", "--threads", "1", "--device", "cpu", *more]


def told(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "mask.json").read_text()))


@pytest.fixture(scope="module")
def finished(quick: None, adapter: UltralyticsAdapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mask") / "run"
    assert main(words(adapter, out)) == 0
    return out


def test_the_log_names_its_stages(finished: Path) -> None:
    assert stages_of(finished) == ["Open the network", "Fine-tune", "Measure the latency", "Measure the result"]


def test_the_checkpoint_has_the_pattern_and_ultralytics_opens_it(finished: Path, adapter: UltralyticsAdapter) -> None:
    from ultralytics import YOLO

    found = told(finished)
    given, masked = (found["stages"][name] for name in ("given", "masked"))
    assert found["masked_layers"] == len(two_of_four(convolution_weights(adapter.module)))
    assert masked["details"]["two_of_four"] == found["masked_layers"]
    assert given["details"]["two_of_four"] == 0
    assert 0.4 < masked["details"]["zeros"] < 0.5
    assert masked["details"]["compressed_bytes"] < given["details"]["compressed_bytes"]
    assert masked["details"]["paired_ratio"]["ratio"] > 0
    weights = convolution_weights(YOLO(finished / "model.pt").model)
    assert has_two_of_four(weights["model.1.conv.weight"])
    assert not list(finished.glob(".*"))


def test_a_benchmark_command_runs_as_often_as_a_search_runs_it(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    lines = ("import sys", f"print('x', file=open({str(tmp_path / 'calls')!r}, 'a'))", "print(12.5)")
    (tmp_path / "bench.py").write_text("\n".join(lines))
    command = f"{sys.executable} {tmp_path / 'bench.py'} {{onnx}}"
    assert main(words(adapter, tmp_path / "run", "--runtime-command", command)) == 0
    assert told(tmp_path / "run")["stages"]["masked"]["latencies"]["latency"]["median"] == 12.5
    assert 6 <= len((tmp_path / "calls").read_text().split()) <= 24, "3 to 12 times for each of two networks"


def test_a_killed_run_goes_on(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = cut(finished, tmp_path / "run", keep=3)
    (copy / "model.pt").write_bytes((finished / "model.pt").read_bytes())
    assert main(["mask", "--resume", str(copy)]) == 0
    assert told(copy)["stages"] == told(finished)["stages"]
    said = capsys.readouterr().out
    assert "1 of 26 convolutions keep all weights" in said
    assert "no multiple of 4: model.0.conv." in said
    assert "no other runtime makes use of it" in said


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_any_share_goes(scope: str, adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    more = ("--granularity", "unstructured", "--sparsity", "0.8", "--scope", scope)
    assert main(words(adapter, tmp_path / "run", *more)) == 0
    assert told(tmp_path / "run")["stages"]["masked"]["details"]["zeros"] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"granularity": Granularity.UNSTRUCTURED, "sparsity": 0.0}, r"`sparsity` must lie in \(0, 1\), got 0.0"),
        ({"granularity": Granularity.UNSTRUCTURED, "sparsity": 1.0}, r"`sparsity` must lie in \(0, 1\), got 1.0"),
        ({"granularity": Granularity.UNSTRUCTURED, "sparsity": float("nan")}, r"`sparsity` must lie in \(0, 1\)"),
        ({"sparsity": 0.7}, "2:4 takes half of every layer's weights: `sparsity` and `scope` are for"),
        ({"scope": Scope.NETWORK}, "2:4 takes half of every layer's weights: `sparsity` and `scope` are for"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, got 0"),
        ({"lr_scale": 2.0}, "`lr_scale` must lie in"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MaskConfig(model=Path("best.pt"), data=Path("data.yaml"), **options)


def test_a_granularity_that_is_none_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_detector(tmp_path / "best.pt")
    options = ["--model", str(tmp_path / "best.pt"), "--data", "data.yaml", "--granularity", "4:2"]
    assert main(["mask", *options]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "--granularity" in said
    assert "2:4, unstructured" in said


def test_masks_are_applied_in_place() -> None:
    layer = torch.nn.Conv2d(4, 2, 1)
    masks = two_of_four({"weight": layer.weight})
    apply_masks(layer, masks)
    assert int(layer.weight.count_nonzero()) == 4
    check_masks(layer, masks)
