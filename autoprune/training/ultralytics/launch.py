"""Fine-tuning a pruned detector with stock Ultralytics training (`recipe` says how, `session` in what context).

Where the parts of a training are: the learning rate's cosine and warm-up, the optimizer and early stopping's default
in `recipe`; half precision on GPUs (AMP) in `_Training.settings` below; the exponential moving average of the weights
is Ultralytics' own (``ModelEMA``), it is what is validated, saved and returned; the checks after every save are
`trainer`'s.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.errors import ConfigError, DeviceError, is_out_of_memory
from autoprune.io.files import make_folder, remove_leftovers, saying_why
from autoprune.models._base import Batch
from autoprune.models.ultralytics import UltralyticsAdapter
from autoprune.training.plan import Plan, Trainer, TrainingContext, is_long
from autoprune.training.results import FinetuneResult, keep_epoch, recalibrated
from autoprune.training.ultralytics.parallel import epoch_reporter, train_in_processes
from autoprune.training.ultralytics.recipe import MUON, dense_rate, recipe
from autoprune.training.ultralytics.reports import cut_reports, report_of
from autoprune.training.ultralytics.session import VALIDATED, Session, data_settings, process_state_kept
from autoprune.training.ultralytics.state import averaged_network, read_training, state_file


class UltralyticsTrainer(Trainer):
    """Trains detectors of Ultralytics.

    ``changes`` of a plan are Ultralytics' training arguments in place of the recipe's. ``workers`` is by default one
    per core up to eight; Ultralytics uses none on a CPU, where training is slower than loading. A batch is halved, up
    to three times, if a GPU's memory does not suffice.

    Raises:
        TrainingError: there is no data set.
    """

    def __init__(self, adapter: UltralyticsAdapter) -> None:
        self._adapter = adapter

    def train(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Train with the recipe; ``out`` gets ``args.yaml``, ``results.csv`` and ``weights``."""
        training = _Training(self._adapter, context)
        training.run(self._arguments(training, plan), module)
        return training.result(module)

    def resume(self, module: nn.Module, plan: Plan, context: TrainingContext) -> FinetuneResult:
        """Go on from ``weights/state.pt``."""
        file = state_file(context.out)
        if not file.is_file():
            return self.train(module, plan, context)
        training, state = _Training(self._adapter, context), read_training(file)
        cut_reports(context.out / "results.csv", epochs=state["epoch"])
        epoch_reporter(context.out, self._adapter, epochs=plan.epochs, on_epoch=context.on_epoch)()
        if not state["over"]:
            training.run({**self._arguments(training, plan), "batch": state["batch"], "resume": True}, module)
        return training.result(module)

    def _arguments(self, training: _Training, plan: Plan) -> dict[str, Any]:
        named = plan.changes.get("optimizer")
        by_default = plan.recovers and self._adapter.task.muon and is_long(plan.epochs)
        muon = by_default if named is None else str(named).lower() == MUON.lower()
        arguments = recipe(
            self._adapter.train_args, epochs=plan.epochs, batch=plan.batch, lr_scale=plan.lr_scale, muon=muon
        )
        return {**arguments, **training.settings(), "seed": plan.seed, **plan.changes}

    def optimizer(self, parameters: Iterable[nn.Parameter], *, batch: int, lr_scale: float) -> torch.optim.Optimizer:
        """Return the dense training's optimizer, or what stands for it if it was automatic."""
        settings, trained = self._adapter.train_args, [one for one in parameters if one.requires_grad]
        name, rate = dense_rate(settings, batch)
        momentum, decay = float(settings["momentum"]), float(settings["weight_decay"])
        if name == "SGD":
            return torch.optim.SGD(trained, lr=rate * lr_scale, momentum=momentum, weight_decay=decay, nesterov=True)
        kind = torch.optim.AdamW if name == "AdamW" else torch.optim.Adam
        return kind(trained, lr=rate * lr_scale, betas=(momentum, 0.999), weight_decay=decay)

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss summed over the batch's images, as Ultralytics does."""
        return self._adapter.loss(module, batch) * len(self._adapter.inputs(batch))


