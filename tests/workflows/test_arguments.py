from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune import __version__
from autoprune.choices import DataSetName, Select
from autoprune.cli.arguments import parse
from autoprune.config import (
    COMMANDS,
    ApplyConfig,
    CompareConfig,
    DataConfig,
    NetAdaptConfig,
    SearchConfig,
    SensitivityConfig,
    TrainConfig,
)
from autoprune.config.files import resume_command, save
from autoprune.errors import AutopruneError, ConfigError, RunError
from autoprune.image_size import ImageSize
from autoprune.metrics import METRICS
from autoprune.strategies.registry import StrategyName

NAMES = ", ".join([*COMMANDS, "completion"])
KNOWN = ", ".join([*(spec.name for spec in METRICS), "fps"])
STRATEGIES = ", ".join(member.value for member in StrategyName)
DASH = "one that begins with a dash is written"
NUMBER = "a finite number (digits 0-9)"
TOGETHER = "the weights and the data set they were trained on go together"


def search(*argv: str) -> SearchConfig:
    command, config = parse(["search", *argv])
    assert command == "search"
    assert isinstance(config, SearchConfig)
    return config


def test_the_main_job_needs_only_a_budget() -> None:
    assert search("--budget", "latency=8ms") == SearchConfig(budget=("latency=8ms",))


def test_the_commands_of_the_readme_are_understood() -> None:
    line = "--model best.pt --data d.yaml --imgsz 320 --budget flops=50% --episodes 200 --finetune-epochs 20 --seed 0"
    assert search(*line.split()) == SearchConfig(
        model=Path("best.pt"),
        data=Path("d.yaml"),
        imgsz=ImageSize(320, 320),
        budget=("flops=50%",),
        episodes=200,
        finetune_epochs=20,
    )
    line = "train --policy p.json --model m.pt --data d.yaml --imgsz 320 --epochs 3"
    assert parse(line.split()) == (
        "train",
        TrainConfig(
            policy=Path("p.json"), model=Path("m.pt"), data=Path("d.yaml"), imgsz=ImageSize(320, 320), epochs=3
        ),
    )
    line = "apply --policy p.json --model m.pt --out o"
    assert parse(line.split()) == ("apply", ApplyConfig(policy=Path("p.json"), model=Path("m.pt"), out=Path("o")))


def test_netadapt_and_sensitivity_are_understood() -> None:
    line = "netadapt --model m.pt --data d.yaml --budget latency=12ms,10ms --budget params=2M --short-term-steps 0"
    assert parse([*line.split(), "--select", "accuracy-per-resource", "--shortlist=0"]) == (
        "netadapt",
        NetAdaptConfig(
            model=Path("m.pt"),
            data=Path("d.yaml"),
            budget=("latency=12ms,10ms", "params=2M"),
            short_term_steps=0,
            select=Select.ACCURACY_PER_RESOURCE,
            shortlist=0,
        ),
    )
    assert parse(["sensitivity"]) == ("sensitivity", SensitivityConfig())
    assert parse(["sensitivity", "--ratios", "0.5"]) == ("sensitivity", SensitivityConfig(ratios="0.5"))


@pytest.mark.parametrize("target", ["hands", "123", "true", "a: b"])
def test_what_data_is_told_is_taken_by_its_place(target: str) -> None:
    expected = DataConfig(data_set=DataSetName.OXFORD_HAND, source=Path("hand_dataset"), target=Path(target))
    assert parse(["data", "oxford-hand", "hand_dataset", target]) == ("data", expected)


