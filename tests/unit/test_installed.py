"""Install hints are commands that work from where autoprune was installed."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from autoprune.io import installed
from autoprune.io.installed import install_extra, install_package, origin

CHECKOUT = str(Path(installed.__file__).parents[2])


class Recorded:
    """A distribution with this ``direct_url.json``."""

    def __init__(self, direct: dict[str, Any] | None) -> None:
        self._text = None if direct is None else json.dumps(direct)

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self._text


GIT = {"url": "https://example.com/a.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}}


@pytest.mark.parametrize(
    ("direct", "words"),
    [
        ({"url": "file:///a/b%20c", "dir_info": {"editable": True}}, ["-e", "/a/b c[openvino]"]),
        ({"url": "file:///a/it's", "dir_info": {}}, ["/a/it's[openvino]"]),
        (GIT, ["autoprune[openvino] @ git+https://example.com/a.git@abc"]),
        (
            {**GIT, "vcs_info": {**GIT["vcs_info"], "requested_revision": "v1"}},  # type: ignore[dict-item]
            ["autoprune[openvino] @ git+https://example.com/a.git@v1"],
        ),
        ({"url": "file:///a/x.whl", "archive_info": {}}, ["autoprune[openvino] @ file:///a/x.whl"]),
        (None, ["-e", f"{CHECKOUT}[openvino]"]),
    ],
)
def test_an_extra_is_installed_from_where_autoprune_came(
    direct: dict[str, Any] | None, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "distribution", lambda _: Recorded(direct))
    command = shlex.split(install_extra("openvino"))
    assert command[command.index("install") + 1 :] == words


def test_an_installation_from_an_index_names_only_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "distribution", lambda _: Recorded(None))
    monkeypatch.setattr(installed, "__file__", str(tmp_path / "site-packages" / "autoprune" / "io" / "installed.py"))
    assert origin() == ("", False)
    assert install_extra("tensorrt").endswith(" install 'autoprune[tensorrt]'")


def test_a_checkout_that_was_never_installed_is_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Recorded:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", missing)
    assert origin() == (CHECKOUT, True)


@pytest.mark.parametrize(
    ("pip", "has_module", "said"),
    [
        (str(Path(sys.executable).parent / "pip"), True, "pip install x"),
        ("/usr/bin/pip", True, f"{sys.executable} -m pip install x"),
        (None, True, f"{sys.executable} -m pip install x"),
        (None, False, f"uv pip install --python {sys.executable} x"),
    ],
)
def test_the_command_installs_into_the_python_that_runs(
    pip: str | None, has_module: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: pip)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if has_module else None)
    assert install_package("x") == said
