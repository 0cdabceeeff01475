"""Which axes of a user's inputs are dynamic, where the factory gives no dynamic_shapes.

The rule: the first axis of every input is "batch" and the second is "length", where they vary freely; in an input of
rank 4 whose second axis is heads, the third is, as in [B, H, S, D]. Every axis that must be equal to one of
these goes with it. torch.export finds out which axes are pinned to a number and which are equal; then the module itself
is run at other sizes, because a program may hold no guard where the module would raise.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import torch

from export.capture import guards, program, tree
from export.capture.frames import described
from export.capture.inputs import try_call
from export.capture.layout import Layout, Size, symbols
from export.capture.sizes import resized


@dataclass
class Found:
    """What was found out.

    Attributes:
        inputs: The example inputs, grown where a batch or length of one would have been taken for a constant.
        dynamic: {leaf: {axis: name, or arithmetic on names}}.
        dims: {name: (min, opt, max)} where the module has an upper limit.
        notes: One sentence for each axis of the rule that stays fixed.
    """

    inputs: dict[str, Any]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    dims: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find(module: torch.nn.Module, inputs: dict[str, Any]) -> Found:
    """Returns which axes vary, under which names, and why the others do not.

    Args:
        module: In eval mode, fp32.
        inputs: By forward's parameter names; the module runs on them.
    """
    found = Found(inputs)
    for axis, name in ((0, "batch"), (1, "length")):
        _grow_ones(module, found, axis, name)
    pins = guards.Pins({}, {})
    layout = _read(module, found, pins)
    ruled = _ruled(layout)
    for symbol in list(layout.sizes):
        if symbol not in ruled:
            layout = layout.pinned(symbol)
    layout, notes = proved(module, found.inputs, layout)
    found.notes += notes
    layout = layout.renamed(_names(layout))
    for leaf, shape in layout.shapes.items():
        axes = {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        if axes:
            found.dynamic[leaf] = axes
    found.dims = {name: (1, layout.sizes[name], largest) for name, largest in layout.largest.items()}
    _note_pins(found, layout, pins)
    return found


def ruled_axes(layout: Layout, leaf: str) -> tuple[int, ...]:
    """Returns the axes of an input that the rule makes dynamic: batch, then length."""
    shape = layout.shapes[leaf]
    heads = len(shape) == 4 and (isinstance(shape[1], int) or shape[1] in _heads(layout))
    return tuple(axis for axis in (0, 2 if heads else 1) if axis < len(shape))


def _heads(layout: Layout) -> set[Size]:
    """Returns the symbols of heads: query, key and value [B, H, S, D] share the second axis, and not the third.

    In [B, S, H, D] it is the other way about, and the second axis is the length.
    """
    fours = [shape for shape in layout.shapes.values() if len(shape) == 4]
    second, third = {shape[1] for shape in fours}, {shape[2] for shape in fours}
    return second if len(fours) > 1 and len(second) == 1 and len(third) > 1 else set()


def _tensors(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: leaf for name, leaf in tree.leaves(inputs) if isinstance(leaf, torch.Tensor)}


def _grow_ones(module: torch.nn.Module, found: Found, axis: int, name: str) -> None:
    # torch.export takes an axis of size 1 for a constant, and so would the graph.
    leaves = _tensors(found.inputs)
    lead = next((x for x in leaves.values() if x.ndim >= 2), None)
    if lead is None or lead.shape[axis] != 1:
        return
    ranks = range(axis + 1, 99 if axis == 0 else 4)  # in [B, 1, L, S] the 1 stands for heads
    ones = [key for key, x in leaves.items() if x.ndim in ranks and x.shape[axis] == 1]
    grown = resized(found.inputs, {key: {axis: 2 + axis} for key in ones})
    error = try_call(module, grown)
    if error is None:
        found.inputs = grown
    else:
        found.notes.append(
            f"{name} is 1 in the example inputs and stays 1: at {2 + axis} the module raises {described(error)}."
        )


def _read(module: torch.nn.Module, found: Found, pins: guards.Pins) -> Layout:
    """Returns the symbolic shapes torch.export finds, or, where it fails, one symbol for axes of equal size."""
    leaves = _tensors(found.inputs)
    failure: Exception | None = None
    for only in (None, (0, 1, 2)):
        try:
            everywhere = program.everywhere(found.inputs, torch.export.Dim.AUTO, only)
            return program.run(module, found.inputs, everywhere, pins).layout(found.inputs)
        except Exception as error:  # torch.export raises whatever tracing the user's code raises
            failure = failure or error
    found.notes.append(
        f"torch.export fails on the module ({described(failure or RuntimeError())}), so axes of one size were taken to "
        "vary together."
    )
    guessed: dict[str, tuple[Size, ...]] = {}
    sizes = {}
    for name, x in leaves.items():
        shape: list[Size] = [int(n) for n in x.shape]
        for axis in range(min(2, x.ndim)):
            if x.shape[axis] > 1:
                shape[axis] = symbol = f"n{axis}_{x.shape[axis]}"
                sizes[symbol] = int(x.shape[axis])
        guessed[name] = tuple(shape)
    return Layout(guessed, sizes)


def _ruled(layout: Layout) -> set[str]:
    return {
        symbol
        for leaf, shape in layout.shapes.items()
        for axis in ruled_axes(layout, leaf)
        for symbol in symbols(shape[axis])
    }


def proved(module: torch.nn.Module, inputs: dict[str, Any], layout: Layout) -> tuple[Layout, list[str]]:
    """Returns the layout once the module has run with each symbol at another size, and notes on what stays fixed.

    Symbols that vary only together become one: a program of torch.export may hold no guard where the module raises.
    """
    notes = []
    for symbol in list(layout.sizes):
        if symbol not in layout.sizes:
            continue
        error, layout = _varied(module, inputs, layout, [symbol])
        if error is None:
            continue
        partners = [s for s, n in layout.sizes.items() if s != symbol and n == layout.sizes[symbol]]
        for company in [[p] for p in partners] + ([partners] if len(partners) > 1 else []):
            together, tried = _varied(module, inputs, layout, [symbol, *company])
            if together is None:
                layout = tried
                for other in company:
                    layout = layout.merged(symbol, other)
                break
        else:
            where = ", ".join(f"axis {axis} of `{leaf}`" for leaf, axis in layout.axes(symbol))
            notes.append(f"{where} stays {layout.sizes[symbol]}: at another size {described(error)}.")
            layout = layout.pinned(symbol)
    return layout, notes


def _varied(
    module: torch.nn.Module, inputs: dict[str, Any], layout: Layout, group: list[str]
) -> tuple[Exception | None, Layout]:
    """Returns (None, layout) if the module runs with these symbols at some other size, else what the first raised.

    Where it shrinks but does not grow, a table or a buffer ends at the example's size, and the layout says so. Where it
    grows but does not shrink, the size is not free either: the patches of an image drop its last rows, up to a point.
    """
    size = layout.sizes[group[0]]
    first: Exception | None = None
    for other in (size + 3, size + 1, size - 1, size // 2):
        if other < 1 or any(other > layout.largest.get(symbol, other) for symbol in group):
            continue
        error = _tried(module, inputs, layout, group, other)
        if error is None:
            if other > size and (stuck := _shrinks(module, inputs, layout, group)) is not None:
                return stuck, layout
            if first is None:
                return None, layout
            bounds = {symbol: max(other, size) for symbol in group}
            return None, Layout(layout.shapes, layout.sizes, {**layout.largest, **bounds})
        first = first or error
    return first or RuntimeError("no other size is allowed"), layout


def _shrinks(module: torch.nn.Module, inputs: dict[str, Any], layout: Layout, group: list[str]) -> Exception | None:
    size = layout.sizes[group[0]]
    errors = [_tried(module, inputs, layout, group, other) for other in {size - 1, size // 2} if other >= 1]
    return errors[0] if errors and None not in errors else None


def _tried(
    module: torch.nn.Module, inputs: dict[str, Any], layout: Layout, group: list[str], size: int
) -> Exception | None:
    return try_call(module, resized(inputs, layout.at(dict.fromkeys(group, size))))


def _names(layout: Layout) -> dict[str, str]:
    names: dict[str, str] = {}
    # Inputs of rank 2 and above settle what is a batch; a vector may be [B] or [S].
    for leaf, shape in sorted(layout.shapes.items(), key=lambda item: len(item[1]) < 2):
        for place, axis in enumerate(ruled_axes(layout, leaf)):
            symbol = shape[axis]
            if isinstance(symbol, str) and symbol in layout.sizes and symbol not in names:
                plain = ("batch", "length")[place]
                names[symbol] = plain if plain not in names.values() else _other(leaf, plain, set(names.values()))
    return names | {symbol: f"size_{i}" for i, symbol in enumerate(layout.sizes) if symbol not in names}


def _other(leaf: str, plain: str, taken: set[str]) -> str:
    """Returns "past_length" for a second length, first met in `past_0_1`; the leaf in full where that is taken."""
    short = f"{re.sub(r'(_[0-9]+)+$', '', leaf)}_{plain}"
    return short if short not in taken else f"{leaf}_{plain}"


def _note_pins(found: Found, layout: Layout, pins: guards.Pins) -> None:
    for name, x in _tensors(found.inputs).items():
        dynamic = found.dynamic.get(name, {})
        for axis in ruled_axes(layout, name):
            line = pins.lines.get((name, axis))
            if line is not None and axis not in dynamic:
                found.notes.append(f"axis {axis} of `{name}` stays {x.shape[axis]}: fixed by {line}.")
