"""Which images of a split are looked at, where only a few of many are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from autoprune.models.detection.data_set import Sample


def balanced(
    files: Iterable[str], *, labelled: Callable[[str], bool], read: Callable[[str], Sample | None], rest: bool
) -> Iterator[Sample]:
    """Yield images in the order of their files, but those without labels not before as many with labels.

    An image without labels waits for one with labels. So the first image has labels, at least half of the first few
    have, and the first few are among the first many. Where half of the first files have labels anyway, it is the same
    files that come first. No more files are looked into than that takes.

    Args:
        files: the images.
        labelled: tells whether an image has labels, without reading the image.
        read: makes a sample of an image; None where that cannot be read.
        rest: yield images that still wait at the end, too.
    """
    waiting: deque[str] = deque()
    surplus = 0  # of images with labels
    for file in files:
        if not labelled(file):
            waiting.append(file)
        elif (sample := read(file)) is not None:
            surplus += 1
            yield sample
        while waiting and surplus:
            if (sample := read(waiting.popleft())) is not None:
                surplus -= 1
                yield sample
    if rest:
        yield from (sample for sample in map(read, waiting) if sample is not None)
