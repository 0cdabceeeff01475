"""Peers that need what this machine may lack: they stand in every result, timed or NOT RUN with the reason."""

from engines.gpus import gpus
from export.bench.contender import CONTRIB, EXPORT, OURS, PEER, Contender, not_here

NAMES = {
    "ONNX Runtime CUDA, as exported": EXPORT,
    "ONNX Runtime CUDA, attnproof": OURS,
    "TensorRT, native attention": PEER,
    "TensorRT, attnproof's plugin": OURS,
    "com.microsoft operators on CUDA": CONTRIB,
}


def contenders(device: str = "cpu") -> tuple[Contender, ...]:
    """Returns the peers that only a GPU runs, each with the reason why it is not timed in this run."""
    if device == "cuda":
        here = {name: kind for name, kind in NAMES.items() if not name.startswith("ONNX Runtime CUDA")}
        return tuple(not_here(name, kind, "A file is timed on ONNX Runtime alone.") for name, kind in here.items())
    seen = gpus()
    why = f"It needs an NVIDIA GPU: {seen.reason}." if not seen.found else "This run times the CPU; see --device cuda."
    return tuple(not_here(name, kind, why) for name, kind in NAMES.items())
