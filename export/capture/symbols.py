"""Dimensions under human names: "batch" and "length" instead of s31 and s27, in every shape of the graph."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from export.capture.layout import Size, substitute, symbols

if TYPE_CHECKING:
    import onnx_ir as ir


def names_for(
    shapes: Mapping[str, tuple[Size, ...]], dynamic: Mapping[str, Mapping[int, str]]
) -> tuple[dict[str, str], list[str]]:
    """Returns ({exporter's symbol: human name}, notes).

    Two symbols may get one name: the user promises that they are equal. A symbol that was given two names keeps the
    first, because the exporter proved them equal; the note says so.

    Args:
        shapes: {input: its shape in the exporter's symbols}.
        dynamic: {input: {axis: name}}.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    for leaf, axes in dynamic.items():
        for axis, name in axes.items():
            symbol = shapes[leaf][axis] if leaf in shapes else None
            if not isinstance(symbol, str) or not symbol.isidentifier() or not name.isidentifier():
                continue
            first = names.setdefault(symbol, name)
            note = f"`{name}` always equals `{first}` in this model, so both are called `{first}`."
            if first != name and note not in notes:
                notes.append(note)
    return names, notes


def rename(model: "ir.Model", names: Mapping[str, str]) -> None:
    """Renames symbols in every shape of a model, in place, and writes expressions one way.

    A symbol without a name that looks like one of the names gets a prime-like suffix, so that two dimensions never
    share a name by accident.
    """
    import onnx_ir as ir

    taken = set(names.values())
    for value in values(model):
        if value.shape is None:
            continue
        sizes: list[int | str | None] = []
        for dim in value.shape:
            if isinstance(dim, int):
                sizes.append(dim)
                continue
            text = dim.value
            clash = {s: f"{s}_other" for s in symbols(text or 0) if s in taken and s not in names}
            sizes.append(None if text is None else canonical(substitute(text, {**clash, **names})))
        if any(old != new for old, new in zip(_plain(value.shape), sizes, strict=True)):
            value.shape = ir.Shape(sizes)


def canonical(size: Size) -> Size:
    """Returns a size written one way whatever exporter wrote it: "length + past" for "past + length"; 16 for "16"."""
    if isinstance(size, int) or size.isidentifier():
        return size
    if size.isdigit():
        return int(size)
    if not symbols(size):
        return size
    import sympy

    local = {name: sympy.Symbol(name, integer=True, positive=True) for name in symbols(size)}
    try:
        text = str(sympy.parse_expr(size.replace("//", "/"), local_dict=local)) if "//" not in size else size
    except (SyntaxError, TypeError, ValueError, AttributeError):  # an exporter's own notation: leave it be
        return size
    return int(text) if text.isdigit() else text


def values(model: "ir.Model") -> Iterator["ir.Value"]:
    """Yields every value of a model's graphs and functions."""
    import onnx_ir as ir

    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for graph in graphs:
        yield from graph.inputs
        if isinstance(graph, ir.Graph):
            yield from graph.initializers.values()
        for node in graph.all_nodes():
            yield from node.outputs
            for inner in _graphs(node):
                yield from inner.inputs
                yield from inner.initializers.values()


def _graphs(node: "ir.Node") -> Iterator["ir.Graph"]:
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _plain(shape: "ir.Shape") -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in shape]
