"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autoprune.benchmark_command import TIMEOUT, BenchmarkCommand, placed
from autoprune.budget import Budget
from autoprune.choices import COMMAND, MOST_LR_SCALE, Precision, Runtime, device_name, is_board
from autoprune.config._checks import (
    check_counts,
    check_device,
    check_share,
    check_stock,
    check_together,
    check_training,
    named,
    shown,
)
from autoprune.criteria.registry import spec_of
from autoprune.errors import ConfigError
from autoprune.evaluation.runners import runner_spec
from autoprune.image_size import ImageSize
from autoprune.tracking import check_tracker

IMAGE_MULTIPLE = 32
"""Height and width of images are multiples of this, in pixels."""

LARGEST_IMAGE = 2**15
"""Pixels on a side; a batch of such images takes gigabytes by itself."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The options of every command that leaves a run folder.

    Attributes:
        imgsz: image size in pixels, 640 for squares or height and width such as 384,640, multiples of 32; by default
            what the weights were trained with
        device: where to compute: cpu, cuda, cuda:1 (or 1, as Ultralytics has it), mps (Apple's GPU fine-tunes, and the
            CPU scores), or auto for the first CUDA GPU if there is one
        threads: CPU threads; by default as many as there are free cores
        out: the run folder, which must not exist yet; runs/<command>-<n> by default
        project: as Ultralytics has it, in place of `out`: the folder that the run folder `name` is made in; runs by
            default
        name: name of the run folder in `project`; if it exists, <name>-2, <name>-3, … as Ultralytics counts; by default
            the command's name
        download: fetch weights that Ultralytics publishes, and images of a data set that says where they are, with
            Ultralytics' own functions, if they are not here; without it nothing is downloaded
        trust_checkpoint: open a checkpoint even if it could run code of its author, and run what a configuration file
            names (a function, a program that measures, a cluster); a configuration file cannot set it, and `resume`
            needs it again
        tracker: hand the curves of search and training to tensorboard, mlflow (to `mlruns` in the run folder if
            MLFLOW_TRACKING_URI is not set) or wandb (offline if WANDB_MODE is not set); repeat the option for several
        report: end with report.html, a page of everything that the run found
        quiet: show warnings and the final table only; run.log in the run folder has the rest
        verbose: show also what is pinned and why, which results were known already, and every candidate
    """

    imgsz: ImageSize | None = None
    device: str = "auto"
    threads: int | None = None
    out: Path | None = None
    project: Path | None = None
    name: str | None = None
    download: bool = False
    trust_checkpoint: bool = False
    tracker: tuple[str, ...] = ()
    report: bool = True
    quiet: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in self.tracker:
            check_tracker(name)
        if self.quiet and self.verbose:
            raise ConfigError("`quiet` shows less and `verbose` more; give one of them")
        if self.imgsz is not None:
            _check_image_size(self.imgsz)
        object.__setattr__(self, "device", device_name(self.device))  # one spelling: 0 and cuda:0 are the same run
        self._check_device()
        self._check_folder()
        check_counts(self, "threads", least=1)
        if self.threads_here is not None and self.threads_here > (cores := os.cpu_count() or 1):
            raise ConfigError(f"`threads` must be at most {cores}, the CPU cores of this machine, got {self.threads}")

    @property
    def threads_here(self) -> int | None:
        """CPU threads of this machine; None for the default."""
        return None if is_board(self.device) else self.threads

    def _check_device(self) -> None:
        if is_board(self.device):
            _check_measuring(self)
        else:
            check_device(self.device)

    def _check_folder(self) -> None:
        if self.out is not None and (self.project is not None or self.name is not None):
            given = "project" if self.project is not None else "name"
            raise ConfigError(f"`out` is the run folder itself, and `{given}` says where it is made: give one of them")
        parts = Path(self.name or "x").parts
        if not parts or self.name == "" or ".." in parts or Path(*parts).is_absolute():
            raise ConfigError(f"`name` must name a folder within `project`, got {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ResumableConfig(RunConfig):
    """The options of every command whose run can be interrupted.

    Attributes:
        seed: fixes all that chance decides: which images, the search, the training
        resume: the folder of a run that was interrupted, to go on with; the run knows its other options, all but
            `trust_checkpoint`, `download` and what is shown
    """

    seed: int = 0
    resume: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class PruningConfig(ResumableConfig):
    """The options of every command that scores pruned networks.

    Attributes:
        model: trained weights to prune, a stock Ultralytics checkpoint, by its path or by a name such as yolo11n.pt
            (see `download`), a Darknet .cfg (its .weights of the same name next to it), or FILE.py:FUNCTION, which
            returns a network of your own with its data (this runs the file); the bundled demonstration detector by
            default
        data: the data set the weights were trained on, an Ultralytics YAML or class folders, by path or by a name such
            as coco8.yaml; needed with `model` but for FILE.py:FUNCTION
        criterion: which channels of a unit stay: by training images covariance (those that the others cannot stand in
            for), regression, taylor, fisher, hutchinson, apoz; by weights alone l1, l2 or l<p> (their norm), bn (scale
            of batch norm), fpgm (geometric median), lamp, random
        round_to: widths are multiples of this
        min_keep: the lowest keep ratio of a unit, in (0, 1]
        images: how many training images score a candidate
        batch: images per batch, in scoring and in fine-tuning
        compensate: update the weights that read kept channels so that they best reproduce what the removed channels
            contributed, in every candidate and in the final network
        bf16: score candidates in bfloat16 if the CPU has fast instructions for it (AMX, AVX-512); otherwise in float32
    """

    model: Path | None = None
    data: Path | None = None
    criterion: str = "covariance"
    round_to: int = 8
    min_keep: float = 0.1
    images: int = 60
    batch: int = 16
    compensate: bool = True
    bf16: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_model()
        spec_of(self.criterion)
        check_counts(self, "round_to", "images", "batch", least=1)
        check_share("min_keep", self.min_keep)

    def _check_model(self) -> None:
        check_together(self.model, self.data)


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(RunConfig):
    """The options of every command that measures latency.

    Attributes:
        device: where to compute and to measure: cpu, cuda, cuda:1 (or 1, as Ultralytics has it), mps, or auto for the
            first CUDA GPU if there is one; with mps Apple's GPU measures and fine-tunes, and the CPU scores; with the
            address of a board, ssh://[USER@]HOST[:PORT], the board measures, and this machine does all else
        threads: CPU threads for computing and measuring, those of the board if `device` is one; by default as many as
            there are free cores
        runtime: what runs the network when latency is measured; by default cudagraph on a CUDA GPU, onnxruntime on a
            board, else torch
        precision: number format that latency is measured in, if runtime and device have it
        runtime_batch: images per run when latency is measured
        with_nms: measure the network together with its non-maximum suppression
        runtime_command: any program that runs the network and prints milliseconds, in place of `runtime`, such as
            "bench --model {onnx} --threads {threads}"; it is run without a shell in a temporary folder, on the board if
            `device` is one
        runtime_pattern: a regular expression with one group, whose last match in what `runtime_command` prints is the
            milliseconds; by default the last number is
        runtime_timeout: seconds that one run of `runtime_command` may take
    """

    runtime: Runtime | None = None
    precision: Precision = Precision.FP32
    runtime_batch: int = 1
    with_nms: bool = False
    runtime_command: str = ""
    runtime_pattern: str = ""
    runtime_timeout: float = TIMEOUT

    @cached_property
    def measured_on(self) -> Runtime | BenchmarkCommand | None:
        """What latency is measured on: the command, the runtime, or None for the device's default."""
        return self.command if self.runtime is COMMAND or self.runtime_command else self.runtime

    @cached_property
    def command(self) -> BenchmarkCommand:
        """The command, parsed."""
        if not self.runtime_command:
            raise ConfigError("The runtime command runs a program of yours: say which with `runtime_command`")
        return BenchmarkCommand.parse(self.runtime_command, self.runtime_pattern, self.runtime_timeout)

    def _check_runtime(self) -> None:
        """Check the options; a command for this machine names its files so that they are found from any folder."""
        check_counts(self, "runtime_batch", least=1)
        if self.runtime_command:
            if not is_board(self.device):
                object.__setattr__(self, "runtime_command", placed(self.runtime_command, Path.cwd()))
            if self.runtime not in (None, COMMAND):
                raise ConfigError(
                    f"`runtime_command` is what latency is measured with, and so is `runtime` {self.runtime.value}; "
                    f"for both, give the budget latency@{self.runtime.value}, too"
                )
        elif self.runtime_pattern or self.runtime_timeout != TIMEOUT:
            given = "runtime_pattern" if self.runtime_pattern else "runtime_timeout"
            raise ConfigError(f"`{given}` belongs to `runtime_command`, which is not given")
        self.measured_on  # noqa: B018  (raises if the command is malformed)


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The options of the commands whose candidates can be computed by several processes.

    Attributes:
        workers: let this number of processes on this machine score the candidates, each with `threads` threads, 1 by
            default; or those of a Ray cluster: auto for one that runs on this machine, ray://head:10001 for another
    """

    workers: str | None = None

    def check_workers(self) -> None:
        """Make sure that workers are a number or a cluster.

        Raises:
            ConfigError: they are neither.
        """
        if self.workers is not None:
            runner_spec(self.workers)


@dataclass(frozen=True, kw_only=True)
class TrainingWorkersConfig(WorkersConfig):
    """The options of the commands that also have several networks fine-tuned by their workers.

    Attributes:
        ship_data: send the data set to workers on machines that do not see its files, once, through Ray's object store
    """

    ship_data: bool = False

    def check_workers(self) -> None:
        """Make sure that workers are a number or a cluster, and that there are some if data is sent to them.

        Raises:
            ConfigError: they are neither, or there are none.
        """
        super().check_workers()
        if self.ship_data and self.workers in (None, "0"):
            raise ConfigError("`ship_data` sends the data set to `workers`, which are not given; give both or neither")


STOCK_MULTIPLE = 8
"""The widths that a stock YAML can express are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class BudgetedConfig(PruningConfig, RuntimeConfig):
    """The options of every command that prunes to a budget.

    Attributes:
        budget: a limit that the result holds: latency=8ms, latency=60%, latency@p95=20ms (of 95 in 100 runs), fps=30,
            energy=60% (where it is counted), flops=50%, flops=4.2G, params=1.5M, size=3MB, memory=64MB or channels=15%
            (of those that can be pruned); repeat the option to combine limits
        finetune_epochs: epochs of fine-tuning after pruning, 0 for none; by default 20, fewer for the bundled detector
        lr_scale: multiplies the first learning rate of the fine-tuning, by default 0.01 (MuSGD) for detectors, and with
            fewer than 10 epochs 0.3 times the rate of the dense training (docs/guides/recipes.md)
        train_args: Ultralytics' training arguments for the fine-tuning, such as mosaic=0.5, freeze=10 or
            optimizer=AdamW, which then starts at the dense training's rate; repeat the option for several
        distill: the dense network teaches the pruned one in the fine-tuning; it did not help on three detectors, see
            docs/accuracy.md
        stock_yaml: consider only networks that a stock Ultralytics YAML can express, and write it as pruned.yaml: stock
            train and resume then keep the pruned network, without autoprune
        ultralytics_callbacks: let the loggers that Ultralytics' own settings switch on log the fine-tuning
    """

    budget: tuple[str, ...] = ()
    finetune_epochs: int | None = None
    lr_scale: float = 1.0
    train_args: tuple[str, ...] = ()
    distill: bool = False
    stock_yaml: bool = False
    ultralytics_callbacks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels  # noqa: B018  (raises if a limit is malformed)
        check_counts(self, "finetune_epochs", least=0)
        self._check_runtime()
        check_share("lr_scale", self.lr_scale, most=MOST_LR_SCALE)
        check_training(self.train_args, self)
        if self.ultralytics_callbacks:
            check_stock(self.model, named("ultralytics_callbacks"))
        if self.stock_yaml:
            check_stock(self.model, named("stock_yaml"))
        if self.distill and self.finetune_epochs == 0:
            raise ConfigError("`distill` is a way of fine-tuning, and `finetune_epochs` 0 leaves that out")
        if self.stock_yaml and self.round_to % STOCK_MULTIPLE:
            raise ConfigError(
                f"A stock YAML has widths in multiples of {STOCK_MULTIPLE}: `stock_yaml` needs such a `round_to`, got "
                f"{self.round_to}"
            )

    @cached_property
    def levels(self) -> tuple[Budget, ...]:
        """The budget, parsed; one for each level if the command takes several."""
        return (Budget.parse(self.budget).for_batch(self.runtime_batch),)

    @property
    def lowest(self) -> Budget:
        """The budget that the result holds: the last of ``levels``."""
        return self.levels[-1]


@dataclass(frozen=True, kw_only=True)
class ReconstructingConfig(BudgetedConfig):
    """The options of the commands that prune in one step.

    Attributes:
        reconstruct: after compensation, also fit the layers of the final network to the outputs of the dense network,
            by least squares
    """

    reconstruct: bool = True


def _check_image_size(size: ImageSize) -> None:
    if size == size.rounded(IMAGE_MULTIPLE) and size.longest <= LARGEST_IMAGE:
        return
    got = ",".join(map(shown, size.sides))
    nearest = ImageSize(*(min(side, LARGEST_IMAGE) for side in size)).rounded(IMAGE_MULTIPLE)
    raise ConfigError(
        f"`imgsz` must be a multiple of {IMAGE_MULTIPLE} from {IMAGE_MULTIPLE} to {LARGEST_IMAGE}, got {got}; the "
        f"nearest is {nearest.written}"
    )


def _check_measuring(config: RunConfig) -> None:
    """Refuse a board in a command that measures no latency: nothing else happens there."""
    if not isinstance(config, RuntimeConfig):
        raise ConfigError(
            f"A board is for commands that measure latency with a `runtime`, and this one computes here, got `device` "
            f"{config.device}"
        )
