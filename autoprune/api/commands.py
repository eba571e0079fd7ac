"""Every command of the command line as a function, made of its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from autoprune.api.listening import Recording, checked_listener
from autoprune.api.network import Network, options_of
from autoprune.api.run import Run
from autoprune.config import COMMANDS, EXTENDABLE, SHOWING, Config, RunConfig, named, option
from autoprune.config.files import built, check_trust, extended, from_file, going_on, kept_config, needs_trust, unknown
from autoprune.config.reading import choices_of, field_docs, from_python, hints_of
from autoprune.errors import ConfigError
from autoprune.listener import Listener
from autoprune.strategies.isolation import torch_threads
from autoprune.workflows.call import Caller, located, run_workflow

Command = Callable[..., Run]


def command(name: str) -> Command:
    """Return a command of the command line as a function.

    Its parameters are the command's options. Those that the network brings are left out if one is given.
    """
    kind = COMMANDS[name]

    def call(network: Network | str | Path | None = None, *, listener: Listener | None = None, **options: Any) -> Run:
        recording = Recording(checked_listener(listener))
        config = located(make_config(name, {**options_of(network), **options}), recording)
        with torch_threads(torch.get_num_threads()), torch.inference_mode(False), torch.enable_grad():
            finished = run_workflow(name, config, recording, _caller(name, options))
        return Run(name, finished.folder, config, held=finished.held, tables=recording.tables, notes=recording.notes)

    call.__name__ = call.__qualname__ = name
    call.__module__ = "autoprune"
    call.__doc__ = _docs(name, kind)
    call.__signature__ = _signature(kind)  # type: ignore[attr-defined]
    return call


def _caller(name: str, options: Mapping[str, Any]) -> Caller:
    said = ", ".join(["…", *(f"{key}={value!r}" for key, value in options.items())])

    def again(command: str, config: RunConfig, run: Path) -> str:
        return f"autoprune.{command}(resume={str(run)!r}{', trust_checkpoint=True' if needs_trust(config) else ''})"

    return Caller(f"autoprune.{name}({said})", again)


def make_config(name: str, values: Mapping[str, Any]) -> Config:
    """Return a command's configuration, from values in Python.

    Raises:
        ConfigError: there is no such option, or a value breaks a rule.
        BudgetError: a limit is malformed.
    """
    hints = hints_of(COMMANDS[name])
    if "agent" in values and "strategy" in hints:  # both say the same, as on the command line
        values = {"strategy" if key == "agent" else key: value for key, value in values.items()}
    for key in values:
        if key not in hints:
            raise unknown(key, name, list(hints))
    read = {key: from_python(key, hints[key], value) for key, value in values.items()}
    if read.get("resume") is not None:
        return _resumed(name, read)
    config = built(name, read)
    check_trust(config, _said(values))
    return config


def _resumed(name: str, values: Mapping[str, Any]) -> Config:
    """Return the configuration of a run that goes on, which knows its other options."""
    run = values["resume"]
    allowed = {"resume", "trust_checkpoint", *SHOWING, *EXTENDABLE.get(name, ())}
    if others := [named(key) for key in values if key not in allowed]:
        raise ConfigError(f"`resume` stands alone, the run knows its other options; remove {', '.join(others)}")
    changes = {key: value for key, value in values.items() if key != "resume"}
    config = extended(built(name, from_file(name, kept_config(name, run))), changes)
    return going_on(name, config, run, _said(values))


def _said(values: Mapping[str, Any]) -> set[str]:
    """Return the options that a caller gave; one that is set to False was not asked for."""
    return {option(key) for key, value in values.items() if value is not False}


# -- what help() shows -------------------------------------------------------------------------------


_FIRST = ("budget", "policy", "data")

_EXAMPLES = {
    "search": """
>>> run = ap.search(net, budget="flops=60%", episodes=4, finetune_epochs=1)
>>> run.held, run.model.costs()["flops"] <= 0.6 * net.costs()["flops"]
(True, True)""",
    "netadapt": """
