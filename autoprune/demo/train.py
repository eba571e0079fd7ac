"""Train the demo detector: `python -m autoprune.demo.train [--out FILE] [--epochs N]`.

It trains with stock Ultralytics, from scratch, on a CPU, on the data set of `shapes_dataset()`. It made the bundled
file; the last logged line is the accuracy.
"""

from __future__ import annotations

import argparse
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from autoprune.demo import demo_weights, shapes_dataset
from autoprune.io.files import write_atomic
from autoprune.models import stock

_LOG = logging.getLogger(__name__)

_ARCHITECTURE = Path(__file__).with_name("yolov8-demo.yaml")
_EPOCHS = 60
_IMAGE_SIZE = 320  # the demo uses less: mAP50-95 0.016 lower, a third less time
_THREADS = 1  # the same order of sums on every machine

# Settings in a checkpoint that depend on the machine of the training.
_MACHINE_KEYS = ("project", "name", "save_dir", "device", "workers", "exist_ok")


def main(arguments: list[str] | None = None) -> None:
    """Train, write the weights, print the score on the validation images."""
    parser = argparse.ArgumentParser(prog="python -m autoprune.demo.train", description="Train the demo detector.")
    parser.add_argument("--out", type=Path, default=demo_weights(), help="where to write the weights (%(default)s)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="passes over the training images (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stock.data_utils.check_font = lambda font: None  # would download a font for plots, and none are made
    with tempfile.TemporaryDirectory(prefix="autoprune-demo-") as folder:
        data = shapes_dataset(size=_IMAGE_SIZE)
        trained = _train(data, epochs=options.epochs, folder=Path(folder))
        _write(_clean(trained), options.out)
        map50, map50_95 = _score(options.out, data, folder=Path(folder))
    size = options.out.stat().st_size
    _LOG.info("%s: %.2f MB, mAP50 %.3f, mAP50-95 %.3f", options.out, size / 1e6, map50, map50_95)


def _train(data: Path, *, epochs: int, folder: Path) -> Path:
    """Train from scratch and return the path of the last checkpoint."""
    model = stock.YOLO(str(_ARCHITECTURE))
    # Ultralytics sets the number of threads itself, before this callback.
    model.add_callback("on_pretrain_routine_start", lambda trainer: torch.set_num_threads(_THREADS))
    model.add_callback("on_pretrain_routine_end", lambda trainer: _halve_the_work(trainer.model))
    model.train(
        data=str(data),
        imgsz=_IMAGE_SIZE,
        epochs=epochs,
        batch=8,
        nbs=8,
        optimizer="AdamW",
        lr0=0.003,
        lrf=0.01,
        cos_lr=True,
        momentum=0.9,
        weight_decay=0.0005,
        warmup_epochs=2.0,
        close_mosaic=max(1, epochs // 4),
        flipud=0.5,
        seed=0,
        deterministic=True,
        device="cpu",
        amp=False,
        pretrained=False,
        val=False,
        plots=False,
        project=str(folder),
        name="train",
        exist_ok=True,
    )
    return folder / "train" / "weights" / "last.pt"


def _halve_the_work(model: Any) -> None:
    """Run convolutions in bfloat16 and channels last, which takes a CPU half the time; the loss stays in float32.

    The saved weights are those of the moving average, which Ultralytics has copied before.
    """
    model.to(memory_format=torch.channels_last)
    forward = model.forward

    def faster(x: Any) -> Any:
        if isinstance(x, dict):  # a batch: the model calls itself with the images, then computes the loss
            return forward(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return _to_float(forward(x))

    model.forward = faster


def _to_float(values: Any) -> Any:
    """Return tensors within dicts and lists as float32."""
    if isinstance(values, dict):
        return {key: _to_float(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_to_float(value) for value in values]
    return values.float()


def _clean(checkpoint: Path) -> dict[str, Any]:
    """Return the checkpoint without optimizer, dates and settings of the machine."""
    stripped = stock.strip_optimizer(checkpoint)
    model = stripped["model"]
    arguments = _portable(stripped["train_args"])
    model.args = _portable(model.args)
    model.yaml = {**model.yaml, "yaml_file": _ARCHITECTURE.name}
    kept = ("epoch", "best_fitness", "ema", "updates", "optimizer", "version", "license", "docs")
    return {**{key: stripped[key] for key in kept}, "model": model, "train_args": arguments}


def _portable(arguments: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in arguments.items() if key not in _MACHINE_KEYS}
    return {**kept, "data": "shapes.yaml", "model": _ARCHITECTURE.name}


def _write(checkpoint: dict[str, Any], out: Path) -> None:
    """Write so that `out` is either the old file or the whole new one."""
    buffer = io.BytesIO()  # torch would write a file's name into it
    torch.save(checkpoint, buffer)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, buffer.getvalue())


def _score(weights: Path, data: Path, *, folder: Path) -> tuple[float, float]:
    """Return mAP50 and mAP50-95 on the validation images, by Ultralytics' own `val`."""
    result = stock.YOLO(str(weights)).val(
        data=str(data), imgsz=_IMAGE_SIZE, device="cpu", plots=False, verbose=False, project=str(folder), name="val"
    )
    return float(result.box.map50), float(result.box.map)


if __name__ == "__main__":
    main()
