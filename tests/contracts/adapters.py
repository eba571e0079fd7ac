"""What every adapter promises; a new one is tested in three lines."""

from __future__ import annotations

from copy import deepcopy
from functools import reduce
from operator import add
from pathlib import Path

import cloudpickle
import torch
from torch import nn

from autoprune.evaluation.prefix import Prefix
from autoprune.models._base import Adapter
from autoprune.models.detection.shipping import Shippable, pack, unpack


def check_adapter(adapter: Adapter, pruned: nn.Module, folder: Path) -> None:
    """Assert the contract.

    Args:
        adapter: with a data set that has a train and a val split.
        pruned: a smaller network of the adapter's family.
        folder: an empty one, to save into.
    """
    before = {name: tensor.clone() for name, tensor in adapter.module.state_dict().items()}
    check_module(adapter)
    check_batches(adapter)
    check_loss(adapter, pruned)
    check_loss_sum(adapter, pruned)
    check_stages(adapter, pruned)
    check_accuracy(adapter, pruned)
    check_deployable(adapter, pruned)
    check_save(adapter, pruned, folder)
    check_copy(adapter, pruned)
    check_shipped(adapter, folder / "shipped")
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.module.state_dict().items()), (
        "nobody modifies the dense network"
    )
    assert not adapter.module.training


def check_copy(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that it can be handed to another process, where it computes the same."""
    copy, module = cloudpickle.loads(cloudpickle.dumps((adapter, pruned.eval())))
    for one, other in zip(*(each.batches("train", images=2, batch=2, seed=0) for each in (adapter, copy)), strict=True):
        with torch.no_grad():
            assert torch.equal(adapter.loss(pruned.train(), one), copy.loss(module.train(), other))


def check_shipped(adapter: Adapter, folder: Path) -> None:
    """Assert that it reads the same from a data set that was packed and unpacked elsewhere."""
    if not isinstance(adapter, Shippable):
        return
    assert adapter.data is not None
    moved = adapter.with_data(unpack(pack(adapter.data), folder))
    assert isinstance(moved, Shippable)
    assert moved.data is not None
    assert all(file.startswith(str(folder)) for split in ("train", "val") for file in moved.data.files(split))
    here, there = (one.batches("train", images=4, batch=4, seed=0)[0] for one in (adapter, moved))
    assert torch.equal(moved.inputs(there), adapter.inputs(here))
    with torch.no_grad():
        module = adapter.module
        assert torch.equal(moved.loss(deepcopy(module).train(), there), adapter.loss(deepcopy(module).train(), here))
    assert moved.validate(module) == adapter.validate(module)


def check_module(adapter: Adapter) -> None:
    """Assert what the dense network and the example look like."""
    assert adapter.name
    assert not adapter.module.training
    tensors = [*adapter.module.parameters(), adapter.example(1)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert {tensor.device for tensor in tensors} == {adapter.device}
    assert adapter.example(3).shape == (3, *adapter.input_shape)
    assert adapter.input_shape[1:] == adapter.image_size
    assert adapter.has_images


def check_batches(adapter: Adapter) -> None:
    """Assert that the images asked for come, the same for the same seed."""
    batches = adapter.batches("train", images=4, batch=2, seed=0)
    assert [adapter.inputs(batch).shape for batch in batches] == [(2, *adapter.input_shape)] * 2
    again = adapter.batches("train", images=4, batch=2, seed=0)
    for batch, same in zip(batches, again, strict=True):
        assert torch.equal(adapter.inputs(batch), adapter.inputs(same))
    calibration, repeated = (adapter.calibration(images=4, batch=2, seed=0) for _ in range(2))
    assert [images.shape for images in calibration] == [adapter.inputs(batch).shape for batch in batches]
    assert all(torch.equal(images, same) for images, same in zip(calibration, repeated, strict=True))


def check_loss(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that the loss is the same scalar with and without gradients, and leaves nothing behind."""
    (batch,) = adapter.batches("train", images=2, batch=2, seed=0)
    pruned.train()
    names = set(vars(pruned))
    loss = adapter.loss(pruned, batch)
    loss.backward()
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(pruned, batch), loss.detach(), rtol=1e-4, atol=1e-5)
    assert loss.shape == ()
    assert any(parameter.grad is not None for parameter in pruned.parameters())
    assert set(vars(pruned)) == names
    pruned.zero_grad()
    pruned.eval()


