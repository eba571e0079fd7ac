"""What the repository promises about itself: README's commands, the versions, no addresses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.version import Version

FUNCTION = re.compile(r"^readme_command\(\) \{.*?^\}", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("main", "autoprune search --budget latency=8ms"),
        ("test", "-e '.[test]' && .venv/bin/pytest -n 2 --dist loadfile"),
    ],
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


def test_ci_installs_the_lowest_version_of_every_dependency(root: Path) -> None:
    pytest.importorskip("tomllib", reason="CI reads pyproject.toml by Python 3.11 or later")
    command = [sys.executable, str(root / ".ci" / "lowest.py")]
    lowest = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    text = re.sub(r"#.*", "", (root / "pyproject.toml").read_text()).partition("[project]")[2]
    declared = {f"{name}=={floor}" for name, floor in re.findall(r'"([\w-]+)>=([\d.]+)"', text)}
    assert lowest == declared
    assert len({line.partition("==")[0] for line in lowest}) == len(lowest) > 20, "one floor for each"


def test_the_tests_that_ci_runs_with_the_lowest_versions_are_there(root: Path) -> None:
    script = (root / ".ci" / "run").read_text()
    found = re.findall(r"tests/(\w+)/test_\{([\w,]+)\}\.py", script)
    named = [root / "tests" / folder / f"test_{name}.py" for folder, names in found for name in names.split(",")]
    assert len(named) > 5
    assert all(path.is_file() for path in named)


def test_every_dependency_has_an_exact_version_and_no_address(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r'([a-z0-9-]+)==[\w.+]+((?: ; python_version (?:<|>=) "3\.11")?)', line) for line in lines]
    assert all(pinned), [line for line, found in zip(lines, pinned, strict=True) if not found]
    pins = [(found[1], found[2]) for found in pinned if found]
    names = [name for name, _ in pins]
    assert pins == sorted(set(pins))
    text = (root / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|docs|test) = \[(.*?)\]\s*$", text, re.MULTILINE | re.DOTALL)
    needed = {word for block in lists for word in re.findall(r'"([\w-]+)(?:\[\w+\])?>=', block)}
    assert {"torch", "pyyaml", "pytest", "mypy"} <= needed <= set(names)


def test_the_wheel_leaves_the_name_envs_to_others(root: Path, tmp_path: Path) -> None:
    """Installed next to a project that has a package ``envs`` of its own, both are imported."""
    if not any(one.name == "setuptools" and Version(one.version) >= Version("77") for one in distributions()):
        pytest.skip("the wheel is built by setuptools 77, without a download")
    source, site, project = tmp_path / "source", tmp_path / "site", tmp_path / "project"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("autoprune", "envs"):
        shutil.copytree(root / folder, source / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("autoprune-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    assert not (site / "envs").exists()
    assert (site / "autoprune" / "envs" / "py.typed").is_file()
    assert list((site / "autoprune" / "demo").glob("*.pt"))
    (project / "envs").mkdir(parents=True)
    (project / "envs" / "__init__.py").write_text("OWNER = 'the project'")
    code = (
        "import autoprune, gymnasium, autoprune.envs, envs\n"
        "print(envs.OWNER, autoprune.__file__, autoprune.envs.CHANNEL_PRUNING in gymnasium.registry)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{site}"},
    ).stdout
    assert told.split() == ["the", "project", str(site / "autoprune" / "__init__.py"), "True"]
