"""What a user chooses among, by the names that the command line and the files use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any


class RecordEnum(Enum):
    """Base of choices with one member per record of a registry: its value is the record's name.

    Attributes:
        spec: the member's record.

    Example:
        >>> from types import SimpleNamespace
        >>> class Color(RecordEnum):
        ...     add_members(vars(), [SimpleNamespace(name="dark-red", rgb="8b0000")])
        >>> Color("dark-red"), Color.DARK_RED.spec.rgb
        (<Color.DARK_RED: 'dark-red'>, '8b0000')
    """

    spec: Any

    def __new__(cls, spec: Any) -> RecordEnum:
        """Make a member of its record."""
        member = object.__new__(cls)
        member._value_, member.spec = spec.name, spec
        return member


def add_members(namespace: MutableMapping[str, Any], records: Iterable[Any]) -> None:
    """Add a member per record to the body of a `RecordEnum`, where ``vars()`` is its namespace.

    Example:
        >>> namespace: dict[str, Any] = {}
        >>> add_members(namespace, RUNTIMES[1:2])
        >>> list(namespace)
        ['TORCH_COMPILE']
    """
    for record in records:
        namespace[record.name.replace("-", "_").upper()] = record


class Rule(Enum):
    """How the environment makes an episode hold the budget.

    Example:
        >>> [rule.value for rule in Rule]
        ['projected', 'capped']
    """

    PROJECTED = "projected"
    CAPPED = "capped"


MODULE_FORMAT = "autoprune.module"
"""What a checkpoint of a user's own network calls its format."""

_FACTORY = re.compile(
    r"(?P<source>.+?\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)(@(?P<weights>.+))?"
)


def match_factory(model: object) -> re.Match[str] | None:
    """Return the parts of a model that is named by the function that builds it, or None if it is a file.

    ``FILE.py:FUNCTION`` or ``package.module:FUNCTION``, and ``@CHECKPOINT`` behind it for a pruned one: the groups
    ``source``, ``function`` and ``weights``.

    Example:
        >>> found = match_factory("nets.py:make@runs/1/model.pt")
        >>> found["source"], found["function"], found["weights"]
        ('nets.py', 'make', 'runs/1/model.pt')
        >>> match_factory("best.pt") is None
        True
    """
    return _FACTORY.fullmatch(str(model))


def reopened(model: Path, checkpoint: Path) -> Path:
    """Return the name under which a checkpoint that was made of a model is opened.

    That is its file; for a network that a function builds, the function with the file behind it.

    Example:
        >>> print(reopened(Path("net.py:make"), Path("model.pt")))
        net.py:make@model.pt
    """
    found = match_factory(model)
    return checkpoint if found is None else Path(f"{found['source']}:{found['function']}@{checkpoint}")


DARKNET = (".cfg", ".weights")
"""Suffixes of the two files of a Darknet network."""


class PenaltyName(Enum):
    """What sparsity training makes small.

    Example:
        >>> PenaltyName("group-lasso")
        <PenaltyName.GROUP_LASSO: 'group-lasso'>
    """

    L1 = "l1"
    """Each batch norm scale by itself."""
    GROUP_LASSO = "group-lasso"
    """All weights of a channel together."""


class Granularity(Enum):
    """Which single weights are set to zero.

    Example:
        >>> [granularity.value for granularity in Granularity]
        ['2:4', 'unstructured']
    """

    TWO_OF_FOUR = "2:4"
    """Two of every four along the input channels, as sparse tensor cores want it."""
    UNSTRUCTURED = "unstructured"
    """The smallest, wherever they are."""


class Scope(Enum):
    """Among which weights the smallest are looked for.

    Example:
        >>> [scope.value for scope in Scope]
        ['layer', 'network']
    """

    LAYER = "layer"
    NETWORK = "network"


class Select(Enum):
    """What NetAdapt keeps of a step's proposals.

    Example:
        >>> Select("accuracy-per-resource").name
        'ACCURACY_PER_RESOURCE'
    """

    ACCURACY = "accuracy"
    """The highest score (the paper)."""
    ACCURACY_PER_RESOURCE = "accuracy-per-resource"
    """The least score lost per cost saved (the authors' code)."""


