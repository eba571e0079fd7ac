"""Training arguments of Ultralytics reach the fine-tune, with Ultralytics' own checks and autoprune's before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import autoprune as ap
from autoprune.cli.arguments import parse
from autoprune.config import SearchConfig, TrainConfig
from autoprune.config.reading import from_python
from autoprune.errors import ConfigError
from autoprune.listener import SilentListener
from autoprune.training.ultralytics.recipe import train_arguments
from autoprune.workflows.call import located
from autoprune.workflows.tuning import Tuning
from tests.helpers.detectors import build, write_data, write_detector


def searching(*texts: str, **options: Any) -> SearchConfig:
    return SearchConfig(budget=("flops=50%",), train_args=texts, **options)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mosaic=0.5", 0.5),
        ("close_mosaic=3", 3),
        ("cos_lr=false", False),
        ("freeze=[0, 1]", [0, 1]),
        ("freeze=None", None),
        ("optimizer=SGD", "SGD"),
        ("optimizer=adamw", "AdamW"),
        ("auto_augment=augmix", "augmix"),
        ("auto_augment=None", None),
        ("scale=(0.5, 1.5)", (0.5, 1.5)),
    ],
)
def test_a_value_is_read_as_ultralytics_reads_it(text: str, value: object) -> None:
    assert list(train_arguments([text]).values()) == [value]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mosiac=0.5", r"'mosiac' is not a valid YOLO argument\. Similar arguments are i\.e\. \['mosaic=1\.0'"),
        ("mosaic=2", r"'mosaic=2' is an invalid value\. Valid 'mosaic' values are between 0\.0 and 1\.0"),
        ("close_mosaic=1.5", r"'close_mosaic=1\.5' is of invalid type float"),
        ("cos_lr=7", r"'cos_lr=7' is of invalid type int"),
        ("optimizer=AdmaW", r"optimizer must be one of SGD, MuSGD, Adam, .*, got AdmaW"),
        ("optimizer=auto", "optimizer must be one of .*, got auto"),  # it would ignore lr_scale
        ("auto_augment=augment", r"auto_augment must be one of randaugment, autoaugment, augmix, None, got augment"),
        ("box=__import__('os')", r"'box=__import__\('os'\)' is of invalid type str"),
    ],
)
def test_ultralytics_refuses_what_it_does_not_take(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        located(searching(text), SilentListener())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs=3", "`train_args` epochs=3: epochs is set by `finetune_epochs`"),
        ("time=1", "time is set by `finetune_epochs`"),
        ("data=a.yaml", "data is set by `data`"),
        ("model=a.pt", "model is set by `model`"),
        ("imgsz=64", "imgsz is set by `imgsz`"),
        ("device=0", "device is set by `device`"),
        ("save_dir=x", "save_dir is set by `out`"),
        ("plots=True", "plots is set by autoprune"),
        ("tracker=x.yaml", "no training of Ultralytics reads tracker"),
        ("mosaic", "`train_args` are written key=value, as in mosaic=0.5, got 'mosaic'"),
        ("=1", "`train_args` are written key=value"),
        ("mosaic=", "`train_args` are written key=value"),
        ("fraction=0.5", "fraction has no effect on a fine-tune"),
        ("rect=True", "rect has no effect on a fine-tune"),
    ],
)
def test_what_autoprune_sets_is_refused_and_the_option_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        searching(text)
    assert said in str(caught.value)


def test_a_command_with_an_option_for_it_keeps_it() -> None:
    assert searching("patience=3").train_args == ("patience=3",)
    given: dict[str, Any] = {"policy": Path("p"), "model": Path("m.pt"), "data": Path("d.yaml")}
    with pytest.raises(ConfigError, match="patience is set by `patience`"):
        TrainConfig(**given, train_args=("patience=3",))
    with pytest.raises(ConfigError, match="epochs is set by `epochs`"):
        TrainConfig(**given, train_args=("epochs=3",))


@pytest.mark.parametrize(("model", "why"), [("net.cfg", "one of Darknet"), ("net.py:make", "a network of one's own")])
def test_networks_that_ultralytics_does_not_train_are_refused(model: str, why: str) -> None:
    data = None if ":" in model else Path("d.yaml")
    with pytest.raises(ConfigError, match=f"`train_args` is for networks of Ultralytics, got `model` {model}, {why}"):
        searching("mosaic=0", model=Path(model), data=data)


def test_they_are_given_on_the_command_line_in_a_file_and_in_python(tmp_path: Path) -> None:
    words = ["search", "--budget", "flops=50%"]
    assert parse([*words, "--train-args", "mosaic=0", "--train-args=lr0=0.01"])[1] == searching("mosaic=0", "lr0=0.01")
    file = tmp_path / "c.yaml"
    file.write_text("budget: [flops=50%]\ntrain_args: [mosaic=0, lr0=0.01]\n")
    assert parse(["search", "--config", str(file)])[1] == searching("mosaic=0", "lr0=0.01")
    assert from_python("train_args", tuple[str, ...], {"mosaic": 0, "freeze": [0, 1], "cos_lr": True}) == (
        "mosaic=0",
        "freeze=[0, 1]",
        "cos_lr=True",
    )
    with pytest.raises(ConfigError, match="epochs is set by --finetune-epochs"):
        parse([*words, "--train-args", "epochs=3"])


def test_a_search_hands_them_to_its_fine_tune() -> None:
    tuning = Tuning.of(searching("mosaic=0.25", "patience=4"), build())
    assert (tuning.patience, tuning.arguments) == (4, {"mosaic": 0.25})
    assert Tuning.of(searching(), build()).arguments == {}


@pytest.mark.parametrize(
    ("epochs", "asked", "after"), [(99, None, 0), (100, None, 50), (300, None, 75), (300, 0, 0), (20, 5, 5)]
)
def test_only_a_long_fine_tune_stops_early_unless_asked(epochs: int, asked: int | None, after: int) -> None:
    assert Tuning(epochs=epochs, lr_scale=1.0, batch=2, seed=0, patience=asked).stops_after == after


def test_a_fine_tune_trains_with_them(tmp_path: Path) -> None:
    write_detector(tmp_path / "best.pt")
    net = ap.load(tmp_path / "best.pt", data=write_data(tmp_path / "data"), imgsz=64, device="cpu")
    out = tmp_path / "tuned"
    ap.finetune(net, epochs=1, batch=2, out=out, train_args={"mosaic": 0.0, "lr0": 0.003, "workers": 0})
    used = yaml.safe_load((out / "finetune" / "args.yaml").read_text())
    assert (used["mosaic"], used["lr0"], used["workers"], used["epochs"]) == (0.0, 0.003, 0, 1)
    with pytest.raises(ConfigError, match="device is set by autoprune"):
        ap.finetune(net, out=tmp_path / "other", train_args={"device": "0"})
    assert not (tmp_path / "other").exists()
