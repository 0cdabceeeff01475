"""dynamic_shapes as a factory gives them: everything torch.export takes, by parameter name, plus plain names.

torch.export takes a dict by parameter, or a tuple in forward's order; inside, the structure of the inputs, with a dict
{axis: dim} or a sequence of dims for each tensor; a dim is Dim("name"), arithmetic on one, Dim.AUTO, Dim.DYNAMIC,
Dim.STATIC, an int or None. A str is taken too, as torch.onnx.export does: a dynamic axis of that name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from export.capture import tree
from export.capture.layout import Axis, Layout
from export.errors import UsageError

Range = tuple[int, int, int]

RULE = ("batch", "length")
"""What a dynamic axis without a name of its own is called, by its place."""


@dataclass
class Given:
    """A user's dynamic_shapes, read.

    Attributes:
        axes: {leaf: {axis: what torch.export is told}}; names given as text are Dim.DYNAMIC there.
        dynamic: {leaf: {axis: name}}; an axis given as Dim.AUTO may still turn out to be fixed.
        dims: {name: (min, opt, max)} of dims that have a largest size; opt is the example's size.
        unnamed: Axes given as Dim.AUTO or Dim.DYNAMIC, whose name comes from their place.
    """

    axes: dict[str, dict[int, Any]] = field(default_factory=dict)
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    dims: dict[str, Range] = field(default_factory=dict)
    unnamed: set[Axis] = field(default_factory=set)


def read(shapes: Any, module: torch.nn.Module, inputs: dict[str, Any], origin: str) -> Given:
    """Returns the dynamic_shapes of a factory, by input.

    Raises:
        UsageError: Their structure is not that of the inputs, or an axis or name does not exist.
    """
    if hasattr(shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
        shapes = shapes.dynamic_shapes(module, (), inputs)
    if isinstance(shapes, (tuple, list)):
        if len(shapes) != len(inputs):
            raise UsageError(
                f"{origin}: dynamic_shapes has {len(shapes)} entries for {len(inputs)} inputs "
                f"({', '.join(inputs)}). Give one entry an input, None where nothing varies, or a dict by name."
            )
        shapes = dict(zip(inputs, shapes, strict=True))
    if not isinstance(shapes, Mapping):
        raise UsageError(f"{origin}: dynamic_shapes is a {type(shapes).__name__}. Give a dict by name or a tuple.")
    unknown = [name for name in shapes if name not in inputs]
    if unknown:
        raise UsageError(
            f"{origin}: dynamic_shapes names `{unknown[0]}`, which is no input. The inputs are {', '.join(inputs)}."
        )
    given = Given()
    specs: dict[str, Any] = {}
    for name, value in inputs.items():
        _pair(name, value, shapes.get(name), specs, origin)
    for name, leaf in tree.leaves(inputs):
        if isinstance(leaf, torch.Tensor):
            _read_leaf(name, leaf, specs.get(name), given, origin)
    _refuse_two_sizes(given, dict(tree.leaves(inputs)), origin)
    return given


def resolved(given: Given, layout: Layout) -> dict[str, dict[int, str]]:
    """Returns {leaf: {axis: name}} once torch.export has said which axes vary and which are equal.

    An axis that turned out to be fixed is left out. Axes without a name of their own that are not equal to another of
    that name get one: "memory_length". Axes that the user gave one name keep it: they promise to be equal.
    """
    names: dict[str, str] = {}
    wanted = {(leaf, axis): name for leaf, axes in given.dynamic.items() for axis, name in axes.items()}
    for (leaf, axis), name in sorted(wanted.items(), key=lambda item: item[0] in given.unnamed):
        symbol = layout.shapes[leaf][axis]
        if isinstance(symbol, str) and symbol.isidentifier() and symbol not in names:
            taken = (leaf, axis) in given.unnamed and name in names.values()
            names[symbol] = f"{leaf}_{name}" if taken else name
    renamed = layout.renamed(names)
    found: dict[str, dict[int, str]] = {}
    for leaf, axis in wanted:
        size = renamed.shapes[leaf][axis]
        if isinstance(size, str):
            found.setdefault(leaf, {})[axis] = size
    return found


def _pair(name: str, value: Any, spec: Any, specs: dict[str, Any], origin: str) -> None:
    """Walks inputs and dynamic_shapes side by side, down to the tensors."""
    if spec is None or value is None:
        return
    if isinstance(value, torch.Tensor):
        specs[name] = spec
        return
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if _is_sequence(value) else None
    if children is None:
        raise UsageError(f"{origin}: `{name}` is a constant of the graph; dynamic_shapes cannot make it vary.")
    same = isinstance(spec, Mapping) if isinstance(value, Mapping) else _is_sequence(spec) and len(spec) == len(value)
    if not same:
        raise UsageError(
            f"{origin}: the input `{name}` is a {type(value).__name__} of {len(value)}, and its dynamic_shapes are "
            f"{spec!r}. Nest them as the inputs are nested."
        )
    for key, child in children:
        below = spec.get(key) if isinstance(spec, Mapping) else spec[key]
        _pair(f"{name}_{key}", child, below, specs, origin)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _read_leaf(name: str, leaf: torch.Tensor, spec: Any, given: Given, origin: str) -> None:
    if spec is None:
        return
    if _is_sequence(spec) and len(spec) != leaf.ndim:
        raise UsageError(
            f"{origin}: dynamic_shapes gives {len(spec)} axes for `{name}`, which has {leaf.ndim} {tuple(leaf.shape)}."
        )
    axes = spec if isinstance(spec, Mapping) else dict(enumerate(spec)) if _is_sequence(spec) else None
    if axes is None or not all(isinstance(axis, int) for axis in axes):
        raise UsageError(f"{origin}: dynamic_shapes for `{name}` is {spec!r}. Give {{axis: dim}} or one dim an axis.")
    for axis, dim in axes.items():
        if not 0 <= axis < leaf.ndim:
            raise UsageError(
                f"{origin}: dynamic_shapes names axis {axis} of `{name}`, which has {leaf.ndim} axes "
                f"{tuple(leaf.shape)}."
            )
        if dim is None or isinstance(dim, int) or dim is torch.export.Dim.STATIC:
            continue
        given.axes.setdefault(name, {})[axis] = torch.export.Dim.DYNAMIC if isinstance(dim, str) else dim
        called = _called(dim, name, axis)
        if not isinstance(dim, str) and not hasattr(dim, "__name__"):
            given.unnamed.add((name, axis))
        given.dynamic.setdefault(name, {})[axis] = called
        low, high = getattr(dim, "min", None), getattr(dim, "max", None)
        if called.isidentifier() and isinstance(high, int) and high < 2**31:
            given.dims[called] = (max(1, int(low or 1)), int(leaf.shape[axis]), high)


def _refuse_two_sizes(given: Given, leaves: dict[str, Any], origin: str) -> None:
    first: dict[str, Axis] = {}
    for leaf, axes in given.dynamic.items():
        for axis, name in axes.items():
            if not name.isidentifier() or (leaf, axis) in given.unnamed:
                continue
            other, place = first.setdefault(name, (leaf, axis))
            sizes = leaves[other].shape[place], leaves[leaf].shape[axis]
            if sizes[0] != sizes[1]:
                raise UsageError(
                    f"{origin}: `{name}` is {sizes[0]} in axis {place} of `{other}` and {sizes[1]} in axis {axis} of "
                    f"`{leaf}`. One name is one size: rename one, or correct the example inputs."
                )


def _called(dim: Any, leaf: str, axis: int) -> str:
    if isinstance(dim, str):
        return dim
    name = getattr(dim, "__name__", None)  # Dim("length"), or 2*length
    if isinstance(name, str):
        return name
    return RULE[axis] if axis < len(RULE) else f"{leaf}_{axis}"
