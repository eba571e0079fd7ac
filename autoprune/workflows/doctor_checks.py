"""The checks of ``autoprune doctor``, one function per section; each imports late what may be what is broken."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from autoprune import __version__
from autoprune.choices import RUNTIMES, Precision, Runtime, RuntimeSpec
from autoprune.io.files import size_of
from autoprune.io.installed import install_extra, install_package, origin
from autoprune.workflows.doctor import Check, State

_DEVELOPMENT = ("test", "docs", "dev")
"""Extras that only a developer of autoprune needs."""


def installation() -> Iterator[Check]:
    """Look at autoprune itself and at Python."""
    where, editable = origin()
    yield Check("autoprune", __version__, hint=f"from {where or 'a package index'}{', editable' if editable else ''}")
    wanted = _required_python()
    fits = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    yield Check(
        "Python",
        platform.python_version(),
        State.OK if fits else State.BROKEN,
        sys.executable if fits else f"autoprune needs Python {wanted}",
    )


def packages() -> Iterator[Check]:
    """Look at the packages that autoprune cannot do without."""
    for requirement in _requirements(""):
        yield _package(requirement, missing=State.BROKEN)


def extras() -> Iterator[Check]:
    """Look at the packages of the extras, but those of runtimes, which `runtimes` looks at."""
    known = {*_DEVELOPMENT, *(spec.extra for spec in RUNTIMES)}
    for extra in metadata("autoprune").get_all("Provides-Extra") or []:
        if extra not in known:
            for requirement in _requirements(extra):
                check = _package(requirement, missing=State.MISSING, extra=extra)
                yield replace(check, name=f"{check.name} ({extra})")


def machine() -> Iterator[Check]:
    """Look at the processor, memory and load."""
    import psutil

    from autoprune.models._memory import free_bytes
    from autoprune.runtimes.settings import cpu_model, has_int8_instructions

    yield Check("CPU", cpu_model())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", f"{usable} of {os.cpu_count()} logical ones may be used")
    yield Check("instructions", ", ".join(_instructions()) or "none of AVX-512, AMX, VNNI and bfloat16")
    if has_int8_instructions() is False:
        yield Check("int8", "slow", hint="this CPU has no instructions for int8")
    import torch

    free = free_bytes(torch.device("cpu"))
    yield Check("memory", f"{_size(free)} free of {_size(psutil.virtual_memory().total)}")
    yield load()


def load() -> Check:
    """Look at how much of the processor other processes use at the moment."""
    from autoprune.runtimes.load import TOLERANCE, measure_load

    now = measure_load()
    slower = f"mostly by {now.busiest}; " if now.busiest else ""
    busy = now.overloaded or now.busy > TOLERANCE
    hint = f"{slower}latencies that are measured now are too high" if busy else ""
    return Check("load", f"{now.busy:.1f} of {now.cores} cores used by others", hint=hint)


def devices() -> Iterator[Check]:
    """Look at the devices that torch can compute on."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = _driver()
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.name}, {_size(properties.total_memory)}"
        yield Check(f"cuda:{index}", memory, hint=f"CUDA {torch.version.cuda}, driver {driver or 'unknown'}")
    if not count and driver:
        reason = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else (f"torch {torch.__version__} is built for CPUs: install a build for CUDA from pytorch.org")
        )
        yield Check("cuda", f"a GPU with driver {driver}, not seen by torch", State.MISSING, reason)
    elif not count:
        yield Check("cuda", "", State.MISSING, "no NVIDIA GPU")
    if torch.backends.mps.is_available():
        yield Check("mps", "Apple GPU")


def runtimes() -> Iterator[Check]:
    """Start every runtime on every device, in every number format that it may have there."""
    import torch

    kinds = ["cpu"]
    kinds += ["cuda"] if torch.cuda.is_available() else []
    kinds += ["mps"] if torch.backends.mps.is_available() else []
    for spec in RUNTIMES:
        if spec.external:
            yield Check(spec.name, "any program that prints milliseconds", hint="see `runtime_command`")
            continue
        for kind in kinds:
            if kind in spec.precisions:
                yield _runtime(spec, kind)
        if not any(kind in spec.precisions for kind in kinds):
            yield Check(spec.name, "", State.MISSING, f"runs on {' and '.join(spec.precisions)} only")