@dataclass(frozen=True)
class _Training:
    """What a fresh and a resumed fine-tune have in common."""

    adapter: UltralyticsAdapter
    around: TrainingContext

    def __post_init__(self) -> None:
        data_settings(self.adapter)
        if self.around.devices and self.around.extensions:
            raise ConfigError(
                "a training with a teacher, softening, sparsity or masks runs on one device, got "
                f"{', '.join(self.around.devices)}"
            )

    def settings(self) -> dict[str, Any]:
        """Return the arguments that say where and on what to run."""
        adapter = self.adapter
        on_cuda = adapter.device.type == "cuda"
        return {
            "task": adapter.task.name,
            "mode": "train",
            "model": f"{adapter.name}.pt",  # a name for args.yaml; the network itself is handed over
            "data": str(data_settings(adapter)["yaml_file"]),
            "single_cls": adapter.data is not None and adapter.data.single_class,
            "imgsz": adapter.image_size.plain,  # `Session` takes both sides
            "device": ",".join(self.around.devices) or str(adapter.training_device or adapter.device),
            # Half precision on GPUs that have bfloat16: for float16 Ultralytics first downloads a network to test it.
            "amp": "bf16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else False,
            "workers": min(8, os.cpu_count() or 1) if self.around.workers is None else self.around.workers,
            "save_dir": str(self.around.out),
            "exist_ok": True,
            "plots": False,
            "val": True,
            "verbose": False,
            "deterministic": True,
        }

    def run(self, arguments: dict[str, Any], module: nn.Module) -> None:
        """Train a copy of a network, to the end."""
        with process_state_kept(self.adapter.device), saying_why(self.around.out):
            if not arguments.get("resume"):
                state_file(self.around.out).unlink(missing_ok=True)  # of another training
            remove_leftovers(self.around.out)
            if self.around.devices:
                self._in_processes(arguments, module)
                return
            try:
                self._here(arguments, module)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise DeviceError(
                    f"out of memory while fine-tuning on {self.adapter.device}; give a smaller batch"
                ) from error

    def result(self, module: nn.Module) -> FinetuneResult:
        """Return the result of a training that is over, from its state."""
        file = state_file(self.around.out)
        state = read_training(file)
        averaged = averaged_network(deepcopy(module).float(), state, file)
        batch = int(state["batch"])
        return FinetuneResult(
            module=_final_network(averaged, self.adapter, batch),
            epochs=int(state["epoch"]),
            batch=batch,
            losses=state["losses"],
        )

    def _session(self, arguments: dict[str, Any]) -> Session:
        session: Session = pkgutil.resolve_name(self.adapter.task.session)(overrides=arguments)
        return session

    def _here(self, arguments: dict[str, Any], module: nn.Module) -> None:
        def keep(trainer: Any) -> None:
            keep_epoch(report_of(trainer, self.adapter), self.around.out)

        def report(trainer: Any) -> None:
            if self.around.on_epoch is not None:
                self.around.on_epoch(report_of(trainer, self.adapter))

        session = self._session(arguments)
        session.model = session.get_model(weights=module)
        for extension in self.around.extensions:
            extension.attach(session)
        session.listen(VALIDATED, keep)
        session.listen("on_fit_epoch_end", report)
        session.train()

    def _in_processes(self, arguments: dict[str, Any], module: nn.Module) -> None:
        start = make_folder(self.around.out) / "start.pt"  # the processes get the network as a file
        self.adapter.save(module, start)
        session = self._session({**arguments, "model": str(start)})
        train_in_processes(session, self.adapter, self.around.on_epoch)


def _final_network(averaged: nn.Module, adapter: UltralyticsAdapter, batch: int) -> nn.Module:
    """Return the averaged weights with their own batch norm statistics and the dense network's settings."""
    network: Any = recalibrated(averaged.to(adapter.device), adapter, batch)
    dense: Any = adapter.module
    network.args, network.criterion, network.names = dense.args, None, dense.names
    for name, parameter in network.named_parameters():
        parameter.requires_grad = ".dfl." not in name
    final: nn.Module = network
    return final
