"""Networks as their own tool describes them, so that it can build them itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from autoprune.structure.graph import Tie


class Description(ABC):
    """What a network's own tool builds networks from, such as Ultralytics' YAML.

    Attributes:
        suffix: of the file that holds a description, e.g. ``.yaml``.
        kept: for users, what the tool does to a checkpoint that carries the description of its own network.
        lost: for users, what it does to one that carries the dense network's.
    """

    suffix: str
    kept: str
    lost: str

    @abstractmethod
    def ties(self, module: nn.Module) -> Sequence[Tie]:
        """Return the widths that depend on each other in every network that a description can express.

        Widths are taken to be multiples of 8.

        Args:
            module: the dense network.

        Raises:
            ModelError: no description expresses the network.
        """

    @abstractmethod
    def described(self, module: nn.Module) -> tuple[nn.Module, str]:
        """Return a copy of a network that carries its own description, and that description as a file's text.

        Raises:
            ModelError: no description expresses the network; the message names its first layer that differs.
        """
