"""What to build: the request as the user put it, from flags, a TOML file or Python, checked once here.

A field left at None means "choose for this machine"; `resolve` replaces every None by what will be done, and that
resolved spec is what the artifact folder keeps as spec.toml.
"""

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from engines import compute_capability, flags, profiles
from export.errors import UsageError

DTYPES = ("fp16", "bf16", "fp32")
TARGETS = ("onnx", "ort", "tensorrt-rtx", "tensorrt")
EXPORTERS = ("dynamo", "torchscript")
MaskedRows = Literal["keep", "zero"]
MASKED_ROWS: tuple[MaskedRows, ...] = ("keep", "zero")
AttentionKind = Literal["native", "plugin"]
ATTENTIONS: tuple[AttentionKind, ...] = ("native", "plugin")
DEFAULT_SOURCE = "mha-rope"
_PATHS = ("source", "out", "timing_cache")
_SWITCHES = ("verify", "decode", "version-compatible", "refit", "strip-plan")


@dataclass(frozen=True)
class Spec:
    """One build. A `pathlib.Path` may stand for the text of a path.

    Attributes:
        source: A form's name, `path/to/file.py:factory`, `package.module:factory`, or an .onnx file.
        out: Folder of the artifacts; None: out/<name of the source>.
        target: What the graph is lowered for; None: tensorrt where it is installed with a GPU, else tensorrt-rtx.
        dtype: "fp16", "bf16" or "fp32"; None: fp16 for PyTorch, the file's own precision for an .onnx file.
        opset: ONNX opset to export; None: the exporter's choice for the toolkit.
        exporter: "dynamo" or "torchscript".
        sm: Compute capabilities to build engines for, as 89; empty: the GPU's own, or 89 and 120 without a GPU.
        shapes: {symbolic dimension: "min:opt:max"}, or {input: "1x1x64:2x128x64:8x512x64"}; (min, opt, max) is taken
            too. What is absent comes from the form or the inputs.
        further_profiles: More shapes that the same engine is built for, each a text as `--shapes` takes it; what it
            does not name is as in `shapes`.
        masked_rows: What a query row without keys gives: "keep", as the original except that a fused one gives 0 for
            NaN, or "zero".
        attention: "native", where the plugin kernel stands in only for what the target does not compute itself, or
            "plugin", where it takes every attention it can (target tensorrt).
        require: "all", or how many attentions must end as one op, as text; None requires nothing.
        decode: Whether prefill and step graphs with a key/value cache are made besides.
        cache_length: Tokens a row of that cache holds; None: the largest length of the profile.
        seed: Seeds the weights a factory draws and the inputs of the parity cases.
        verify: Whether every fusion is checked by running it before and after.
        timing_cache: File in which TensorRT keeps the kernel timings it measured, for later builds.
        hardware_compatibility: "ampere-plus" or "same-compute-capability": which other GPUs the engine runs on (target
            tensorrt).
        version_compatible: Whether the engine runs on later versions of the same major (target tensorrt).
        refit: Whether the engine's weights can be exchanged.
        strip_plan: Whether the engine is written without its weights, which are put in when it is run.
    """

    source: str = DEFAULT_SOURCE
    out: str | None = None
    target: str | None = None
    dtype: str | None = None
    opset: int | None = None
    exporter: str = "dynamo"
    sm: tuple[int, ...] = ()
    shapes: Mapping[str, str | Sequence[int] | int] = field(default_factory=dict)
    further_profiles: tuple[str, ...] = ()
    masked_rows: MaskedRows = "keep"
    attention: AttentionKind = "native"
    require: str | None = None
    decode: bool = False
    cache_length: int | None = None
    seed: int = 0
    verify: bool = True
    timing_cache: str | None = None
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    refit: bool = False
    strip_plan: bool = False

    def __post_init__(self) -> None:
        for name in _PATHS:
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        _one_of("target", self.target, TARGETS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("exporter", self.exporter, EXPORTERS)
        _one_of("masked-rows", self.masked_rows, MASKED_ROWS)
        _one_of("attention", self.attention, ATTENTIONS)
        _one_of("hardware-compatibility", self.hardware_compatibility, tuple(flags.HARDWARE))
        if self.require is not None and self.require != "all" and not self.require.isdigit():
            raise UsageError(f"require is {self.require!r}; give 'all' or a number of attentions, as in --require 12.")
        if self.cache_length is not None and (not self.decode or self.cache_length < 2):
            raise UsageError("cache-length is for decode, and at least 2: --decode --cache-length 1024.")
        object.__setattr__(self, "shapes", {name: _shape_text(name, size) for name, size in self.shapes.items()})
        self.ranges()

    def flags(self) -> flags.Flags:
        """Returns what is asked of the engine builder beyond the graph."""
        return flags.Flags(**{name: getattr(self, name) for name in flags.NAMES})

    def ranges(self) -> profiles.Shapes:
        """Returns what `shapes` says, parsed.

        Raises:
            UsageError: opt lies outside min..max, or the text is no shape.
        """
        return profiles.parse(f"{name}={size}" for name, size in self.shapes.items())

    def further_ranges(self) -> tuple[profiles.Shapes, ...]:
        """Returns what each of `further_profiles` says, parsed; raises as `ranges` does."""
        return tuple(profiles.parse(text) for text in self.further_profiles)

    @property
    def is_onnx(self) -> bool:
        """Whether the source is a ready ONNX file rather than a PyTorch module."""
        return self.source.endswith(".onnx")

    @property
    def name(self) -> str:
        """A file-system name for the source: `a/b.py:make` gives "b.make", `model.onnx` gives "model"."""
        text = Path(self.source).stem if self.is_onnx else self.source
        if ":" in text:
            module, _, factory = text.rpartition(":")
            text = f"{Path(module).stem if module.endswith('.py') else module}.{factory}"
        return re.sub(r"[^\w.-]+", "_", text) or "model"

    @property
    def folder(self) -> Path:
        """Where the artifacts go."""
        return Path(self.out) if self.out else Path("out") / self.name

    def digest(self) -> str:
        """Returns the sha256 of every field that can change the artifacts; `out` cannot."""
        return hashlib.sha256(json.dumps(self.as_dict(with_out=False), sort_keys=True).encode()).hexdigest()

    def as_dict(self, *, with_out: bool = True) -> dict[str, Any]:
        """Returns the spec under its TOML keys (kebab-case), unset fields left out."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            unset = value is None or value == () or (value is False and item.default is False)
            if unset or (item.name == "out" and not with_out):
                continue
            if item.name == "shapes":
                value = {name: value[name] for name in sorted(value)}
            values[item.name.replace("_", "-")] = list(value) if isinstance(value, tuple) else value
        return values

    def as_toml(self) -> str:
        """Returns the spec as TOML that `--config` reads back to an equal spec."""
        values = self.as_dict()
        shapes = values.pop("shapes", {})
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        if shapes:
            lines += ["", "[shapes]", *(f"{_toml(dim)} = {_toml(value)}" for dim, value in shapes.items())]
        return "\n".join(lines) + "\n"

    def with_values(self, values: Mapping[str, Any], origin: str) -> "Spec":
        """Returns the spec with values under TOML keys applied; `origin` names them in errors.

        Raises:
            UsageError: For an unknown key (the nearest known one is suggested) or a value of the wrong type.
        """
        known = {item.name.replace("_", "-"): item.name for item in fields(self)}
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in known:
                raise UsageError(f"{origin}: there is no key {key!r}{_nearest(key, known)}")
            changes[known[key]] = _convert(key, value, origin)
        return replace(self, **changes)


def read_toml(path: str | Path, base: Spec | None = None) -> Spec:
    """Returns the spec a TOML file asks for, over `base`.

    Raises:
        UsageError: The file cannot be read, is not TOML, or holds an unknown key or a value of the wrong type.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"The config file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The config file {path} is not TOML: {error}.") from error
    return (base or Spec()).with_values(values, str(path))


