"""What --help offers is what there is: every option that it shows is honoured, and no other form of it is taken."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoprune.cli.arguments import build_parser, parse
from autoprune.config import COMMANDS, SearchConfig, option
from autoprune.config.reading import base_of, enum_of, hints_of, is_list, places_of
from autoprune.errors import ConfigError
from autoprune.image_size import ImageSize

ALL = sorted(COMMANDS)
TAKING = [command for command in ALL if not places_of(COMMANDS[command])]
"""Commands with a configuration file, and so all but ``data``."""

ANSWERED = {"--help", "--config", "--print-config", "--print_config"}
"""Options that are no field of a configuration."""


def helped(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse([command, "--help"])
    return capsys.readouterr().out


def offered(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return every option that a command's help shows, as it is written there."""
    lines = re.findall(r"^  (-.*?)(?:  .*)?$", helped(command, capsys), re.MULTILINE)
    return {word for line in lines for word in re.findall(r"(?<![\w-])--[^\s,]+", line)}


def printed(command: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the configuration that a command line makes, complete or not."""
    with pytest.raises(SystemExit):
        parse([command, *argv, "--print-config"])
    return dict(yaml.safe_load(capsys.readouterr().out))


def values_for(hint: Any) -> tuple[list[str], Any]:
    """Return values to give for an option of a type, and what the configuration then says."""
    members = enum_of(hint)
    if members is not None:
        last: Enum = list(members)[-1]
        return [last.value], last.value
    if is_list(hint):
        return ["one", "two"], ["one", "two"]
    given: dict[Any, tuple[str, Any]] = {
        int: ("64", 64),
        float: ("2.5e-1", 0.25),
        str: ("x", "x"),
        Path: ("/some/file", "/some/file"),
        ImageSize: ("384,640", [384, 640]),
    }
    text, value = given[base_of(hint)]
    return [text], value


@pytest.mark.parametrize("command", TAKING)
def test_every_option_that_help_offers_is_honoured(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    hints = hints_of(COMMANDS[command])
    words = offered(command, capsys)
    assert {option(name) for name in hints} | ANSWERED <= words
    for word in sorted(words - ANSWERED - {"--resume"}):
        name = {"agent": "strategy"}.get(word[2:], word[2:]).replace("-", "_")
        if name not in hints:
            name = name.removeprefix("no_")
            assert hints[name] is bool
            assert printed(command, [option(name), word], capsys)[name] is False
        elif hints[name] is bool:
            assert printed(command, [word], capsys)[name] is True
        else:
            given, expected = values_for(hints[name])
            apart = [part for value in given for part in (word, value)]
            assert printed(command, apart, capsys)[name] == expected
            assert printed(command, [f"{word}={value}" for value in given], capsys)[name] == expected


@pytest.mark.parametrize("command", ALL)
def test_no_other_form_of_an_option_is_taken(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = offered(command, capsys)
    for word in sorted(words):
        forms = {f"{word}+", f"{word}.x", f"{word}.help", f"--no-{word[2:]}", word[:-1], word.upper(), f"--{word}"}
        for form in forms - words - {"--"}:
            with pytest.raises(ConfigError, match="is not an option of autoprune") as caught:
                parse([command, f"{form}=3"])
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ALL)
def test_every_line_of_help_tells_an_option_or_what_it_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = helped(command, capsys)
    assert "SUPPRESS" not in said
    assert "%(" not in said
    assert build_parser().name == "autoprune"


def test_two_configuration_files_are_joined_and_the_later_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("budget: [flops=50%]\nseed: 3\nimages: 5\n")
    (tmp_path / "b.yaml").write_text("seed: 4\n")
    argv = ["search", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert parse(argv)[1] == SearchConfig(budget=("flops=50%",), seed=4, images=5)


def test_the_environment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOPRUNE_SEED", "AUTOPRUNE_SEARCH__SEED", "SEED", "AUTOPRUNE_CONFIG"):
        monkeypatch.setenv(name, "7")
    assert parse(["search", "--budget", "flops=50%"])[1] == SearchConfig(budget=("flops=50%",))


def test_values_of_a_file_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """YAML alone would read 1e-3 as a text, 010 as 8 and no as false."""
    file = tmp_path / "c.yaml"
    file.write_text("budget: [flops=50%]\nlr_scale: 1e-3\nseed: 010\nout: no\nimages: '12'\nepisodes: ~\n")
    expected = SearchConfig(budget=("flops=50%",), lr_scale=1e-3, seed=10, out=Path("no"), images=12)
    assert parse(["search", "--config", str(file)])[1] == expected
