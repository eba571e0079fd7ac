"""Hand the curves of a run to experiment trackers; a tracker is a class and one line of ``TRACKERS``."""

from __future__ import annotations

import json
import math
import os
import pkgutil
import re
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from autoprune.errors import ConfigError
from autoprune.io.files import write_atomic
from autoprune.io.installed import install_extra
from autoprune.listener import warn

PROJECT = "autoprune"
"""What the experiment, or project, is called in trackers that have them."""

STATE = "tracking.json"
"""The file of a run folder that says what was handed on already."""


class Tracker(Protocol):
    """Keeps the figures of one run.

    Example:
        >>> class Prints:
        ...     def start(self, name, config, folder, key):
        ...         print("run", name)
        ...     def log(self, step, values):
        ...         print(step, dict(values))
        ...     def finish(self, failed):
        ...         pass
        >>> tracker = Prints()
        >>> tracker.start("runs/search-1", {}, Path("runs/search-1"), "5f3e")
        run runs/search-1
        >>> tracker.log(1, {"search/best": 0.25})
        1 {'search/best': 0.25}
    """

    def start(self, name: str, config: Mapping[str, Any], folder: Path, key: str) -> None:
        """Begin a run, or go on with it.

        Args:
            name: of the run.
            config: its options, plain values.
            folder: where local files may be written.
            key: tells the run from all others; the same when it goes on.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep figures; the steps of each name only rise."""

    def finish(self, failed: bool) -> None:
        """Write what is not written yet, and close; ``failed`` if the run was stopped before its end."""


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker that there is.

    Attributes:
        name: on the command line.
        factory: makes it, as ``module:class``; imported when it is used.
        package: what it needs.
        extra: what installs that; empty if autoprune brings it.
    """

    name: str
    factory: str
    package: str
    extra: str = ""

    def make(self) -> Tracker:
        """Return the tracker, not started yet.

        Raises:
            ConfigError: its package is not installed.
        """
        try:
            pkgutil.resolve_name(self.package)
        except ImportError as error:
            raise ConfigError(
                f"`tracker` {self.name} needs {self.package}, which is not installed: {install_extra(self.extra)}"
            ) from error
        tracker: Tracker = pkgutil.resolve_name(self.factory)()
        return tracker


class TensorBoardTracker:
    """Writes event files to ``tensorboard`` in the run folder."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, key: str) -> None:
        """Begin a file; one more if the run goes on, which TensorBoard shows as the same run."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the figures; to the disk at once, for after a kill they are not written again."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, failed: bool) -> None:
        """Close the file."""
        self._writer.close()


class MLflowTracker:
    """Sends figures to ``MLFLOW_TRACKING_URI``; without it, to files in ``mlruns`` of the run folder."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, key: str) -> None:
        """Begin a run of the experiment ``autoprune``, or go on with it."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
        if "://" not in uri or uri.startswith("file:"):  # MLflow refuses its own file store unless it is asked for
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._client.get_experiment_by_name(PROJECT)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(PROJECT)
        known = self._client.search_runs([place], filter_string=f"tags.autoprune_run = '{key}'")
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(place, run_name=name, tags={"autoprune_run": key}).info.run_id
        for option, value in config.items():
            self._client.log_param(self._run, option, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the figures, under names that MLflow allows."""
        for name, value in values.items():
            self._client.log_metric(self._run, re.sub(r"[^\w. /-]", "_", name), value, step=step)

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


class WandbTracker:
    """Hands figures to Weights & Biases: as ``WANDB_MODE`` says, without it offline, into the run folder."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, key: str) -> None:
        """Begin a run of the project ``autoprune``, or go on with it."""
        import wandb

        self._run = wandb.init(
            mode=os.environ.get("WANDB_MODE", "offline"),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=key,
            resume="allow",
            dir=folder,
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                symlink=False,  # a run folder with links is not resumed
            ),
        )
        self._series: set[str] = set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on the figures, each series with steps of its own: wandb's own step counts calls."""
        series = {name.partition("/")[0] for name in values}
        for one in series - self._series:
            self._run.define_metric(f"{one}/step")
            self._run.define_metric(f"{one}/*", step_metric=f"{one}/step")
        self._series |= series
        self._run.log({**values, **{f"{one}/step": step for one in series}})

    def finish(self, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))


TRACKERS = (
    TrackerSpec("tensorboard", "autoprune.tracking:TensorBoardTracker", "tensorboard"),
    TrackerSpec("mlflow", "autoprune.tracking:MLflowTracker", "mlflow", extra="mlflow"),
    TrackerSpec("wandb", "autoprune.tracking:WandbTracker", "wandb", extra="wandb"),
)
"""The trackers, by their names on the command line."""


def check_tracker(name: str) -> TrackerSpec:
    """Return the record of a tracker.

    Raises:
        ConfigError: there is none of that name.

    Example:
        >>> check_tracker("mlflow").extra
        'mlflow'
    """
    for spec in TRACKERS:
        if spec.name == name:
            return spec
    raise ConfigError(f"`tracker` must be {', '.join(spec.name for spec in TRACKERS)}, got {name}")


class RunTracking:
    """Hands figures of one run to its trackers: every step of a name once, in rising order, whatever a resume repeats.

    Trackers start at the first figure. One that fails, as a server may be away, costs a warning: the run goes on
    without it.

    Args:
        trackers: by name, not started yet.
        folder: the run's.
        config: the run's options, plain values.
    """

    def __init__(self, trackers: Mapping[str, Tracker], folder: Path, config: Mapping[str, Any]) -> None:
        self._trackers, self._folder, self._config = dict(trackers), folder, config
        self._started: set[str] = set()
        self._key, kept = self._kept()
        self._steps: dict[str, dict[str, int]] = kept | {name: kept.get(name, {}) for name in trackers}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand on those figures that are new to a tracker; what is not a number says nothing and is left out."""
        figures = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        new = {
            tracker: {name: value for name, value in figures.items() if step > self._steps[tracker].get(name, -1)}
            for tracker in self._trackers
        }
        if not any(new.values()):
            return
        for tracker, given in new.items():
            self._steps[tracker] |= dict.fromkeys(given, step)
        # Before they are handed on: after a kill between the two one step is missing, none is there twice.
        write_atomic(self._folder / STATE, json.dumps({"key": self._key, "steps": self._steps}))
        for tracker, given in new.items():
            if given:
                self._asked(tracker, partial(self._hand_on, tracker, step, given))

    def close(self, *, failed: bool = False) -> None:
        """Finish the trackers that were started; ``failed`` if the run was stopped before its end."""
        for name in self._started & set(self._trackers):
            self._asked(name, partial(self._trackers[name].finish, failed))

    def _hand_on(self, name: str, step: int, values: Mapping[str, float]) -> None:
        tracker = self._trackers[name]
        if name not in self._started:
            tracker.start(self._folder.name, self._config, self._folder, self._key)
            self._started.add(name)
        tracker.log(step, values)

    def _asked(self, name: str, act: Callable[[], None]) -> None:
        """Have a tracker do something; without it from now on if it fails."""
        try:
            act()
        except Exception as error:  # a server, a disk, a package of others
            del self._trackers[name]
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            warn(f"The tracker {name} failed ({reason}); the run goes on without it.")

    def _kept(self) -> tuple[str, dict[str, dict[str, int]]]:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = json.loads((self._folder / STATE).read_text())
            steps = {
                str(tracker): {str(name): int(step) for name, step in one.items()}
                for tracker, one in found["steps"].items()
            }
            if re.fullmatch("[0-9a-f]{16}", found["key"]):
                return found["key"], steps
        return uuid.uuid4().hex[:16], {}
