"""How autoprune was installed, and the command that adds an extra to this installation.

Source:
    PEP 610, Recording the Direct URL Origin of installed distributions (``direct_url.json``).
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_NAME = "autoprune"


def install_extra(extra: str) -> str:
    """Return the command that adds an extra of autoprune to the Python that runs now, from where autoprune came.

    Args:
        extra: its name in ``pyproject.toml``.

    Example:
        >>> install_extra("openvino").endswith("[openvino]'")
        True
    """
    return f"{_install()} {_requirement(extra)}"


def install_package(package: str) -> str:
    """Return the command that installs another package into the Python that runs now.

    Example:
        >>> install_package("triton").endswith("install triton")
        True
    """
    return f"{_install()} {package}"


def origin() -> tuple[str, bool]:
    """Return where autoprune was installed from, and whether it runs from there (an editable installation).

    The origin is a folder, ``git+URL@COMMIT``, the URL of an archive, or empty for a package index.
    """
    checkout = Path(__file__).parents[2]
    try:
        text = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:  # a checkout that was never installed
        text = None
    if text is None:
        return (str(checkout), True) if (checkout / "pyproject.toml").is_file() else ("", False)
    return _origin(json.loads(text))


def _origin(direct: dict[str, Any]) -> tuple[str, bool]:
    url = str(direct["url"])
    if "dir_info" in direct:
        return unquote(urlsplit(url).path), bool(direct["dir_info"].get("editable"))
    if "vcs_info" in direct:
        source = direct["vcs_info"]
        return f"{source['vcs']}+{url}@{source.get('requested_revision') or source['commit_id']}", False
    return url, False


def _requirement(extra: str) -> str:
    """Return what to pass to the installer, quoted for a shell."""
    where, editable = origin()
    if not where:
        return shlex.quote(f"{_NAME}[{extra}]")
    if "://" in where:
        return shlex.quote(f"{_NAME}[{extra}] @ {where}")
    return ("-e " if editable else "") + shlex.quote(f"{where}[{extra}]")


def _install() -> str:
    """Return the shortest command that installs into this Python: by its own pip, or by uv if it has none."""
    found = shutil.which("pip")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "pip install"
    python = shlex.quote(sys.executable)
    return f"{python} -m pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {python}"
