"""The size of a network's input images: height and width, or one number for squares."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple, TypeAlias

from autoprune.errors import ConfigError, ModelError
from autoprune.io.numerals import whole

SizeLike: TypeAlias = int | Sequence[int]
"""A size as callers give it: pixels of a square's side, or height and width."""


class ImageSize(NamedTuple):
    """Height and width of images in pixels.

    As text it is ``320`` for a square, ``384x640`` for another size.

    Attributes:
        height: number of rows.
        width: number of columns.

    Example:
        >>> f"{ImageSize(320, 320)} px, {ImageSize(384, 640)} px"
        '320 px, 384x640 px'
    """

    height: int
    width: int

    @classmethod
    def of(cls, size: SizeLike) -> ImageSize:
        """Return the size that one number or a pair stands for.

        Raises:
            ConfigError: it is neither.

        Example:
            >>> ImageSize.of(320), ImageSize.of([384, 640])
            (ImageSize(height=320, width=320), ImageSize(height=384, width=640))
        """
        sides = size if isinstance(size, Sequence) else [size]
        if len(sides) not in (1, 2) or not all(isinstance(side, Integral) for side in sides):
            raise ConfigError(f"`imgsz` must be one whole number of pixels or a pair (height, width), got {size!r}")
        return cls(int(sides[0]), int(sides[-1]))

    @classmethod
    def read(cls, text: str) -> ImageSize | None:
        """Return the size that a text is, ``640`` or ``384,640`` (height, width), or None if it is none.

        Example:
            >>> ImageSize.read("384,640"), ImageSize.read("384x640")
            (ImageSize(height=384, width=640), None)
        """
        sides = [side for part in text.split(",") if (side := whole(part.strip(" "))) is not None]
        return cls(sides[0], sides[-1]) if len(sides) == text.count(",") + 1 <= 2 else None

    @property
    def square(self) -> bool:
        """Whether height and width are the same."""
        return self.height == self.width

    @property
    def sides(self) -> tuple[int, ...]:
        """One number for a square, else height and width."""
        return self[:1] if self.square else self

    @property
    def plain(self) -> int | list[int]:
        """The size as JSON and Ultralytics have it: ``320``, or ``[384, 640]``."""
        return self.height if self.square else list(self)

    @property
    def written(self) -> str:
        """The size as `read` takes it: ``320``, or ``384,640``."""
        return ",".join(map(str, self.sides))

    @property
    def longest(self) -> int:
        """The longer side."""
        return max(self)

    def rounded(self, multiple: int) -> ImageSize:
        """Return the nearest size whose sides are positive multiples of a number.

        Example:
            >>> ImageSize(100, 640).rounded(32)
            ImageSize(height=96, width=640)
        """
        return ImageSize(*(max(1, (side + multiple // 2) // multiple) * multiple for side in self))

    def scaled(self, longest: int, multiple: int) -> ImageSize:
        """Return the size of about the same aspect ratio with another longer side, in multiples of a number.

        Example:
            >>> ImageSize(384, 640).scaled(320, 32)
            ImageSize(height=192, width=320)
        """
        return ImageSize(*(side * longest // self.longest for side in self)).rounded(multiple)

    def check_stride(self, stride: int) -> None:
        """Make sure that both sides are positive multiples of a network's stride.

        Raises:
            ModelError: they are not.
        """
        if self != (nearest := self.rounded(stride)):
            raise ModelError(
                f"the image size must be a positive multiple of the network's stride {stride}, got {self.written}; try "
                f"{nearest.written}"
            )

    def __str__(self) -> str:
        return "x".join(map(str, self.sides))
