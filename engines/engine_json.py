"""engine.json: what lies beside engines so that they can be judged and run without opening them.

    {"schema": 1, ...,
     "engines": [{"file", "sha256", "size", "vendor", "version", "sm", "inputs", "outputs", "profile",
      "profiles", "flags"}]}

`entry` is one element of "engines"; whoever writes the folder may add keys of its own beside them. An input or output
is {"name", "dtype", "shape"}, the profile {"dims": {name: [min, opt, max]}, "inputs": {name: [min, opt, max shape]}};
"profiles" lists every one, and "profile" is the first.
"flags" (`engines.flags.Flags.as_dict`) may be missing, for none. Where the file has a "sha256" of its own, it signs the
rest: an engine is opened only if it is the one whose sha256 stands here, and this only if nobody edited it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import UsageError
from engines.flags import Flags
from engines.runner import TensorSpec

if TYPE_CHECKING:
    from engines.build import BuiltEngine
    from engines.profiles import Profile

NAME = "engine.json"
SCHEMA = 1
DECODE = "decode"
"""The key of what a decode loop runs (`engines.decoding`): "graphs", and "engines" with the graph each was built of."""
SEAL = "sha256"
"""The key of engine.json that signs the rest of it."""

Range = tuple[int, int, int]


@dataclass(frozen=True)
class Record:
    """What engine.json says about one engine.

    Attributes:
        file: The engine's file name.
        sha256: Of its bytes, in hexadecimal.
        vendor: "tensorrt-rtx" or "tensorrt".
        version: Version of the builder.
        sm: Architecture it was built for, e.g. 89.
        inputs, outputs: Its tensors, with the symbolic names of the graph.
        dims: (min, opt, max) of each symbolic dimension.
        flags: What was asked of the builder beyond the graph.
    """

    file: str
    sha256: str
    vendor: str
    version: str
    sm: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[str, Range]
    flags: Flags = field(default_factory=Flags)


def entry(engine: "BuiltEngine") -> dict[str, Any]:
    """Returns the element of "engines" for an engine that was just built; reads its file for the digest."""
    return {
        "file": engine.path.name,
        "sha256": digest(engine.path),
        "size": engine.size,
        "vendor": engine.vendor,
        "version": engine.version,
        "sm": engine.sm,
        "inputs": [_tensor(spec) for spec in engine.inputs],
        "outputs": [_tensor(spec) for spec in engine.outputs],
        "profile": _profile(engine.profile),
        "profiles": [_profile(each) for each in engine.profile.all],
        "flags": engine.flags.as_dict(),
    }


def read_folder(folder: Path) -> tuple[Record, ...]:
    """Returns the records of a folder's engines.

    Raises:
        UsageError: engine.json is missing, or is not what this toolkit writes.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise UsageError(
                f"{path} has schema {content['schema']!r}, and this version of the toolkit reads {SCHEMA}: build again."
            )
        return records(content)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no {path}: an engine says nothing about itself, so it is run only beside the {NAME} that its "
            "build wrote. Build again, or give the folder of the build."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged or was not written by this toolkit ({error!r}). Build again.") from error


def records(content: Mapping[str, Any]) -> tuple[Record, ...]:
    """Returns the records of engine.json's content; KeyError, TypeError or ValueError where it is not ours."""
    return tuple(_record(item) for item in content["engines"])


def usual_sizes(folder: Path) -> dict[str, int]:
    """Returns the `opt` of each symbolic dimension of a folder's profile; none where engine.json does not say."""
    try:
        content = json.loads((folder / NAME).read_text())
        return {name: int(sizes[1]) for name, sizes in content["profile"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}  # it only makes random inputs typical; `read_folder` is who complains


def read(engine: Path) -> Record:
    """Returns the record of an engine file, from the engine.json beside it.

    Raises:
        UsageError: There is no such file, no engine.json beside it, no word of it therein, or engine.json was edited.
    """
    if not engine.is_file():
        raise UsageError(f"There is no engine {engine}.")
    records = read_folder(engine.parent)
    content = json.loads((engine.parent / NAME).read_text())
    if SEAL in content and content[SEAL] != seal(content):
        raise UsageError(
            f"{engine.parent / NAME} is not what the build wrote (its own sha256 differs), so what it says of its "
            "engines is not believed. Build again."
        )
    if DECODE in content:
        records = (*records, *(_record(item) for item in content[DECODE]["engines"]))
    for record in records:
        if record.file == engine.name:
            return record
    listed = ", ".join(record.file for record in records) or "none"
    raise UsageError(f"{engine.parent / NAME} does not know {engine.name}; its engines are {listed}.")


def read_plan(engine: Path, record: Record) -> bytes:
    """Returns the engine's bytes.

    Raises:
        UsageError: They are not the ones that the record is about.
    """
    try:
        plan = engine.read_bytes()
    except OSError as error:
        raise UsageError(f"{engine} cannot be read: {error.strerror}.") from error
    if digest_of(plan) != record.sha256:
        raise UsageError(
            f"{engine} is not the file that {NAME} describes (its sha256 differs): it was changed, truncated or "
            "replaced since the build. Build again."
        )
    return plan


def digest(path: Path) -> str:
    """Returns the sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(content: Mapping[str, Any]) -> str:
    """Returns the sha256 of a JSON object but for its seal, however it is indented or ordered."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def digest_of(content: bytes) -> str:
    """Returns the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _profile(profile: "Profile") -> dict[str, Any]:
    return {
        "dims": {name: list(sizes) for name, sizes in profile.dims.items()},
        "inputs": {n: [list(s.min), list(s.opt), list(s.max)] for n, s in profile.inputs.items()},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _record(item: dict[str, Any]) -> Record:
    return Record(
        file=str(item["file"]),
        sha256=str(item["sha256"]),
        vendor=str(item["vendor"]),
        version=str(item["version"]),
        sm=int(item["sm"]),
        inputs=tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in item["inputs"]),
        outputs=tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in item["outputs"]),
        dims={name: (int(low), int(opt), int(high)) for name, (low, opt, high) in item["profile"]["dims"].items()},
        flags=Flags.from_dict(item.get("flags", {})),
    )
