"""Run layers in eval mode and watch them, read weights and shift outputs, and recalibrate batch norm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from autoprune.errors import TrainingError
from autoprune.listener import tracked
from autoprune.structure.graph import MIXING, ChannelGraph, Layer

Reader = nn.modules.conv._ConvNd | nn.Linear
Norm = nn.modules.batchnorm._BatchNorm


def mixing_layers(module: nn.Module, graph: ChannelGraph) -> dict[str, Layer]:
    """Return the layers that make channels out of others, by name, in the order of the forward pass.

    Those are left out whose weight or bias another module shares: what fits the one would not fit the other.
    """
    uses = Counter(id(tensor) for child in module.modules() for tensor in child.parameters(recurse=False))

    def alone(name: str) -> bool:
        layer = module.get_submodule(name)
        return isinstance(layer, Reader) and all(uses[id(tensor)] == 1 for tensor in layer.parameters())

    return {layer.name: layer for layer in graph.layers if layer.kind in MIXING and alone(layer.name)}


def outputs_first(layer: Reader) -> torch.Tensor:
    """Return a view of a layer's weight as (outputs, inputs, kernel …)."""
    transposed = isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed
    return layer.weight.transpose(0, 1) if transposed else layer.weight


def summed_over_kernel(weight: torch.Tensor, layer: Reader) -> torch.Tensor:
    """Return what one unit of every input channel adds to the outputs, shape (outputs, inputs).

    Behind a transposed convolution it is a pattern as large as its stride, of which this is the mean.

    Args:
        weight: some of a layer's weights, shape (outputs, inputs, kernel …).
        layer: of one group.
    """
    summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed:
        return summed / math.prod(layer.stride)
    return summed


def shift_output(layer: nn.Module, norms: Sequence[nn.Module], shift: torch.Tensor) -> None:
    """Add constants to a layer's outputs; one with neither a bias nor a batch norm behind it stays as it is.

    Args:
        layer: changed in place, unless batch norms are.
        norms: the batch norms that read the layer's outputs, as `norms_behind` finds them.
        shift: what is added to each output channel, shape (out channels,).
    """
    assert isinstance(layer, Reader)
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias.dtype))
        return
    for norm in norms:
        mean = norm.running_mean
        assert isinstance(mean, torch.Tensor)
        mean.sub_(shift.to(mean.dtype))


