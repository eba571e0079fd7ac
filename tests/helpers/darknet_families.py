"""The cfgs of the Darknet detectors that people have, written from a description of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

ANCHORS = {
    "yolov3": "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326",
    "yolov4": "12,16, 19,36, 40,28, 36,75, 76,55, 72,146, 142,110, 192,243, 459,401",
    "tiny": "10,14, 23,27, 37,58, 81,82, 135,169, 344,319",
}

NUMBERS = {
    "yolov3": 62_001_757,
    "yolov3-tiny": 8_858_734,
    "yolov3-spp": 63_052_381,
    "yolov4": 64_429_405,
    "yolov4-tiny": 6_062_814,
}
"""How many numbers the published files hold: yolov3.weights has 248,007,048 bytes, of which 20 are its header, etc."""


class _Writer:
    def __init__(self, size: int, activation: str, divisor: int) -> None:
        self.parts = [f"[net]\nwidth={size}\nheight={size}\nchannels=3\n"]
        self.activation, self._divisor = activation, divisor

    @property
    def count(self) -> int:
        """The number of the next layer."""
        return len(self.parts) - 1

    def add(self, name: str, **options: object) -> None:
        self.parts.append(f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in options.items()))

    def conv(self, filters: int, size: int = 1, stride: int = 1) -> None:
        self.add(
            "convolutional",
            batch_normalize=1,
            filters=filters // self._divisor,
            size=size,
            stride=stride,
            pad=1,
            activation=self.activation,
        )

    def route(self, *layers: int) -> None:
        self.add("route", layers=",".join(map(str, layers)))

    def residual(self, *, hidden: int, width: int, times: int) -> None:
        for _ in range(times):
            self.conv(hidden)
            self.conv(width, 3)
            self.add("shortcut", **{"from": -3, "activation": "linear"})

    def head(self, mask: str, anchors: str) -> None:
        self.add("convolutional", filters=255, size=1, stride=1, pad=1, activation="linear")
        self.add("yolo", mask=mask, anchors=anchors, classes=80, num=anchors.count(",") // 2 + 1, scale_x_y=1.1)

    def pooled(self) -> None:
        """Add spatial pyramid pooling."""
        for size, back in ((5, -2), (9, -4)):
            self.add("maxpool", stride=1, size=size)
            self.route(back)
        self.add("maxpool", stride=1, size=13)
        self.route(-1, -3, -5, -6)


def yolov3(divisor: int = 1, size: int = 416, *, spp: bool = False) -> str:
    """YOLOv3 and YOLOv3-SPP; all widths but the heads' are divided by ``divisor``."""
    net, stages = _Writer(size, "leaky", divisor), []
    net.conv(32, 3)
    for width, times in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(width, 3, 2)
        net.residual(hidden=width // 2, width=width, times=times)
        stages.append(net.count - 1)
    for level, width in enumerate((512, 256, 128)):
        if level:
            net.route(-4)
            net.conv(width)
            net.add("upsample", stride=2)
            net.route(-1, stages[4 - level])
        for repeat in range(3):
            net.conv(width)
            if spp and not level and repeat == 1:
                net.pooled()
                net.conv(width)
            net.conv(2 * width, 3)
        net.head(("6,7,8", "3,4,5", "0,1,2")[level], ANCHORS["yolov3"])
    return "\n".join(net.parts)


def _tiny_heads(net: _Writer, joined: int, anchors: str) -> str:
    """Add the two heads of a tiny network, the second one with a layer of the backbone and these anchors."""
    net.head("3,4,5", ANCHORS["tiny"])
    net.route(-4)
    net.conv(128)
    net.add("upsample", stride=2)
    net.route(-1, joined)
    net.conv(256, 3)
    net.head(anchors, ANCHORS["tiny"])
    return "\n".join(net.parts)


def yolov3_tiny(divisor: int = 1, size: int = 416) -> str:
    """YOLOv3-tiny."""
    net = _Writer(size, "leaky", divisor)
    for width in (16, 32, 64, 128, 256):
        net.conv(width, 3)
        net.add("maxpool", size=2, stride=2)
    net.conv(512, 3)
    net.add("maxpool", size=2, stride=1)
    net.conv(1024, 3)
    net.conv(256)
    net.conv(512, 3)
    return _tiny_heads(net, 8, "0,1,2")


def yolov4_tiny(divisor: int = 1, size: int = 416) -> str:
    """YOLOv4-tiny, whose routes take halves."""
    net = _Writer(size, "leaky", divisor)
    net.conv(32, 3, 2)
    net.conv(64, 3, 2)
    for width in (64, 128, 256):
        net.conv(width, 3)
        net.add("route", layers=-1, groups=2, group_id=1)
        net.conv(width // 2, 3)
        net.conv(width // 2, 3)
        net.route(-1, -2)
        net.conv(width)
        net.route(-6, -1)
        net.add("maxpool", size=2, stride=2)
    net.conv(512, 3)
    net.conv(256)
    net.conv(512, 3)
    return _tiny_heads(net, 23, "1,2,3")


def yolov4(divisor: int = 1, size: int = 608) -> str:
    """YOLOv4: cross-stage partial backbone with mish, spatial pyramid pooling, path aggregation."""
    net, stages = _Writer(size, "mish", divisor), []
    net.conv(32, 3)
    for width, times in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        half, hidden = (64, 32) if times == 1 else (width // 2, width // 2)
        net.conv(width, 3, 2)
        net.conv(half)
        net.route(-2)
        net.conv(half)
        net.residual(hidden=hidden, width=half, times=times)
        net.conv(half)
        net.route(-1, -(3 * times + 4))
        net.conv(width)
        stages.append(net.count - 1)
    net.activation = "leaky"
    net.conv(512)
    net.conv(1024, 3)
    net.conv(512)
    net.pooled()
    net.conv(512)
    net.conv(1024, 3)
    net.conv(512)
    levels = [net.count - 1]
    for width, stage in ((256, stages[3]), (128, stages[2])):
        net.conv(width)
        net.add("upsample", stride=2)
        net.route(stage)
        net.conv(width)
        net.route(-1, -3)
        _five(net, width)
        levels.append(net.count - 1)
    for level, width in enumerate((128, 256, 512)):
        if level:
            net.route(-4)
            net.conv(width, 3, 2)
            net.route(-1, levels[2 - level])
            _five(net, width)
        net.conv(2 * width, 3)
        net.head(("0,1,2", "3,4,5", "6,7,8")[level], ANCHORS["yolov4"])
    return "\n".join(net.parts)


def _five(net: _Writer, width: int) -> None:
    for repeat in range(5):
        net.conv(2 * width if repeat % 2 else width, 3 if repeat % 2 else 1)


FAMILIES: Mapping[str, Callable[[int, int], str]] = {
    "yolov3": yolov3,
    "yolov3-tiny": yolov3_tiny,
    "yolov3-spp": lambda divisor, size: yolov3(divisor, size, spp=True),
    "yolov4": yolov4,
    "yolov4-tiny": yolov4_tiny,
}
"""Name → its cfg, given what widths are divided by and the image size."""
