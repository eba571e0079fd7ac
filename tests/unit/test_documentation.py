"""The documentation holds what it says: its commands parse, its Python compiles, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import autoprune
from autoprune.cli.arguments import build_parser, parse
from autoprune.criteria.registry import CRITERIA, spec_of
from autoprune.strategies.registry import STRATEGIES, StrategyName

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMANDS = build_parser().commands


def _prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def _blocks(language: str) -> list[tuple[str, str]]:
    found = ((page, match) for page in PAGES for match in FENCE.finditer(page.read_text()) if match[2] == language)
    return [(page.relative_to(ROOT).as_posix(), match[3]) for page, match in found]


def _command_lines() -> list[str]:
    """Return what a shell would run of autoprune: each line of a block, parts after && on their own."""
    lines = [line for _, text in _blocks("bash") for line in text.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
    return [found[1] for part in parts if (found := re.fullmatch(r"(?:\S*/)?autoprune (.*)", part))]


def _spans() -> list[str]:
    """Return the commands within sentences and tables."""
    spans = (" ".join(span.split()) for page in PAGES for span in re.findall(r"`([^`]+)`", _prose(page)))
    return sorted({found[1] for span in spans if (found := re.fullmatch(r"autoprune (.*)", span))})


def test_there_is_something_to_test() -> None:
    assert len(_command_lines()) > 30
    assert len(_spans()) > 15
    assert len(_blocks("python")) > 5


@pytest.mark.parametrize("line", [line for line in _command_lines() if "--resume" not in line])
def test_a_command_of_a_block_is_complete(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command, _ = parse(shlex.split(line))
    assert command in COMMANDS


@pytest.mark.parametrize("line", [*_spans(), *(line for line in _command_lines() if "--resume" in line)])
def test_a_command_of_a_sentence_has_only_options_that_exist(line: str) -> None:
    """They may be cut short, and have ``…`` or capitals for what the reader fills in."""
    name, *words = shlex.split(line)
    given = ["1" if re.fullmatch(r"…|[A-Z]+(\[.*\]|…)?", word) else word for word in words]
    kept = [word for word, before in zip(given, [name, *words], strict=False) if word != "1" or before[:2] == "--"]
    with COMMANDS[name].make_context(name, kept, resilient_parsing="--help" in kept):
        pass


@pytest.mark.parametrize(("page", "code"), _blocks("python"), ids=lambda text: text.partition("\n")[0][:40])
def test_python_compiles(page: str, code: str) -> None:
    assert ast.parse(code, page).body


def test_every_link_of_the_readme_leads_to_a_file_and_a_heading() -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(ROOT / "README.md")):
        path, _, anchor = target.partition("#")
        text = (ROOT / path).read_bytes().decode(errors="replace")  # a picture, too
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target


def test_addresses_are_well_formed_and_encrypted() -> None:
    for page in PAGES:
        for address in re.findall(r"\bhttps?:[^\s)>\"`]*", page.read_text()):
            parts = urlsplit(address)
            assert (parts.scheme, "." in parts.netloc) == ("https", True), f"{page.name}: {address}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_cpu_build_of_torch_has_the_tested_version() -> None:
    text = (ROOT / "constraints.txt").read_text()
    named = {found for page in PAGES for found in re.findall(r"\btorch(?:vision)?==[\d.]+", page.read_text())}
    assert len(named) == 2
    assert all(re.search(rf"^{re.escape(found)}\b", text, re.MULTILINE) for found in named)


def test_the_reference_says_where_strategies_and_criteria_come_from() -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    choices = runpy.run_path(str(ROOT / "docs" / "generated.py"))["choices"]
    rows = {cells[0].strip("`"): cells[1:] for line in choices() if len(cells := line.strip("| ").split(" | ")) > 2}
    assert rows["evolution"] == ["yes", "", StrategyName("evolution").spec.source]
    assert rows["taylor"] == ["yes", spec_of("taylor").source]
    assert {spec.name for spec in (*STRATEGIES, *CRITERIA)} <= rows.keys()


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    names = re.findall(r"^::: autoprune\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(autoprune.__all__)
