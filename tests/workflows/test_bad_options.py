"""Bad input that the command line itself shows: options, numbers, budgets, configuration files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoprune.budget import budget_levels
from autoprune.cli.arguments import parse
from autoprune.config import COMMANDS, SearchConfig, option
from autoprune.config.reading import base_of, hints_of, places_of
from autoprune.errors import AutopruneError, BudgetError
from tests.helpers.refusals import refuse

LONG = "a" * 5000
SEARCH = ("search", "--budget", "flops=50%")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- options ---------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, str]] = [
    ("", "got none"),
    ("serach", "got serach"),
    ("SEARCH", "got SEARCH"),
    ("--budget flops=50%", "first word must be a command"),
    ("search --episods 3", "did you mean --episodes?"),
    ("search --budget+ flops=50%", "--budget+ is not an option"),
    ("search --budget.x flops=50%", "--budget.x is not an option"),
    ("search --strategy.help", "--strategy.help is not an option"),
    ("search --epis 3", "--epis is not an option"),
    ("search --no-seed", "--no-seed is not an option"),
    ("search -s 3", "-s is not an option"),
    ("search @args.txt", "@args.txt is not an option"),
    ("search extra --budget flops=50%", "extra is not an option"),
    ("search --budget", "--budget needs a value"),
    ("search --seed --budget flops=50%", "--seed needs a value"),
    ("search --tensorboard=yes", "write --tensorboard or --no-tensorboard"),
    ("search --print-config=skip_default", "--print-config takes no value"),
    ("search --strategy PPO", "--strategy must be one of ppo"),
    ("search --agent a2c", "got a2c"),
    ("search --rule any", "--rule must be one of projected, capped"),
    ("search --precision fp8", "--precision must be one of fp32"),
    ("search --runtime tensorflow", "--runtime must be one of torch"),
    ("search --budget flops=50% --model a.pt", "--model needs --data"),
    ("search --budget flops=50% --data d.yaml", "--data needs --model"),
    ("search --budget flops=50% --model", "--model needs a value"),
    ("search --budget flops=50% --device tpu", "got 'tpu'"),
    ("search --budget flops=50% --device cuda:99999", "got 'cuda:99999'"),
    ("search --budget flops=50% --device cuda:１", "--device must be auto, cpu, cuda, cuda:N, mps, or N"),
    ("search --budget flops=50% --device=", "--device must be"),
    ("search --budget flops=50% --criterion xyz", "got 'xyz'"),
    ("search --budget flops=50% --criterion l0", "above 0"),
    ("search --budget flops=50% --criterion l1000", "at most 16"),
    ("search --budget flops=50% --criterion l１", "A criterion is one of"),
    ("search --budget flops=50% --sensitivity s.json", "--sensitivity is for the strategies"),
    ("search --budget flops=50% --warm-start r --strategy uniform", "--warm-start is for"),
    ("search --budget flops=50% --rollout 8 --agent ddpg", "--rollout is for the strategies ppo, polish, got ddpg"),
    ("search --budget flops=50% --rollout 0", "--rollout must be a whole number of at least 1, got 0"),
    ("search --budget flops=50% --stock-yaml --round-to 7", "--round-to, got 7"),
    ("search --budget flops=50% --distill --finetune-epochs 0", "--finetune-epochs 0 leaves that out"),
    ("search --resume", "--resume RUN stands alone"),
    ("search --resume nowhere", "nowhere is not a run that can be resumed"),
    ("search --resume nowhere --seed 3", "remove --seed"),
    ("search --budget flops=50% --out=", "--out must be a path"),
    ("sensitivity --ratios 0.5,x", "got 0.5,x"),
    ("sensitivity --ratios ０.5", "--ratios must be keep ratios in (0, 1)"),
    ("sensitivity --ratios 0.5,1", "--ratios must be keep ratios in (0, 1)"),
    ("compare --budget flops=50% --strategies ppo+", "got 'ppo+'"),
    ("compare --budget flops=50% --strategies a+b+c", "--strategies takes names of"),
    ("compare --budget flops=50% --criteria l1,,l2", "got ''"),
    ("netadapt --budget flops=50%,60%", "below the one before"),
    ("apply", "apply needs --policy and --model"),
    ("train --policy p --model m --data d --soften-epochs 3", "is for --soften"),
    ("train --policy p --model m --data d --device cuda:0,0", "each once"),
    ("train --policy p --model m --data d --device cuda:0,1 --batch 3", "multiple of the 2 devices"),
    ("export --model m.pt --format coreml", "--format must be one of"),
    ("export --model m.pt --precision int8", "fp32 or fp16"),
    ("export --model m.pt --format torchscript --dynamic", "--dynamic is for"),
    ("mask --model m.pt --data d --sparsity 0.3", "takes half of every layer's weights"),
    ("mask --model m.pt --data d --granularity 4:8", "--granularity must be one of 2:4"),
    ("quantize --model m.pt --data d --runtime torch", "onnxruntime, openvino, litert"),
    ("slim --budget flops=50% --architecture y.yaml --model m.pt --data d", "leave out the other"),
    ("profile --precision int8 --model m.pt", "--precision int8 needs --data"),
    ("data", "data needs NAME and SRC and DST"),
    ("data imagenet a b", "NAME must be one of oxford-hand"),
    ("data oxford-hand nowhere b", "nowhere"),
    ("data oxford-hand a b --config c", "--config is not an option"),
]


@pytest.mark.parametrize(("line", "said"), OPTIONS)
def test_options(line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(line.split(), [said], capsys, folder=folder)


TAKING = {name: kind for name, kind in COMMANDS.items() if not places_of(kind)}
NEEDED = ("--policy", "--model", "--data", "--budget")
PATHS = sorted(
    {
        (word, name)
        for name, kind in TAKING.items()
        for word, hint in hints_of(kind).items()
        if base_of(hint) is Path and word != "resume"
    }
)


def words_of(command: str, *given: str) -> list[str]:
    """Return a command line with everything that it needs, and what is given behind it."""
    hints = hints_of(COMMANDS[command])
    values = {"--policy": "p.json", "--model": "m.pt", "--data": "d.yaml", "--budget": "flops=50%"}
    needed = [part for word in NEEDED if word[2:] in hints for part in (word, values[word])]
    return [command, *needed, *given]


@pytest.mark.parametrize(("name", "command"), PATHS)
@pytest.mark.parametrize("value", [LONG, f"x/{LONG}/y", "a\0b", "a\udcffb", ""])
def test_paths_that_no_file_can_have(
    name: str, command: str, value: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = words_of(command, f"{option(name)}={value}")
    refuse(argv, [f"{option(name)} must be a path that can be looked up, got"], capsys, folder=folder)


# -- numbers ---------------------------------------------------------------------------------------

NUMBERS = sorted(
    {
        (word, name, base_of(hint))
        for name, kind in TAKING.items()
        for word, hint in hints_of(kind).items()
        if base_of(hint) in (int, float)
    },
    key=str,
)
NO_NUMBERS = (
    "x",
    "",
    "１２",
    "٣",
    "1_000",
    "0x10",
    "1,5",
    "1 000",
    " 3",
    "nan",
    "inf",
    "1e999",
    "--",
    "1e",
    "9" * 5000,
    "None",
)
NOT_WHOLE = ("1e3", "1.5", "3.0", "-1", "-0x1", str(10**11), "9" * 300)


@pytest.mark.parametrize(("name", "command", "kind"), NUMBERS)
def test_numbers(name: str, command: str, kind: type, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (*NO_NUMBERS, *(NOT_WHOLE if kind is int else ("-1", "-0.25"))):
        together = ["--runtime-command=bench {onnx}"] if name == "runtime_timeout" else []
        argv = words_of(command, *together, f"{option(name)}={value}")
        sentence = refuse(argv, [option(name)], capsys, folder=folder)
        assert "must " in sentence or "needs a value" in sentence
        assert value[:20] in sentence or len(value) > 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--imgsz 1000000000", "from 32 to 32768, got 1000000000"),
        ("--imgsz 100", "a multiple of 32"),
        ("--imgsz 0", "from 32 to 32768, got 0"),
        ("--imgsz 0,640", "from 32 to 32768, got 0,640; the nearest is 32,640"),
        ("--imgsz 390,640", "a multiple of 32 from 32 to 32768, got 390,640; the nearest is 384,640"),
        ("--imgsz 640x384", "or height and width such as 384,640, got 640x384"),
        ("--imgsz 384,640,3", "or height and width such as 384,640, got 384,640,3"),
        ("--imgsz 384,", "or height and width such as 384,640, got 384,"),
        ("--threads 0", "at least 1, got 0"),
        ("--threads 1000", "the CPU cores of this machine, got 1000"),
        ("--threads 100000000000", "--threads must be"),
        ("--seed 4294967296", "at most 2147483647, got 4294967296"),
        ("--min-keep 0", "must lie in (0, 1], got 0.0"),
        ("--min-keep 1.01", "must lie in (0, 1], got 1.01"),
        ("--images 0", "at least 1, got 0"),
        ("--lr-scale 5e-324000", "must lie in (0, 10]"),
    ],
)
def test_numbers_out_of_range(words: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse([*SEARCH, *words.split()], [said], capsys, folder=folder)


@given(text=st.text(max_size=12))
def test_any_text_is_a_seed_or_refused(text: str) -> None:
    argv = [*SEARCH, f"--seed={text}"]
    if re.fullmatch(r"\+?[0-9]{1,9}|-0+", text):
        assert parse(argv)[1] == SearchConfig(budget=("flops=50%",), seed=int(text))
    else:
        with pytest.raises(AutopruneError) as caught:
            parse(argv)
        assert len(str(caught.value).splitlines()) == 1


# -- budgets ---------------------------------------------------------------------------------------

BUDGETS: list[tuple[tuple[str, ...], str]] = [
    ((), "at least one limit"),
    (("",), "METRIC=AMOUNT"),
    (("50%",), "METRIC=AMOUNT"),
    (("flops",), "METRIC=AMOUNT"),
    (("flops:50%",), "METRIC=AMOUNT"),
    (("speed=50%",), "'speed'"),
    (("ﬂops=50%",), "A budget limits one of"),
    (("flops=",), "'' is not a number"),
    (("flops=0",), "above zero"),
    (("flops=-5%",), "above zero"),
    (("flops=0%",), "above zero"),
    (("flops=101%",), "(0, 100] percent"),
    (("flops=nan",), "'nan' is not a number"),
    (("flops=inf",), "'inf' is not a number"),
    (("flops=0.5",), "flops=50.0%"),
    (("flops=1e-999",), "too large or too small"),
    (("flops=1e-300",), "flops=1e-298%"),
    (("flops=1e999",), "too large or too small"),
    (("flops=1e1000",), "is not a number"),
    ((f"flops={'9' * 5000}",), "(5000 characters)"),
    ((f"{'f' * 5000}=1",), "(5000 characters)"),
    (("flops=５０%",), "'５０%' is not a number"),
    (("flops=٥٠%",), "is not a number"),
    (("flops=50\u00a0%",), "is not a number"),
    (("flops=5 0%",), "is not a number"),
    (("flops=50%%",), "is not a number"),
    (("flops=50٪",), "is not a number"),
    (("flops=1_000",), "is not a number"),
    (("flops=0x10",), "is not a number"),
    (("flops=4GB",), "unknown unit 'gb'"),
    (("flops=4\u212a",), "is not a number"),
    (("latency=8",), "the unit is missing"),
    (("latency=8min",), "unknown unit 'min'"),
    (("latency@abacus=8ms",), "is measured on a runtime"),
    (("latency@cuda:１=8ms",), "is measured on a runtime"),
    (("latency@=8ms",), "as in latency@openvino=8ms"),
    (("flops@openvino=50%",), "Only latency and energy are measured"),
    (("flops=50%", "flops=50%"), "each metric once"),
    (("flops=50%", "flops=40%"), "each metric once"),
    (('["flops=50%"]',), "A budget limits one of"),
    (("null",), "METRIC=AMOUNT"),
    (("flops=50%\n",), "is not a number"),
]


@pytest.mark.parametrize(("limits", "said"), BUDGETS)
def test_budgets(limits: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["search", *(f"--budget={limit}" for limit in limits)]
    refuse(argv, [said], capsys, folder=folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=15) | st.text("flops=%1205eE.-@, kMG", max_size=15), max_size=3))
def test_any_budget_is_read_or_refused_in_one_short_sentence(texts: list[str]) -> None:
    said = ""
    try:
        assert all(limit.value > 0 for budget in budget_levels(texts) for limit in budget)
    except BudgetError as error:
        said = str(error)
    assert len(said) < 400
    assert len(said.splitlines()) <= 1


# -- configuration files ---------------------------------------------------------------------------

BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

FILES: list[tuple[bytes, str]] = [
    (b"", "must map names to values"),
    (b"# nothing\n", "must map names to values"),
    (b"- a\n", "must map names to values"),
    (b"seed\n", "must map names to values"),
    (b"a: [\n", "is not readable YAML"),
    (b"seed:\t3\n  x: 4\n", "is not readable YAML"),
    (b"\tseed: 3\n", "is not readable YAML"),
    (b"seed: 3\nseed: 4\n", "has the entry seed twice, again in line 2"),
    (b"seed: 3\n---\nseed: 4\n", "has a second document in line 2"),
    (b"a: &a [*a]\n", "refers to an anchor in line 1"),
    (b"a: &a x\n" + BOMB.encode(), "refers to an anchor in line 2"),
    (b"<<: {seed: 3}\n", "<< is not an option"),
    (b"seed: !!python/object/apply:os.getpid []\n", "has the tag"),
    (b"seed: !!int 3\n", "has the tag"),
    (b"seed: " + b"[" * 3000 + b"]" * 3000, "is nested too deeply in line 1"),
    (b"seed: " + b"{a: " * 3000 + b"}" * 3000, "is nested too deeply in line 1"),
    (b"\x00\x01\x02\xff", "is not text in UTF-8"),
    (b"\x7fELF\x02\x00", "is not readable YAML"),
    ("out: caf\u00e9\n".encode("latin-1"), "is not text in UTF-8 (byte 8)"),
    ("seed: 3\n".encode("utf-16"), "is not text in UTF-8"),
    (b"#" * (2**20 + 1), "bytes, and at most 1048576 are read"),
    (b"seed: ~\n", "--seed must be a whole number (digits 0-9), got null"),
    (b"seed:\n", "--seed must be a whole number (digits 0-9), got null"),
    (b"seed: " + b"9" * 5000 + b"\n", "(5000 characters)"),
    (b"seed: 1e3\n", "got 1e3"),
    (b"seed: true\n", "got true"),
    (b"seed: [3]\n", 'got ["3"]'),
    (b"seed: {a: 3}\n", "--seed must be a whole number"),
    (b"seed: 2026-01-01\n", "got 2026-01-01"),
    (b"min_keep: .nan\n", "got .nan"),
    (b"min_keep: .inf\n", "got .inf"),
    (b"budget: {flops: [50%]}\n", '--budget must be a list of texts, got {"flops": ["50%"]}'),
    (b"budget: [[flops=50%]]\n", "--budget must be a list of texts"),
    (b"budget: [~]\n", "--budget must be a list of texts"),
    (b"budget: ~\n", "--budget must be a list of texts, got null"),
    (b"strategy: [ppo]\n", "--strategy must be one of"),
    (b"strategy: ~\n", "--strategy must be one of"),
    (b"tensorboard: maybe\n", "--tensorboard must be true or false, got maybe"),
    (b"tensorboard: 1\n", "--tensorboard must be true or false, got 1"),
    (b'out: "a\\0b"\n', "--out must be a path that can be looked up"),
    (b"model: {class_path: a.B, init_args: {}}\n", "--model must be a path"),
    (b"min-keep: 0.3\n", "did you mean min_keep?"),
    (b"config: other.yaml\n", "config is not an option"),
    (b"command: search\n", "command is not an option"),
    (b"resume: runs/x\nbudget: [flops=50%]\n", "resume belongs on the command line"),
    (b"? [a, b]\n: 3\n", "has something in line 1 that is no name"),
    (b"3: 4\n", "3 is not an option"),
    (b"threads: 100000\nbudget: [flops=50%]\n", "the CPU cores of this machine"),
]


@pytest.mark.parametrize(("content", "said"), FILES, ids=[f"{n}-{said[:30]}" for n, (_, said) in enumerate(FILES)])
def test_configuration_files(content: bytes, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_bytes(content)
    refuse(
        [*SEARCH, "--config", "c.yaml"] if b"budget" not in content else ["search", "--config", "c.yaml"],
        [said],
        capsys,
        folder=folder,
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("folder", "The configuration file folder is no file"),
        ("fifo", "The configuration file fifo is no file"),
        ("/dev/null", "The configuration file /dev/null is no file"),
        ("nowhere.yaml", "The configuration file nowhere.yaml does not exist"),
        ("loop", "The configuration file loop does not exist"),
        ("-", "The configuration file - does not exist"),
        (LONG, "--config must be a path that can be looked up"),
    ],
)
def test_what_is_no_configuration_file(path: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    refuse([*SEARCH, f"--config={path}"], [said], capsys, folder=folder)