class DataSetName(Enum):
    """Published data sets that can be turned into Ultralytics data sets.

    Example:
        >>> DataSetName("oxford-hand")
        <DataSetName.OXFORD_HAND: 'oxford-hand'>
    """

    OXFORD_HAND = "oxford-hand"


class Precision(Enum):
    """Number format of weights and activations where latency is measured.

    Example:
        >>> [precision.value for precision in Precision]
        ['fp32', 'fp16', 'bf16', 'int8']
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class RuntimeSpec:
    """What is known of a runtime before it is loaded: a new one is a backend's file and a record in ``RUNTIMES``.

    Attributes:
        name: as options and budgets name it.
        backend: ``module:class`` of its `autoprune.runtimes.Backend`.
        precisions: by kind of device (cpu, cuda or mps), the number formats that there are.
        packages: whose versions its times depend on, those that quantise for it included.
        extra: the extra of autoprune that installs it; empty if it is always there.
        layout: whether it takes a memory format; others lay tensors out as they find best.
        per_layer: whether it loads a single layer in milliseconds; others would export or compile hundreds of them.
        with_nms: whether it takes networks whose shapes are not all fixed, as those with suppression.
        int8_file: what a network is called that was quantised for it; empty if no such files are written.
        external: whether a program of the user's runs networks, see `autoprune.benchmark_command`.
        on_boards: whether it runs on a board over SSH, which has this runtime's package, or the user's program, alone.
        registers: how many vector registers of channels its convolutions compute at once on a CPU in fp32.

    Example:
        >>> spec = Runtime("onnxruntime").spec
        >>> [precision.value for precision in spec.precisions["cpu"]], spec.int8_file
        (['fp32', 'int8'], 'model.int8.onnx')
    """

    name: str
    backend: str
    precisions: Mapping[str, tuple[Precision, ...]]
    packages: tuple[str, ...] = ()
    extra: str = ""
    layout: bool = False
    per_layer: bool = False
    with_nms: bool = True
    int8_file: str = ""
    external: bool = False
    on_boards: bool = False
    registers: float = 1.0

    @property
    def only_cpu(self) -> bool:
        """Whether it runs on CPUs alone."""
        return set(self.precisions) == {"cpu"}


_RUNTIMES = "autoprune.runtimes"
_FP32, _FP16, _BF16, _INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8
_TORCH = {"cpu": (_FP32, _BF16, _FP16), "cuda": (_FP32, _FP16, _BF16)}

RUNTIMES = (
    RuntimeSpec(
        "torch", f"{_RUNTIMES}.torch_eager:TorchBackend", {**_TORCH, "mps": (_FP32, _FP16)}, layout=True, per_layer=True
    ),
    RuntimeSpec("torch-compile", f"{_RUNTIMES}.torch_compile:TorchCompileBackend", _TORCH, layout=True, with_nms=False),
    RuntimeSpec(
        "cudagraph",
        f"{_RUNTIMES}.torch_eager:TorchBackend",
        {"cuda": _TORCH["cuda"]},
        layout=True,
        per_layer=True,
        with_nms=False,
    ),
    RuntimeSpec(
        "onnxruntime",
        f"{_RUNTIMES}.onnx_runtime:OnnxRuntimeBackend",
        {"cpu": (_FP32, _INT8), "cuda": (_FP32, _FP16)},
        ("onnxruntime", "onnxruntime-gpu"),
        extra="onnxruntime",
        on_boards=True,
        int8_file="model.int8.onnx",
    ),
    RuntimeSpec(
        "openvino",
        f"{_RUNTIMES}.open_vino:OpenVinoBackend",
        {"cpu": (_FP32, _BF16, _FP16, _INT8)},
        ("openvino", "nncf"),
        extra="openvino",
        on_boards=True,
        int8_file="model_int8_openvino_model",  # Ultralytics knows the format by the end of the folder's name
    ),
    RuntimeSpec(
        "ncnn",
        f"{_RUNTIMES}.ncnn:NcnnBackend",
        {"cpu": (_FP32, _FP16)},
        ("ncnn", "pnnx"),
        extra="ncnn",
        with_nms=False,
        on_boards=True,
        registers=0.5,  # 40 channels take 1.45 ms, 44 as long as 48 (1.8), though a register has 16
    ),
    RuntimeSpec(
        "litert",
        f"{_RUNTIMES}.lite_rt:LiteRtBackend",
        {"cpu": (_FP32, _INT8)},
        ("ai-edge-litert", "onnxruntime"),
        extra="litert",
        with_nms=False,
        on_boards=True,
        int8_file="model.int8.tflite",
        registers=2,  # XNNPACK's kernels: 32 channels take 0.9 ms, 36 take 1.7, 64 take 2.9
    ),
    RuntimeSpec(
        "executorch",
        f"{_RUNTIMES}.executorch:ExecuTorchBackend",
        {"cpu": (_FP32,)},
        ("executorch",),
        extra="executorch",
        with_nms=False,
        registers=2,  # XNNPACK's kernels, with LiteRT's steps
    ),
    RuntimeSpec(
        "tensorrt",
        f"{_RUNTIMES}.tensor_rt:TensorRtBackend",
        {"cuda": (_FP32, _FP16, _INT8)},
        ("tensorrt", "onnxruntime"),
        extra="tensorrt",
        with_nms=False,
    ),
    RuntimeSpec(
        "command",
        f"{_RUNTIMES}.command:CommandBackend",
        {"cpu": (_FP32,), "cuda": (_FP32,), "mps": (_FP32,)},
        external=True,
        on_boards=True,
    ),
)
"""In the order in which help and messages list them."""


class Runtime(RecordEnum):
    """What runs the network where latency is measured.

    Example:
        >>> Runtime("openvino").spec.packages
        ('openvino', 'nncf')
    """

    spec: RuntimeSpec
    add_members(vars(), RUNTIMES)


TORCH, CUDAGRAPH, ONNXRUNTIME = Runtime("torch"), Runtime("cudagraph"), Runtime("onnxruntime")
COMMAND = Runtime("command")


DEVICES = "cpu, cuda, cuda:N, mps, or N for cuda:N"
"""The names of this machine's devices, for help and messages."""

