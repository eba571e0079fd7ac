"""Print README's table of structures: ``python -m tests.benchmarks.structure_table``."""

from __future__ import annotations

import os
import re
import tempfile
import time
import warnings
from collections import Counter

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

import torch

from autoprune.cost import ParamsCost, parameter_shapes
from autoprune.proof import analyse
from autoprune.space import Space
from tests.networks import FREE_OUTPUTS, NETWORKS


def main() -> None:
    """Analyse every network and print a row of Markdown for each."""
    warnings.simplefilter("ignore")
    print("| network | parameters | units | can be pruned | seconds | what is pinned, and why |")
    print("|---|---|---|---|---|---|")
    for name, make in NETWORKS.items():
        module = make().eval()
        start = time.perf_counter()
        graph = analyse(module, torch.rand(2, 3, 320, 320), free_outputs=FREE_OUTPUTS)
        seconds = time.perf_counter() - start
        space = Space(graph, round_to=1, min_keep=1e-6)
        cost = ParamsCost(space, parameter_shapes(module))
        share = 1 - float(cost(space.lower)) / float(cost(space.dense))
        reasons = Counter(_short(group.pinned) for group in graph.groups if group.pinned)
        reasons.pop("network input", None)
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons.items())
        total = float(cost(space.dense)) / 1e6
        print(f"| {name} | {total:.1f} M | {len(space)} | {share:.1%} | {seconds:.1f} | {why} |")


def _short(reason: str) -> str:
    """Join what differs only in the place or the numbers."""
    reason = re.sub(r"^(view|reshape) in model\.\d+$", "outputs of the head", reason)
    reason = re.sub(r"^(\w+) in .*attn$", r"\1 in attention", reason)
    return re.sub(r"shape '.*", "attention reads its input's width (found by the proof)", reason)


if __name__ == "__main__":
    main()
