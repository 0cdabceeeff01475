"""Symbolic dimensions: a name, or arithmetic on names such as the exporters write ("past + length", "2*length")."""

import ast
import operator
from collections.abc import Callable, Mapping

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def names(dim: int | str) -> tuple[str, ...]:
    """Returns the names a dimension depends on: none for a size; itself where it is no arithmetic ("mask.2", "?")."""
    if isinstance(dim, int):
        return ()
    tree = _arithmetic(dim)
    if tree is None:
        return (dim,)
    return tuple(dict.fromkeys(n.id for n in ast.walk(tree) if isinstance(n, ast.Name)))


def value(dim: int | str, sizes: Mapping[str, int]) -> int:
    """Returns the size of a dimension where its names have these sizes."""
    if isinstance(dim, int):
        return dim
    tree = _arithmetic(dim)
    return sizes[dim] if tree is None else _evaluate(tree, sizes)


def _arithmetic(text: str) -> ast.expr | None:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return None
    return tree if _is_arithmetic(tree) else None


def _is_arithmetic(tree: ast.expr) -> bool:
    if isinstance(tree, ast.BinOp):
        return type(tree.op) in _OPERATORS and _is_arithmetic(tree.left) and _is_arithmetic(tree.right)
    if isinstance(tree, ast.Constant):
        return type(tree.value) is int
    return isinstance(tree, ast.Name)


def _evaluate(tree: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(tree, ast.BinOp):
        return _OPERATORS[type(tree.op)](_evaluate(tree.left, sizes), _evaluate(tree.right, sizes))
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    raise ValueError(f"{ast.dump(tree)} is no arithmetic")  # unreachable: `_is_arithmetic` decided