def check_loss_sum(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that the loss that scores candidates does not depend on how images fall into batches."""
    module = with_frozen_statistics(pruned)
    losses = []
    for batch in (3, 2, 1):
        with torch.no_grad():
            sums = [adapter.loss_sum(module, one) for one in adapter.batches("train", images=3, batch=batch, seed=0)]
        assert {one.totals.shape for one in sums} == {one.weights.shape for one in sums} == {sums[0].totals.shape}
        losses.append(reduce(add, sums).mean())
    torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-4, atol=1e-5)


def with_frozen_statistics(module: nn.Module) -> nn.Module:
    """Return a copy in train mode, except that batch norm takes its statistics from no batch."""
    copied = deepcopy(module).train()
    for layer in copied.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return copied


def check_stages(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that the forward pass can start after any stage there is, given what the stages before it returned."""
    stages = adapter.stages(pruned)
    if not stages:
        return
    starts = range(len(stages) + 1)  # as if every stage had one unit, and the head
    base = tuple(0 for _ in starts)
    batches = adapter.batches("train", images=3, batch=2, seed=0)
    module, losses = deepcopy(pruned).train(), []
    passes = [lambda batch=batch: losses.append(adapter.loss_sum(module, batch)) for batch in batches]
    prefix = Prefix.record(module, passes, base=base, stages=stages, starts=starts)
    assert prefix.cuts == tuple(starts[1:])
    for cut in prefix.cuts:
        candidate = tuple(int(start == cut) for start in starts)
        shortened = prefix.shorten(deepcopy(pruned).train(), candidate)
        with torch.no_grad():
            for batch, loss in zip(batches, losses, strict=True):
                again = adapter.loss_sum(shortened, batch)
                torch.testing.assert_close(again.totals, loss.totals, rtol=1e-5, atol=0)


def check_accuracy(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that accuracies are shares, on held batches and on the validation split."""
    batches = adapter.batches("train", images=3, batch=2, seed=0)
    for found in (adapter.accuracy(pruned, batches), adapter.validate(pruned)):
        assert tuple(found) == adapter.metric_names
        assert all(0 <= one <= 1 for one in found.values())
        assert list(found.values()) == sorted(found.values()), "a stricter metric decides"
        assert all(tuple(one) == adapter.metric_names for one in found.per_class.values())


def check_deployable(adapter: Adapter, pruned: nn.Module) -> None:
    """Assert that what is deployed is another module, in eval mode, without gradients."""
    for with_nms in (False, True):
        deployed = adapter.deployable(pruned.train(), with_nms=with_nms)
        assert pruned.training
        assert not any(module.training for module in deployed.modules())
        assert not any(parameter.requires_grad for parameter in deployed.parameters())
        assert {id(tensor) for tensor in pruned.parameters()}.isdisjoint(id(tensor) for tensor in deployed.parameters())
        with torch.inference_mode():
            deployed(adapter.example(1))
    pruned.eval()


def check_save(adapter: Adapter, pruned: nn.Module, folder: Path) -> None:
    """Assert that the checkpoint has the size that was told, that nothing else is left, and that it opens again."""
    path = adapter.checkpoint(folder, "model")
    adapter.save(pruned, path)
    assert adapter.saved_size(path) == adapter.checkpoint_size(pruned)
    assert {one.name for one in folder.iterdir()} == {f"model{suffix}" for suffix in adapter.suffixes}
    opened = adapter.reopen(path)
    shapes = [
        {name: tensor.shape for name, tensor in module.state_dict().items()}
        for module in (opened, pruned, adapter.module)
    ]
    assert shapes[0] == shapes[1] != shapes[2]
    assert not opened.training
    assert {tensor.dtype for tensor in opened.parameters()} == {torch.float32}
    assert {tensor.device for tensor in opened.parameters()} == {adapter.device}
