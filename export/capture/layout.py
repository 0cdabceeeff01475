"""The shapes of a set of inputs in symbols, as a value that can be resized, renamed and pinned."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engines import dimension

Size = int | str
"""A number, a symbol such as "s27", or arithmetic on symbols such as "s27 + s62"."""

Axis = tuple[str, int]
"""(leaf, axis) of an input."""

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Layout:
    """Symbolic shapes.

    Attributes:
        shapes: {leaf: shape}.
        sizes: {symbol: its size in the example}.
        largest: {symbol: the largest size allowed}, where there is a bound.
    """

    shapes: Mapping[str, tuple[Size, ...]]
    sizes: Mapping[str, int]
    largest: Mapping[str, int] = field(default_factory=dict)

    def at(self, changed: Mapping[str, int]) -> dict[str, dict[int, int]]:
        """Returns {leaf: {axis: size}} of the axes that move when these symbols take other sizes."""
        sizes = {**self.sizes, **changed}
        moved: dict[str, dict[int, int]] = {}
        for leaf, shape in self.shapes.items():
            for axis, size in enumerate(shape):
                if isinstance(size, str) and set(symbols(size)) & set(changed):
                    moved.setdefault(leaf, {})[axis] = dimension.value(size, sizes)
        return moved

    def axes(self, symbol: str) -> list[Axis]:
        """Returns the axes whose size is, or is computed from, a symbol."""
        return [(leaf, i) for leaf, shape in self.shapes.items() for i, s in enumerate(shape) if symbol in symbols(s)]

    def pinned(self, symbol: str) -> "Layout":
        """Returns the layout with a symbol at its size in the example for good."""
        return self._with({symbol: str(self.sizes[symbol])})

    def merged(self, keep: str, drop: str) -> "Layout":
        """Returns the layout with one symbol for both, its bound the lower of theirs."""
        bounds = [self.largest[s] for s in (keep, drop) if s in self.largest]
        merged = self._with({drop: keep})
        return replace(merged, largest={**merged.largest, **({keep: min(bounds)} if bounds else {})})

    def renamed(self, names: Mapping[str, str]) -> "Layout":
        """Returns the layout with symbols under other names."""
        return self._with(names)

    def _with(self, new: Mapping[str, str]) -> "Layout":
        shapes = {leaf: tuple(substitute(s, new) for s in shape) for leaf, shape in self.shapes.items()}
        left = {symbol for shape in shapes.values() for size in shape for symbol in symbols(size)}
        sizes = {new.get(s, s): n for s, n in self.sizes.items() if new.get(s, s) in left}
        largest = {new.get(s, s): n for s, n in self.largest.items() if new.get(s, s) in left}
        return Layout(shapes, sizes, largest)


def symbols(size: Size) -> list[str]:
    """Returns the symbols a size depends on."""
    return [] if isinstance(size, int) else _SYMBOL.findall(size)


def substitute(size: Size, new: Mapping[str, str]) -> Size:
    """Returns a size with symbols replaced, all at once; a number where no symbol is left."""
    if isinstance(size, int):
        return size
    text = _SYMBOL.sub(lambda m: new.get(m[0], m[0]), size)
    return text if symbols(text) else dimension.value(text, {})
