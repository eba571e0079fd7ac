"""Image sizes: how they are written, read and rounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.errors import ConfigError, ModelError
from autoprune.image_size import ImageSize

SIZES = st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000))


@given(size=SIZES)
def test_what_is_written_is_read_back(size: ImageSize) -> None:
    assert ImageSize.read(size.written) == size
    assert ImageSize.of(json.loads(json.dumps(size.plain))) == size


def test_a_square_is_one_number_and_another_size_height_and_width() -> None:
    square, wide = ImageSize.of(320), ImageSize.of((384, 640))
    assert (f"{square} px", square.written, square.plain) == ("320 px", "320", 320)
    assert (f"{wide} px", wide.written, wide.plain) == ("384x640 px", "384,640", [384, 640])
    assert ImageSize.read(" 384, 640 ") == wide
    assert (wide.height, wide.width, wide.longest) == (384, 640, 640)


@pytest.mark.parametrize("text", ["", ",", "384,", ",640", "384x640", "384,640,3", "a,640", "1_0", "3.5", "384 640"])
def test_what_is_no_size_is_not_read(text: str) -> None:
    assert ImageSize.read(text) is None


@pytest.mark.parametrize("given", [(64, 96, 3), (), "64", 64.0, (64, 96.0), ("64", "96"), None])
def test_what_is_neither_a_number_nor_a_pair_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be one whole number of pixels or a pair \(height, width\), got "):
        ImageSize.of(given)


@given(size=SIZES, multiple=st.sampled_from([16, 32, 64]))
def test_rounding_gives_the_nearest_multiples(size: ImageSize, multiple: int) -> None:
    found = size.rounded(multiple)
    for side, rounded in zip(size, found, strict=True):
        assert rounded % multiple == 0 < rounded
        assert abs(rounded - side) <= multiple / 2 or rounded == multiple
    found.check_stride(multiple)
    if found != size:
        with pytest.raises(ModelError, match=f"stride {multiple}, got {size.written}; try {found.written}"):
            size.check_stride(multiple)


@given(size=SIZES.map(lambda size: size.rounded(32)), longest=st.integers(1, 40).map(lambda number: 32 * number))
def test_scaling_keeps_the_aspect_ratio_as_far_as_multiples_can(size: ImageSize, longest: int) -> None:
    found = size.scaled(longest, 32)
    assert found.longest == longest
    assert size.scaled(size.longest, 32) == size
    for side, scaled in zip(size, found, strict=True):
        assert abs(scaled - side * longest / size.longest) <= 17 or scaled == 32
