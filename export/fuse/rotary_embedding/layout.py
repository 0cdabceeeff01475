"""Brings x and its tables to the axes RotaryEmbedding has: x [B, H, S, D] or [B, S, D], tables [B, S, D/2]."""

from dataclasses import dataclass

import onnx_ir as ir

from export.graph.build import Builder
from export.graph.values import Dim, Refusal, dims

_INT = ir.DataType.INT64


@dataclass(frozen=True)
class Layout:
    """Which axes of x are which.

    Attributes:
        axes: The axes of x, an axis that is to be added as None, in the order B, H, S (without H: one head, B and S).
    """

    axes: tuple[int | None, ...]

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """The axes of x that its tables have: batch and steps."""
        return self.axes[0], self.axes[-1]


def layout_of(shape: tuple[Dim, ...], tables: tuple[tuple[Dim, ...], ...]) -> Layout | None:
    """Returns how x lies, from the axes along which its tables vary; None where the operator has no such form.

    Args:
        shape: The dimensions of x [.., D].
        tables: Those of its tables, broadcastable to [.., D/2].
    """
    length = len(shape) - 1
    if any(len(table) - 1 > length for table in tables):
        return None
    varying = {length - at for table in tables for at, own in enumerate(reversed(table[:-1]), 1) if own != 1}
    if length == 1:
        return Layout((None, 0))
    if length == 2:
        return Layout((None, 1, 0)) if varying == {0} and shape[1] != 1 else Layout((0, 1))
    fitting = (Layout(axes) for axes in ((0, 1, 2), (0, 2, 1), (1, 0, 2)) if length == 3 and axes[1] not in varying)
    return next(fitting, None)


def widen(build: Builder, x: ir.Value, table: ir.Value) -> ir.Value:
    """Returns x as wide as a table where that is not proved already: a product widens x, the operator does not.

    Args:
        build: Where to write.
        x: The tensor that is rotated [.., D].
        table: Broadcastable to [.., D/2].
    """
    shape, own = dims(x), dims(table)
    if shape is None or own is None:
        raise Refusal("R103", f"The shape of '{x.name}' or of its tables is not known.")
    skipped = len(shape) - len(own)
    wider = [axis for axis in range(len(own) - 1) if own[axis] not in (1, shape[axis + skipped])]
    if not wider:
        return x
    sizes = [_size(build, table, axis) if axis in wider else build.axes(1) for axis in range(len(own) - 1)]
    target = build("Concat", *sizes, build.axes(1), dtype=_INT, axis=0)
    found = list(shape)
    for axis in wider:
        found[axis + skipped] = f"Max({shape[axis + skipped]}, {own[axis]})"  # one of them may be 1
    return build("Expand", x, target, dtype=x.dtype, shape=ir.Shape(found))


def turn(build: Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """Returns x with its axes in the operator's order."""
    if None in layout.axes:
        x = build("Unsqueeze", x, build.axes(0), dtype=x.dtype, shape=ir.Shape((1, *(dims(x) or ()))))
    perm = _order(layout)
    return x if perm == tuple(range(len(perm))) else _transposed(build, x, perm)


def turn_back(build: Builder, x: ir.Value, layout: Layout) -> ir.Value:
    """Undoes `turn`."""
    perm = _order(layout)
    if perm != tuple(range(len(perm))):
        x = _transposed(build, x, tuple(perm.index(axis) for axis in range(len(perm))))
    if None not in layout.axes:
        return x
    return build("Squeeze", x, build.axes(0), dtype=x.dtype, shape=ir.Shape((dims(x) or ())[1:]))


def _transposed(build: Builder, x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    shape = dims(x) or ()
    return build("Transpose", x, dtype=x.dtype, shape=ir.Shape(tuple(shape[axis] for axis in perm)), perm=perm)


def _order(layout: Layout) -> tuple[int, ...]:
    added = int(None in layout.axes)
    order = tuple(0 if axis is None else axis + added for axis in layout.axes)
    return (*order, len(order))


def cache(build: Builder, table: ir.Value, x: ir.Value, layout: Layout, half: int) -> ir.Value:
    """Returns a table as [B, S, D/2], every batch row written out (the operator does not broadcast).

    Args:
        build: Where to write.
        table: Broadcastable to [.., D/2], its other axes those of x.
        x: The tensor that is rotated, before its axes are moved.
        layout: Its axes.
        half: D/2.
    """
    shape, own = dims(x), dims(table)
    if shape is None or own is None:
        raise Refusal("R103", f"The shape of '{x.name}' is not known.")
    missing = len(shape) - len(own)
    present = [axis + missing for axis in range(len(own) - 1)]
    wanted = [axis for axis in layout.rows if axis is not None]
    dropped = [axis for axis in present if axis not in wanted]
    if dropped:
        places = build.axes(*(present.index(axis) for axis in dropped))
        table = build("Squeeze", table, places, dtype=table.dtype)
        present = [axis for axis in present if axis in wanted]
    if len(present) == 2 and present != wanted:
        table = build("Transpose", table, dtype=table.dtype, perm=(1, 0, 2))
    new = [at for at, axis in enumerate(layout.rows) if axis not in present]
    if new:
        table = build("Unsqueeze", table, build.axes(*new), dtype=table.dtype)
    target = tuple(1 if axis is None else shape[axis] for axis in layout.rows)
    found = tuple(1 if axis is None or axis not in present else own[axis - missing] for axis in layout.rows)
    if found != target or own[-1] != half:
        sizes = [build.axes(1) if axis is None else _size(build, x, axis) for axis in layout.rows]
        whole = build("Concat", *sizes, build.axes(half if own[-1] != half else 1), dtype=_INT, axis=0)
        table = build("Expand", table, whole, dtype=table.dtype)
    table.shape = ir.Shape([*target, half])
    return table


def _size(build: Builder, x: ir.Value, axis: int) -> ir.Value:
    return build("Shape", x, dtype=_INT, start=axis, end=axis + 1)
