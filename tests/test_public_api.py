"""What users import says what it takes and gives: every public name, and every class that one of them hands out."""

import builtins
import dataclasses
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from export import errors

MODULES = ("export", "export.errors", "export.parity", "engines.runners")
OURS = ("export", "engines", "plugins")
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
_ENTRY = re.compile(r"^    ([\w*][\w., *]*?):(?: |$)", re.MULTILINE)
_INHERITED = (object, Exception, tuple)


def public() -> Iterator[tuple[str, Any]]:
    """Yields what `__all__` names, modules excepted."""
    for place in MODULES:
        module = importlib.import_module(place)
        for name in module.__all__:
            found = getattr(module, name)
            if not isinstance(found, types.ModuleType) or callable(found):
                yield f"{place}.{name}", found


def handed_out() -> dict[str, Any]:
    """Returns the public names, and every class of ours in their annotations, and in those of these."""
    found, waiting = dict[str, Any](), list(public())
    while waiting:
        name, each = waiting.pop()
        each = importlib.import_module("export.fusing").fuse if isinstance(each, types.ModuleType) else each
        if name in found or isinstance(each, str | int | float | tuple | dict):
            continue
        found[name] = each
        for _, member in members(each) if inspect.isclass(each) else [("", each)]:
            for hint in hints(member).values():
                waiting += [(f"{c.__module__}.{c.__qualname__}", c) for c in classes(hint)]
    return found


def members(owner: type) -> list[tuple[str, Any]]:
    """Returns the public functions and properties that a class of ours defines, and its `__call__`."""
    found = [("", owner)]
    for name, member in vars(owner).items():
        if name.startswith("_") and name not in ("__call__", "_repr_html_"):
            continue
        if isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if isinstance(member, property):
            member = member.fget
        if isinstance(member, functools.cached_property):
            member = member.func
        if inspect.isfunction(member):
            found.append((name, member))
    return found


def hints(member: Any) -> dict[str, Any]:
    """Returns annotations as types; names that are imported for type checkers only are found in their own modules."""
    module = importlib.import_module(member.__module__)
    known = dict(vars(module)) | checked_names(module)
    return typing.get_type_hints(member, globalns=known, localns=known)


@functools.cache
def _checked(source: str) -> str:
    import ast
    import textwrap

    blocks = [n for n in ast.parse(source).body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return "\n".join(textwrap.dedent(ast.unparse(statement)) for block in blocks for statement in block.body)


def checked_names(module: types.ModuleType) -> dict[str, Any]:
    """Returns what a module imports `if TYPE_CHECKING`."""
    found = dict(vars(module))
    exec(_checked(inspect.getsource(module)), found)
    return found


def classes(hint: Any) -> Iterator[type]:
    """Yields the classes of ours that an annotation is made of."""
    if inspect.isclass(hint) and hint.__module__.split(".")[0] in OURS:
        yield hint
    for part in typing.get_args(hint):
        if not isinstance(part, str | int):
            yield from classes(part)


def sections(text: str) -> dict[str, list[str]]:
    """Returns the names that each section of a docstring in Google's style is about."""
    parts = _SECTION.split(inspect.cleandoc(text))
    found = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        own = re.split(r"^\S", body, maxsplit=1, flags=re.MULTILINE)[0]
        found[title] = [word.strip() for entry in _ENTRY.findall(own) for word in entry.split(",")]
    return found


def parameters(member: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function, or those that make an instance of a class, without `self`."""
    signature = inspect.signature(member)
    return {name: p for name, p in signature.parameters.items() if name not in ("self", "cls")}


def complaints(name: str, member: Any, owner: type | None = None) -> list[str]:
    """Returns what a reader of one function or class misses, and what its docstring makes up."""
    text = inspect.getdoc(member)
    if not text:
        return [f"{name} has no docstring"]
    found = []
    listed = sections(text)
    if inspect.isclass(member):
        held = {*dir(member), *getattr(member, "__annotations__", {}), *attributes(member)}
        found += [
            f"{name}: Attributes: names {a}, which it has not" for a in listed.get("Attributes", ()) if a not in held
        ]
        if dataclasses.is_dataclass(member):
            told = {*listed.get("Attributes", ()), *listed.get("Args", ())}
            fields = {f.name for f in dataclasses.fields(member) if not f.name.startswith("_")}
            found += [f"{name}: the field {f} is not explained" for f in sorted(fields - told)]
    else:
        taken = parameters(member)
        bare = [p for p, of in taken.items() if of.annotation is of.empty]
        found += [f"{name}: {p} has no annotation" for p in bare]
        if inspect.signature(member).return_annotation is inspect.Signature.empty:
            found.append(f"{name} does not say what it returns")
        found += [
            f"{name}: Args: names {a}, which it does not take"
            for a in listed.get("Args", ())
            if a.strip("*") not in taken
        ]
        if owner is None and len(taken) > 1:
            missed = [p for p in taken if p not in {a.strip("*") for a in listed.get("Args", ())}]
            found += [f"{name}: {p} is not explained" for p in missed]
    raised = listed.get("Raises", ())
    return found + [f"{name}: Raises: names {e}, which is no exception" for e in raised if not is_exception(e)]


def is_exception(name: str) -> bool:
    found = getattr(errors, name, getattr(builtins, name, None))
    return inspect.isclass(found) and issubclass(found, BaseException)


def attributes(owner: type) -> set[str]:
    """Returns what instances get in the bodies of the class's own methods."""
    return set(re.findall(r"self\.(\w+)\b(?:[:,]| =)", inspect.getsource(owner)))


def test_all_public_names_are_there() -> None:
    for place in MODULES:
        module = importlib.import_module(place)
        assert all(getattr(module, name) is not None for name in module.__all__)
    assert {"export.build", "export.parity.check", "engines.generator.Generator"} <= set(handed_out())
    assert {"export.report.record.Report", "export.fuse.rows.Attention", "export.fusing.Fused"} <= set(handed_out())


@pytest.mark.parametrize("name", sorted(handed_out()))
def test_it_says_what_it_takes_and_gives(name: str) -> None:
    each = handed_out()[name]
    if not inspect.isclass(each):
        assert complaints(name, each) == []
        return
    found = [
        sentence
        for member, function in members(each)
        for sentence in complaints(f"{name}.{member}".rstrip("."), function, each)
    ]
    assert found == []


class TestItself:
    """The walk sees what is wrong."""

    def test_what_is_missing_or_made_up_is_told(self) -> None:
        def bare(a, b: int):
            """Returns nothing.

            Args:
                a: One.
                c: None of its own.

            Raises:
                NoSuchError: Never.
            """

        told = complaints("bare", bare)
        assert told == [
            "bare: a has no annotation",
            "bare does not say what it returns",
            "bare: Args: names c, which it does not take",
            "bare: b is not explained",
            "bare: Raises: names NoSuchError, which is no exception",
        ]

        def silent() -> None:
            pass

        assert complaints("silent", silent) == ["silent has no docstring"]

    def test_fields_are_held_against_what_is_said_of_them(self) -> None:
        @dataclasses.dataclass
        class Point:
            """A point.

            Attributes:
                x: Here.
                z: Not there.
            """

            x: int
            y: int

        assert complaints("Point", Point) == [
            "Point: Attributes: names z, which it has not",
            "Point: the field y is not explained",
        ]
