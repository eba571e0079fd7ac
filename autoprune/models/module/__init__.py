"""Networks of any class: an adapter of a user's own module, loss, data and metric."""

from autoprune.models._trainable import Sgd
from autoprune.models.module.adapter import ModuleAdapter
from autoprune.models.module.loading import load, load_pickled

__all__ = ["ModuleAdapter", "Sgd", "load", "load_pickled"]
