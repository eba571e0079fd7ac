"""A network with its data, held in a variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune import __version__
from autoprune.benchmark_command import BenchmarkCommand, placed
from autoprune.choices import COMMAND, Precision, Runtime, device_name, is_board, match_factory, reopened
from autoprune.config.reading import from_python
from autoprune.costs import uncounted
from autoprune.errors import ConfigError, DeviceError, PolicyError, RunError
from autoprune.image_size import SizeLike
from autoprune.latency import LatencyMeter, Timing
from autoprune.metrics import format_amount
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.models.finding import find_data, find_weights
from autoprune.policy import Policy, PolicyModel, PolicyUnit, Provenance
from autoprune.report import Table
from autoprune.results import Metrics
from autoprune.runtimes.settings import image_size_of, measuring_device, runtime_settings
from autoprune.structure.graph import ChannelGraph
from autoprune.structure.space import Space
from autoprune.structure.validation import analyse
from autoprune.workflows.latency import CALIBRATION_IMAGES
from autoprune.workflows.network import choose_device, static_costs
from autoprune.workflows.run import demonstration


class Network:
    """A network with its data: a dense one that was loaded, or a pruned one that was made of it.

    Commands, such as `autoprune.search`, read the network's file. One that was made in memory is saved first.

    Attributes:
        module: the network in torch, in eval mode.
        adapter: its family's tools: data, loss, metric, checkpoints.
        opened: the name that the dense network was opened by.
        path: its file, behind the function's name if one builds it (``nets.py:make@small.pt``); None for one that was
            never saved.
        data: its data set as it was given; None if there is none, or if the network's own function brings it.
        trust_checkpoint: whether its file may run code of its author.

    Example:
        >>> net = ap.load("best.pt", data="data.yaml")
        >>> next(iter(net.units))
        {'unit': 'model.0', 'channels': '8'}
        >>> sorted(net.costs())
        ['channels', 'flops', 'memory', 'params', 'size']
        >>> net.latency("torch").median > 0
        True
    """

    def __init__(
        self,
        adapter: Adapter,
        module: nn.Module,
        *,
        opened: Path,
        path: Path | None,
        data: Path | None,
        trust_checkpoint: bool,
    ) -> None:
        """Use ``load``."""
        self.adapter, self.module, self.opened = adapter, module, opened
        self.path, self.data, self.trust_checkpoint = path, data, trust_checkpoint

    @property
    def imgsz(self) -> int | list[int]:
        """The image size in pixels, one number for squares, else height and width."""
        return self.adapter.image_size.plain

    @property
    def device(self) -> str:
        """Where it computes, e.g. ``cpu`` or ``cuda:0``."""
        return str(self.adapter.training_device or self.adapter.device)

    @property
    def units(self) -> Table:
        """The units that can be pruned, each with its channels: one row per unit."""
        rows = [[unit.name, str(unit.width)] for unit in self._graph.units]
        return Table(f"{self.adapter.name} at {self.adapter.image_size} px", ["unit", "channels"], rows)

    def costs(self) -> dict[str, float]:
        """Return FLOPs and peak bytes of one image, parameters, bytes of the checkpoint, and channels of all units."""
        space = Space(self._graph, round_to=1, min_keep=1e-6)
        costs = static_costs(self.adapter, self.module, self._graph, space)
        return {metric: float(cost(space.dense)) for metric, cost in costs.items()}

    def uncounted(self) -> Mapping[str, int]:
        """Return the operations that FLOPs leave out, with how often each occurs."""
        return uncounted(self._graph)

    def latency(
        self,
        runtime: str | Runtime | None = None,
        *,
        precision: str | Precision = Precision.FP32,
        batch: int = 1,
        threads: int | None = None,
        with_nms: bool = False,
        runtime_command: str = "",
        runtime_pattern: str = "",
        device: str | int | None = None,
    ) -> Timing:
        """Measure the network as it is deployed.

        Args:
            runtime: torch, torch-compile, cudagraph, onnxruntime, openvino, ncnn, litert, executorch or tensorrt; by
                default cudagraph on a GPU, else torch.
            precision: fp32, fp16, bf16 or int8, if runtime and device have it.
            batch: images per run.
            threads: CPU threads; by default what torch has, or as a board has cores.
            with_nms: measure it together with its non-maximum suppression.
            runtime_command: a program that runs the network and prints milliseconds, in place of a runtime, such as
                ``bench --model {onnx}``.
            runtime_pattern: a regular expression with one group around the milliseconds; the last number by default.
            device: the address of a board, ssh://[USER@]HOST[:PORT]; by default the network's own device, or the CPU
                if the runtime runs on nothing else.

        Returns:
            Median, 10th and 90th percentile in milliseconds.

        Raises:
            ConfigError: the command is malformed, or there is a runtime as well.
            DeviceError: the runtime or the device is not here, or a board cannot be reached.
        """
        chosen = from_python("runtime", Runtime | None, runtime)
        own = measuring_device(chosen, self.device)
        where = own if device is None else device_name(from_python("device", str, device))
        images, cores = from_python("batch", int, batch), from_python("threads", int | None, threads)
        if images < 1 or (cores is not None and cores < 1):
            raise ConfigError(f"`batch` and `threads` must be at least 1, got {images} and {cores}")
        given = from_python("runtime_command", str, runtime_command)
        words = given if is_board(where) else placed(given, Path.cwd())
        if runtime_pattern and not words:
            raise ConfigError("`runtime_pattern` belongs to `runtime_command`, which is not given")
        if (chosen is COMMAND and not words) or (words and chosen not in (None, COMMAND)):
            raise ConfigError("`runtime_command` takes the place of `runtime`; give one of them")
        command = BenchmarkCommand.parse(words, runtime_pattern) if words else None
        settings = runtime_settings(
            where,
            image_size=image_size_of(self.adapter.input_shape),
            runtime=command or chosen,
            precision=from_python("precision", Precision, precision),
            batch=images,
            threads=cores,
            with_nms=with_nms,
        )
        meter = LatencyMeter(
            self.adapter.deployable(self.module, with_nms=with_nms),
            settings,
            calibration=lambda: self.adapter.calibration(images=CALIBRATION_IMAGES, batch=1, seed=0),
        )
        return meter.reference

    def validate(self) -> Metrics:
        """Return the metrics on the validation split by their names, e.g. ``mAP50-95``, with those of each class."""
        return self.adapter.validate(self.module)

    def save(self, path: str | Path) -> Path:
        """Write the network as its family's checkpoint, and remember where.

        Args:
            path: the file, ``.pt``; of a Darknet network ``.cfg``, and its ``.weights`` is written next to it.

        Raises:
            RunError: the path ends otherwise, or the file cannot be written.
        """
        file, suffix = Path(path), self.adapter.suffixes[0]
        if file.suffix != suffix:  # next to a cfg of another name weights of another network might be replaced
            raise RunError(
                f"A network like this is saved as a {suffix} file, got {file}; `export` writes other formats"
            )
        self.adapter.save(self.module, file)
        self.path = reopened(self.opened, file)
        return file

    def policy(self, keep: Mapping[str, int] | Sequence[int], *, criterion: str = "covariance") -> Policy:
        """Return a policy of channels that were chosen by other means, e.g. by an agent in `autoprune.make_env`.

        Args:
            keep: kept channels per unit, by name or in the order of ``units``; units that are not named keep all.
            criterion: which channels of a unit stay, as for `search`.

        Raises:
            PolicyError: there is no such unit, it has not as many channels, a count is no whole number, or a sequence
                has not one per unit.

        Example:
            >>> net = load("best.pt", data="data.yaml")
            >>> small = net.policy({"model.2.cv1": 8}).apply(net)
            >>> small.costs()["channels"] < net.costs()["channels"]
            True
        """
        units = self._graph.units
        if not isinstance(keep, Mapping | Sequence | np.ndarray):
            raise PolicyError(f"Kept channels are a mapping by unit or a sequence, got a {type(keep).__name__}")
        if not isinstance(keep, Mapping):
            if len(keep) != len(units):
                raise PolicyError(f"The network has {len(units)} units, got channels of {len(keep)}")
            keep = dict(zip((unit.name for unit in units), keep, strict=True))
        if others := [name for name in keep if name not in {unit.name for unit in units}]:
            raise PolicyError(f"The network has no unit {others[0]}; its units are {', '.join(u.name for u in units)}")
        policy = Policy(
            model=PolicyModel(self.adapter.name, {unit.name: unit.width for unit in units}),
            criterion=criterion,
            round_to=1,
            units=tuple(PolicyUnit(unit.name, unit.width, _count(keep.get(unit.name, unit.width))) for unit in units),
            budget=(),
            costs={},
            score=None,
            provenance=Provenance(__version__, "autoprune.Network.policy", "", 0, 0, ""),
        )
        policy.check_criterion()
        return policy

    def with_module(self, module: nn.Module, *, file: Path | None = None) -> Network:
        """Return another network of the same data: this one pruned, or trained; ``file`` holds it, if any does."""
        path = None if file is None else reopened(self.opened, file)
        return Network(
            self.adapter, module, opened=self.opened, path=path, data=self.data, trust_checkpoint=self.trust_checkpoint
        )

    @cached_property
    def _graph(self) -> ChannelGraph:
        return analyse(self.module, self.adapter.example(2), free_outputs=self.adapter.free_outputs)

    def __repr__(self) -> str:
        costs = ", ".join(f"{metric} {format_amount(metric, value)}" for metric, value in self.costs().items())
        where = f"{self.adapter.name} at {self.adapter.image_size} px on {self.device}"
        return f"Network({where}: {len(self._graph.units)} units, {costs})"


def load(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    imgsz: SizeLike | None = None,
    device: str | int = "auto",
    download: bool = False,
    trust_checkpoint: bool = False,
) -> Network:
    """Load a network with its data.

    Args:
        model: a stock Ultralytics checkpoint, by its path or by a name such as ``yolo11n.pt``, a Darknet ``.cfg`` with
            its ``.weights`` next to it, or ``FILE.py:FUNCTION``, which runs that file; by default the bundled
            demonstration detector with its data.
        data: the data set that it was trained on: an Ultralytics YAML file or class folders, by path or by a name such
            as ``coco8.yaml``. Without it the network can be looked at and measured, not searched.
        imgsz: image size in pixels, one number for squares or (height, width), multiples of 32; by default what the
            weights were trained with.
        device: ``cpu``, ``cuda``, ``cuda:1`` (or ``1``), ``mps``, or ``auto`` for the first CUDA GPU if there is one. A
            board only measures: name it in ``net.latency(device="ssh://…")``, or in the call of a command.
        download: fetch weights or images with Ultralytics' own functions, if they are not here.
        trust_checkpoint: open the checkpoint even if it could run code of its author.

    Raises:
        ModelError: the checkpoint is missing, broken or of an unknown kind.
        DataError: the data set's description is missing, malformed or of other classes; whether its images are there
            shows when they are read.
        ConfigError: ``model`` or ``data`` is no path and no name.
        DeviceError: the device is unknown, not there, or a board.

    Example:
        >>> ap.load("best.pt", data="data.yaml", imgsz=128)
        Network(best at 128 px on cpu: 21 units, ...)
        >>> ap.load()
        Network(yolov8-demo at 288 px on cpu: 16 units, ...)
    """
    for option, value, way_out in (("model", model, _NO_FILE), ("data", data, "")):
        if not isinstance(value, str | Path | None):
            raise ConfigError(f"`{option}` must be a path or a name, got a {type(value).__name__}{way_out}")
    if model is None:
        if data is not None:
            raise ConfigError("`data` needs `model`: the weights and the data set they were trained on go together")
        model, data, imgsz = demonstration(imgsz)
    device = device_name(from_python("device", str, device))
    if is_board(device):
        raise DeviceError(
            f'A network is loaded on this machine, and a board only measures: net.latency(device="{device}"), or '
            f'autoprune.search(net, device="{device}", …)'
        )
    path = find_weights(Path(model), download=download)
    data = None if data is None else find_data(Path(data), download=download)
    adapter = open_adapter(path, data=data, image_size=imgsz, device=choose_device(device), trust=trust_checkpoint)
    return Network(adapter, adapter.module, opened=path, path=path, data=data, trust_checkpoint=trust_checkpoint)


_NO_FILE = (
    "; give the path of its checkpoint. For a network in memory there is `autoprune.Policy.apply`, for one of your own "
    "classes autoprune.models.module.ModuleAdapter"
)


def _count(value: object) -> int:
    """Return a number of channels that may come from an agent's arithmetic, and so as 8.0."""
    with suppress(TypeError, ValueError, OverflowError):
        if (count := int(value)) == value:  # type: ignore[call-overload]
            return int(count)
    raise PolicyError(f"Kept channels are whole numbers, got {value!r}")


def options_of(network: Network | str | Path | None) -> dict[str, Any]:
    """Return the options by which a command finds a network.

    Raises:
        ConfigError: the network was never saved.
    """
    if network is None:
        return {}
    if not isinstance(network, Network):
        return {"model": network}
    if network.path is None:
        raise ConfigError('A command reads the network from its file, and this one has none: network.save("small.pt")')
    own = match_factory(network.path) is not None  # its function brings data and size
    return {
        "model": network.path,
        **({} if network.data is None else {"data": network.data}),
        **({} if own else {"imgsz": network.imgsz}),
        "device": network.device,
        "trust_checkpoint": network.trust_checkpoint,
    }
