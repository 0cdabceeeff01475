"""What the TensorRT bindings hold, as data, and a TensorRT made from it that takes no call the real one would not.

`describe` writes down a module's classes: enums with their values, methods with their first signature line, properties.
`module` makes classes of the same names from that. Every call is checked against the signature (how many arguments,
which names), every enum member and attribute must exist, and each call is recorded.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECORDED = Path(__file__).with_name("tensorrt_11_4.json")
CLASSES = (
    "Builder", "BuilderFlag", "DataType", "EngineCapability", "HardwareCompatibilityLevel", "IBuilderConfig",
    "ICudaEngine", "IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition", "IOptimizationProfile",
    "IOutputAllocator", "IProgressMonitor", "ITensor", "ITimingCache", "NetworkDefinitionCreationFlag", "OnnxParser",
    "OnnxParserRefitter", "ParserError", "ProfilingVerbosity", "Refitter", "Runtime", "TensorIOMode", "TensorLocation",
)  # fmt: skip
"""The classes that engines/ uses."""

Description = dict[str, dict[str, Any]]


def describe(real: Any) -> Description:
    """Returns the description of a module's classes; run where it can be imported."""
    found: Description = {}
    for name in CLASSES:
        held = getattr(real, name)
        if hasattr(held, "__members__"):
            found[name] = {member: int(value) for member, value in sorted(held.__members__.items())}
            continue
        names = sorted(n for n in dir(held) if not n.startswith("_") or n == "__init__")
        found[name] = {n: _shape(getattr(held, n)) for n in names if getattr(held, n) is not object.__init__}
    return found


def _shape(held: Any) -> str:
    """Returns "property", or the argument names of each overload: "(a, b=); (a, c)"."""
    if not callable(held) or isinstance(held, property):
        return "property"
    lines = [line.strip() for line in str(held.__doc__ or "").splitlines()]
    overloads = [re.sub(r"^\d+\. ", "", line) for line in lines if re.match(r"(\d+\. )?\w+\(.*\) ->", line)]
    return "; ".join(_arguments(line) for line in overloads) or "(*)"


def _arguments(signature: str) -> str:
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    parts, depth, start = [], 0, 0
    for i, character in enumerate(inside + ","):
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(inside[start:i].strip())
            start = i + 1
    names = [f"{p.partition(':')[0].strip()}{'=' if ' = ' in p else ''}" for p in parts if p]
    return f"({', '.join(n for n in names if n != 'self')})"


def recorded() -> Description:
    """Returns the description of tensorrt 11.4.0.106 that is kept beside this file."""
    return json.loads(RECORDED.read_text())


class Recorder:
    """Every call and every assignment, in order, as text such as "IBuilderConfig.set_flag(REFIT)"."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, what: str) -> None:
        self.calls.append(what)


def module(description: Description, record: Recorder, answers: Mapping[str, Callable[..., Any]]) -> Any:
    """Returns the module.

    Args:
        description: What it holds.
        record: Told of every call.
        answers: {"Class.method": what it returns, called with the object and the arguments}, and {"Class.property": its
            value, called with the object}. A method without an answer returns None, as does a property.
    """
    found = SimpleNamespace(__version__="11.4.0.106")
    for name, members in description.items():
        if all(isinstance(value, int) for value in members.values()):
            setattr(found, name, _enum(name, members))
        else:
            setattr(found, name, _class(name, members, record, answers))
    return found


class _Member(int):
    name: str


def _enum(name: str, members: dict[str, int]) -> Any:
    held: dict[str, Any] = {}
    for member, value in members.items():
        held[member] = _Member(value)
        held[member].name = member
    return type(name, (), {**held, "__members__": dict(held)})


def _class(name: str, members: dict[str, str], record: Recorder, answers: Mapping[str, Callable[..., Any]]) -> Any:
    def method(attribute: str, shape: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            text = ", ".join([*map(_text, args), *(f"{k}={_text(v)}" for k, v in kwargs.items())])
            if not any(_takes(overload, args, kwargs) for overload in shape.split("; ")):
                raise TypeError(f"{name}.{attribute}({text}): incompatible with {shape}")
            if attribute != "__init__":
                record(f"{name}.{attribute}({text})")
            answer = answers.get(f"{name}.{attribute}")
            return answer(self, *args, **kwargs) if answer else None

        return call

    def field(attribute: str) -> property:
        def read(self: Any) -> Any:
            answer = answers.get(f"{name}.{attribute}")
            return answer(self) if answer else getattr(self, f"_{attribute}", None)

        def write(self: Any, value: Any) -> None:
            record(f"{name}.{attribute} = {_text(value)}")
            object.__setattr__(self, f"_{attribute}", value)

        return property(read, write)

    def refuse(self: Any, attribute: str, value: Any) -> None:
        if not attribute.startswith("_") and attribute not in members and type(self).__name__ == name:
            raise AttributeError(f"{name} has no {attribute}")
        object.__setattr__(self, attribute, value)

    body = {n: field(n) if shape == "property" else method(n, shape) for n, shape in members.items()}
    return type(name, (), {**body, "__setattr__": refuse})


def _takes(overload: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if overload == "(*)":
        return True
    names = [n.strip() for n in overload.strip("()").split(",") if n.strip()]
    bare = [n.rstrip("=") for n in names]
    given = [*bare[: len(args)], *kwargs]
    needed = [n for n in names if not n.endswith("=")]
    fits = len(args) <= len(bare) and set(kwargs) <= set(bare) and len(set(given)) == len(given)
    return fits and set(needed) <= set(given)


def _text(value: Any) -> str:
    if isinstance(value, _Member):
        return value.name
    if isinstance(value, bytes | str | int | float | bool | tuple | list) or value is None:
        return repr(value)
    return type(value).__name__