def shapes_from(text: str) -> dict[str, str]:
    """Returns the value of `shapes` for the text of `--shapes`, e.g. "batch=1:2:8,length=1:128:512".

    Raises:
        UsageError: A part is no shape.
    """
    profiles.parse(text)  # refuses what is malformed, with its own words
    parts = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): size.strip() for name, _, size in parts}


def _toml(value: Any) -> str:
    """TOML writes numbers, booleans, lists and basic strings as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _convert(key: str, value: Any, origin: str) -> Any:
    where = f"{origin}: {key}"
    if key == "shapes":
        if isinstance(value, str):
            return shapes_from(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise UsageError(f'{where} must be a table such as {{batch = [1, 2, 8]}} or text such as "batch=1:2:8".')
    if key == "further-profiles":
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise UsageError(f'{where} must be a list of texts such as "batch=1:2:8".')
        for text in value:
            profiles.parse(text)
        return tuple(value)
    if key == "sm":
        if isinstance(value, list | tuple):
            value = ",".join(str(v) for v in value)
        return compute_capability.parse(str(value))
    if key == "require":
        return str(value)
    expected = {"opset": int, "seed": int, "cache-length": int, **dict.fromkeys(_SWITCHES, bool)}.get(key, str)
    if type(value) is not expected:
        raise UsageError(f"{where} is {value!r}; it must be {_article(expected.__name__)}.")
    return value


def _shape_text(name: str, size: Any) -> str:
    if isinstance(size, str):
        return size
    numbers = [size] if type(size) is int else size
    if isinstance(numbers, list | tuple) and len(numbers) in (1, 3) and all(type(n) is int for n in numbers):
        return ":".join(str(n) for n in numbers)
    raise UsageError(f"shapes.{name} is {size!r}; write [min, opt, max].")


def _article(type_name: str) -> str:
    return {"int": "a whole number", "bool": "true or false"}.get(type_name, "text")


def _one_of(key: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise UsageError(f"{key} is {value!r}{_nearest(value, allowed, 'choose from')}")


def _nearest(word: str, known: Iterable[str], lead: str = "known are") -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; {lead} {', '.join(names)}."