def test_the_help_shows_what_is_taken_by_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["data", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "NAME SRC DST" in said
    assert "SRC the folder that its archive was unpacked to" in said
    assert "--config" not in said


def test_a_search_takes_curves_and_several_runs() -> None:
    assert search(*["--budget", "flops=50%", "--strategy", "knapsack", "--sensitivity", "s.json"]).sensitivity == Path(
        "s.json"
    )
    line = "--budget flops=50% --strategy evolution --warm-start runs/a --warm-start=runs/b"
    assert search(*line.split()).warm_start == ("runs/a", "runs/b")


def test_budgets_repeat_in_both_spellings() -> None:
    assert search("--budget", "latency=8ms", "--seed", "1", "--budget=flops=50%").budget == ("latency=8ms", "flops=50%")


@pytest.mark.parametrize("first", [True, False])
def test_the_command_line_wins_over_the_file_wherever_it_stands(tmp_path: Path, first: bool) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("budget: [flops=50%, size=3MB]\nseed: 3\nstrategy: sac\nmin_keep: 0.25\ntensorboard: false\n")
    own = ["--seed", "4", "--budget", "latency=8ms"]
    config = search(*(["--config", str(file), *own] if first else [*own, f"--config={file}"]))
    assert (config.seed, config.budget) == (4, ("latency=8ms",))
    assert (config.strategy, config.min_keep, config.tensorboard) == (StrategyName.SAC, 0.25, False)


@pytest.mark.parametrize("written", ["[flops=50%]", "flops=50%", "{flops: 50%}", "{flops: '50%'}"])
def test_one_text_or_a_mapping_in_the_file_stands_for_a_list(tmp_path: Path, written: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"budget: {written}\n")
    assert search("--config", str(file)).budget == ("flops=50%",)


def test_flags_switch_on_and_off() -> None:
    config = search("--budget", "flops=50%", "--trust-checkpoint", "--no-tensorboard")
    assert (config.trust_checkpoint, config.tensorboard) == (True, False)


@pytest.mark.parametrize("name", ["123", "true", "1e3", "[a]", "a: b", "a #x", "-", "~x", "a=b"])
def test_a_path_is_taken_as_it_is(name: str) -> None:
    assert search("--budget", "flops=50%", "--out", name).out == Path(name)


@pytest.mark.parametrize("name", ["-x", "--seed", "--", "-1", "a=b"])
def test_a_value_that_begins_with_a_dash_is_given_behind_an_equals_sign(name: str) -> None:
    assert search("--budget", "flops=50%", f"--out={name}").out == Path(name)


def test_null_takes_back_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("budget: [flops=50%]\nepisodes: 3\nout: here\n")
    config = search("--config", str(file), "--episodes", "null", "--out", "null")
    assert (config.episodes, config.out) == (None, None)


def test_the_configuration_can_be_printed_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["search", "--budget", "flops=50%", "--agent", "td3", "--print_config"])
    assert not caught.value.code
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert search("--config", str(file)) == SearchConfig(budget=("flops=50%",), strategy=StrategyName.TD3)


