"""Images as Darknet gives them to a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.image_size import ImageSize
from autoprune.models.darknet import parse_cfg
from autoprune.models.darknet.images import Augmentation, letterbox, load_augmented, load_sample
from autoprune.models.detection.data_set import Label, read_data_set, verified
from tests.helpers.darknet_detector import CFG
from tests.helpers.detectors import write_data

SIZE = ImageSize(64, 96)


@pytest.fixture(scope="module")
def label(tmp_path_factory: pytest.TempPathFactory) -> Label:
    """An image of 64×48 pixels, grey but for a green and a blue box."""
    data = read_data_set(write_data(tmp_path_factory.mktemp("images")))
    found = verified(data.files("train")[0], data, "detect")
    assert not isinstance(found, str)
    return found


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.builds(ImageSize, st.integers(1, 48), st.integers(1, 48)),
)
@settings(max_examples=40)
def test_an_image_lies_in_the_middle_of_grey(height: int, width: int, size: ImageSize) -> None:
    boxed, (left, top, new_width, new_height) = letterbox(torch.ones(3, height, width), size)
    assert boxed.shape == (3, *size)
    assert new_width == size.width or new_height == size.height
    scale = min(size.width / width, size.height / height)
    assert (new_width, new_height) == pytest.approx((width * scale, height * scale), abs=1)
    assert left == (size.width - new_width) // 2
    assert top == (size.height - new_height) // 2
    inside = torch.full(size, 0.5)
    inside[top : top + new_height, left : left + new_width] = 1
    torch.testing.assert_close(boxed, inside.expand(3, -1, -1))


def test_corners_stay_corners() -> None:
    image = torch.arange(12.0).view(1, 3, 4).expand(3, -1, -1) / 12
    boxed, (left, top, width, height) = letterbox(image, ImageSize(9, 9))
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        inside = boxed[:, top : top + height, left : left + width]
        torch.testing.assert_close(inside[:, row, column], image[:, row, column])


def colours_in(sample: dict[str, torch.Tensor] | object, box: torch.Tensor) -> torch.Tensor:
    """The mean colour of the middle half of a box, RGB in [0, 255]."""
    x, y, width, height = (box * torch.tensor([SIZE.width, SIZE.height] * 2)).tolist()
    rows, columns = (
        slice(int(at - side / 4), max(int(at + side / 4), int(at - side / 4) + 1))
        for at, side in ((y, height), (x, width))
    )
    image: torch.Tensor = sample["img"]  # type: ignore[index]
    return image[:, rows, columns].mean((1, 2))


def test_labels_follow_the_letterbox(label: Label) -> None:
    sample = load_sample(label, SIZE)
    for kind, box in zip(sample["cls"].view(-1).tolist(), sample["bboxes"], strict=True):
        red, green, blue = colours_in(sample, box).tolist()
        assert (green > blue) == (kind == 0)
        assert max(green, blue) > red + 50


@pytest.mark.parametrize("seed", range(8))
def test_labels_follow_the_augmentation(label: Label, seed: int) -> None:
    augmentation = Augmentation(jitter=0.3, hue=0.0, saturation=1.2, exposure=1.2)
    sample = load_augmented(label, SIZE, augmentation, random=np.random.default_rng(seed))
    again = load_augmented(label, SIZE, augmentation, random=np.random.default_rng(seed))
    assert torch.equal(sample["img"], again["img"])
    assert sample["img"].shape == (3, *SIZE)
    for kind, box in zip(sample["cls"].view(-1).tolist(), sample["bboxes"], strict=True):
        assert ((box >= 0) & (box <= 1)).all()
        if box[2:].min() * min(SIZE) > 6:
            _, green, blue = colours_in(sample, box).tolist()
            assert (green > blue) == (kind == 0)


def test_a_cfg_says_how_far() -> None:
    assert Augmentation.of(parse_cfg(CFG)) == Augmentation(jitter=0.2, hue=0, saturation=1, exposure=1)
    text = CFG.replace("channels=3", "channels=3\nhue=.1\nsaturation=1.5\nexposure=1.4").replace(
        "num=2", "num=2\njitter=.3"
    )
    assert Augmentation.of(parse_cfg(text)) == Augmentation(jitter=0.3, hue=0.1, saturation=1.5, exposure=1.4)


def test_an_image_that_cannot_be_decoded_is_told(label: Label, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot be decoded"):
        load_sample({**label, "im_file": str(tmp_path / "no.png")}, SIZE)
