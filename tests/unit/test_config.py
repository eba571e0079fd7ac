from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.choices import Precision, Rule, Select
from autoprune.config import (
    COMMANDS,
    ApplyConfig,
    CompareConfig,
    Config,
    NetAdaptConfig,
    SearchConfig,
    SensitivityConfig,
    TrainConfig,
    option,
    to_yaml,
)
from autoprune.config._checks import MOST
from autoprune.config.files import extended, load, save
from autoprune.criteria.registry import CRITERIA
from autoprune.errors import BudgetError, ConfigError, RunError
from autoprune.image_size import ImageSize
from autoprune.strategies.registry import StrategyName, names_where


def named_where(name: str) -> list[StrategyName]:
    return [StrategyName(found) for found in names_where(name)]


SEARCH = SearchConfig(budget=("flops=50%",))
NETADAPT = NetAdaptConfig(budget=("latency=80%,60%", "params=90%"))
SENSITIVITY = SensitivityConfig()
APPLY = ApplyConfig(policy=Path("policy.json"), model=Path("best.pt"))
TRAIN = TrainConfig(policy=Path("policy.json"), model=Path("best.pt"), data=Path("data.yaml"))


def test_the_defaults_are_those_of_the_design() -> None:
    assert (SEARCH.strategy, SEARCH.rule, SEARCH.criterion) == (StrategyName.PPO, Rule.PROJECTED, "covariance")
    assert (SEARCH.round_to, SEARCH.min_keep, SEARCH.images, SEARCH.finalists, SEARCH.lr_scale) == (
        8,
        0.1,
        60,
        None,
        1.0,
    )
    assert (SEARCH.model, SEARCH.data, SEARCH.episodes, SEARCH.finetune_epochs) == (None, None, None, None)


def test_the_defaults_of_netadapt_are_those_of_the_paper_where_it_names_them() -> None:
    assert (NETADAPT.initial_step, NETADAPT.decay, NETADAPT.select) == (0.025, 0.96, Select.ACCURACY)
    assert (NETADAPT.short_term_steps, NETADAPT.shortlist) == (10, 3)
    assert SENSITIVITY.keep_ratios == (0.75, 0.5, 0.25, 0.1)
    for config in (NETADAPT, SENSITIVITY):
        assert (config.round_to, config.images, config.batch) == (8, 60, 16)
    assert (NETADAPT.criterion, SENSITIVITY.criterion) == ("l1", "covariance")


