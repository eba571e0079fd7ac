"""The network together with its non-maximum suppression, as Ultralytics exports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.latency.features import deployed_layers
from autoprune.models.detection.exporting import CONFIDENCE
from autoprune.models.ultralytics import UltralyticsAdapter, stock
from autoprune.runtimes.exported import export_onnx
from autoprune.structure.graph import Layer, LayerKind
from tests.helpers.detectors import IMAGE_SIZE, build, write_detector

OVERLAP, MOST = 0.7, 300
SHAPE = (2, 3, IMAGE_SIZE, IMAGE_SIZE)


def eager(**extra: object) -> Any:
    """A detector that sees objects everywhere, with different scores, so that there is something to suppress."""
    network = build(**extra).train()
    random = torch.Generator().manual_seed(0)
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0  # of one batch: features that differ from point to point
    with torch.no_grad():
        network(torch.rand((4, *SHAPE[1:]), generator=random))
    head = network.model[-1]
    for branch in (*head.cv3, *getattr(head, "one2one_cv3", ())):
        nn.init.normal_(branch[-1].weight, std=0.3, generator=random)
        nn.init.zeros_(branch[-1].bias)
    return network.eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> UltralyticsAdapter:
    return UltralyticsAdapter.load(write_detector(tmp_path_factory.mktemp("eager") / "eager.pt", eager()))


def detections(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of one image that are detections, not padding."""
    return rows[rows[:, 4] > 0]


def check_suppressed(found: torch.Tensor, plain: torch.Tensor) -> None:
    """Assert that detections, shape (B, MOST, 6), are what Ultralytics' own suppression leaves of predictions."""
    expected = stock.non_max_suppression(plain, CONFIDENCE, OVERLAP, max_det=MOST)
    assert found.shape == (len(plain), MOST, 6)
    for rows, own in zip(found, expected, strict=True):
        assert len(own) > 1
        torch.testing.assert_close(detections(rows), own, rtol=1e-5, atol=1e-3)


def test_it_finds_what_ultralytics_own_suppression_leaves(adapter: UltralyticsAdapter) -> None:
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    plain, whole = (adapter.deployable(adapter.module, with_nms=chosen) for chosen in (False, True))
    with torch.inference_mode():
        predictions = plain(images)
        found = whole(images)
    check_suppressed(found, predictions)
    likely = (predictions[0, 4:].amax(0) > CONFIDENCE).sum()
    assert 1 < len(detections(found[0])) < likely < predictions.shape[2], "some are unlikely, some overlap"


def test_half_precision_suppresses_in_single(adapter: UltralyticsAdapter) -> None:
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        found = adapter.deployable(adapter.module, with_nms=True).bfloat16()(images)
    assert found.dtype is torch.float32
    assert all(1 < len(detections(rows)) < 80 for rows in found)


def test_an_end_to_end_head_has_nothing_to_suppress(tmp_path: Path) -> None:
    network = eager(end2end=True)
    network.end2end = True
    adapter = UltralyticsAdapter.load(write_detector(tmp_path / "eager.pt", network))
    plain, whole = (adapter.deployable(adapter.module, with_nms=chosen) for chosen in (False, True))
    assert type(plain) is type(whole)
    images = torch.rand(SHAPE)
    with torch.inference_mode():
        assert plain(images).shape[2] == 6
        assert torch.equal(plain(images), whole(images))


def test_layers_are_found_within_it(adapter: UltralyticsAdapter) -> None:
    layers = [Layer(name, LayerKind.CONV, 0, 0) for name in ("model.0.conv", "model.2.cv1.conv", "model.9.gone")]
    for with_nms in (False, True):
        kept = deployed_layers(layers, adapter.deployable(adapter.module, with_nms=with_nms), SHAPE)
        assert [layer.name for layer in kept] == ["model.0.conv", "model.2.cv1.conv"]


def test_as_onnx_it_finds_the_same(adapter: UltralyticsAdapter, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    whole = adapter.deployable(adapter.module, with_nms=True)
    export_onnx(whole, SHAPE, tmp_path / "whole.onnx")
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "whole.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images.numpy()})
    with torch.inference_mode():
        check_suppressed(torch.from_numpy(found), adapter.deployable(adapter.module)(images))


@pytest.mark.shared
def test_on_a_real_detector_and_real_images(shared: Path) -> None:
    adapter = UltralyticsAdapter.load(shared / "models/bccd-yolov8n-320.pt", data=shared / "data/bccd/bccd.yaml")
    (batch,) = adapter.batches("val", images=4, batch=4, seed=0)
    plain, whole = (adapter.deployable(adapter.module, with_nms=chosen) for chosen in (False, True))
    with torch.inference_mode():
        check_suppressed(whole(adapter.inputs(batch)), plain(adapter.inputs(batch)))
