"""One fine-tune in this process: stock training that prints nothing, reports to nobody, and leaves no trace."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import TrainingError
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.models.ultralytics.data import TrainingImages, random_state_kept
from autoprune.training.extension import GRADIENTS, STEPPED
from autoprune.training.trainer import PrunedTrainer


class Session(PrunedTrainer):
    """`PrunedTrainer` on the adapter's data set, heard by nobody but autoprune, writing ``last.pt`` only.

    No integration of Ultralytics (ClearML, Comet, MLflow, TensorBoard, W&B, its platform) hears of the run. The
    class is not named a trainer, because Ultralytics loads its integrations for classes that are.
    """

    def __init__(self, adapter: UltralyticsAdapter, overrides: dict[str, Any]) -> None:
        self._adapter = adapter
        self._listeners: dict[str, list[Callable[[Any], None]]] = defaultdict(list)
        threads = torch.get_num_threads()
        super().__init__(overrides=overrides, _callbacks=None)
        torch.set_num_threads(threads)  # Ultralytics takes one core less than there are: one of two
        self.callbacks: dict[str, list[Any]] = defaultdict(list)  # Ultralytics' analytics; its validator shares them

    def listen(self, event: str, listener: Callable[[Any], None]) -> None:
        """Call ``listener(trainer)`` at an event of Ultralytics' training loop, or at ``GRADIENTS`` or ``STEPPED``.

        Listeners to the same event are called in the order in which they came.
        """
        self._listeners[event].append(listener)

    def run_callbacks(self, event: str) -> None:
        """Call this run's listeners and nobody else."""
        for listener in self._listeners[event]:
            listener(self)

    def build_optimizer(self, *args: Any, **settings: Any) -> torch.optim.Optimizer:
        """Return Ultralytics' optimizer, whose steps are events."""
        optimizer: torch.optim.Optimizer = super().build_optimizer(*args, **settings)
        optimizer.register_step_pre_hook(lambda *_: self.run_callbacks(GRADIENTS))
        optimizer.register_step_post_hook(lambda *_: self.run_callbacks(STEPPED))
        return optimizer

    def get_dataset(self) -> dict[str, Any]:
        """Return the adapter's data set; Ultralytics' own look-up would ask the network for a font."""
        return dict(data_settings(self._adapter))

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a split as Ultralytics does, with the label cache in the run's folder."""
        training = mode == "train"
        return TrainingImages(
            cache_folder=self.save_dir,
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=training,
            hyp=self.args,
            rect=not training,
            stride=max(int(self.model.stride.max()), 32),
            pad=0.0 if training else 0.5,
            data=self.data,
            task=self.args.task,
        )

    def save_model(self) -> bool:
        """Write ``last.pt`` whole or not at all, so that a kill while it is written leaves the one before."""
        last = Path(self.save_dir) / "weights" / "last.pt"
        fresh = last.with_suffix(".tmp")
        self.last = self.best = fresh
        try:
            super().save_model()
            fresh.replace(last)
        finally:
            self.last = self.best = last
        return True

    def final_eval(self) -> None:
        """Leave out the last validation: the caller measures what it keeps."""


def data_settings(adapter: UltralyticsAdapter) -> Mapping[str, Any]:
    """Return the data set in Ultralytics' form, or raise ``TrainingError`` where the adapter has none."""
    if adapter.data is None:
        raise TrainingError("fine-tuning needs a data set; give its YAML file with --data")
    return adapter.data.settings


@contextmanager
def process_state_kept(device: torch.device) -> Iterator[None]:
    """Put back what training changes in the process: random states, determinism, environment, thread counts."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    generators = [device] if device.type == "cuda" else []
    with (
        stock.quiet(),
        stock.child_environment(),
        random_state_kept(),
        torch.random.fork_rng(devices=generators),
        warnings.catch_warnings(),
    ):
        # Ultralytics asks for determinism where there is any; torch warns of each operation that has none.
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.deterministic = cudnn
            memory.fill_uninitialized_memory = fill
