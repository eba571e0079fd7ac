"""Help that users can read, and completion in their shells."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.cli.arguments import COMPLETION, build_parser, parse
from autoprune.cli.main import main
from autoprune.cli.options import groups_of
from autoprune.config import COMMANDS
from autoprune.config.reading import choices_of, enum_of, hints_of, places_of, spelled
from autoprune.errors import ConfigError

ALL = sorted(COMMANDS)


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], *([name] for name in [*ALL, "completion"])])
def test_help_speaks_of_choices_and_not_of_types(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(words, capsys)
    assert not re.search(r"Optional\[|Literal|\bNone\b|\bUnion\b|tuple\[|<class|pathlib|Enum|MISSING|UNSET", said)
    assert not re.search(r"default: (True|False)\b", said)
    assert max(map(len, said.splitlines())) < 120


@pytest.mark.parametrize("command", ALL)
def test_every_option_is_in_one_group_and_shows_its_choices(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, said = COMMANDS[command], helped([command], capsys)
    grouped = [name for names in groups_of(kind).values() for name in names]
    assert sorted(grouped) == sorted(hints_of(kind))
    for name, hint in hints_of(kind).items():
        if name not in places_of(kind):
            assert len(re.findall(rf"^  (--\S+, )*{spelled(kind, name)}[ ,\n]", said, re.MULTILINE)) == 1, name
        if enum_of(hint) is not None and name not in places_of(kind):
            assert f"[{'|'.join(choices_of(hint))}]" in said


def test_a_search_shows_its_ten_most_used_options_first(capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(["search"], capsys)
    first = said[said.index("Most used:") : said.index("\nSearch:")]
    shown = re.findall(r"^  (--[\w-]+)", first, re.MULTILINE)
    expected = "model data budget imgsz strategy episodes finetune-epochs runtime device out"
    assert shown == [f"--{name}" for name in expected.split()]


def test_defaults_are_written_as_click_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(helped(["train"], capsys).split())
    assert "[default: 20]" in said
    assert "[default: compensate]" in said
    assert "[required]" in said


# -- completion --------------------------------------------------------------------------------------


def completed(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what bash is offered at the end of a line, as ``type,value``."""
    words = line.split(" ")
    monkeypatch.setenv(COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("autoprune se", ["plain,search", "plain,sensitivity"]),
        ("autoprune comple", ["plain,completion"]),
        ("autoprune search --finet", ["plain,--finetune-epochs"]),
        ("autoprune search --runtime on", ["plain,onnxruntime"]),
        ("autoprune search --agent reg", ["plain,regrowth"]),
        ("autoprune search --criterion l", ["plain,l1", "plain,l2", "plain,lamp"]),
        ("autoprune search --device c", ["plain,cpu", "plain,cuda"]),
        ("autoprune search --budget fl", ["plain,flops="]),
        ("autoprune compare --strategies uniform,know", []),
        ("autoprune compare --strategies uniform,kn", ["plain,uniform,knapsack"]),
        ("autoprune compare --criteria l", ["plain,l1", "plain,l2", "plain,lamp"]),
        ("autoprune search --model be", ["file,be"]),
        ("autoprune search --out ru", ["dir,ru"]),
        ("autoprune data ox", ["plain,oxford-hand"]),
        ("autoprune completion z", ["plain,zsh"]),
    ],
)
def test_a_shell_is_offered_what_can_follow(
    line: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert completed(line, monkeypatch, capsys) == offered


@pytest.mark.parametrize(("shell", "sign"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no")])
def test_the_script_of_a_shell_is_printed(shell: str, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["completion", shell])
    assert not left.value.code
    said = capsys.readouterr().out
    assert sign in said
    assert f"{COMPLETION}={shell}_complete" in said


@pytest.mark.parametrize("words", [[], ["csh"], ["bash", "zsh"]])
def test_another_shell_is_refused_in_one_sentence(words: list[str]) -> None:
    said = " ".join(words) or "none"
    with pytest.raises(ConfigError, match=f"completion takes one shell, bash, zsh, fish, got {said}$"):
        parse(["completion", *words])


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_completes_by_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["completion", "bash"])
    program = tmp_path / "autoprune"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{Path.cwd()}" exec "{sys.executable}" -m autoprune "$@"\n')
    program.chmod(0o755)
    line = "COMP_WORDS=(autoprune search --runtime open) COMP_CWORD=3"
    script = f'{capsys.readouterr().out}\n{line}; _autoprune_completion {program}; echo "${{COMPREPLY[@]}}"'
    told = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=False)
    assert told.stdout.strip() == "openvino", told.stderr


def test_the_list_of_commands_names_completion() -> None:
    assert list(build_parser().commands) == [*COMMANDS, "completion"]
