"""The house rules that a reader relies on: imports go one way, files stay short, the fuser knows no model by name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = [p for package in ("plugins", "engines", "export") for p in sorted((ROOT / package).rglob("*.py"))]

FORBIDDEN = {
    "plugins": ("engines", "export"),
    "engines": ("export",),
    "export/graph": ("export.lower", "export.fuse", "export.capture", "export.model", "export.parity"),
    "export/lower": ("export.fuse", "export.capture", "export.model", "export.parity"),
    "export/fuse": ("export.capture", "export.model.", "export.parity", "torch"),
    "export/model": ("export.fuse", "export.lower", "export.capture", "export.parity"),
}
"""What the files of a folder must not import."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            wrong = [f for f in FORBIDDEN[folder] if name == f or name.startswith(f.rstrip(".") + ".")]
            assert not wrong, f"{path.relative_to(ROOT)} imports {name}"


def test_one_file_imports_tensorrt() -> None:
    vendors = ("tensorrt", "tensorrt_rtx")
    importing = {
        p.relative_to(ROOT).as_posix() for p in PRODUCT if any(n.split(".")[0] in vendors for n in imported(p))
    }
    assert importing <= {"engines/vendor.py"}


def test_no_product_file_is_long_or_a_drawer_for_anything() -> None:
    assert len(PRODUCT) > 100
    for path in PRODUCT:
        assert len(path.read_text().splitlines()) <= 300, path.name
        assert path.stem not in ("utils", "helpers", "misc", "common"), path


def test_the_fuser_knows_no_model_by_name() -> None:
    models = (
        "bert",
        "llama",
        "gpt",
        "bloom",
        "swin",
        "whisper",
        "mistral",
        "falcon",
        "deberta",
        "vit_",
        "informer",
        "espnet",
    )
    for path in [*(ROOT / "export/fuse").rglob("*.py"), *(ROOT / "export/graph").rglob("*.py")]:
        text = path.read_text().lower()
        assert not [m for m in models if m in text], path.name
