"""Rules of operators that move, repeat and pick elements, and of those that make positions and dimensions."""

from collections.abc import Sequence

import onnx_ir as ir

from export.fuse.masks.constants import scalar
from export.fuse.masks.elementwise import exact
from export.fuse.masks.formula import FALSE, TRUE, at_least
from export.fuse.masks.meaning import Indices, Meaning, Stuck, Term, inside, number, one, rule, where
from export.fuse.masks.polynomial import Poly, at_least_zero
from export.graph.values import attribute, dim, integers, permutation, rank


@rule("Range")
def _range(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    if not exact(node.outputs[0].dtype):
        raise Stuck
    start, step = m.integer(node.inputs[0], ()), m.integer(node.inputs[2], ())
    return one(start + indices[0] * step)


@rule("Shape")
def _shape(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    length, at = rank(node.inputs[0]), indices[0].number
    if length is None or at is None:
        raise Stuck
    start = attribute(node, "start", 0)
    start = max(0, start + length if start < 0 else start)
    return one(m.size(node.inputs[0], start + at))


@rule("ConstantOfShape")
def _filled(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    fill = node.attributes.get("value")
    return one(number(0.0, ir.DataType.FLOAT)) if fill is None else scalar(fill.as_tensor().numpy().reshape(-1)[0])


@rule("Expand")
def _expanded(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value, shape = node.inputs[:2]
    length = rank(value)
    if value is None or length is None or length > len(indices):
        raise Stuck
    shift = len(indices) - length
    found = []
    for at in range(length):
        index = indices[at + shift]
        if dim(value, at) == 1:
            index = Poly()
        elif not _same_size(m, value, at, dim(node.outputs[0], at + shift)):
            entries = dim(shape, 0)
            if not isinstance(entries, int):
                raise Stuck
            place = at + shift + entries - len(indices)
            if place >= 0 and m.integer(shape, (Poly.of(place),)) not in (Poly.of(1), m.size(value, at)):
                raise Stuck
        found.append(index)
    return m.at(value, tuple(found))


def _same_size(m: Meaning, value: ir.Value, at: int, room: int | str | None) -> bool:
    return room is not None and m.size(value, at) == m.dimension(room, "")


@rule("Tile")
def _tiled(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value, repeats = node.inputs[:2]
    found = []
    for at, index in enumerate(indices):
        if dim(value, at) == 1:
            found.append(Poly())
        elif m.integer(repeats, (Poly.of(at),)).number == 1:
            found.append(index)
        else:
            found.append(_divided(index, m.size(value, at))[1])
    return m.at(value, tuple(found))


@rule("Transpose")
def _transposed(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    perm = permutation(node)
    if perm is None:
        raise Stuck
    return m.at(node.inputs[0], tuple(indices[perm.index(at)] for at in range(len(perm))))


@rule("Unsqueeze")
def _unsqueezed(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise Stuck
    new = {a % len(indices) for a in axes}
    return m.at(node.inputs[0], tuple(p for at, p in enumerate(indices) if at not in new))


@rule("Squeeze")
def _squeezed(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    length = rank(node.inputs[0])
    if length is None:
        raise Stuck
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = integers(given) if given is not None else tuple(a for a in range(length) if dim(node.inputs[0], a) == 1)
    if axes is None or length - len(axes) != len(indices):
        raise Stuck
    gone, left = {a % length for a in axes}, iter(indices)
    return m.at(node.inputs[0], tuple(Poly() if at in gone else next(left) for at in range(length)))


@rule("Reshape", "Flatten")
def _reshaped(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value, result = node.inputs[0], node.outputs[0]
    length = rank(value)
    if length is None:
        raise Stuck
    ones = [dim(value, at) == 1 for at in range(length)]
    if all(ones):
        return m.at(value, (Poly(),) * length)
    before = [m.size(value, at) for at in range(length)]
    after = [m.size(result, at) for at in range(len(indices))]
    linear, stride = Poly(), Poly.of(1)
    for index, size in zip(reversed(indices), reversed(after), strict=True):
        linear, stride = linear + index * stride, stride * size
    return m.at(value, _unravelled(linear, before))


def _unravelled(linear: Poly, sizes: Sequence[Poly]) -> Indices:
    """Returns the indices of the element that has a number, counted along the last axis first."""
    found: list[Poly] = []
    for at in range(len(sizes) - 1, -1, -1):
        size = sizes[at]
        if size.number == 1:
            found.append(Poly())
        elif all(s.number == 1 for s in sizes[:at]):
            found.append(linear)
            linear = Poly()
        else:
            whole, rest = _divided(linear, size)
            found.append(rest)
            linear = whole
    return tuple(reversed(found))


def _divided(poly: Poly, size: Poly) -> tuple[Poly, Poly]:
    """Returns quotient and remainder by a dimension, where they can be told apart."""
    if len(size.terms) != 1:
        raise Stuck
    (divisor, factor) = size.terms[0]
    whole, rest = Poly(), Poly()
    for monomial, count in poly.terms:
        left = list(monomial)
        divisible = count % factor == 0
        for atom in divisor:
            divisible = divisible and atom in left
            if divisible:
                left.remove(atom)
        term = Poly(((tuple(left) if divisible else monomial, count // factor if divisible else count),))
        whole, rest = (whole + term, rest) if divisible else (whole, rest + term)
    if not at_least_zero(rest) or not at_least_zero(size - rest - 1):
        raise Stuck
    return whole, rest


@rule("Slice")
def _sliced(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value = node.inputs[0]
    starts, axes = node.inputs[1], integers(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else None
    count = dim(starts, 0)
    if not isinstance(count, int) or (steps is None and len(node.inputs) > 4 and node.inputs[4] is not None):
        raise Stuck
    places = list(indices)
    for k, at in enumerate(axes if axes is not None else range(count)):
        step = steps[k] if steps is not None else 1
        start = m.integer(starts, (Poly.of(k),))
        if step < 1:
            raise Stuck
        if start.number is not None and start.number < 0:
            start = start + m.size(value, at)
        if not at_least_zero(start):
            raise Stuck  # it would count from the end
        places[at] = places[at] * step + start
    return m.at(value, tuple(places))


@rule("Concat")
def _joined(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    at = attribute(node, "axis", 0) % len(indices)
    index, found = indices[at], list[tuple[ir.Value, Poly, Poly]]()
    start = Poly()
    for value in node.inputs:
        length = m.size(value, at)
        if value is not None:
            found.append((value, start, length))
        start = start + length
    result: Term | None = None
    for value, first, length in reversed(found):
        here = inside(index, first + length)
        before = at_least(index - first)
        if FALSE in (here, before):
            continue
        part = m.at(value, (*indices[:at], index - first, *indices[at + 1 :]))
        result = part if result is None or (here == TRUE and before == TRUE) else where(here, part, result)
    if result is None:
        raise Stuck
    return result


@rule("Gather")
def _gathered(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value, chosen = node.inputs[:2]
    count, length = rank(chosen), rank(value)
    if count is None or length is None:
        raise Stuck
    at = attribute(node, "axis", 0) % length
    index = _counted(m, value, at, m.integer(chosen, indices[at : at + count]))
    return m.at(value, (*indices[:at], index, *indices[at + count :]))


@rule("GatherElements")
def _gathered_elements(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    at = attribute(node, "axis", 0) % len(indices)
    index = _counted(m, node.inputs[0], at, m.integer(node.inputs[1], indices))
    return m.at(node.inputs[0], (*indices[:at], index, *indices[at + 1 :]))


@rule("GatherND")
def _gathered_places(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    value, chosen = node.inputs[:2]
    count = rank(chosen)
    places = dim(chosen, -1)
    if count is None or not isinstance(places, int) or attribute(node, "batch_dims", 0):
        raise Stuck
    lead = indices[: count - 1]
    found = [_counted(m, value, at, m.integer(chosen, (*lead, Poly.of(at)))) for at in range(places)]
    return m.at(value, (*found, *indices[count - 1 :]))


def _counted(m: Meaning, value: ir.Value | None, at: int, index: Poly) -> Poly:
    """Returns an index counted from the start of an axis: negative ones count from its end."""
    if at_least_zero(index):
        return index
    if at_least_zero(-index - 1):
        return index + m.size(value, at)
    raise Stuck


@rule("Trilu")
def _triangle(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    shift = Poly() if given is None else m.integer(given, (Poly(),) * (rank(given) or 0))
    row, column = indices[-2:]
    upper = attribute(node, "upper", 1) == 1
    kept = at_least(column - row - shift) if upper else at_least(row + shift - column)
    found = m.at(node.inputs[0], indices)
    if node.outputs[0].dtype == ir.DataType.BOOL:
        return where(kept, found, FALSE)
    return where(kept, found, one(number(0.0, node.outputs[0].dtype)))


@rule("CumSum")
def _summed(m: Meaning, node: ir.Node, indices: Indices) -> Term:
    """A running sum of one number is that number times the position."""
    along = integers(node.inputs[1])
    if along is None or attribute(node, "reverse", 0) or not exact(node.outputs[0].dtype):
        raise Stuck
    at = along[0] % len(indices)
    step = m.integer(node.inputs[0], indices)
    if step.number is None:
        raise Stuck
    return one(step * (indices[at] + (0 if attribute(node, "exclusive", 0) else 1)))
