"""Which line of the user's code an error or a graph node comes from."""

import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_OURS = str(Path(__file__).parent)
_VENDORS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "sympy", "onnx_shape_inference")


@dataclass(frozen=True)
class Line:
    """A line of source.

    Attributes:
        file: Path as Python knows it.
        number: Line number, from 1.
        code: The line's text, stripped; may be empty.
    """

    file: str
    number: int
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" + (f" (`{self.code}`)" if self.code else "")


def user_line(error: BaseException) -> Line | None:
    """Returns the innermost line of code that is neither ours nor a vendor's, through the causes of an error."""
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        found = _innermost((f.filename, f.lineno or 0) for f in frames)
        if found is not None:
            return found
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, SyntaxError) and error.filename:
        return Line(error.filename, error.lineno or 0, (error.text or "").strip())
    return None


def current_line(frame: FrameType | None) -> Line | None:
    """Returns the innermost line of the user's code on a stack that is still running."""
    inside = []
    for f in reversed(traceback.extract_stack(frame)):
        if f.filename.startswith(_OURS):  # whoever called us wrote none of the module's code
            break
        inside.append((f.filename, f.lineno or 0))
    return _innermost(reversed(inside))


def quoted_line(text: str) -> Line | None:
    """Returns the innermost line of the user's code that a text names in Python's traceback format."""
    return _innermost((file, int(number)) for file, number in re.findall(r'File "([^"]+)", line (\d+)', text))


def is_users(file: str) -> bool:
    """Says whether a file is neither a vendor's nor part of capture."""
    if file.startswith(("<", _OURS)):
        return False
    return not any(file.startswith(root) for root in _vendor_roots()) and not _is_standard_library(file)


def described(error: BaseException) -> str:
    """Returns "ValueError: message, at file:line (`code`)", the message cut to its first lines."""
    text = " ".join(str(error).split("\n\n")[0].split())
    text = text if len(text) <= 240 else text[:240] + " ..."
    line = user_line(error)
    return f"{type(error).__name__}: {text}" + (f", at {line}" if line else "")


def _vendor_roots() -> list[str]:
    loaded = (sys.modules.get(name) for name in _VENDORS)
    return [os.path.dirname(m.__file__) + os.sep for m in loaded if m is not None and m.__file__]


def _is_standard_library(file: str) -> bool:
    root = sysconfig.get_paths()["stdlib"]
    return file.startswith(root) and "site-packages" not in file and "dist-packages" not in file


def _innermost(frames: Iterable[tuple[str, int]]) -> Line | None:
    users = [(file, number) for file, number in frames if is_users(file)]
    # A line of the user's own is better than one of a library the user calls, however deep that goes.
    own = [(file, number) for file, number in users if "site-packages" not in file and "dist-packages" not in file]
    if not users:
        return None
    file, number = (own or users)[-1]
    return Line(file, number, linecache.getline(file, number).strip())
