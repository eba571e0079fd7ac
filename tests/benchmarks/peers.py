"""Torch-Pruning's L1 pruning of the same detectors to the same FLOPs, with the same fine-tune.

Usage: ``python -m tests.benchmarks.peers RUNS [WORD…]``; needs ``pip install torch-pruning``. What is finished is not
repeated. With words only the rows that have one of them in their name are made: ``yolov5nu``, ``global``, ``seed1-20``.

Torch-Pruning gets what its users would give it: L1 magnitude, widths in multiples of 8, the layers that make the
network's outputs left out, and the smallest pruning ratio, found by bisection, that holds the FLOPs, counted as
autoprune counts them. It cannot follow a layer whose output a block splits: so ``C2f`` and ``C3k2`` are rewritten for
it with two layers in place of that one, which compute the same, and the attention of yolo11 is left as it is. Batch
norm is recalibrated as ours is where nothing is compensated. A detector that it cannot prune, or whose pruned network
does not run, is told as such.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from thop import profile
from torch import nn

from autoprune.models import open_adapter
from autoprune.statistics.layers import recalibrate
from autoprune.training.finetune import finetune
from tests.benchmarks.accuracy import DETECTORS, EPOCHS, SEEDS, asked, data_of, model_of

SHARES = (0.3, 0.2)
LENGTHS = (EPOCHS, EPOCHS // 2)


class TwoLayers(nn.Module):
    """Do what a ``C2f`` does, by one layer for each half of what it splits."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.i, self.f, self.type = block.i, block.f, block.type
        self.first, self.second = (_rows(block.cv1, rows) for rows in torch.arange(2 * block.c).chunk(2))
        self.m, self.cv2 = block.m, block.cv2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x), self.second(x)]
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


def _rows(layer: Any, rows: torch.Tensor) -> nn.Module:
    """Return a copy of a convolution with its batch norm that has only these of its output channels."""
    part = copy.deepcopy(layer)
    for module in (part.conv, part.bn):
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dim():
                kept = tensor.detach()[rows].clone()
                setattr(module, name, nn.Parameter(kept) if isinstance(tensor, nn.Parameter) else kept)
    part.conv.out_channels = part.bn.num_features = len(rows)
    return part  # type: ignore[no-any-return]


def without_splits(module: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the network with its ``C2f`` blocks rewritten, and the blocks whose splits remain."""
    blocks: Any = module.get_submodule("model")
    kept = []
    for place, block in enumerate(blocks):
        kind = type(block).__name__
        if kind in ("C2f", "C3k2"):
            blocks[place] = TwoLayers(block)
        elif kind == "C2PSA":
            kept.append(block)
    return module, kept


def pruned(dense: nn.Module, example: torch.Tensor, ratio: float, *, across: bool) -> nn.Module:
    """Return what Torch-Pruning leaves of a copy of the network."""
    import torch_pruning

    module, kept = without_splits(copy.deepcopy(dense).train())
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    head: Any = module.get_submodule("model")[-1]  # type: ignore[index]
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=ratio,
        global_pruning=across,
        max_pruning_ratio=0.9,
        round_to=8,
        ignored_layers=[*kept, head.dfl, *(branch[-1] for branch in (*head.cv2, *head.cv3))],
    )
    pruner.step()
    with torch.no_grad():
        module(example)
    return module.eval()


def flops(module: nn.Module, example: torch.Tensor) -> float:
    """Return two per multiply-accumulate, by thop."""
    return 2 * float(profile(copy.deepcopy(module), inputs=(example,), verbose=False)[0])


def at_share(dense: nn.Module, example: torch.Tensor, share: float, *, across: bool) -> nn.Module:
    """Return the widest network that Torch-Pruning makes within a share of the FLOPs."""
    limit = share * flops(dense, example)
    low, high = 0.0, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        inside = flops(pruned(dense, example, middle, across=across), example) <= limit
        low, high = (low, middle) if inside else (middle, high)
    return pruned(dense, example, high, across=across)


def row(detector: str, share: float, *, across: bool, seed: int, epochs: int, out: Path) -> dict[str, Any]:
    """Prune, fine-tune and measure."""
    adapter = open_adapter(model_of(detector), data=data_of(detector), image_size=320)
    example = adapter.example(1)
    module = at_share(adapter.module, example, share, across=across)
    recalibrate(module, adapter.calibration(images=60, batch=16, seed=0))
    before = adapter.validate(module).primary
    tuned = finetune(adapter, module, epochs=epochs, out=out, batch=16, seed=seed, recovers=True, resume=True).module
    parameters = sum(one.numel() for one in module.parameters()) / sum(
        one.numel() for one in adapter.module.parameters()
    )
    return {
        "flops": flops(module, example) / flops(adapter.module, example),
        "params": parameters,
        "before": before,
        "after": adapter.validate(tuned).primary,
    }


def main(runs: Path, words: Sequence[str]) -> None:
    """Make what is missing and print a table in Markdown."""
    print("| detector | Torch-Pruning L1 | budget | seed | epochs | FLOPs | parameters | pruned | fine-tuned |")
    print("|---|---|---|---|---|---|---|---|---|")
    for epochs, seed, detector, kind, share in product(LENGTHS, SEEDS, DETECTORS, ("uniform", "global"), SHARES):
        name = f"peer-{detector}-{kind}-{share}-seed{seed}-{epochs}"
        if not asked(name, words):
            continue
        path = runs / name / "row.json"
        if not path.exists():
            across = kind == "global"
            try:
                found = row(detector, share, across=across, seed=seed, epochs=epochs, out=runs / name)
            except Exception as error:  # whatever it is, it is what its user would meet
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        found = json.loads(path.read_text())
        print(f"| {detector} | {kind} | flops={share:.0%} | {seed} | {epochs} | {_cells(found)} |", flush=True)


def _cells(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"{found['failed']} | | | "
    return f"{found['flops']:.1%} | {found['params']:.1%} | {found['before']:.3f} | {found['after']:.3f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
