"""ONNX files become TensorFlow Lite files that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoprune.errors import DeviceError
from autoprune.runtimes.exported import export_onnx
from autoprune.runtimes.process import WorkerProcess
from autoprune.runtimes.subprocess_backend import ENGINES
from tests.helpers.packages import need

SHAPE = (2, 8, 12, 12)


class Function(nn.Module):
    """A network of one function of the image and a convolution."""

    def __init__(self, function: Callable[..., torch.Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.first, self.layer = function, nn.Conv2d(8, 8, 3, 1, 1), layer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.first(image)
        return self.function(hidden if self.layer is None else self.layer(hidden))


def attention(x: torch.Tensor) -> torch.Tensor:
    query, key, value = x.view(2, 2, 4, 144).split([1, 1, 2], dim=2)
    return (value @ (query.transpose(-2, -1) @ key).softmax(-1).transpose(-2, -1)).reshape(2, 4, 12, 12)


LAYERS = {
    "stride": nn.Conv2d(8, 6, 3, 2, 1),
    "kernel": nn.Conv2d(8, 6, (5, 3), (1, 2), (0, 1), bias=False),
    "dilated": nn.Conv2d(8, 6, 3, 1, 2, dilation=2),
    "grouped": nn.Conv2d(8, 12, 3, 1, 1, groups=2),
    "depthwise": nn.Conv2d(8, 16, 3, 2, 1, groups=8),
    "transposed": nn.ConvTranspose2d(8, 4, 2, 2),
    "pool": nn.MaxPool2d(5, 1, 2),
    "pool stride": nn.MaxPool2d(3, 2, 1),
    "mean pool": nn.AvgPool2d(2),
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "leaky": nn.LeakyReLU(0.1),
    "relu": nn.ReLU(),
    "relu6": nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6()),
    "relu6 of relu": nn.Sequential(nn.ReLU(), nn.ReLU6()),
    "hardswish": nn.Hardswish(),
    "classifier": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
}
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "attention": attention,
    "bins": lambda x: x.view(2, 2, 4, 144).transpose(2, 1).softmax(1),
    "chunks": lambda x: torch.cat([part * 2 for part in x.chunk(2, 1)][::-1], 1),
    "focus": lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1),
    "broadcast": lambda x: x * x.mean((2, 3), keepdim=True) + torch.arange(12.0).view(12, 1),
    "sum": lambda x: x.sum((1, 2)) - x.amax((1, 2)),
    "relu of one of two": lambda x: torch.cat([x.relu(), x], 1),
    "mixed": lambda x: torch.cat([x.view(2, 8, 144), x.sigmoid().view(2, 8, 144)], 2).permute(0, 2, 1),
}
NETWORKS = {name: Function(lambda x: x, layer) for name, layer in LAYERS.items()} | {
    name: Function(function) for name, function in FUNCTIONS.items()
}


@pytest.fixture(scope="module")
def engine() -> WorkerProcess:
    need("onnx", "litert")
    return WorkerProcess("litert", ENGINES / "lite_rt.py", {"threads": 1})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_translated_network_computes_the_same(name: str, engine: WorkerProcess, tmp_path: Path) -> None:
    from autoprune.runtimes.tflite import convert

    module, image = NETWORKS[name].eval(), torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    export_onnx(module, SHAPE, tmp_path / "network.onnx")
    convert(tmp_path / "network.onnx", tmp_path / "network.tflite")
    number = engine.call("load", path=str(tmp_path / "network.tflite"))
    np.save(tmp_path / "image.npy", image.numpy())
    to = tmp_path / "outputs.npz"
    assert engine.call("outputs", number=number, image=str(tmp_path / "image.npy"), to=str(to)) == 1
    with torch.no_grad(), np.load(to) as found:
        torch.testing.assert_close(torch.from_numpy(found["arr_0"]), module(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.topk(3)[0], r"there is no translation of TopK /module/TopK; use another"),
        (lambda x: x.clamp(0, 2), r"translation of Clip /module/Clip to \[0.0, 2.0\]; use"),
        (lambda x: functional.avg_pool2d(x, 3, 1, 1), r"AveragePool /module/AveragePool"),
    ],
)
def test_what_cannot_be_translated_is_named(
    function: Callable[[torch.Tensor], torch.Tensor], said: str, tmp_path: Path
) -> None:
    need("onnx", "litert")
    from autoprune.runtimes.tflite import convert

    export_onnx(Function(function).eval(), SHAPE, tmp_path / "network.onnx")
    with pytest.raises(DeviceError, match=said):
        convert(tmp_path / "network.onnx", tmp_path / "network.tflite")