>>> run = ap.netadapt(net, budget="flops=90%", initial_step=0.1, images=8, batch=8, finetune_epochs=1)
>>> run.held
True""",
    "compare": """
>>> run = ap.compare(
...     net, budget="flops=60%", strategies="uniform,random", evaluations=2, seeds=1, references=False, correlated=0,
...     finetune_epochs=1,
... )
>>> sorted(run.pictures)
['comparison', 'progress']""",
    "sensitivity": """
>>> run = ap.sensitivity(net, ratios="0.5,0.25")
>>> sorted(run.pictures)
['curves', 'heatmap']""",
    "profile": """
>>> run = ap.profile(net, runtime="torch")
>>> sorted(run.pictures)
['layers', 'predicted', 'staircase']""",
    "sparsify": """
>>> run = ap.sparsify(net, epochs=1)
>>> run.model
Network(sparse at 64 px on cpu: ...)""",
    "slim": """
>>> run = ap.slim(net, budget="channels=80%", sparsity_epochs=1, finetune_epochs=1)
>>> run.held
True""",
    "apply": """
>>> run = ap.apply(net, policy="policy.json")
>>> run.model.costs()["flops"] < net.costs()["flops"]
True""",
    "train": """
>>> run = ap.train(net, policy="policy.json", epochs=1)
>>> run.policy == ap.Policy.load("policy.json")
True""",
    "export": """
>>> run = ap.export(net, format="onnx")
>>> (run.folder / "model.onnx").exists()
True""",
    "quantize": """
>>> run = ap.quantize(net, runtime="onnxruntime", calibration_images=8, images=8)
>>> (run.folder / "model.int8.onnx").exists()
True""",
    "mask": """
>>> run = ap.mask(net, granularity="unstructured", sparsity=0.5, epochs=1)
>>> run.summary["stages"]["masked"]["details"]["zeros"]
0.5""",
}
"""What ``help()`` shows as each command's example, after ``net`` is loaded."""


def _parameters(kind: type[Config]) -> list[str]:
    """Return the fields that are parameters, those that are nearly always given first; ``network`` is the model."""
    names = [name for name in hints_of(kind) if name != "model"]
    return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _signature(kind: type[Config]) -> inspect.Signature:
    defaults = {item.name: item.default for item in fields(kind)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    first = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("network", first, default=None, annotation=Network | str | Path | None)]
    for name in _parameters(kind):
        default = inspect.Parameter.empty if defaults[name] is MISSING else defaults[name]
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=hints_of(kind)[name]))
    parameters.append(inspect.Parameter("listener", keyword, default=None, annotation=Listener | None))
    return inspect.Signature(parameters, return_annotation=Run)


def _choices(kind: type[Config], field: str) -> str:
    choices = choices_of(hints_of(kind)[field])
    return f" (one of {', '.join(choices)})" if choices else ""


def _docs(name: str, kind: type[Config]) -> str:
    docs = field_docs(kind)
    first = (kind.__doc__ or "").strip().splitlines()[0]
    args = [
        "    network: a `Network`, or the path of its file; by default the bundled demonstration detector.",
        *(f"    {field}: {docs[field]}{_choices(kind, field)}" for field in _parameters(kind)),
        "    listener: hears notes, warnings, progress and tables; by default warnings are Python's.",
    ]
    return "\n".join(
        [
            first,
            "",
            f"The same as ``autoprune {name}``, with the same options. Texts stand for choices.",
            "",
            "Args:",
            *args,
            "",
            "Returns:",
            "    What it left in its folder.",
            "",
            "Raises:",
            "    AutopruneError: bad input, or a budget that cannot be held; the message says what to do.",
            "",
            "Example:",
            '    >>> net = ap.load("best.pt", data="data.yaml")',
            *(f"    {line}" for line in _EXAMPLES[name].strip().splitlines()),
        ]
    )