MOST_LR_SCALE = 10
"""The highest learning rate of a training, as a multiple of its default."""

_SSH = "ssh://"

BOARDS = "ssh://[USER@]HOST[:PORT]"
"""The address of a board, for help and messages."""

_BOARD = re.compile(
    r"ssh://([a-z0-9_][\w.+-]*@)?([a-z0-9_][\w.-]*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII
)


def is_board(name: str) -> bool:
    """Return whether a text is the address of a board, which latency is measured on over SSH.

    Example:
        >>> is_board("ssh://pi@cam1:2222"), is_board("cpu"), is_board("ssh://-oProxyCommand=x")
        (True, False, False)
    """
    return _BOARD.fullmatch(name) is not None


def split_target(target: str) -> tuple[str | None, str | None]:
    """Return the device and the runtime that a latency's target names, each None if it names none.

    Example:
        >>> split_target("openvino"), split_target("cuda:0"), split_target("ssh://pi@cam1/openvino")
        ((None, 'openvino'), ('cuda:0', None), ('ssh://pi@cam1', 'openvino'))
    """
    if target.lower().startswith(_SSH):
        address, _, runtime = target[len(_SSH) :].partition("/")
        return f"{_SSH}{address}", runtime or None
    return (target, None) if is_device(target) else (None, target)


def is_device(name: str) -> bool:
    """Return whether a text names a device: cpu, mps, cuda or cuda:N.

    Example:
        >>> is_device("cuda:1"), is_device("gpu")
        (True, False)
    """
    return re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name) is not None


def device_name(text: str) -> str:
    """Return a device in one spelling: Ultralytics' GPU numbers become cuda:N, other texts stay.

    Example:
        >>> device_name("0"), device_name("0,1"), device_name("MPS"), device_name("SSH://Ann@cam1/")
        ('cuda:0', 'cuda:0,1', 'mps', 'ssh://Ann@cam1')
    """
    name = text.strip()
    if name.lower().startswith(_SSH):  # names of users have capital letters
        return f"{_SSH}{name[len(_SSH) :].rstrip('/')}"
    name = name.lower()
    return f"cuda:{name}" if re.fullmatch(r"[0-9]{1,3}(,[0-9]{1,3})*", name) else name
