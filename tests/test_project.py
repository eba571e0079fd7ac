"""What the repository promises about itself: README's commands, the versions, no addresses."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

FUNCTION = re.compile(r"^readme_command\(\) \{.*?^\}", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("name", "words"),
    [("main", "autoprune search --budget latency=8ms"), ("test", "-e '.[test]' && .venv/bin/pytest")],
)
def test_ci_finds_the_commands_in_the_readme(root: Path, name: str, words: str) -> None:
    function = FUNCTION.search((root / ".ci" / "run").read_text())
    assert function is not None
    script = f"set -euo pipefail\n{function[0]}\nreadme_command {name}"
    command = subprocess.run(
        ["bash", "-c", script], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt ")
    assert command.endswith(words)
    assert "\n" not in command


def test_ci_stops_where_the_readme_lacks_a_command(root: Path) -> None:
    function = FUNCTION.search((root / ".ci" / "run").read_text())
    assert function is not None
    script = f"set -euo pipefail\n{function[0]}\nfound=$(readme_command nothing)\necho unreachable"
    done = subprocess.run(["bash", "-c", script], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_ci_is_a_valid_executable_script(root: Path) -> None:
    assert os.access(root / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", ".ci/run"], cwd=root, check=True)


def test_every_dependency_has_an_exact_version_and_no_address(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r'([a-z0-9-]+)==[\w.+]+(?: ; python_version >= "3\.11")?', line) for line in lines]
    assert all(pinned), [line for line, found in zip(lines, pinned, strict=True) if not found]
    names = [found[1] for found in pinned if found]
    assert names == sorted(set(names))
    text = (root / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|test) = \[(.*?)\]\s*$", text, re.MULTILINE | re.DOTALL)
    needed = {word for block in lists for word in re.findall(r'"([\w-]+)(?:\[\w+\])?>=', block)}
    assert {"torch", "pyyaml", "pytest", "mypy"} <= needed <= set(names)
