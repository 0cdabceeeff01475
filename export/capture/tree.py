"""Nested inputs and outputs as a flat list of named leaves, and back; needs no torch.

The order is that of torch.export: forward's parameters, then tuples, lists and dicts in their own order, depth first.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

CONSTANTS = (bool, int, float, str)
"""Leaves that are not tensors and become part of the graph."""


def leaves(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns (name, leaf) of everything that is not a container; None is left out.

    A leaf below a parameter is named by its path: `past[0][1]` is "past_0_1", `masks["keep"]` is "masks_keep". Where
    two paths give one name, the later gets an underscore.
    """
    found: list[tuple[str, Any]] = []
    used = set(values)
    for parameter, value in values.items():
        for path, leaf in _walk(value):
            name = "_".join((parameter, *path))
            while path and name in used:
                name += "_"
            used.add(name)
            if leaf is not None:
                found.append((name, leaf))
    return found


def rebuild(values: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Returns the same structure with each leaf replaced by change(name, leaf); None stays None."""
    names = iter([name for name, _ in leaves(values)])

    def walk(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(walk(item) for item in value))
        if isinstance(value, (tuple, list)):
            return type(value)(walk(item) for item in value)
        return change(next(names), value)

    return {name: walk(value) for name, value in values.items()}


def outputs(value: Any) -> list[tuple[str, Any]]:
    """Returns (name, leaf) of what forward returned, None left out.

    One tensor is "output"; a tuple gives "output_0", "output_1", ...; a dict gives its keys.
    """
    return leaves(dict(value)) if _is_keyed(value) else leaves({"output": value})


def _is_keyed(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(key, str) for key in value)


def _walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, str(key)))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, str(index)))
    else:
        yield path, value
