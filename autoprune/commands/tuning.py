"""Fine-tuning as a stage of a run: resumable, and done once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.commands.screen import Screen
from autoprune.models import open_adapter
from autoprune.models._base import Adapter
from autoprune.training.finetune import EpochReport, finetune, resume_finetune


def tune(
    adapter: Adapter, module: nn.Module, folder: Path, *,
    epochs: int, lr_scale: float, batch: int, seed: int, notes: Mapping[str, Any], screen: Screen,
) -> nn.Module:  # fmt: skip
    """Fine-tune a pruned network and write ``model.pt`` into a folder; go on where an earlier process stopped.

    Returns:
        The network as ``model.pt`` holds it: float32, eval mode.
    """
    path, out = folder / "model.pt", folder / "finetune"
    if not path.exists():
        with screen.progress("Fine-tuning", epochs) as advance:

            def show(report: EpochReport) -> None:
                measured = f"mAP50-95 {report.accuracy.map50_95:.3f}" if report.accuracy is not None else ""
                advance(report.epoch, measured)

            if (out / "weights" / "last.pt").exists():
                result = resume_finetune(adapter, out=out, on_epoch=show)
            else:
                result = finetune(
                    adapter, module, epochs=epochs, out=out, batch=batch, lr_scale=lr_scale, seed=seed, on_epoch=show
                )
        adapter.save(result.module, path, notes=notes)
    return open_adapter(path, image_size=adapter.image_size, device=adapter.device).module
