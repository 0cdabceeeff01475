"""Calls the factory the user named: `path/to/file.py:factory` or `package.module:factory`.

A file is imported as the user would run it, with its folder at the front of sys.path, and a module as `python -m`
would, with the working directory there.
"""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from export.capture.frames import described
from export.capture.quiet import stdout_to_stderr
from export.errors import UsageError

EXAMPLE = "def make(): return MyModule(), (torch.randn(2, 16, 64),)"
"""What messages show of a factory."""


def is_factory(text: str) -> bool:
    """Says whether a source has the form of a factory, right or wrong: `left:right`, or a path to a .py file."""
    return ":" in text or text.endswith(".py")


def run(text: str, *, seed: int = 0) -> tuple[Any, Any, Any]:
    """Returns (module, inputs, dynamic_shapes or None) from the factory; the values are not yet looked at.

    Args:
        text: `path/to/file.py:factory` or `package.module:factory`.
        seed: Seeds torch's generator, so that the weights a factory draws are the same in every run.

    Raises:
        UsageError: There is no such file or factory, either raises, or it returns no tuple of two or three.
    """
    import torch

    place, _, name = text.rpartition(":") if ":" in text else (text, "", "")
    is_file = place.endswith(".py") or os.sep in place or (os.path.isfile(place) and not name)
    with stdout_to_stderr():
        module = _import_file(Path(place), text) if is_file else _import_module(place, text)
        factory = _factory(module, name, text)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                made = factory()
            except Exception as error:  # the user's code
                raise UsageError(f"The factory {text} raised {described(error)}. Correct it and try again.") from error
    return _unpacked(made, text)


def _import_file(path: Path, text: str) -> ModuleType:
    if not path.is_file():
        near = path.with_name(f"{path.name}.py")
        hint = f" Did you mean {near}?" if near.is_file() else ""
        raise UsageError(
            f"There is no file {path}.{hint} Give the path to the .py file that holds the factory, as {_how()}."
        )
    path = path.resolve()
    _search_first(str(path.parent))
    name = path.stem
    if not _is_ours(sys.modules.get(name), path):
        name = f"user_{path.stem}"  # another module, such as an installed package, holds the plain name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file. Give a .py file, as {_how()}.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # as the import system does: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code; a script without a main guard may exit
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise UsageError(f"{path.name} cannot be imported for {text}: {described(error)}.{_advice(error)}") from error
    return module


def _import_module(name: str, text: str) -> ModuleType:
    _search_first(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(
                f"There is no module {name} (searched from {os.getcwd()} and the installed packages). Give "
                f"package.module:factory, or a path to a file, as {_how()}."
            ) from error
        raise UsageError(f"{name} cannot be imported for {text}: {described(error)}.{_advice(error)}") from error
    except (Exception, SystemExit) as error:  # the user's code
        raise UsageError(f"{name} cannot be imported for {text}: {described(error)}.{_advice(error)}") from error


def _factory(module: ModuleType, name: str, text: str) -> Callable[[], Any]:
    here = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    functions = [key for key in here if not isinstance(getattr(module, key), type)]
    offered = f"It defines {', '.join(functions)}." if functions else f"It defines no function; write {EXAMPLE!r}."
    if not name:
        raise UsageError(f"{text} names no factory. {offered} Give one as {_how(Path(text).name)}.")
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, here, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no `{name}` in {text.rpartition(':')[0]}.{hint} {offered}")
    value = getattr(module, name)
    import torch

    if isinstance(value, torch.nn.Module) or (isinstance(value, type) and issubclass(value, torch.nn.Module)):
        raise UsageError(
            f"{text} is a module, not a factory, so there are no example inputs to export it with. Write a function: "
            f"{EXAMPLE!r}."
        )
    if not callable(value):
        raise UsageError(f"{text} is a {type(value).__name__}, not a function. Write {EXAMPLE!r}.")
    factory: Callable[[], Any] = value
    return factory


def _unpacked(made: Any, text: str) -> tuple[Any, Any, Any]:
    import torch

    rule = f"it must return (module, inputs) or (module, inputs, dynamic_shapes), as in {EXAMPLE!r}"
    if isinstance(made, torch.nn.Module):
        raise UsageError(f"The factory {text} returned the module alone; {rule}.")
    if not isinstance(made, (tuple, list)) or len(made) not in (2, 3):
        what = f"{len(made)} values" if isinstance(made, (tuple, list)) else f"a {type(made).__name__}"
        raise UsageError(f"The factory {text} returned {what}; {rule}.")
    module, inputs, shapes = (*made, None)[:3]
    if not isinstance(module, torch.nn.Module):
        raise UsageError(
            f"The factory {text} returned a {type(module).__name__} where the torch.nn.Module belongs; {rule}."
        )
    if not isinstance(inputs, (tuple, list, Mapping)):
        hint = " A single tensor x is written (x,)." if isinstance(inputs, torch.Tensor) else ""
        raise UsageError(
            f"The factory {text} returned inputs of type {type(inputs).__name__}; they are a tuple by "
            f"position or a dict by name.{hint}"
        )
    return module, inputs, shapes


def _search_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _is_ours(module: ModuleType | None, path: Path) -> bool:
    return module is None or getattr(module, "__file__", None) == str(path)


def _advice(error: BaseException) -> str:
    if "relative import" in str(error):
        return " A file named by path has no package; name it package.module:factory from the folder above."
    if isinstance(error, ModuleNotFoundError):
        return f" Install {error.name}, or run from the folder that holds it."
    if isinstance(error, SystemExit):
        return ' Put what runs as a script under `if __name__ == "__main__":`.'
    return ""


def _how(file: str = "path/to/file.py") -> str:
    return f"{file}:factory"
