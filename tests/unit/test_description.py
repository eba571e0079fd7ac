"""A data set's YAML file: what Ultralytics reads is read, and what cannot be meant is refused in one sentence."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import PIL.Image
import pytest

from autoprune.errors import DataError
from autoprune.models import stock
from autoprune.models.detection.data_set import cut_short, read_data_set

GOOD = "train: images/train\nnames: [a, b]\n"

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: t\nnames: [a]\npath: [a]\n", r"'path' of .* must be the path of a folder, got \['a'\]"),
        ("train: t\nnames: [a]\npath: 5\n", "must be the path of a folder, got 5"),
        ("train: t\nnames: [a]\nkpt_shape: abc\n", r"'kpt_shape' of .* must be \[keypoints, 2 or 3\]"),
        ("train: t\nnames: [a]\nkpt_shape: [17]\n", "'kpt_shape'"),
        ("train: t\nnames: [a]\nkpt_shape: [17, 4]\n", "'kpt_shape'"),
        ("train: t\nnames: [a]\nkpt_shape: [true, 3]\n", "'kpt_shape'"),
        ("train: t\nnames: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 2]\n", "'flip_idx'"),
        ("train: t\nnames: [a]\nflip_idx: x\n", "'flip_idx'"),
        ("train: 5\nnames: [a]\n", "'train' of .* must be a path or a list of paths, got 5"),
        ("train: {a: b}\nnames: [a]\n", "'train' of .* must be a path"),
        (f"train: {'a' * 5000}\nnames: [a]\n", "names a path that no file can have"),
        (f"train: t\npath: {'a' * 5000}\nnames: [a]\n", "names a path that no file can have"),
        ('train: "a\\0b"\nnames: [a]\n', "names a path that no file can have"),
        ("train: t\nnames: {0: a, x: b}\n", "'names' of .* must be numbered 0 to 1"),
        ("train: t\nnames: {true: a}\n", "'names' of .* must be numbered 0 to 0"),
        ("train: t\nnames: [[a], b]\n", r"'names' of .* must be texts, got \['a'\]"),
        ("train: t\nnames: [~, b]\n", "'names' of .* must be texts, got None"),
        ("train: t\nnames: abc\n", "'names' of .* must be a list"),
        ("train: t\nnames: []\n", "'names' of .* must be a list"),
        ("train: t\nnames: [a]\nnc: 2\n", "contradicts itself: 'nc' is 2, but 'names' has 1"),
        ("train: t\nnc: true\n", "'nc' of .* must be a whole number"),
        ("train: t\nnc: 1000000000\n", "'nc' of .* must be a whole number from 1 to 100000"),
        ("train: t\nnc: 2.0\n", "'nc' of .* must be a whole number"),
        (f"train: t\nnc: {'1' * 5000}\n", "is not readable YAML"),
        ("train: t\nnames: 2026-13-45\n", "is not readable YAML"),
        ("train: t\nnames: !!python/name:os.system ''\n", "has the tag .* in line 2, and tags are not read"),
        (BOMB + GOOD, "refers to an anchor in line 2, and anchors are not read"),
        ("a: &a [*a]\n" + GOOD, "refers to an anchor in line 1"),
        ("[" * 5000, "is nested too deeply in line 1"),
        ("a: [\n", "is not readable YAML"),
        ("- a\n", "must map names to values"),
        ("", "must map names to values"),
        (GOOD + "---\n" + GOOD, "has a second document in line 3"),
        ("#" * 2**21, "has 2097152 bytes, and at most 1048576 are read"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_data_set(file)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400 + len(str(file))


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (GOOD.encode(), ("a", "b")),
        (GOOD.encode() + b"# caf\xe9 in latin-1\n", ("a", "b")),
        (b"\xef\xbb\xbf" + GOOD.encode(), ("a", "b")),
        (b"train: images/train\nnames: &n [a, 1, yes]\nkpt_shape: ~\nval: ~\n", ("a", "1", "True")),
        (b"train: images/train\nnames: {1: b, 0: a}\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n", ("a", "b")),
        ("train: images/train\nnames: [手, été]\n".encode(), ("手", "été")),
    ],
)
def test_what_ultralytics_reads_is_read(tmp_path: Path, content: bytes, names: tuple[str, ...]) -> None:
    (tmp_path / "data.yaml").write_bytes(content)
    data = read_data_set(tmp_path / "data.yaml")
    assert data.names == names
    assert data.splits["train"] == ((tmp_path / "images" / "train").resolve(),)


def write_png(file: Path, width: int, height: int) -> None:
    """Write the head of a PNG image, which has its size, and little else."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))


def test_an_image_that_would_fill_the_memory_is_told_by_its_head(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", 20_000, 20_000)
    assert "decompression bomb" in str(cut_short(str(tmp_path / "a.png")))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG"])
def test_half_of_an_image_is_told(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "image"
    PIL.Image.new("RGB", (64, 64), (9, 99, 199)).save(file, kind)
    assert cut_short(str(file)) is None
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert cut_short(str(file)) is not None


def test_a_split_that_is_missing_is_told_with_what_it_is_for(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a]\n")
    with pytest.raises(DataError, match="names no 'val' split; its images measure the accuracy: move some tenth"):
        read_data_set(tmp_path / "data.yaml").files("val")


def test_a_folder_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; give the YAML file"):
        read_data_set(tmp_path)


def test_a_jpeg_with_bytes_behind_it_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "image.jpg"
    PIL.Image.new("RGB", (64, 64), (9, 99, 199)).save(file, "JPEG")
    file.write_bytes(file.read_bytes() + b"\0\0")
    assert "it is cut short, or bytes follow it" in str(cut_short(str(file)))


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    assert stock.YOLODataset  # loads Ultralytics, which changes Pillow
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.png").symlink_to("nowhere")
    said = {name: cut_short(str(tmp_path / f"{name}.png")) for name in "abcde"}
    assert said["a"] == said["b"] == said["d"] == "is no file"
    assert "cannot identify" in str(said["c"])
    assert said["e"] == "does not exist"
    assert cut_short(str(tmp_path / ("a" * 5000))) == cut_short("a\0b") == "does not exist"
