"""What an artifact folder depends on, as named fingerprints: a folder is reused only when every one agrees.

A single hash could say hit or miss; keeping the parts lets a miss say which of them moved.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import packages
from export.spec import Spec

if TYPE_CHECKING:
    from export.capture import Source

ABSENT = "not installed"

Parts = dict[str, str]


def of_request(spec: Spec, gpus: Iterable[str] = ()) -> Parts:
    """Returns the fingerprints known before anything is loaded: the resolved spec, this toolkit, versions, GPUs."""
    values = spec.as_dict(with_out=False)
    return {
        **{key: json.dumps(value, sort_keys=True) for key, value in values.items()},
        "toolkit": _toolkit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpus": ", ".join(gpus) or "none",
        **versions(),
    }


def of_onnx(path: Path) -> Parts:
    """Returns the fingerprint of an ONNX file and its external data.

    Raises:
        ModelFileError: The file cannot be read as an ONNX model.
    """
    import onnx_ir as ir

    from export import external_data, model_file

    model = model_file.load(path)
    data = {str(t.path) for _, t in external_data.tensors(model) if isinstance(t, ir.ExternalTensor)}
    return {"source file": of_files([path, *sorted(map(Path, data))])}


def of_module(source: "Source") -> Parts:
    """Returns the fingerprints of a factory's product: its code, its weights and its example inputs.

    The code is the factory's file with every file of the user's that it imports; installed packages count by version
    (`export.own_code`).
    """
    import torch
    from torch.utils import _pytree as pytree

    from export import own_code

    def tensors(named: Iterable[tuple[str, Any]]) -> str:
        state = hashlib.sha256()
        for name, value in named:
            if isinstance(value, torch.Tensor):
                held = value.detach().cpu().contiguous()
                state.update(f"{name} {held.dtype} {tuple(held.shape)}".encode())
                state.update(held.reshape(-1).view(torch.uint8).numpy().data if held.numel() else b"")
            else:
                state.update(f"{name} {value!r}".encode())
        return state.hexdigest()

    leaves, _ = pytree.tree_flatten(dict(source.inputs))
    classes = dict.fromkeys(base for part in source.module.modules() for base in type(part).__mro__)
    own = own_code.of(source.name, dict.fromkeys(base.__module__ for base in classes))
    return {
        "code": of_files(own.files),
        "packages": ", ".join(f"{n} {metadata.version(n)}" for n in own.packages if n not in packages.PACKAGES)
        or "no others",
        "weights": tensors(source.module.state_dict(keep_vars=False).items()),
        "example inputs": tensors((str(i), leaf) for i, leaf in enumerate(leaves)),
    }


def combine(parts: Mapping[str, str]) -> str:
    """Returns the sha256 of all fingerprints."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """Returns what moved between two sets of fingerprints, as a sentence part, or None where nothing did."""
    moved = []
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if any(value is not None and len(value) == 64 for value in (before, after)):
            moved.append(f"{key} changed")
        else:
            moved.append(f"{key} was {before or 'unset'}, is {after or 'unset'}")
    return "; ".join(moved[:3]) + (f"; and {len(moved) - 3} more" if len(moved) > 3 else "") if moved else None


def versions() -> Parts:
    """Returns the installed version of every package that can change an artifact."""
    return {name: version or ABSENT for name, version in packages.versions().items()}


def of_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """Returns one sha256 over several files, in the order given; their places do not count."""
    return hashlib.sha256("".join(f"{path.name} {of_file(path)}\n" for path in paths).encode()).hexdigest()


@cache
def _toolkit() -> str:
    """The toolkit's own code, since two checkouts may share a version number."""
    root = Path(__file__).resolve().parents[1]
    return of_files(
        sorted(path for package in ("export", "engines", "plugins") for path in (root / package).rglob("*.py"))
    )
