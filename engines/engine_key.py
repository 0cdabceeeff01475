"""What decides an engine's bytes, as named parts: a cached engine is used only when every one agrees."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from engines import packages
from engines.errors import UsageError
from engines.flags import Flags
from engines.graph import Graph
from engines.profiles import Profile
from engines.vendor import Vendor
from plugins import contract

Parts = dict[str, str]

_ROOT = Path(__file__).resolve().parents[1]
_CHUNK = 1 << 20


def parts(
    onnx: Path, facts: Graph, *, vendor: Vendor, sm: int, profile: Profile, asked: Flags, gpu: str | None = None
) -> Parts:
    """Returns the parts of an engine's key, in words wherever they are short.

    Args:
        onnx: The model; its external data counts with it.
        facts: Of that file.
        vendor: Who builds.
        sm: Architecture.
        profile: Shapes.
        asked: What is asked of the builder; the place of a timing cache does not count.
        gpu: Name of the GPU that a builder tunes for; None where it compiles for any of the architecture.

    Raises:
        UsageError: A file of the model cannot be read.
    """
    found = {
        "graph": _graph(onnx),
        "profile": "; ".join(_shapes(each) for each in profile.all),
        "dtypes": ", ".join(sorted(facts.dtypes)),
        "flags": json.dumps(asked.of_engine(), sort_keys=True),
        "builder": vendor.name,
        "version": vendor.version,
        "sm": str(sm),
        "gpu": gpu or "any",
        "toolkit": _sources("engines"),
    }
    if any(contract.find(node.domain, node.op) and not node.function for node in facts.foreign):
        found["plugins"] = _sources("plugins")
        found["triton"] = packages.versions()["triton"] or "not installed"
    return found


def _shapes(profile: Profile) -> str:
    return ", ".join(f"{name}={shapes}" for name, shapes in sorted(profile.inputs.items())) or "fixed"


def key(named: Mapping[str, str]) -> str:
    """Returns the sha256 of all parts."""
    return hashlib.sha256(json.dumps(dict(named), sort_keys=True).encode()).hexdigest()


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what moved between two engines' parts, a phrase for each."""
    moved = []
    for name in dict.fromkeys((*new, *old)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        hashed = any(len(value or "") == 64 for value in (before, after))
        moved.append(f"{name} changed" if hashed else f"{name} was {before or 'unset'}, is {after or 'unset'}")
    return tuple(moved)


def _graph(path: Path) -> str:
    """Returns one sha256 over the model and the data files it names, whatever its own name is."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    state = hashlib.sha256()
    _feed(state, path)
    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in _get_all_tensors(model)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        _feed(state, path.parent / place)
    return state.hexdigest()


def _feed(state: "hashlib._Hash", path: Path) -> None:
    try:
        state.update(path.stat().st_size.to_bytes(8))
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error


@cache
def _sources(package: str) -> str:
    state = hashlib.sha256()
    for path in sorted(p for kind in ("*.py", "*.json") for p in (_ROOT / package).rglob(kind)):
        state.update(f"{path.relative_to(_ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return state.hexdigest()
