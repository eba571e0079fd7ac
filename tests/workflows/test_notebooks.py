"""The notebooks of the documentation run from top to bottom, as they stand there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NAMES = ("latency_budget", "compare_strategies", "your_own_agent")
MOST_LINES = 15


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    for place in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(place, str(tmp_path / place))
    notebook = nbformat.read(root / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    manager = client.create_kernel_manager()
    with tempfile.TemporaryDirectory() as sockets:  # the path of a socket is short: tmp_path would be too long
        # By TCP a kernel chooses free ports and opens them seconds later, when another kernel may have them.
        manager.transport, manager.ip = "ipc", str(Path(sockets) / "kernel")
        client.execute()
    shown = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "execute_result" in shown


def test_a_notebook_is_short_and_all_are_tested(root: Path) -> None:
    paths = sorted((root / "docs" / "notebooks").glob("*.ipynb"))
    assert {path.stem for path in paths} == set(NAMES)
    for path in paths:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert sum(len(cell.source.splitlines()) for cell in cells) <= MOST_LINES, path.name
        assert all(not cell.outputs for cell in cells), f"{path.name} is kept without outputs"
