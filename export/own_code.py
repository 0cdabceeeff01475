"""Which code a factory is made of: its own files, followed import by import, and the packages that they use.

What else the process has loaded does not count: `build` has loaded an engine builder that `check` has not, and both
must see the same code. So imports are read from the files and not from sys.modules. A file is the user's own where it
belongs neither to Python, nor to this toolkit, nor to an installed package; a package counts by its version.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_TOOLKIT = Path(__file__).resolve().parents[1]
_INSTALLED = {"site-packages", "dist-packages"}
_LOADERS = {"import_module", "__import__"}


@dataclass(frozen=True)
class OwnCode:
    """What was found.

    Attributes:
        files: The user's files, sorted.
        packages: Names of the installed distributions they import, sorted.
    """

    files: tuple[Path, ...]
    packages: tuple[str, ...]


def of(factory: str, modules: Iterable[str]) -> OwnCode:
    """Returns the code behind a factory that has been run.

    Args:
        factory: `path/to/file.py:name` or `package.module:name`.
        modules: Names of the modules that define the classes of what it returned, which a name computed at run time
            may have imported.
    """
    place = factory.rpartition(":")[0]
    files: dict[Path, str] = {}
    packages: set[str] = set()
    waiting: list[tuple[str, Path]] = []
    if place.endswith(".py") or Path(place).is_file():
        waiting.append((Path(place).stem, Path(place)))
        named = [*modules]
    else:
        named = [place, *modules]
    for name in named:
        waiting += _loaded(name) or _resolved(name)
    while waiting:
        name, path = waiting.pop()
        path = path.resolve()
        if path in files or _is_toolkit(path) or not path.is_file():
            continue
        if _INSTALLED & set(path.parts):
            packages |= _distributions(name.partition(".")[0])
            continue
        files[path] = name
        for wanted in _imports(name, path):
            waiting += _resolved(wanted)
    return OwnCode(tuple(sorted(files)), tuple(sorted(packages)))


def _is_toolkit(path: Path) -> bool:
    return any(path.is_relative_to(_TOOLKIT / package) for package in ("export", "engines", "plugins"))


def _loaded(name: str) -> list[tuple[str, Path]]:
    """Returns a loaded module's own file, which no search may find (a file by path), and those of its parents."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not file or name == "__main__" or name.partition(".")[0] in sys.stdlib_module_names:
        return []
    return [*_resolved(name.rpartition(".")[0]), (name, Path(file))]


def _resolved(name: str) -> list[tuple[str, Path]]:
    """Returns the files that `import name` runs: the module's and its parents', as far as there are any."""
    found: list[tuple[str, Path]] = []
    words = name.split(".")
    if not name or words[0] in sys.stdlib_module_names or words[0] == "__main__":
        return found
    spec: ModuleSpec | None = None
    for i in range(len(words)):
        whole = ".".join(words[: i + 1])
        try:
            if i == 0:
                spec = importlib.util.find_spec(whole)
            elif spec is not None and spec.submodule_search_locations is not None:
                spec = PathFinder.find_spec(whole, list(spec.submodule_search_locations))
            else:
                break
        except (ImportError, ValueError):  # a module made by hand has no spec
            break
        if spec is None:
            break
        if spec.has_location and spec.origin:
            found.append((whole, Path(spec.origin)))
            if _INSTALLED & set(Path(spec.origin).parts):
                break  # its version says the rest
    return found


def _imports(name: str, path: Path) -> Iterator[str]:
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
            if called in _LOADERS and isinstance(literal, str) and not literal.startswith("."):
                yield literal


@cache
def _distributions(top: str) -> frozenset[str]:
    try:
        return frozenset({metadata.distribution(top).metadata["Name"].lower()})
    except metadata.PackageNotFoundError:
        return frozenset(name.lower() for name in metadata.packages_distributions().get(top, ()))
