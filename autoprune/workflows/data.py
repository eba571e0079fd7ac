"""``autoprune data``: a published data set → an Ultralytics data set."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from autoprune.choices import DataSetName
from autoprune.config import DataConfig
from autoprune.data import SPLITS, Published, Written, oxford_hand, write_description, write_split
from autoprune.io.files import new_folder
from autoprune.listener import Listener
from autoprune.workflows.call import Caller, Finished

_READERS: Mapping[DataSetName, Callable[[Path], Published]] = {DataSetName.OXFORD_HAND: oxford_hand}


def run(config: DataConfig, listener: Listener, caller: Caller) -> Finished:
    """Write the data set whole or not at all, and tell what is in it."""
    published = _READERS[config.data_set](config.source)
    with new_folder(config.target) as folder:
        written = _write(published, folder, listener)
    if published.unpaired:
        listener.warn(
            f"Left out, because an image lacks its annotation or an annotation its image: {len(published.unpaired)} "
            f"files, among them {published.unpaired[0]}"
        )
    dropped = sum(split.dropped for split in written.values())
    if dropped:
        listener.warn(f"Left out, because less than a pixel of them lies within their image: {dropped} boxes")
    rows = [[name, *map(str, (one.images, one.objects, one.background))] for name, one in written.items()]
    listener.table(published.title, ["", "images", "objects", "images without any"], rows)
    file = config.target / published.file
    listener.note(f"The data set is {file}. Train a detector on it and prune that:")
    listener.note(f"yolo detect train model=yolov8n.yaml data={shlex.quote(str(file.absolute()))}")
    listener.note(f"autoprune search --model best.pt --data {shlex.quote(str(file))} --budget flops=50%")
    return Finished(config.target)


def _write(published: Published, folder: Path, listener: Listener) -> dict[str, Written]:
    """Write all splits and the YAML file."""
    done = count(1)
    with listener.progress("Converting", sum(map(len, published.splits.values()))) as advance:
        written = {
            split: write_split(published, split, folder, on_image=lambda: advance(next(done))) for split in SPLITS
        }
    write_description(published, folder)
    return written
