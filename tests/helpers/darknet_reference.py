"""What OpenCV 4 computes from Darknet files that autoprune wrote: ``data/darknet_reference.npz``.

OpenCV 5 no longer reads them, so OpenCV runs in an environment of its own, which needs 'opencv-python-headless<5':

    python -m tests.helpers.darknet_reference write FOLDER
    ELSEWHERE/bin/python tests/helpers/darknet_reference.py read FOLDER

OpenCV 4.14.0 on the tiny network, dense and pruned: where our batch norm has OpenCV's epsilon of 1e-6, boxes (as parts
of the image, relative where they are larger than it) differ by 6e-6 at most and scores by 1.3e-6; with Darknet's 1e-5
by 1.1e-4 and 1.5e-5. The five families with an eighth of their widths at 128 px, dense and pruned at random: by 3e-7,
and with 1e-5 by 3e-6. OpenCV has no class scores below 0.2.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "data" / "darknet_reference.npz"
ROWS = slice(None, None, 7)
"""Which boxes are kept; 7 and the anchors per cell have no common divisor, so all anchors are among them."""

KEPT = {"layers.0": 11, "layers.1": 5, "layers.3": 3, "layers.4": 7, "layers.6": 10, "layers.9": 13, "layers.21": 9}


def write_files(folder: Path) -> None:
    """Write the tiny network, dense and pruned, and an image into a folder."""
    from autoprune.models.darknet import prune
    from tests.helpers import darknet_networks
    from tests.helpers.darknet_networks import last_channels

    dense = darknet_networks.build()
    darknet_networks.write_files(dense, folder, "dense")
    darknet_networks.write_files(prune(dense, KEPT, order=last_channels), folder, "pruned")
    np.save(folder / "images.npy", darknet_networks.images(1).numpy())


def read_files(folder: Path) -> None:
    """Let OpenCV read the files and write the fixture."""
    import cv2

    found = {}
    for name in ("dense", "pruned"):
        network = cv2.dnn.readNetFromDarknet(str(folder / f"{name}.cfg"), str(folder / f"{name}.weights"))
        network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        network.enableWinograd(False)  # it rounds
        network.setInput(np.load(folder / "images.npy"))
        found[name] = np.concatenate(network.forward(network.getUnconnectedOutLayersNames()))[ROWS]
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **found)


if __name__ == "__main__":
    {"write": write_files, "read": read_files}[sys.argv[1]](Path(sys.argv[2]))
