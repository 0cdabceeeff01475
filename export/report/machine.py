"""How the facts of `doctor` read, on a terminal and as JSON."""

from dataclasses import asdict
from typing import Any

from engines.environment import Environment
from engines.providers import PROVIDERS
from export.report import table


def as_json(seen: Environment) -> dict[str, Any]:
    """Returns the facts as the JSON of `doctor --json`."""
    return {
        "schema": 1,
        "python": seen.python,
        "platform": seen.platform,
        "packages": seen.packages,
        "gpus": [asdict(gpu) for gpu in seen.gpus.found],
        "no_gpu": seen.gpus.reason,
        "cuda_driver": seen.gpus.cuda,
        "pytorch_cuda": asdict(seen.torch_cuda) if seen.torch_cuda else None,
        "providers": {name: asdict(trial) for name, trial in seen.providers.items()},
        "builders": {name: asdict(trial) for name, trial in seen.builders.items()},
        "targets": [asdict(target) for target in seen.targets],
        "default_target": seen.default_target,
        "default_sms": list(seen.default_sms),
        "disk": seen.disk,
    }


def as_text(seen: Environment) -> str:
    """Returns the facts as a page for a terminal: tables, then a remedy for each thing that does not work."""
    parts = [
        f"Python {seen.python} on {seen.platform}\n",
        table.render(("package", "version"), [(n, v or "not installed") for n, v in seen.packages.items()]),
        _gpus(seen),
        table.render(
            ("ONNX Runtime on", "works", "seen"), [(n, _yes(t.works), t.reason) for n, t in seen.providers.items()]
        ),
        table.render(
            ("target", "builds", "runs", "seen"),
            [(t.name, _yes(t.builds), _yes(t.runs), t.why) for t in seen.targets],
        ),
        _remedies(seen),
        f"Without --target and --sm, build takes {seen.default_target} for SM "
        f"{' and '.join(str(sm) for sm in seen.default_sms)}.\n"
        + "".join(f"{free / 2**30:.1f} GiB free in {folder}\n" for folder, free in seen.disk.items()),
    ]
    return "\n".join(part for part in parts if part)


def _gpus(seen: Environment) -> str:
    if not seen.gpus.found:
        return f"GPU: none; {seen.gpus.reason}.\n"
    lines = [f"GPU: {gpu.name}, SM {gpu.sm}, {gpu.memory / 2**30:.0f} GiB\n" for gpu in seen.gpus.found]
    torch = f"PyTorch on it: {_yes(seen.torch_cuda.works)}, {seen.torch_cuda.reason}\n" if seen.torch_cuda else ""
    return "".join(lines) + f"The driver runs CUDA {seen.gpus.cuda}.\n" + torch


def _remedies(seen: Environment) -> str:
    lines = [
        f"To run ONNX Runtime on {name}: {PROVIDERS[name].remedy}.\n"
        for name, trial in seen.providers.items()
        if not trial.works
    ]
    for target in seen.targets:
        if target.remedy:
            what = f"run what target {target.name} builds" if target.builds else f"build for target {target.name}"
            lines.append(f"To {what}: {target.remedy}.\n")
    return "".join(lines)


def _yes(works: bool) -> str:
    return "yes" if works else "no"