@pytest.mark.parametrize("kind", COMMANDS.values())
def test_every_field_is_documented(kind: type[Config]) -> None:
    docs = "".join(ancestor.__doc__ or "" for ancestor in kind.__mro__)
    for item in fields(kind):
        assert f"\n        {item.name}: " in docs


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"imgsz": ImageSize(0, 0)}, "`imgsz` must be a multiple of 32 from 32 to 32768, got 0"),
    ({"imgsz": ImageSize(100, 100)}, "must be a multiple of 32 from 32 to 32768, got 100; the nearest is 96"),
    ({"imgsz": ImageSize(0, 640)}, "must be a multiple of 32 from 32 to 32768, got 0,640; the nearest is 32,640"),
    ({"imgsz": ImageSize(640, 40000)}, "got 640,40000; the nearest is 640,32768"),
    ({"device": "tpu"}, "`device` must be auto, cpu, cuda, cuda:N, mps, or N for cuda:N, got 'tpu'"),
    ({"device": "cuda:"}, "`device` must be"),
    ({"batch": 0}, "`batch` must be a whole number of at least 1, got 0"),
    ({"threads": 0}, "`threads` must be a whole number of at least 1, got 0"),
    ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
    ({"seed": 2**31}, "`seed` must be a whole number of at most 2147483647, got 2147483648"),
    ({"imgsz": ImageSize(2**16, 2**16)}, "`imgsz` must be a multiple of 32 from 32 to 32768, got 65536"),
    ({"threads": 10**6}, r"`threads` must be at most \d+, the CPU cores of this machine, got 1000000"),
    ({"images": 10**5000}, r"`images` must be a whole number of at most 2147483647, got 1.00e\+5000"),
    ({"images": 0}, "`images` must be"),
    ({"epochs": 0}, "`epochs` must be"),
    ({"round_to": 0}, "`round_to` must be"),
    ({"finalists": 0}, "`finalists` must be"),
    ({"episodes": 0}, "`episodes` must be"),
    ({"finetune_epochs": -1}, "`finetune_epochs` must be a whole number of at least 0, got -1"),
    ({"min_keep": 0.0}, r"`min_keep` must lie in \(0, 1\], got 0.0"),
    ({"min_keep": 1.5}, r"`min_keep` must lie in \(0, 1\], got 1.5"),
    ({"min_keep": float("nan")}, r"`min_keep` must lie in \(0, 1\], got nan"),
    ({"lr_scale": 0.0}, r"`lr_scale` must lie in \(0, 10\], got 0.0"),
    ({"lr_scale": 10.5}, r"`lr_scale` must lie in \(0, 10\], got 10.5"),
    ({"initial_step": 0.0}, r"`initial_step` must lie in \(0, 1\], got 0.0"),
    ({"initial_step": 1.1}, r"`initial_step` must lie in \(0, 1\], got 1.1"),
    ({"decay": 0.0}, r"`decay` must lie in \(0, 1\], got 0.0"),
    ({"decay": float("inf")}, r"`decay` must lie in \(0, 1\], got inf"),
    ({"short_term_steps": -1}, "`short_term_steps` must be a whole number of at least 0, got -1"),
    ({"shortlist": -1}, "`shortlist` must be a whole number of at least 0, got -1"),
    ({"ratios": "0.5,1"}, r"`ratios` must be keep ratios in \(0, 1\), such as 0.75,0.5,0.25, got 0.5,1"),
    ({"ratios": "0.5,0"}, "`ratios` must be"),
    ({"ratios": "half"}, "`ratios` must be"),
    ({"ratios": ""}, "`ratios` must be"),
    ({"ratios": "nan"}, "`ratios` must be"),
]


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (config, change, said)
        for config in (SEARCH, NETADAPT, SENSITIVITY, APPLY, TRAIN)
        for change, said in MISTAKES
        if set(change) <= {item.name for item in fields(config)}
    ],
)
def test_a_value_out_of_range_is_named(config: Config, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(config, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": Path("best.pt")}, "`model` needs `data`"),
        ({"data": Path("data.yaml")}, "`data` needs `model`"),
        ({"sensitivity": Path("s.json")}, "`sensitivity` is for the strategies sensitivity, knapsack, got ppo"),
        (
            {"warm_start": ("runs/a",), "strategy": StrategyName.UNIFORM},
            "`warm_start` is for the strategies ppo, ddpg, td3, sac, evolution, polish, got uniform",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(SEARCH, **change)


@pytest.mark.parametrize("budget", [(), ("latency=8",), ("flops=50%", "flops=40%")])
def test_a_search_needs_a_budget_that_makes_sense(budget: tuple[str, ...]) -> None:
    with pytest.raises(BudgetError):
        SearchConfig(budget=budget)


@pytest.mark.parametrize(
    "budget", [(), ("latency=8",), ("flops=40%,50%",), ("flops=50%,40%", "params=50%,40%"), ("flops=50%", "flops=40%")]
)
def test_netadapt_needs_levels_that_make_sense(budget: tuple[str, ...]) -> None:
    with pytest.raises(BudgetError):
        NetAdaptConfig(budget=budget)


def test_only_netadapt_takes_several_levels() -> None:
    with pytest.raises(BudgetError, match="is not a number"):
        SearchConfig(budget=("flops=80%,60%",))


@pytest.mark.parametrize("ratios", ["0.5,0.25,0.75", " 0.25 , .75,0.5", "0.75,0.5,0.5,0.25"])
def test_ratios_are_read_in_any_order(ratios: str) -> None:
    assert SensitivityConfig(ratios=ratios).keep_ratios == (0.75, 0.5, 0.25)


paths = st.sampled_from(["a.pt", "runs/x", "with space/and: colon", "#hash", "123", "true", "null", "1e3", "µ", "~"])
sides = st.integers(1, 40).map(lambda n: 32 * n)
plain = st.builds(
    SearchConfig,
    budget=st.sampled_from([("flops=50%",), ("latency=8ms", "size=3MB")]),
    imgsz=st.none() | st.builds(ImageSize, sides, sides),
    rule=st.sampled_from(Rule),
    criterion=st.sampled_from([*(spec.name for spec in CRITERIA), "l0.5"]),
    precision=st.sampled_from(Precision),
    episodes=st.none() | st.integers(1, MOST),
    min_keep=st.floats(0, 1, exclude_min=True),
    lr_scale=st.floats(0, 4, exclude_min=True),
    finetune_epochs=st.none() | st.integers(0, MOST),
    seed=st.integers(0, MOST),
    device=st.sampled_from(["auto", "cuda", "cuda:1"]),
    out=st.none() | paths.map(Path),
    trust_checkpoint=st.booleans(),
    tensorboard=st.booleans(),
)
searches = st.one_of(
    st.builds(replace, plain, strategy=st.sampled_from(StrategyName)),
    st.builds(replace, plain, strategy=st.sampled_from(named_where("uses_curves")), sensitivity=paths.map(Path)),
    st.builds(
        replace,
        plain,
        strategy=st.sampled_from(named_where("uses_prior")),
        warm_start=st.lists(paths, max_size=2).map(tuple),
    ),
)


def absolute(config: Config) -> Config:
    changes = {item.name: getattr(config, item.name) for item in fields(config)}
    changes = {name: value.absolute() for name, value in changes.items() if isinstance(value, Path)}
    return replace(config, **changes)


def test_what_was_compared_stays_where_a_comparison_is_extended() -> None:
    kept = CompareConfig(model=Path("a.pt"), data=Path("d.yaml"), budget=("flops=50%",), strategies="uniform,random")
    more = extended(kept, {"strategies": "greedy, uniform", "seeds": 5})
    assert (more.strategies, more.seeds) == ("uniform,random,greedy", 5)  # type: ignore[attr-defined]
    assert extended(kept, {"seeds": 2}).strategies == kept.strategies  # type: ignore[attr-defined]


def test_a_path_of_any_characters_is_read_back_equal(tmp_path: Path) -> None:
    config = replace(SEARCH, model=Path("/models/🔴 𠮷 \\ud83d\\ude00 \u2028 é/best.pt"), data=Path("data.yaml"))
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load("search", tmp_path / "config.yaml") == absolute(config)


@settings(max_examples=30)
@given(searches)
def test_a_search_written_as_yaml_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = save(config, tmp_path_factory.mktemp("run"))
    assert path.name == "config.yaml"
    kept = replace(absolute(config), trust_checkpoint=False, out=None)
    assert load("search", path) == kept, "a file holds no trust, and can be run again"


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("netadapt", NETADAPT),
        (
            "netadapt",
            replace(NETADAPT, select=Select.ACCURACY_PER_RESOURCE, shortlist=0, decay=0.5, short_term_steps=0),
        ),
        ("sensitivity", SENSITIVITY),
        ("sensitivity", replace(SENSITIVITY, ratios="0.5", model=Path("m.pt"), data=Path("d.yaml"), seed=3)),
        ("apply", APPLY),
        ("train", TRAIN),
    ],
)
def test_other_configurations_are_read_back_equal(tmp_path: Path, command: str, config: Config) -> None:
    assert load(command, save(config, tmp_path)) == absolute(config)


def test_how_a_run_goes_on_is_not_part_of_what_it_is() -> None:
    assert to_yaml(replace(SEARCH, resume=Path("runs/search-1"))) == to_yaml(SEARCH)


def test_a_configuration_that_cannot_be_written_or_read_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere/config\.yaml cannot be written"):
        save(SEARCH, tmp_path / "nowhere")
    bad = tmp_path / "bad.yaml"
    bad.write_text("budget: [speed=8]\n")
    with pytest.raises(BudgetError, match=r"bad\.yaml: A budget limits one of"):
        load("search", bad)
    bad.write_text("seed: -1\nbudget: [flops=50%]\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: `seed` must be"):
        load("search", bad)


def test_options_are_spelled_with_dashes() -> None:
    assert option("min_keep") == "--min-keep"


def test_a_function_that_builds_a_network_is_found_from_any_folder() -> None:
    here = Path.cwd()
    spelled = {
        "net.py:make": f"{here}/net.py:make",
        "net.py:make@runs/1/model.pt": f"{here}/net.py:make@{here}/runs/1/model.pt",
        "package.nets:make": "package.nets:make",
        "package.nets:make@model.pt": f"package.nets:make@{here}/model.pt",
    }
    for typed, kept in spelled.items():
        assert f"model: {json.dumps(kept)}\n" in to_yaml(replace(SEARCH, model=Path(typed), data=None))