@pytest.mark.parametrize("argv", [["--help"], ["search", "--help"], ["apply", "-h"], ["--version"]])
def test_help_is_answered_on_the_screen(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert not caught.value.code
    said = capsys.readouterr().out
    assert (__version__ if argv == ["--version"] else "Usage: autoprune") in said


def test_the_fields_docs_are_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["search", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--finetune-epochs N",
        "repeat the option to combine limits",
        "widths are multiples of this",
        "latency=60%",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", f"The first word must be a command ({NAMES}) or --help or --version, got none"),
        ("serach", f"The first word must be a command ({NAMES}) or --help or --version, got serach"),
        ("search --episods 3", "--episods is not an option of autoprune search; did you mean --episodes?"),
        ("search --min_keep 1", "--min_keep is not an option of autoprune search; did you mean --min-keep?"),
        ("search --epochs 3", "--epochs is not an option of autoprune search; did you mean --finetune-epochs?"),
        ("search --xyzzy", "--xyzzy is not an option of autoprune search; see autoprune search --help"),
        ("search extra --budget flops=50%", "extra is not an option of autoprune search; see autoprune search --help"),
        ("search --budget", f"--budget needs a value; {DASH} --budget=VALUE"),
        ("search --budget --seed 3", f"--budget needs a value; {DASH} --budget=VALUE"),
        ("search --out", f"--out needs a value; {DASH} --out=VALUE"),
        ("search --out -h", f"--out needs a value; {DASH} --out=VALUE"),
        ("search --agent --help", f"--agent needs a value; {DASH} --agent=VALUE"),
        ("search --no-tensorboard=x", "--tensorboard takes no value: write --tensorboard or --no-tensorboard"),
        ("search --seed -1", "--seed must be a whole number of at least 0, got -1"),
        ("search --episodes many", "--episodes must be a whole number (digits 0-9), got many"),
        ("search --episodes 1.5", "--episodes must be a whole number (digits 0-9), got 1.5"),
        ("search --min-keep half", f"--min-keep must be {NUMBER}, got half"),
        ("search --agent a2c", f"--strategy must be one of {STRATEGIES}, got a2c"),
        ("search --tensorboard=maybe", "--tensorboard takes no value: write --tensorboard or --no-tensorboard"),
        ("search --config nowhere.yaml", "The configuration file nowhere.yaml does not exist"),
        ("search --budget speed=3", f"A budget limits one of {KNOWN}, got 'speed' in 'speed=3'"),
        ("search", "A budget needs at least one limit, e.g. latency=8ms or flops=50%, got none"),
        ("search --budget flops=50% --model a.pt", f"--model needs --data: {TOGETHER}"),
        ("search --budget flops=50% --warm-start", f"--warm-start needs a value; {DASH} --warm-start=VALUE"),
        ("netadapt", "A budget needs at least one limit, e.g. latency=8ms or flops=50%, got none"),
        (
            "netadapt --budget flops=50% --select best",
            "--select must be one of accuracy, accuracy-per-resource, got best",
        ),
        ("netadapt --budget flops=50% --initial-step big", f"--initial-step must be {NUMBER}, got big"),
        (
            "netadapt --budget flops=50% --short-term-stpes 3",
            "--short-term-stpes is not an option of autoprune netadapt; did you mean --short-term-steps?",
        ),
        ("netadapt --budget flops=50%,60%", "Each level must be below the one before, got flops=60% after flops=50%"),
        (
            "sensitivity --budget flops=50%",
            "--budget is not an option of autoprune sensitivity; see autoprune sensitivity --help",
        ),
        ("sensitivity --ratios half", "--ratios must be keep ratios in (0, 1), such as 0.75,0.5,0.25, got half"),
        ("apply", "apply needs --policy and --model"),
        ("train --policy p.json", "train needs --model"),
        ("data", "data needs NAME and SRC and DST"),
        ("data oxford-hand here", "data needs DST"),
        ("data oxford-feet here there", "NAME must be one of oxford-hand, got oxford-feet"),
        ("data oxford-hand a b c", "c is not an option of autoprune data; see autoprune data --help"),
        ("data oxford-hand a b --name=c", "--name is not an option of autoprune data; see autoprune data --help"),
        ("data oxford-hand a b --resume x", "--resume is not an option of autoprune data; see autoprune data --help"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(line: str, said: str) -> None:
    with pytest.raises(AutopruneError) as caught:
        parse(line.split())
    assert str(caught.value) == said
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_kep: 0.3\n", "min_kep is not an option of autoprune search; did you mean min_keep?"),
        ("model:\n  name: x\n", "--model must be a path"),
        ("budget: {flops: ~}\n", '--budget must be a list of texts, got {"flops": null}'),
        ("strategy: 3\n", f"--strategy must be one of {STRATEGIES}, got 3"),
        ("episodes: 1.5\n", "--episodes must be a whole number (digits 0-9), got 1.5"),
        ("trust_checkpoint: 7\n", "--trust-checkpoint must be true or false, got 7"),
        ("a: [\n", "is not readable YAML: "),
        ("- a\n", "must map names to values"),
        ("", "must map names to values"),
        ("budget: [flops=50%]\nresume: runs/x\n", "resume belongs on the command line, not into a configuration file"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(AutopruneError) as caught:
        search("--config", str(file))
    assert said in str(caught.value)
    assert str(file) in str(caught.value) or "resume" in text
    assert "\n" not in str(caught.value)


def test_a_resumed_run_is_configured_as_it_was(tmp_path: Path) -> None:
    save(SearchConfig(budget=("flops=50%",), seed=7, out=tmp_path), tmp_path)
    expected = SearchConfig(budget=("flops=50%",), seed=7, out=tmp_path, resume=tmp_path)
    assert search("--resume", str(tmp_path)) == expected
    assert search(f"--resume={tmp_path}") == expected


@pytest.mark.parametrize(
    "line", ["--resume RUN --seed 3", "--seed=3 --resume RUN", "--config c.yaml --resume=RUN", "--resume"]
)
def test_resume_stands_alone(tmp_path: Path, line: str) -> None:
    save(SearchConfig(budget=("flops=50%",)), tmp_path)
    with pytest.raises(ConfigError, match="--resume RUN stands alone"):
        search(*line.replace("RUN", str(tmp_path)).split())


def test_a_comparison_goes_on_with_more_of_what_extends_it(tmp_path: Path) -> None:
    told = CompareConfig(budget=("flops=50%",), seeds=2, evaluations=7, strategies="random", out=tmp_path)
    save(told, tmp_path)
    line = ["compare", "--seeds", "3", f"--resume={tmp_path}", "--strategies=uniform"]
    assert parse(line)[1] == replace(told, seeds=3, strategies="random,uniform", resume=tmp_path)
    with pytest.raises(ConfigError, match=r"remove --evaluations, --print-config$"):
        parse([*line, "--evaluations", "3", "--print-config"])


OWN = "net.py:make"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("search", "budget: [flops=50%]\ntrust_checkpoint: true\n"),
        ("search", f"budget: [flops=50%]\nmodel: {OWN}\n"),
        ("profile", f"model: {OWN}\n"),
        ("export", f"model: {OWN}@model.pt\n"),
        ("export", "model: package.module:make\n"),
        ("train", f"policy: p.json\nmodel: a.pt\ndata: d.yaml\ndistill: {OWN}\n"),
        ("quantize", f"model: a.pt\ndata: d.yaml\ndense: {OWN}\n"),
        ("mask", "model: a.pt\ndata: d.yaml\ntrust_checkpoint: true\n"),
        ("profile", 'runtime_command: "bench {onnx}"\n'),
        ("search", "budget: [flops=50%]\nworkers: ray://head:10001\n"),
    ],
)
def test_a_file_cannot_have_code_run(tmp_path: Path, command: str, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"give --trust-checkpoint$"):
        parse([command, "--config", str(file)])
    assert parse([command, "--config", str(file), "--trust-checkpoint"])[1]


def test_a_network_that_the_command_line_names_needs_no_further_word(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"budget: [flops=50%]\nmodel: {OWN}\n")
    assert search("--config", str(file), "--model", "other.py:make").model == Path("other.py:make")
    assert search("--config", str(file), f"--model={OWN}").model == Path(OWN)


@pytest.mark.parametrize("config", [{"trust_checkpoint": True}, {"model": Path(OWN)}])
def test_trust_is_given_again_with_resume(tmp_path: Path, config: dict[str, Any]) -> None:
    told = SearchConfig(budget=("flops=50%",), out=tmp_path, **config)
    file = save(told, tmp_path)
    assert "trust_checkpoint" not in file.read_text()
    assert resume_command("search", told, tmp_path) == f"autoprune search --resume {tmp_path} --trust-checkpoint"
    for words in (["--resume", str(tmp_path), "--trust-checkpoint"], ["--trust-checkpoint", f"--resume={tmp_path}"]):
        resumed = search(*words)
        assert resumed.trust_checkpoint
        assert resumed.resume == tmp_path
    if told.model is not None:
        with pytest.raises(ConfigError, match=r"--model .*net\.py:make comes from a file and would be executed"):
            search("--resume", str(tmp_path))
    file.write_text(file.read_text() + "trust_checkpoint: true\n")
    with pytest.raises(ConfigError, match=r"give --trust-checkpoint$"):
        search("--resume", str(tmp_path))


def test_a_run_that_trusted_nothing_is_resumed_without_a_word(tmp_path: Path) -> None:
    told = SearchConfig(budget=("flops=50%",), out=tmp_path)
    assert resume_command("search", told, tmp_path) == f"autoprune search --resume {tmp_path}"


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run that can be resumed: it has no config\.yaml"):
        search("--resume", str(tmp_path))
    with pytest.raises(ConfigError, match="--resume is not an option of autoprune apply"):
        parse(["apply", "--policy", "p", "--model", "m", "--resume", str(tmp_path)])


def test_what_is_taken_by_its_place_cannot_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: a\n")
    with pytest.raises(ConfigError, match="--config is not an option of autoprune data"):
        parse(["data", "--config", str(file), "oxford-hand", "a", "b"])