def caches() -> Iterator[Check]:
    """Look at what autoprune keeps between runs."""
    from autoprune.latency.cache import default_folder

    latency = default_folder()
    root = latency.parent
    for name, folder, pattern in (("latencies", latency, "*.json"), ("demo data", root, "shapes-*")):
        entries = list(folder.glob(pattern)) if folder.is_dir() else []
        used = sum(map(size_of, entries))
        yield Check(name, f"{len(entries)} entries, {_size(used)}", hint=str(folder))
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        yield Check("folder", str(root), State.BROKEN, "cannot be written; name another in AUTOPRUNE_CACHE")
    else:
        yield Check("folder", str(root), hint=f"to clear it: rm -r {shlex.quote(str(root))}")


def ultralytics() -> Iterator[Check]:
    """Look at the folders of Ultralytics' settings."""
    from autoprune.models import stock

    file = stock.settings_file()
    yield Check("settings", str(file), hint="" if file.is_file() else "not there: Ultralytics' defaults count")
    for name in ("weights_dir", "datasets_dir", "runs_dir"):
        folder = Path(stock.SETTINGS[name]).absolute()
        yield Check(name, str(folder), hint="" if folder.is_dir() else "does not exist")


# -- packages ----------------------------------------------------------------------------------------


def _required_python() -> str:
    try:
        return metadata("autoprune")["Requires-Python"] or ""
    except PackageNotFoundError:  # a checkout that was never installed
        return ""


def _requirements(extra: str) -> Iterator[Requirement]:
    """Yield what autoprune needs here, or what one of its extras adds to that."""
    for text in requires("autoprune") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        wanted = always if not extra else not always and marker is not None and marker.evaluate({"extra": extra})
        if wanted and requirement.name != "autoprune":
            yield requirement


def _package(requirement: Requirement, *, missing: State, extra: str = "") -> Check:
    install = (
        install_extra(extra) if extra else install_package(shlex.quote(f"{requirement.name}{requirement.specifier}"))
    )
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Check(requirement.name, "", missing, install)
    if requirement.specifier.contains(found, prereleases=True):
        return Check(requirement.name, found)
    return Check(requirement.name, found, State.BROKEN, f"autoprune needs {requirement.specifier}: {install}")


# -- machine -----------------------------------------------------------------------------------------


def _instructions() -> list[str]:
    """Return the names of the instruction sets that decide how fast networks run."""
    import torch

    from autoprune.runtimes._torch import computes_in
    from autoprune.runtimes.settings import has_int8_instructions

    level = torch.backends.cpu.get_cpu_capability()
    found = [] if level in ("DEFAULT", "default") else [level]
    if hasattr(torch.cpu, "get_capabilities"):
        there = torch.cpu.get_capabilities()
        names = {"amx_tile": "AMX", "amx_bf16": "AMX bf16", "amx_int8": "AMX int8", "avx512_vnni": "AVX-512 VNNI"}
        names |= {"avx_vnni": "AVX VNNI", "avx512_bf16": "AVX-512 bf16", "avx512_fp16": "AVX-512 fp16"}
        return [*found, *(text for name, text in names.items() if there.get(name))]
    found += ["int8 dot products"] if has_int8_instructions() else []
    return [*found, *(one.value for one in (Precision.BF16, Precision.FP16) if computes_in(one))]


def _driver() -> str:
    """Return the version of NVIDIA's driver; empty if there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return output[0] if output else ""
    return ""


def _size(amount: float) -> str:
    """Return bytes as users read them."""
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


# -- runtimes ----------------------------------------------------------------------------------------


def _runtime(spec: RuntimeSpec, kind: str) -> Check:
    """Return what a runtime computes in on a device, or why it does not run."""
    from autoprune.errors import DeviceError
    from autoprune.runtimes import BrokenRuntimeError, open_backend, runtime_settings

    name = spec.name if set(spec.precisions) == {kind} else f"{spec.name} on {kind}"
    works, refused = [], []
    for precision in spec.precisions[kind]:
        try:
            settings = runtime_settings(kind, image_size=64, runtime=Runtime(spec.name), precision=precision, threads=1)
            open_backend(settings)
        except BrokenRuntimeError as error:
            return Check(name, _versions(spec), State.BROKEN, str(error))
        except DeviceError as error:
            refused.append(str(error))
        else:
            works.append(precision.value)
    hints = dict.fromkeys(reason for reason in refused if "install" in reason)
    if not works:
        return Check(name, _versions(spec), State.MISSING, "; ".join(hints or refused[:1]))
    return Check(name, f"{_versions(spec)}: {', '.join(works)}", hint="; ".join(hints))


def _versions(spec: RuntimeSpec) -> str:
    """Return the version of a runtime's package; torch's own are torch's."""
    for package in spec.packages or ("torch",):
        with suppress(PackageNotFoundError):
            return version(package)
    return ""
