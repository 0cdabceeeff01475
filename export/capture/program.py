"""torch.export, called one way: by keyword, not strict, with the symbols it chose read back per input."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from export.capture import guards, tree
from export.capture.frames import quoted_line, user_line
from export.capture.layout import Layout, Size, symbols
from export.capture.quiet import plain_attention, quiet


@dataclass(frozen=True, eq=False)
class Program:
    """An exported program and what it says about sizes.

    Attributes:
        exported: torch.export's program.
        inputs: {leaf: its shape in symbols}, tensors only, in order.
        ranges: {symbol: (smallest, largest or None where there is no bound)}.
    """

    exported: torch.export.ExportedProgram
    inputs: dict[str, tuple[Size, ...]]
    ranges: dict[str, tuple[int, int | None]]

    def layout(self, inputs: dict[str, Any]) -> Layout:
        """Returns the shapes with every symbol's size in these inputs.

        A size that is arithmetic on a symbol of no input is fixed at its size in the example.
        """
        example = {name: tuple(leaf.shape) for name, leaf in tree.leaves(inputs) if isinstance(leaf, torch.Tensor)}
        sizes = {
            size: int(example[name][axis])
            for name, shape in self.inputs.items()
            for axis, size in enumerate(shape)
            if isinstance(size, str) and size.isidentifier()
        }
        shapes = {
            name: tuple(
                size if all(s in sizes for s in symbols(size)) else int(example[name][axis])
                for axis, size in enumerate(shape)
            )
            for name, shape in self.inputs.items()
        }
        bounds = {symbol: high for symbol, (_, high) in self.ranges.items() if high is not None and symbol in sizes}
        return Layout(shapes, sizes, bounds)


def run(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    axes: Mapping[str, Mapping[int, Any]],
    pins: guards.Pins | None = None,
) -> Program:
    """Returns what torch.export makes of a module; torch's own exception where it fails.

    Args:
        module: In eval mode.
        inputs: By forward's parameter names.
        axes: {leaf: {axis: Dim, Dim.AUTO, Dim.DYNAMIC, ...}}; all others are fixed.
        pins: Filled with the lines that pinned a size.
    """
    shapes = tree.rebuild(
        inputs, lambda name, leaf: dict(axes.get(name, {})) if isinstance(leaf, torch.Tensor) else None
    )
    with quiet(), plain_attention(), torch.no_grad(), guards.watched() as seen:
        try:
            exported = torch.export.export(module, (), inputs, dynamic_shapes=shapes or None, strict=False)
        finally:
            if pins is not None:
                pins.symbols.update(seen.symbols)
                pins.lines.update(seen.lines)
    return Program(exported, _input_shapes(exported, inputs), _ranges(exported))


def value_lines(
    module: torch.nn.Module, inputs: dict[str, Any], axes: Mapping[str, Mapping[int, Any]]
) -> set[tuple[str, int]]:
    """Returns (file, line) where forward reads a tensor's value as a Python number, as far as torch.export sees it.

    Reading a size is none of these. Where torch.export stops at one, that one is returned.
    """
    try:
        made = run(module, inputs, axes)
    except Exception as error:  # torch.export raises whatever tracing the user's code raises
        line = user_line(error) if "DataDependent" in type(error).__name__ else None
        return {(line.file, line.number)} if line else set()
    # Not "item" alone: operator.getitem takes one of several outputs, as in q, k, v = qkv.unbind(0).
    reads = [node for node in made.exported.graph.nodes if re.match(r"aten\.(item|_local_scalar)", str(node.target))]
    found = (quoted_line(node.stack_trace or "") for node in reads)
    return {(line.file, line.number) for line in found if line}


def everywhere(inputs: dict[str, Any], hint: Any, only: tuple[int, ...] | None = None) -> dict[str, dict[int, Any]]:
    """Returns `hint` on every axis of every tensor, or on the axes named in `only`."""
    return {
        name: {axis: hint for axis in range(leaf.ndim) if only is None or axis in only}
        for name, leaf in tree.leaves(inputs)
        if isinstance(leaf, torch.Tensor)
    }


def _input_shapes(exported: torch.export.ExportedProgram, inputs: dict[str, Any]) -> dict[str, tuple[Size, ...]]:
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    user = [
        placeholders[spec.arg.name]
        for spec in exported.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT" and spec.arg.name in placeholders
    ]
    shapes = [node.meta["val"].shape for node in user if isinstance(node.meta.get("val"), torch.Tensor)]
    names = [name for name, leaf in tree.leaves(inputs) if isinstance(leaf, torch.Tensor)]
    return {
        # A symbol that was pinned to a number is still a SymInt.
        name: tuple(int(d) if isinstance(d, int) or str(d).isdigit() else str(d) for d in shape)
        for name, shape in zip(names, shapes, strict=True)
    }


def _ranges(exported: torch.export.ExportedProgram) -> dict[str, tuple[int, int | None]]:
    found = {}
    for symbol, bounds in exported.range_constraints.items():
        lower, upper = str(bounds.lower), str(bounds.upper)  # sympy numbers, or infinities that are none
        found[str(symbol)] = (
            int(lower) if lower.isdigit() else 0,
            int(upper) if upper.isdigit() and int(upper) < 2**31 else None,
        )
    return found
