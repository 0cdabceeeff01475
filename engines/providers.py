"""The ONNX Runtime execution providers by the names users type, and whether one really loads here.

ONNX Runtime answers a provider it cannot load with a log line and a CPU session, so a request proves nothing. The
proof here is a small MatMul on the provider in a child process: a driver that crashes takes the child, not the user.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engines.errors import UsageError

PROBE_SECONDS = 120


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: What the user types.
        ort: ONNX Runtime's name for it.
        behind: Providers that may take the nodes it has no kernel for; the CPU is always the last.
        device: Where its tensors live: "cpu" or "cuda".
        remedy: What to install or do where it does not load.
        slower: ONNX Runtime's own fusions that make it slower.
    """

    name: str
    ort: str
    behind: tuple[str, ...]
    device: str
    remedy: str
    slower: tuple[str, ...] = ()


SLOWER_ON_CPU = ("SkipLayerNormFusion",)
"""One SkipLayerNormalization takes longer than the Add and the LayerNormalization it stands for: 7% of a whole BERT,
onnxruntime 1.31 on AVX-512 (benchmarks/model_speed.py)."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_LIBRARIES = 'pip install "onnxruntime-gpu[cuda,cudnn]" on a machine with an NVIDIA GPU and its driver'

PROVIDERS = {
    p.name: p
    for p in (
        Provider("cpu", _CPU, (), "cpu", "pip install --force-reinstall onnxruntime-gpu", SLOWER_ON_CPU),
        Provider("cuda", _CUDA, (_CPU,), "cuda", _LIBRARIES),
        Provider(
            "tensorrt",
            "TensorrtExecutionProvider",
            (_CUDA, _CPU),
            "cuda",
            f"{_LIBRARIES}, and TensorRT, pip install 'attnproof[tensorrt]'; or without ONNX Runtime build an engine, "
            "python -m export build MODEL.onnx --target tensorrt, and run its folder",
        ),
        Provider(
            "tensorrt-rtx",
            "NvTensorRTRTXExecutionProvider",
            (_CUDA, _CPU),
            "cuda",
            "build an engine, python -m export build MODEL.onnx --target tensorrt-rtx, and run its folder",
        ),
    )
}


@dataclass(frozen=True)
class Trial:
    """What became of a trial in a child process.

    Attributes:
        works: Whether it did what it was asked, with the right result.
        reason: Why not, or what was seen: half a sentence, without the subject.
        detail: What the trial measured, e.g. the version it loaded.
    """

    works: bool
    reason: str
    detail: dict[str, object]


def provider(name: str) -> Provider:
    """Returns the provider a user names.

    Raises:
        UsageError: There is no such provider.
    """
    if name not in PROVIDERS:
        raise UsageError(f"There is no provider {name!r}; choose one of {', '.join(PROVIDERS)}.")
    return PROVIDERS[name]


def try_provider(name: str) -> Trial:
    """Returns whether ONNX Runtime computes on the provider here, found out in a child process.

    Raises:
        UsageError: There is no such provider.
    """
    return trial("provider", provider(name).name)


def trial(*words: str, seconds: float = PROBE_SECONDS) -> Trial:
    """Returns the outcome of `python -m engines.probe WORDS`, whichever way that process ends.

    Args:
        words: What to try, see `engines.probe`.
        seconds: After this long it counts as hung, and is stopped.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "engines.probe", *words],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, f"did not answer within {seconds:g} s", {})
    except OSError as error:
        return Trial(False, f"could not be started: {error}", {})
    lines = done.stdout.strip().splitlines()
    if done.returncode < 0:
        return Trial(False, f"crashed the process (signal {-done.returncode})", {})
    try:
        answer = json.loads(lines[-1])
        return Trial(
            bool(answer["works"]), _with_cause(answer["reason"], answer["works"], done.stderr), answer["detail"]
        )
    except (IndexError, KeyError, TypeError, ValueError):
        return Trial(False, f"ended without an answer (exit {done.returncode}): {_last(done.stderr)}", {})


def sentence(error: Exception) -> str:
    """Returns the first line of one of ONNX Runtime's errors without its codes, source places and final stop."""
    text = (str(error).strip().splitlines() or ["no message"])[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\)\s*", "", text)
    return text.strip().rstrip(".") or type(error).__name__


def _with_cause(reason: str, works: bool, log: str) -> str:
    """Returns the reason, and for a failure the words of ONNX Runtime's log that explain it."""
    if works:
        return reason
    for mark in ("with error: ", "Error loading ", "cudaErr", "CUDA failure "):
        for line in log.splitlines():
            if mark in line:
                cause = line.split(mark, 1)[1] if mark == "with error: " else line[line.index(mark) :]
                # An exception of the same failure only repeats, at length, that libraries are to be installed.
                said = "could not load it" if reason.startswith("failed with ") else reason
                return f"{said}: {cause.strip()}"
    return reason


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
