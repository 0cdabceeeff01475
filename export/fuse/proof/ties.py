"""Sizes that belong together: what a graph joins on one axis has one length there, whatever the symbols are called.

`scores[B, H, S, P + S] + mask[B, 1, S, total]` runs where total is P + S (or 1); drawn apart, neither side would run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import onnx_ir as ir
import sympy

from export.fuse.proof.adversary import parse_size
from export.graph.values import Dim, attribute, dims

_ALIGNED = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "Pow",
    "Sub", "Where", "Xor",
}  # fmt: skip

Tie = tuple[str, sympy.Expr]


def ties(nodes: Iterable[ir.Node]) -> tuple[Tie, ...]:
    """Returns (symbol, what it equals) for the differently named lengths that the nodes join."""
    found: dict[str, sympy.Expr] = {}
    for node in nodes:
        for one, two in _joined(node):
            repeats = 1 in (one, two) and node.op_type != "Reshape"
            if one == two or repeats or (isinstance(one, int) and isinstance(two, int)):
                continue
            left, right = (sympy.expand(parse_size(str(d)).subs(found)) for d in (one, two))
            solved = _solved(left - right)
            if solved is not None:
                symbol, value = solved
                found = {name: known.subs(symbol, value) for name, known in found.items()}
                found[str(symbol)] = value
    return tuple(found.items())


def settle(bound: Mapping[str, int], known: Iterable[Tie]) -> dict[str, int]:
    """Returns sizes that keep the ties: a tied symbol follows the others where that gives a size."""
    settled = dict(bound)
    for name, value in known:
        size = value.subs({sympy.Symbol(n): s for n, s in bound.items()})
        if name in bound and size.is_Integer and int(size) > 0:
            settled[name] = int(size)
    return settled


def _joined(node: ir.Node) -> Iterator[tuple[Dim, Dim]]:
    if node.domain not in ("", "ai.onnx"):
        return
    shapes = [s for s in (dims(v) for v in node.inputs if v is not None) if s is not None]
    whole = dims(node.outputs[0])
    if node.op_type == "Concat" and whole is not None and len(shapes) == len(node.inputs):
        along = attribute(node, "axis", 0) % len(whole)
        yield whole[along], " + ".join(f"({shape[along]})" for shape in shapes)
    if node.op_type == "Reshape" and whole is not None and dims(node.inputs[0]) is not None:
        before, after = Counter(shapes[0]), Counter(whole)
        yield _product(before - after), _product(after - before)
        return
    for one, two in pairwise(shapes):
        if node.op_type in _ALIGNED:
            yield from zip(reversed(one), reversed(two), strict=False)
        elif node.op_type == "MatMul" and len(one) >= 2 and len(two) >= 2:
            yield one[-1], two[-2]
            yield from zip(reversed(one[:-2]), reversed(two[:-2]), strict=False)
        elif node.op_type == "Concat" and len(one) == len(two):
            along = attribute(node, "axis", 0) % len(one)
            yield from ((a, b) for at, (a, b) in enumerate(zip(one, two, strict=True)) if at != along)


def _product(sizes: Counter[Dim]) -> Dim:
    return "*".join(f"({size})" for size in sizes.elements()) or 1


def _solved(difference: sympy.Expr) -> tuple[sympy.Symbol, sympy.Expr] | None:
    """Solves `difference == 0` for a symbol it holds as a plain term, if there is one for which the others add up."""
    found = []
    for symbol in sorted(difference.free_symbols, key=str):
        factor = difference.coeff(symbol)
        rest = sympy.expand(difference - factor * symbol)
        if factor in (1, -1) and not rest.has(symbol):
            value = sympy.expand(-rest / factor)
            found.append((value.could_extract_minus_sign() or "-" in str(value), str(symbol), symbol, value))
    return min(found, key=lambda one: one[:2])[2:] if found else None
