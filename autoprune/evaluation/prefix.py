"""Prefix reuse: what the first layers of a network compute is recorded once and given to its neighbours.

Networks that differ from a base network in some units only compute what it computes up to the first stage that holds
a tensor of these units. One pass of the base network records the outputs of its stages; a candidate then starts at a
*cut*: the stages before it are replaced by stubs that return what was recorded, and the stock forward pass runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, repeat
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from autoprune.structure.graph import ChannelGraph
from autoprune.structure.space import Allocation

PREFIX_BYTES = 2**30
"""How much a prefix may hold by default: 60 images of 320 px need a third of it in a YOLOv8n."""

_ALWAYS = 2**31
"""The reader of an output that something outside the stages reads: it runs wherever a candidate starts."""


def first_stages(graph: ChannelGraph, module: nn.Module, stages: Sequence[str]) -> tuple[int, ...]:
    """Return per unit the number of the first stage that changes with it; ``len(stages)`` if none does.

    Channels are made by a weight before anything else can hold them, so it is the first stage with a tensor of theirs.

    Args:
        graph: the channel groups of the network.
        module: the network.
        stages: paths of submodules in the order in which they run.
    """
    number = {stage: index for index, stage in enumerate(stages)}
    tensors = list(chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)))
    # The graph lists a tensor that modules share under one of its names: follow the object.
    found: dict[int, int] = {}
    for name, tensor in tensors:
        paths = accumulate(name.split("."), "{}.{}".format)
        stage = min((number[path] for path in paths if path in number), default=len(stages))
        found[id(tensor)] = min(stage, found.get(id(tensor), stage))
    stage_of = {name: found[id(tensor)] for name, tensor in tensors}
    channels = np.full(graph.channels, len(stages))
    for name, axes in graph.tensors.items():
        for _, axis in axes:
            channels[graph.axes[axis]] = np.minimum(channels[graph.axes[axis]], stage_of[name])
    groups = [int(channels[group.span].min()) for group in graph.groups]
    return tuple(min(groups[index] for index in unit.groups) for unit in graph.units)


class Prefix:
    """What the first stages of a base network computed for held batches.

    Make one with `Prefix.record`.

    Attributes:
        base: the base network's allocation.
        cuts: stages at which a candidate can start besides the first, ascending.
    """

    def __init__(
        self,
        base: Allocation,
        stages: Sequence[str],
        starts: Sequence[int],
        *,
        needs: Mapping[int, frozenset[int]],
        outputs: Mapping[int, Sequence[Any]],
    ) -> None:
        self.base = base
        self.cuts = tuple(sorted(needs))
        self._stages, self._starts = stages, starts
        self._needs, self._outputs = needs, outputs

    @classmethod
    def record(
        cls,
        module: nn.Module,
        passes: Sequence[Callable[[], object]],
        *,
        base: Allocation,
        stages: Sequence[str],
        starts: Sequence[int],
        limit: int = PREFIX_BYTES,
    ) -> Prefix:
        """Run the base network once over all batches.

        Where the outputs that all cuts need do not fit, those cuts are kept that save the most time per byte.

        Args:
            module: the base network as candidates are run, e.g. in train mode; it keeps nothing of this.
            passes: one call per batch, each of which runs ``module`` once without gradients; none is larger
                than the first.
            base: its allocation.
            stages: paths of its stages, see `Adapter.stages`.
            starts: per unit, the first stage that changes with it, see `first_stages`.
            limit: bytes that may be held.
        """
        needs, outputs = _surveyed(module, passes[0], stages=stages, starts=starts, limit=limit // len(passes))
        hooks = [
            module.get_submodule(stages[index]).register_forward_hook(
                lambda stage, arguments, output, kept=kept: kept.append(output)
            )
            for index, kept in outputs.items()
        ]
        try:
            with torch.no_grad():
                for run in passes[1:] if outputs else ():
                    run()
        finally:
            for hook in hooks:
                hook.remove()
        return cls(base, stages, starts, needs=needs, outputs=outputs)

    @property
    def size(self) -> int:
        """Bytes held."""
        return _bytes(self._outputs.values())

    def cut(self, allocation: Allocation) -> int:
        """Return the number of the stage at which a candidate starts; 0 if nothing can be reused."""
        pairs = zip(self._starts, self.base, allocation, strict=True)
        changed = min((start for start, ours, theirs in pairs if ours != theirs), default=len(self._stages))
        return max((cut for cut in self.cuts if cut <= changed), default=0)

    def shorten(self, module: nn.Module, allocation: Allocation) -> nn.Module:
        """Make a candidate start at its cut, for one run over the recorded batches in their order.

        Args:
            module: the candidate; its first stages are replaced, so it is good for nothing else afterwards.
            allocation: the candidate's.

        Returns:
            ``module``.
        """
        cut = self.cut(allocation)
        for index, name in enumerate(self._stages[:cut]):
            outputs = self._outputs[index] if index in self._needs[cut] else repeat(None)
            module.set_submodule(name, _Recorded(module.get_submodule(name), outputs))
        return module


class _Recorded(nn.Module):
    """Stands in for a stage: returns what that returned, batch by batch.

    It has the stage's plain attributes, which the network's own forward pass may read (Ultralytics: ``f``, ``i``).
    """

    def __init__(self, stage: nn.Module, outputs: Iterable[Any]) -> None:
        super().__init__()
        own = vars(self)
        own.update({key: value for key, value in vars(stage).items() if key not in own and not callable(value)})
        self._outputs = iter(outputs)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return next(self._outputs)


class _Survey(TorchFunctionMode):
    """Watches one pass: what every stage returns, how long it takes, and what reads its output last.

    Every torch function called meanwhile passes by here, so also readers that are no stage are seen: the head,
    the loss, or what the forward pass computes between two stages.

    Attributes:
        outputs: per stage, what it returned.
        seconds: per stage, how long it ran.
    """

    def __init__(self, module: nn.Module, stages: Sequence[str]) -> None:
        super().__init__()
        self._modules = [module.get_submodule(stage) for stage in stages]
        self._device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        self.outputs: list[Any] = []
        self.seconds: list[float] = []
        self._calls: list[int] = []
        self._running: int | None = None
        self._makers: dict[int, int] = {}
        self._last_reader = [-1] * len(stages)
        self._versions: list[list[int]] = []

    def __enter__(self) -> _Survey:
        self._hooks = [
            hook
            for index, stage in enumerate(self._modules)
            for hook in (
                stage.register_forward_pre_hook(lambda stage, arguments, index=index: self._begin(index)),
                stage.register_forward_hook(lambda stage, arguments, output, index=index: self._end(index, output)),
            )
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def needs(self, cuts: Iterable[int]) -> dict[int, frozenset[int]]:
        """Return the stages whose outputs each cut needs, without the cuts that cannot be had.

        Those are all if the stages did not run once and in order; else those that need an output which a later stage
        has changed in place.
        """
        if self._calls != list(range(len(self._modules))):
            return {}
        spoilt = {index for index, output in enumerate(self.outputs) if _versions(output) != self._versions[index]}
        found = {cut: frozenset(index for index in range(cut) if self._last_reader[index] >= cut) for cut in cuts}
        return {cut: needed for cut, needed in found.items() if not needed & spoilt}

    def size(self, stages: Iterable[int]) -> int:
        """Return the bytes that the outputs of these stages hold."""
        return _bytes(self.outputs[index] for index in stages)

    def _begin(self, index: int) -> None:
        self._calls.append(index)
        self._running, self._began = index, self._now()

    def _end(self, index: int, output: Any) -> None:
        self.seconds.append(self._now() - self._began)
        self._read(output)  # one that is handed through was read, though nothing was called with it
        self._versions.append(_versions(output))
        self._makers.update({id(tensor): index for tensor in _tensors(output)})
        self.outputs.append(output)
        self._running = None

    def _read(self, value: Any) -> None:
        reader = _ALWAYS if self._running is None else self._running
        for tensor in _tensors(value):
            maker = self._makers.get(id(tensor))
            if maker is not None:
                self._last_reader[maker] = max(self._last_reader[maker], reader)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _surveyed(
    module: nn.Module, run: Callable[[], object], *, stages: Sequence[str], starts: Sequence[int], limit: int
) -> tuple[dict[int, frozenset[int]], dict[int, list[Any]]]:
    """Run one batch and choose the cuts; returns per cut the stages it needs, and what these returned."""
    survey = _Survey(module, stages)
    with survey, torch.no_grad():
        run()
    needs = survey.needs({start for start in starts if start > 0})
    needs = _affordable(needs, starts=starts, seconds=survey.seconds, size=survey.size, limit=limit)
    return needs, {index: [survey.outputs[index]] for index in _union(needs.values())}


def _affordable(
    needs: Mapping[int, frozenset[int]],
    *,
    starts: Sequence[int],
    seconds: Sequence[float],
    size: Callable[[Iterable[int]], int],
    limit: int,
) -> dict[int, frozenset[int]]:
    """Take cuts while they fit, each time the one that saves most per byte, over candidates of one unit each.

    Args:
        needs: per cut, the stages whose outputs it needs.
        starts: per unit, the stage up to which a candidate could reuse.
        seconds: per stage, how long it runs.
        size: bytes of the outputs of stages.
        limit: bytes that may be held.
    """
    before = [0.0, *accumulate(seconds)]

    def saved(cuts: Iterable[int]) -> float:
        reached = (max((cut for cut in cuts if cut <= start), default=0) for start in starts)
        return sum(before[cut] for cut in reached)

    kept: dict[int, frozenset[int]] = {}
    held = 0
    while True:
        gains: dict[int, tuple[float, int]] = {}
        for cut in needs.keys() - kept.keys():
            bigger = size(_union([*kept.values(), needs[cut]]))
            if bigger <= limit:
                gains[cut] = ((saved([*kept, cut]) - saved(kept)) / max(bigger - held, 1), bigger)
        if not gains:
            return kept
        best = max(gains, key=gains.__getitem__)
        kept[best], held = needs[best], gains[best][1]


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset(chain.from_iterable(sets))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _versions(output: Any) -> list[int]:
    """Return how often the tensors of an output have been changed in place."""
    return [tensor._version for tensor in _tensors(output)]


def _bytes(outputs: Iterable[Any]) -> int:
    """Return the bytes that keeping the outputs keeps; storage that tensors share counts once."""
    storages = (tensor.untyped_storage() for tensor in _tensors(list(outputs)))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
