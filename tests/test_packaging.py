"""What a stranger gets: a wheel with every module, pinned versions, names that resolve, imports that go one way."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import export

ROOT = Path(__file__).parents[1]
PACKAGES = ("export", "engines", "plugins")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return {name.partition(".")[0] for name in found}


def test_public_names_resolve_and_are_all_there_is() -> None:
    for name in export.__all__:
        assert getattr(export, name) is not None
    assert dir(export) == sorted(export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fusee'; its public names are"):
        _ = export.fusee


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, export; print(sorted(m for m in sys.modules if m.startswith('export')), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "['export'] False"


def test_fuse_is_a_function_even_after_its_package_was_imported() -> None:
    code = "import export.fuse.rows, export; from export import fuse; assert callable(fuse) and fuse is export.fuse"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_requirement_has_a_pin() -> None:
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    names = {re.match(r"[\w-]+", requirement).group() for requirement in wanted}
    # onnxruntime stands in for onnxruntime-gpu where that has no wheel; the other is this project's own extra.
    assert names - {"onnxruntime", PROJECT["project"]["name"]} <= pins


def test_the_licence_is_the_one_the_metadata_names() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # a copy: setuptools leaves build/ and *.egg-info beside what it builds
    pages = sorted((ROOT / "export" / "rules").glob("*.md"))
    pages += [p for kind in ("j2", "css", "js", "json") for p in (ROOT / "export" / "report").rglob(f"*.{kind}")]
    for path in [*SOURCES, *pages, *(ROOT / package / "py.typed" for package in PACKAGES)]:
        (tree / relative(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tree / relative(path))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "test_x.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {relative(path) for path in [*SOURCES, *pages]} <= set(names)
    assert len(pages) > 40
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]


def test_imports_go_one_way() -> None:
    for path in SOURCES:
        package = relative(path).partition("/")[0]
        above = PACKAGES[: PACKAGES.index(package)] if package != "plugins" else ("export", "engines")
        assert not imported_modules(path) & set(above), f"{relative(path)} imports a layer above its own"


def test_only_the_vendor_file_imports_tensorrt() -> None:
    users = {relative(path) for path in SOURCES if imported_modules(path) & {"tensorrt", "tensorrt_rtx"}}
    assert users <= {"engines/vendor.py"}


def test_files_stay_small_and_say_what_they_decide() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert text.count("\n") <= 300, f"{relative(path)} has more than 300 lines"
        assert path.stem not in ("utils", "helpers"), relative(path)
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{relative(path)} does not say what it decides"


def test_make_says_which_python_it_misses(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "setup", "PYTHON="], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no Python 3.11 or newer was found; name one" in done.stderr
    assert not (tmp_path / ".venv").exists()
