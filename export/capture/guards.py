"""Where in the user's code torch.export pinned a symbolic size to a number."""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from export.capture.frames import Line, current_line

_LOGGER = "torch.fx.experimental.symbolic_shapes"
_CREATED = re.compile(r"create_symbol (\w+) = (-?\d+) for (.+?) \[")
_SIZE = re.compile(r"L\['(\w+)'\]((?:\[[^\]]+\])*)\.size\(\)\[(\d+)\]")
_PINNED = re.compile(r"set_replacement (\w+) = (-?\d+)\b")


Axis = tuple[str, int]
"""(leaf, axis) of an input."""


@dataclass
class Pins:
    """What was pinned.

    Attributes:
        symbols: {symbol: the axis it is the size of}.
        lines: {axis: the line of the user's code that pinned it}.
    """

    symbols: dict[str, Axis]
    lines: dict[Axis, Line]


@contextlib.contextmanager
def watched() -> Iterator[Pins]:
    """Collects what torch.export pins.

    PyTorch says so only in the log of its shape environment, written while the user's line is on the stack. Where a
    release words it differently nothing is collected, and messages lack the line.
    """
    logger = logging.getLogger(_LOGGER)
    pins = Pins({}, {})
    before = (logger.level, logger.handlers, logger.propagate)
    logger.handlers, logger.propagate = [_Watcher(pins)], False
    logger.setLevel(logging.INFO)
    try:
        yield pins
    finally:
        logger.handlers, logger.propagate = before[1], before[2]
        logger.setLevel(before[0])


class _Watcher(logging.Handler):
    def __init__(self, pins: Pins) -> None:
        super().__init__(logging.INFO)
        self._pins = pins

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        created = _CREATED.search(text)
        place = axis(created[3]) if created else None
        if created and place:
            self._pins.symbols[created[1]] = place
        pinned = _PINNED.search(text)
        if pinned and pinned[1] in self._pins.symbols:
            line = current_line(sys._getframe(1))  # from our caller outwards
            if line is not None:
                self._pins.lines.setdefault(self._pins.symbols[pinned[1]], line)


def axis(text: str) -> Axis | None:
    """Returns the axis that torch names "L['past'][0].size()[2]": ("past_0", 2)."""
    found = _SIZE.fullmatch(text)
    if found is None:
        return None
    path = [part.strip("'\"") for part in re.findall(r"\[([^\]]+)\]", found[2])]
    return "_".join((found[1], *path)), int(found[3])