@contextmanager
def activation_hooks(
    module: nn.Module, layers: Sequence[str], see: Callable[[str, Reader, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Call ``see`` with name, layer, input and output whenever one of the layers runs."""

    def hook(name: str) -> Callable[..., None]:
        def seen(layer: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Any, output: torch.Tensor) -> None:
            assert isinstance(layer, Reader)
            see(name, layer, input_of(args, kwargs), output)

        return seen

    with ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(module.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True))
        yield


def input_of(args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what one of torch's layers reads, be it called with ``x`` or with ``input=x``."""
    return args[0] if args else kwargs["input"]


class _Readers(TorchFunctionMode):
    """Watches what computes with the outputs of layers, other than a batch norm.

    Attributes:
        makers: the outputs that still exist, each with the layer that gave it and the number of its run.
        found: the layers whose outputs something else reads, changes in place or hands out.
        in_norm: whether a batch norm runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.makers: MutableMapping[torch.Tensor, tuple[str, int]] = WeakTensorKeyDictionary()
        self.found = set[str]()
        self.in_norm = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        asks_only = func is not torch.Tensor.__setitem__ and not any(map(torch.is_tensor, tree_leaves(result)))
        if not (self.in_norm or asks_only):  # such as for a shape
            self.note((args, kwargs))
        return result

    def note(self, values: Any) -> None:
        """Note the layers whose outputs are among some values."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
        self.found.update(self.makers[tensor][0] for tensor in tensors if tensor in self.makers)


@contextmanager
def norms_behind(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Find, while the block runs the network, the batch norms that alone read what each layer gives.

    Hooks of other contexts that see outputs are entered before this one, so that they are no readers.

    Yields:
        Layer → batch norms, by path; complete after the block. A layer that runs on several levels can have one for
        each. Those are left out whose output anything else reads or changes, too, or whose norm reads other layers.
    """
    found: dict[str, list[str]] = {}
    runs, read = Counter[str](), set[tuple[str, int]]()
    sources: dict[str, set[str]] = {}
    readers = _Readers()

    def gave(name: str, layer: Reader, _: torch.Tensor, given: torch.Tensor) -> None:
        runs[name] += 1
        readers.makers[given] = (name, runs[name])

    def before(path: str) -> Callable[..., None]:
        def reads(norm: nn.Module, args: tuple[torch.Tensor, ...], kwargs: Any) -> None:
            readers.in_norm = True
            name, run = readers.makers.get(input_of(args, kwargs), ("", 0))
            sources.setdefault(path, set()).add(name)
            if name:
                read.add((name, run))
                found[name] = list(dict.fromkeys([*found.get(name, ()), path]))

        return reads

    def after(*_: Any) -> None:
        readers.in_norm = False

    with activation_hooks(module, layers, gave), ExitStack() as hooks:
        for path, child in module.named_modules():
            if isinstance(child, Norm) and child.running_mean is not None:
                hooks.enter_context(child.register_forward_pre_hook(before(path), with_kwargs=True))
                hooks.enter_context(child.register_forward_hook(after))
        hooks.enter_context(module.register_forward_hook(lambda *call: readers.note(call[-1])))
        hooks.enter_context(readers)
        yield found
    covered = Counter(name for name, _ in read)
    for name in list(found):
        alone = all(sources[path] == {name} for path in found[name])
        if name in readers.found or covered[name] < runs[name] or not alone:
            del found[name]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, without gradients, and every part of it back into its own mode."""
    modes = [(child, child.training) for child in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training


_RANDOM = ("StochasticDepth", "DropPath")
"""Classes of torchvision and timm that leave out branches at random, as dropout leaves out values."""

_RANDOM_FUNCTIONS = frozenset(
    (
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu),
        F.multi_head_attention_forward,
    )
)


def train_mode(module: nn.Module) -> nn.Module:
    """Put a network into train mode, but for dropout, and return it: the same batch then gives the same outputs.

    Dropout that a network calls as a function is switched off by `no_dropout` while it runs.
    """
    module.train()
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd) or type(child).__name__ in _RANDOM:
            child.eval()
    return module


@contextmanager
def no_dropout() -> Iterator[None]:
    """Switch off what networks in train mode do at random by functions: dropout, in attention too. A decorator as well.

    Example:
        >>> with no_dropout():
        ...     bool((F.dropout(torch.ones(9), 0.5, training=True) == 1).all())
        True
    """
    with _NoDropout():
        yield


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _RANDOM_FUNCTIONS:
            named["training"] = False  # torch hands it on by its name
        elif func is F.scaled_dot_product_attention:
            args, named = args[:4], {**dict(zip(("dropout_p", "is_causal"), args[4:], strict=False)), **named}
            named["dropout_p"] = 0.0
        return func(*args, **named)


@no_dropout()
def recalibrate(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Replace batch norm statistics by those of the inputs (Li et al., "EagleEye", ECCV 2020, section 3.3).

    Norms that the network itself keeps in eval mode stay as they are.

    Args:
        module: changed in place; left in eval mode.
        inputs: tensors of shape (B, C, H, W); every image counts the same.

    Raises:
        TrainingError: a norm sees one value per channel only.
    """
    train_mode(module)
    norms = [child for child in module.modules() if isinstance(child, Norm) and child.training]
    momenta, seen = [norm.momentum for norm in norms], dict.fromkeys(norms, 0)

    def weigh(norm: Norm, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Let the images of a call count as much as each that the norm has seen before."""
        count = len((*arguments, *named.values())[0])
        seen[norm] += count
        norm.momentum = count / seen[norm]

    with ExitStack() as stack:
        for norm in norms:
            norm.reset_running_stats()
            stack.callback(norm.register_forward_pre_hook(weigh, with_kwargs=True).remove)
        with torch.no_grad(), enough_values():
            for tensor in tracked(inputs, "Recalibrating"):
                module(tensor)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


@contextmanager
def enough_values() -> Iterator[None]:
    """Tell that batch norm, as behind pooling, has one value per channel to normalise, where torch refuses that.

    Raises:
        TrainingError: it has.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "Batch norm needs two values per channel, and has one of a single image behind pooling: give a `batch` of "
            "2 or more, and more training images"
        ) from error
