"""Train the demo detector: `python -m autoprune.demo.train [--out FILE] [--epochs N]`.

It trains with stock Ultralytics on a CPU, from scratch, on more pictures of the kind that `shapes_dataset()` has, over
many image sizes, because the demo picks the size that suits the machine. It made the bundled file; the last logged
lines are its accuracy by image size.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from autoprune.demo import DEMO_SIZES, demo_weights, shapes_dataset
from autoprune.io.files import write_atomic
from autoprune.models import stock

_LOG = logging.getLogger(__name__)

_ARCHITECTURE = Path(__file__).with_name("yolov8-demo.yaml")
_EPOCHS = 26
_PICTURES, _IMAGE_SIZE = 1280, 320  # many pictures, in place of mosaics of few
_SIZES = range(64, _IMAGE_SIZE + 1, 32)  # of a batch; made smaller only, since larger ones would be blurred
_THREADS = 1  # the same order of sums on every machine

# Settings in a checkpoint that depend on the machine of the training.
_MACHINE_KEYS = ("project", "name", "save_dir", "device", "workers", "exist_ok")


def main(arguments: list[str] | None = None) -> None:
    """Train, write the weights, log the accuracy on the validation images by image size."""
    parser = argparse.ArgumentParser(prog="python -m autoprune.demo.train", description="Train the demo detector.")
    parser.add_argument("--out", type=Path, default=demo_weights(), help="where to write the weights (%(default)s)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="passes over the pictures (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stock.data_utils.check_font = lambda font: None  # would download a font for plots, and none are made
    with tempfile.TemporaryDirectory(prefix="autoprune-demo-") as name:
        folder = Path(name)
        data = shapes_dataset(train=_PICTURES, size=_IMAGE_SIZE)
        _write(_clean(_train(data, epochs=options.epochs, folder=folder)), options.out)
        _LOG.info("%s: %.2f MB", options.out, options.out.stat().st_size / 1e6)
        for size, (map50, map50_95) in accuracies(options.out, DEMO_SIZES, folder=folder).items():
            _LOG.info("%d px: mAP50 %.3f, mAP50-95 %.3f", size, map50, map50_95)


def accuracies(weights: Path, sizes: Iterable[int], *, folder: Path) -> dict[int, tuple[float, float]]:
    """Return mAP50 and mAP50-95 on the demo's validation images by image size, from Ultralytics' own `val`."""
    found = {}
    for size in sizes:
        result = stock.YOLO(str(weights)).val(
            data=str(shapes_dataset()),
            imgsz=size,
            device="cpu",
            plots=False,
            verbose=False,
            project=str(folder),
            name="val",
        )
        found[size] = float(result.box.map50), float(result.box.map)
    return found


def _train(data: Path, *, epochs: int, folder: Path) -> Path:
    """Train from scratch and return the path of the last checkpoint."""
    model = stock.YOLO(str(_ARCHITECTURE))
    # Ultralytics sets the number of threads itself, before this callback.
    model.add_callback("on_pretrain_routine_start", lambda trainer: torch.set_num_threads(_THREADS))
    model.add_callback("on_pretrain_routine_end", lambda trainer: _vary_sizes(trainer.model))
    model.train(
        data=str(data),
        epochs=epochs,
        pretrained=False,
        batch=8,
        nbs=8,
        optimizer="AdamW",
        lr0=0.003,
        warmup_epochs=0.5,
        lrf=0.01,
        cos_lr=True,
        momentum=0.9,
        weight_decay=0.0005,
        flipud=0.5,
        mosaic=0.0,
        seed=0,
        deterministic=True,
        device="cpu",
        amp=False,
        val=False,
        plots=False,
        project=str(folder),
        name="train",
        exist_ok=True,
        imgsz=_IMAGE_SIZE,
    )
    return folder / "train" / "weights" / "last.pt"


def _vary_sizes(model: Any) -> None:
    """Train every batch at a random size, in bfloat16 and channels last, which takes a CPU half the time.

    The loss stays in float32. The saved weights are those of the moving average, which Ultralytics has copied before.
    """
    model.to(memory_format=torch.channels_last)
    forward = model.forward

    def faster(x: Any) -> Any:
        if isinstance(x, dict):  # a batch: the model calls itself with the images, then computes the loss
            size = random.choice(_SIZES)
            images = torch.nn.functional.interpolate(x["img"], size=(size, size), mode="bilinear")
            return forward({**x, "img": images})
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
    vars(model).pop("pt_path", None)  # where Ultralytics read the weights that it trained on
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


if __name__ == "__main__":
    main()
