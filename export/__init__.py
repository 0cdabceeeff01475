"""PyTorch attention into ONNX Runtime and TensorRT: fused, built, and checked in float64.

The public names; each is imported when it is first used, so that importing the package costs nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export import errors
    from export.decode.opening import generator
    from export.fusing import fuse, inspect
    from export.parity import check
    from export.pipeline import build
    from export.running import run
    from export.spec import Spec

__all__ = ["Spec", "build", "check", "errors", "fuse", "generator", "inspect", "run"]

_PLACES = {
    "Spec": "export.spec",
    "build": "export.pipeline",
    "check": "export.parity",
    "generator": "export.decode.opening",
    "inspect": "export.fusing",
    "run": "export.running",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "fuse"):
        return import_module(f"export.{name}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'export' has no attribute {name!r}; its public names are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Fuse(ModuleType):
    """The package `export.fuse`, which is also the public function: `export.fuse("in.onnx", "out.onnx")`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from export.fusing import fuse as function

        return function(*args, **kwargs)


class _Package(ModuleType):
    """This package; the import system binds subpackages to it, and `fuse` must stay callable when it does."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fuse" and isinstance(value, ModuleType):
            value.__class__ = _Fuse
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
