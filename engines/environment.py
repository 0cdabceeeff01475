"""What this machine can do, each claim from a trial, and what a build takes where the user does not say.

Nothing heavy is imported here: versions come from package metadata, and whatever may crash, hang or print is tried in a
child process (`engines.providers.trial`).
"""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from engines import providers, vendor
from engines.errors import BackendMissingError
from engines.gpus import Gpus, gpus
from engines.packages import versions
from engines.providers import PROVIDERS, Trial

SMS_WITHOUT_GPU = (89, 120)
"""What engines are built for where no GPU tells: the two newest consumer and workstation generations."""

INSTALL = {
    "tensorrt-rtx": "pip install 'tensorrt-rtx>=1.7'",
    "tensorrt": "pip install 'attnproof[tensorrt]', on a machine with an NVIDIA GPU",
}


@dataclass(frozen=True)
class Target:
    """What a build target is good for here.

    Attributes:
        name: "onnx", "ort", "tensorrt-rtx" or "tensorrt".
        builds: Whether `build --target` works here.
        runs: Whether what it built can be run here.
        why: What was seen, one sentence.
        remedy: What to do to have what is missing; None where nothing is.
    """

    name: str
    builds: bool
    runs: bool
    why: str
    remedy: str | None


@dataclass(frozen=True)
class Environment:
    """The facts of this machine.

    Attributes:
        python: Version of Python.
        platform: Operating system and architecture.
        packages: {distribution: version, or None where it is not installed}.
        gpus: What the driver answered.
        providers: {provider: what became of a MatMul on it in ONNX Runtime}.
        builders: {"tensorrt-rtx", "tensorrt": what became of building a one-layer engine}.
        torch_cuda: What became of a sum on the GPU in PyTorch, whose buffers engines run on; None without a GPU.
        targets: What each build target is good for here.
        default_target: What `build` takes without --target.
        default_sms: What `build` takes without --sm.
        disk: {folder: free bytes}.
    """

    python: str
    platform: str
    packages: dict[str, str | None]
    gpus: Gpus
    providers: dict[str, Trial]
    builders: dict[str, Trial]
    torch_cuda: Trial | None
    targets: tuple[Target, ...]
    default_target: str
    default_sms: tuple[int, ...]
    disk: dict[str, int]


def default_target() -> str:
    """Returns "tensorrt" where it is installed and loads and there is a GPU, else "tensorrt-rtx"."""
    if not gpus().found:
        return "tensorrt-rtx"
    try:
        vendor.load("tensorrt")
    except BackendMissingError:
        return "tensorrt-rtx"
    return "tensorrt"


def default_sms(target: str | None = None) -> tuple[int, ...]:
    """Returns the compute capabilities to build for: the GPUs' own, or (89, 120) on a machine without one.

    A GPU that the target does not compile for (TensorRT-RTX knows no data-centre Hopper or Blackwell) does not count:
    its owner still gets engines for the usual ones, to run elsewhere.

    Args:
        target: "tensorrt-rtx" or "tensorrt"; None means `default_target()`.
    """
    present = tuple(dict.fromkeys(gpu.sm for gpu in gpus().found))
    if not present:
        return SMS_WITHOUT_GPU
    try:
        known = vendor.load(target or default_target()).sms
    except BackendMissingError:  # the build will say so, with the pip line
        return present
    if known is None:
        return present[:1]  # TensorRT compiles for the current GPU
    return tuple(sm for sm in present if sm in known) or SMS_WITHOUT_GPU


def survey(folder: Path | None = None) -> Environment:
    """Returns the facts of this machine; takes a few seconds, most of them in child processes.

    Args:
        folder: Where artifacts would go, for its free space; None means the current folder.
    """
    seen = gpus()
    runs = {name: providers.try_provider(name) for name in PROVIDERS}
    builders = {name: providers.trial("vendor", name) for name in vendor.NAMES}
    torch_cuda = providers.trial("torch", "cuda") if seen.found else None
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=versions(),
        gpus=seen,
        providers=runs,
        builders=builders,
        torch_cuda=torch_cuda,
        targets=targets(seen, runs, builders, torch_cuda),
        default_target=default_target(),
        default_sms=default_sms(),
        disk={str(path): shutil.disk_usage(path).free for path in _folders(folder)},
    )


def targets(
    seen: Gpus, runs: dict[str, Trial], builders: dict[str, Trial], torch_cuda: Trial | None
) -> tuple[Target, ...]:
    """Returns what each build target is good for, from what the trials showed."""
    return (
        _onnx("onnx", runs),
        _onnx("ort", runs),
        _engine("tensorrt-rtx", seen, builders["tensorrt-rtx"], torch_cuda),
        _engine("tensorrt", seen, builders["tensorrt"], torch_cuda),
    )


def _onnx(name: str, runs: dict[str, Trial]) -> Target:
    working = [provider for provider, trial in runs.items() if trial.works]
    if working:
        return Target(name, True, True, f"ONNX Runtime runs it on {', '.join(working)}.", None)
    return Target(name, True, False, f"ONNX Runtime {runs['cpu'].reason}.", PROVIDERS["cpu"].remedy)


def _engine(name: str, seen: Gpus, built: Trial, torch_cuda: Trial | None) -> Target:
    if not built.works:
        return Target(name, False, False, _sentence(built.reason.partition(". ")[0]), INSTALL[name])
    known = built.detail.get("sms")
    here = [gpu.sm for gpu in seen.found if not isinstance(known, list) or gpu.sm in known]
    if not seen.found:
        why, remedy = f"It builds; its engines cannot run: {seen.reason}.", "run them on a machine with an NVIDIA GPU"
    elif not here:
        why = f"It builds, but not for the GPU here, SM {', '.join(str(gpu.sm) for gpu in seen.found)}."
        remedy = "build with --target tensorrt for that GPU, or run these engines on another"
    elif torch_cuda is None or not torch_cuda.works:
        why = (
            f"It builds; engines run on PyTorch's CUDA buffers, and PyTorch {torch_cuda.reason if torch_cuda else ''}."
        )
        remedy = "install the CUDA build of PyTorch: pip install torch, without a CPU index"
    else:
        return Target(name, True, True, f"It builds, and its engines run here (SM {here[0]}).", None)
    return Target(name, True, False, why, remedy)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _folders(folder: Path | None) -> tuple[Path, ...]:
    import tempfile

    nearest = (folder or Path.cwd()).resolve()
    while not nearest.exists():
        nearest = nearest.parent
    return tuple(dict.fromkeys((nearest, Path(tempfile.gettempdir()))))
