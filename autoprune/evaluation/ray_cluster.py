"""Ray on this machine or a cluster of it that runs already: started or joined, checked for room, left again."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

from autoprune.errors import DeviceError
from autoprune.evaluation.ray_runner import RayRunner, summary
from autoprune.evaluation.runners import RunnerOptions
from autoprune.io.installed import install_package

STORE_BYTES = 2**30
"""Memory of a local object store: it holds the network, the images and the covariances once."""


@contextmanager
def open_ray(options: RunnerOptions) -> Iterator[RayRunner]:
    """Start workers, on this machine or on a cluster, and end them with the context.

    Ray's usage statistics stay off. A cluster that this process is connected to already is used, and left alone after.

    Raises:
        DeviceError: the cluster is not there, has no room, or has other versions.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own settings
            if not ray.is_initialized():
                _connect(ray, options, stack)
            count, resources = room(ray, options)
            runner = RayRunner(ray, count, options, resources)
            runner.check_versions()
        stack.callback(runner.close)
        yield runner
        if runner.usage.tasks:
            options.notify(f"{runner.usage}.")


def _connect(ray: Any, options: RunnerOptions, stack: ExitStack) -> None:
    """Start a cluster of this machine's own, or connect to one that is there."""
    common = {"logging_level": "error", "log_to_driver": False}
    if options.workers.isdecimal():
        folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(ray.shutdown)
        try:
            ray.init(
                num_cpus=int(options.workers) * options.threads,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=folder,
                **common,
            )
        except Exception as error:  # Ray raises it bare
            raise DeviceError(f"Ray must start on this machine, and does not ({summary(error)})") from error
        return
    if options.workers.startswith("ray://") and find_spec("grpc") is None:
        raise DeviceError(f"`workers` ray:// needs the package grpcio, Ray's client: {install_package('grpcio')}")
    try:
        ray.init(address=options.workers, **common)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise DeviceError(
            f"`workers` {options.workers} must be a Ray cluster that runs, and there is none ({summary(error)}); "
            "start one with `ray start --head`, or give a number of processes on this machine"
        ) from error
    stack.callback(ray.shutdown)


def room(ray: Any, options: RunnerOptions) -> tuple[int, dict[str, float]]:
    """Return how many workers the cluster has room for, as many as were asked for, and the resources of each.

    A worker lies on one node and on one GPU: what several have left over together is no room for one more.

    Raises:
        DeviceError: there is too little.
    """
    free, threads = ray.available_resources(), options.threads
    fit = sum(int(node["Resources"].get("CPU", 0) // threads) for node in ray.nodes() if node["Alive"])
    most = min(fit, int(free.get("CPU", 0) // threads))
    asked = int(options.workers) if options.workers.isdecimal() else most
    resources: dict[str, float] = {"num_cpus": threads}
    if options.device.startswith("cuda"):
        gpus = free.get("GPU", 0)
        if not gpus:
            raise DeviceError(f"The Ray cluster must have a GPU for `device` {options.device}, and has none free")
        if options.device not in ("cuda", "cuda:0"):
            raise DeviceError(
                f"With `workers` Ray hands out the GPUs, and each worker has its own as `device` cuda, got "
                f"{options.device}; choose some by CUDA_VISIBLE_DEVICES"
            )
        asked = asked if options.workers.isdecimal() else int(min(gpus, most))
        resources["num_gpus"] = 1 / math.ceil(max(asked, 1) / gpus)
    if not 1 <= asked <= most:
        raise DeviceError(
            f"The Ray cluster must have {threads} free CPUs for each worker, and has "
            f"{free.get('CPU', 0):g} in all; free some, or take fewer `workers` or `threads`"
        )
    return asked, resources
