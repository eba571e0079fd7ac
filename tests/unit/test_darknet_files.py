"""Darknet's files: what is read, what is refused with file and line, and that a round trip changes nothing."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.errors import ModelError
from autoprune.models.darknet import DarknetNetwork, Header, parse_cfg, read, read_cfg, weights_bytes
from tests.helpers.darknet_networks import CFG, build, write_files

CLOSE = "[net]\nwidth=4\nheight=4\nchannels=2\n\n"


# -- cfg -------------------------------------------------------------------------------------------


def test_sections_and_options_know_their_lines() -> None:
    cfg = parse_cfg(CFG)
    assert cfg.text == CFG
    assert (cfg.net.integer("width"), cfg.net.options["width"].line) == (96, 4)
    assert [section.name for section in cfg.layers[:3]] == ["convolutional", "convolutional", "route"]
    assert cfg.layers[0].line == 9
    assert cfg.layers[0].integer("filters") == 16  # a comment follows on the line
    assert cfg.layers[19].numbers("anchors")[:4] == (8, 10, 12, 20)


def test_only_the_numbers_that_change_change() -> None:
    changed = parse_cfg(CFG).replaced({(0, "filters"): 9, (10, "groups"): 12})
    expected = CFG.replace("filters=16   # the first", "filters=9   # the first").replace("groups=24", "groups=12")
    assert changed.text == expected
    assert changed.layers[0].integer("filters") == 9
    assert changed.replaced({(0, "filters"): 16, (10, "groups"): 24}).text == CFG
    spaced = parse_cfg(CFG.replace("filters=16   # the first", "filters = 1 6  # the first"))
    assert spaced.layers[0].integer("filters") == 16
    assert "filters = 9  # the first" in spaced.replaced({(0, "filters"): 9}).text


def test_spaces_short_names_and_repeated_options_are_read_as_darknet_does() -> None:
    cfg = parse_cfg(
        "[network]\n[conv]\n fil ters = 4 ; \n".replace(" ; ", "") + "filters=5\n; a comment\n[max]\nsize=3"
    )
    assert [section.name for section in (cfg.net, *cfg.layers)] == ["net", "convolutional", "maxpool"]
    assert cfg.layers[0].integer("filters") == 4


def test_comments_in_any_encoding_and_line_ends_survive(tmp_path: Path) -> None:
    content = CFG.replace("# the tiny one", "# \udcd6\udcd0").encode(errors="surrogateescape").replace(b"\n", b"\r\n")
    (tmp_path / "odd.cfg").write_bytes(content)
    network = DarknetNetwork(read_cfg(tmp_path / "odd.cfg"))
    cfg, _ = write_files(network, tmp_path)
    assert cfg.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[upsample]", "[reorg]", r"line 140: a section must be one of .*; \[reorg\] is not supported"),
        ("[net]", "[maxpool]", r"must begin with the section \[net\]"),
        ("[upsample]", "[net]", r"line 140: a cfg has one section \[net\]"),
        ("hue=.1", "hue", r"line 7: a line must be a \[section\], key=value or # a comment, got 'hue'"),
        ("[net]", "size=3\n[net]", "line 1: a line must be"),
        ("width=96\n", "", r"line 1: \[net\] needs width="),
        ("height=64", "height=0", "line 5: height must be a whole number of at least 1, got '0'"),
        ("filters=16   #", "filters=many #", "line 11: filters must be a whole number of at least 1, got 'many'"),
        ("activation=mish", "activation=maxout", "line 23: activation must be one of linear, .*, got maxout"),
        ("groups=24", "groups=7", "line 76: groups must divide the 24 channels that come in and the 24 filters, got 7"),
        ("stride=2\npad=1\nactivation=relu", "dilation=2", r"dilation=2 is not supported in \[convolutional\]"),
        ("from=-3", "from=-4", r"line 91: \[shortcut\] adds layers of one shape, got 24×8×12, 32×16×24"),
        ("from=-3", "from=-13", "from must name layers before this one, which is number 12; got -13"),
        ("from=-3\n", "", r"line 90: \[shortcut\] needs from="),
        ("from=-3", "from=-3\nweights_type=per_feature", "line 92: weights_type=per_feature is not supported"),
        ("layers = -6,-1", "layers = 0,1,x", "layers must be numbers with commas between, got '0,1,x'"),
        ("layers = -6,-1", "layers = 0,1.5", "layers must be whole numbers with commas between, got '0,1.5'"),
        ("layers = -1, 8", "layers = -1, 9", r"\[route\] joins layers of one height and width, got 16×16×24, 24×8×12"),
        ("layers = -3", "layers = -1", r"\[route\] reads a \[yolo\] layer"),
        ("group_id=1", "group_id=2", "group_id must be below groups, which is 2, got 2"),
        ("groups=2\n", "groups=3\n", "groups must divide the channels of every layer, got 3"),
        ("filters=21", "filters=20", r"reads 21 channels, the layer before gives 20; set its filters"),
        ("mask = 1,2,3", "mask = 2,3,4", "mask must name some of the 4 anchors, from 0, got 2, 3, 4"),
        ("scale_x_y = 1.2", "scale_x_y = 2\nnew_coords=1", r"new_coords=1 is not supported in \[yolo\]"),
        ("size=2\nstride=1\n\n### SPP", "size=2\nstride=1\nstride_x=2\n\n### SPP", "stride_x must equal stride"),
        ("size=2\nstride=1\n\n### SPP", "size=2\npadding=3\n\n### SPP", "padding must leave something in every window"),
    ],
)
def test_a_cfg_that_is_no_network_is_refused_with_its_line(old: str, new: str, said: str) -> None:
    assert old in CFG
    with pytest.raises(ModelError, match=said) as caught:
        DarknetNetwork(parse_cfg(CFG.replace(old, new, 1), "my.cfg"))
    assert str(caught.value).startswith("my.cfg")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("[convolutional]\nfilters=6\n", r"line 1: a detector needs a section \[yolo\]"),
        ("[convolutional]\nsize=7\n", "line 6: .convolutional. leaves nothing of an image of 2×4×4"),
        ("[shortcut]\nfrom=-1\n", "from must name layers before this one, which is number 0"),
        ("", r"a detector needs a section \[yolo\]"),
    ],
)
def test_networks_without_boxes_or_images_are_refused(layers: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        DarknetNetwork(parse_cfg(CLOSE + layers))


def test_options_with_the_value_that_changes_nothing_are_no_problem() -> None:
    text = CFG.replace("size=2\nstride=2", "size=2\nstride=2\nantialiasing=0\nmaxpool_depth=0")
    DarknetNetwork(parse_cfg(text.replace("[upsample]\nstride=2", "[upsample]\nstride=2\nscale=1.0")))


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "size"), [(Header(0, 1, 0, 7), 16), (Header(0, 2, 5, 2**40), 20), (Header(1, 0, 0, 7), 20)]
)
def test_a_round_trip_gives_the_same_bytes(tmp_path: Path, header: Header, size: int) -> None:
    cfg, weights = write_files(build(), tmp_path)
    before = weights_bytes(build(), header)
    weights.write_bytes(before)
    assert len(header.to_bytes()) == size
    network, found = read(cfg, weights)
    assert found == header
    assert weights_bytes(network, found) == before


def test_numbers_lie_in_the_file_as_darknet_has_them(tmp_path: Path) -> None:
    text = CLOSE + (
        "[convolutional]\nbatch_normalize=1\nfilters=2\nactivation=leaky\n"
        "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nclasses=1\nnum=1\nanchors=2,3\n"
    )
    network = build(text)
    _, weights = write_files(network, tmp_path)
    norm, first, head = network.layers[0].norm, network.layers[0].conv, network.layers[1].conv
    numbers = [norm.bias, norm.weight, norm.running_mean, norm.running_var, first.weight, head.bias, head.weight]
    expected = torch.cat([tensor.detach().flatten() for tensor in numbers]).numpy()
    data = weights.read_bytes()
    assert struct.unpack_from("<iiiQ", data) == (0, 2, 5, 64_000)
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", offset=20), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-4], r"must hold 21155 numbers .* for .*tiny\.cfg, got 21154; it was cut off"),
        (lambda data: data + bytes(8), "must hold 21155 numbers .* got 21157;"),
        (lambda data: data[:-1], r"must hold 21155 numbers .* got 21154\.75;"),
        (lambda data: data[:15], "its 15 bytes are less than a header"),
        (lambda data: b"", "its 0 bytes are less than a header"),
    ],
)
def test_weights_of_another_length_are_refused(tmp_path: Path, change: object, said: str) -> None:
    cfg, weights = write_files(build(), tmp_path)
    assert callable(change)
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(ModelError, match=said):
        read(cfg, weights)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    cfg, _ = write_files(build(), tmp_path)
    with pytest.raises(ModelError, match=r"none\.weights cannot be read: No such file"):
        read(cfg, tmp_path / "none.weights")
    with pytest.raises(ModelError, match=r"none\.cfg cannot be read: No such file"):
        read_cfg(tmp_path / "none.cfg")
