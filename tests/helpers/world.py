"""A world in which a command takes a second: a tiny detector on known images, and a device in closed form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autoprune.api.network
import autoprune.evaluation.pruning
import autoprune.workflows.measuring
import autoprune.workflows.network
import autoprune.workflows.references
from autoprune.config import ProfileConfig
from autoprune.config.files import resume_command
from autoprune.image_size import ImageSize
from autoprune.latency import LatencyMeter
from autoprune.latency.energy import EnergyMeter
from autoprune.listener import SilentListener
from autoprune.results import Result
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.validation import analyse
from autoprune.workflows.call import Caller
from autoprune.workflows.network import Network, open_network
from tests.helpers.detectors import build, write_data, write_detector
from tests.helpers.fake_backend import OVERHEAD, FakeBackend, layer_law
from tests.helpers.load import IDLE, set_load

SIZE, WIDTH = 64, 32

CALLER = Caller("autoprune", resume_command)


def write_world(folder: Path) -> Path:
    """Write ``best.pt`` and a data set of 6 training images; return the folder."""
    write_detector(folder / "best.pt", build(WIDTH))
    write_data(folder / "data")
    return folder


def arguments(command: str, world: Path, out: Path, *extra: str) -> list[str]:
    """Return the words of a command on the world; of two same options the later one counts."""
    options = {
        "--model": str(world / "best.pt"),
        "--data": str(world / "data" / "data.yaml"),
        "--imgsz": str(SIZE),
        "--images": "4",
        "--batch": "2",
        "--device": "cpu",
        "--threads": "1",
        "--out": str(out),
    }
    if command != "sensitivity":
        options["--finetune-epochs"] = "0"
    given = [word for option in options.items() if option[0] not in extra for word in option]
    pages = [] if "--report" in extra else ["--no-report"]  # a page a run would take a minute of the suite
    return [command, *given, *pages, *extra]


def open_world(world: Path) -> Network:
    """Open and analyse the detector of the world, with its data."""
    config = ProfileConfig(
        model=world / "best.pt", data=world / "data" / "data.yaml", imgsz=ImageSize.of(SIZE), device="cpu"
    )
    return open_network(config, criterion="l1", round_to=8, min_keep=0.1, listener=SilentListener())


def stages_of(run: Path) -> list[str]:
    """Return the stages that a run went through, as its log names them."""
    return re.findall(r"  stage: (.*)", (run / "run.log").read_text())


def summary(run: Path) -> Result:
    """Return what a run found."""
    return Result.load(run / "summary.json")


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind in a run's journal."""
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def cut(run: Path, copy: Path, *, keep: int) -> Path:
    """Copy a run as if it had been killed while it wrote the record after the first ``keep``."""
    copy.mkdir()
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:keep]) + lines[keep][: len(lines[keep]) // 2])
    (copy / "config.yaml").write_text((run / "config.yaml").read_text())
    return copy


def one_sentence(said: str) -> str:
    """Return what a command printed on standard error, which must be one line but for what tiny data always give."""
    (line,) = unexpected(said).strip().splitlines()
    return line


def unexpected(said: str) -> str:
    """Return what a command printed but for what tiny data always give."""
    return "".join(
        line for line in said.splitlines(keepends=True) if "are read at fewer positions than they have" not in line
    )


class Device(FakeBackend):
    """The closed-form device, for detectors: they compute with numbers, which the meta device does not have."""

    def _law(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        times: list[float] = []

        def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            times.append(layer_law(layer, output.shape[2] * output.shape[3]))

        hooks = [layer.register_forward_hook(note) for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        with torch.no_grad():
            module(torch.zeros(shape))
        for hook in hooks:
            hook.remove()
        return sum(times) + (0.0 if isinstance(module, nn.Conv2d) else OVERHEAD)


_graphs: dict[object, ChannelGraph] = {}

_ANALYSING = (
    autoprune.api.network,
    autoprune.evaluation.pruning,
    autoprune.workflows.network,
    autoprune.workflows.references,
)
"""Modules that find the channel groups of networks."""


def analysed(module: nn.Module, example: torch.Tensor, **options: Any) -> ChannelGraph:
    """Analyse a network, each architecture once in all tests; its graph is frozen."""
    key = (example.shape, *((name, tensor.shape) for name, tensor in module.state_dict().items()))
    if key not in _graphs:
        _graphs[key] = analyse(module, example, **options)
    return _graphs[key]


@contextmanager
def quick_commands(cache: Path) -> Iterator[None]:
    """Let commands measure on an idle device in closed form and analyse each architecture once."""

    with pytest.MonkeyPatch.context() as patch:
        for meter in (LatencyMeter, EnergyMeter):
            patch.setattr(autoprune.workflows.measuring, meter.__name__, partial(meter, cache=cache, opener=Device))
        for place in _ANALYSING:
            patch.setattr(place, "analyse", analysed)
        set_load(patch, IDLE)
        yield
