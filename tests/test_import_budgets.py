"""How much each command imports: a clock would measure the machine, the modules are what start-up is made of."""

import subprocess
import sys
from pathlib import Path

import pytest
import small_models

ROOT = Path(__file__).parents[1]
TORCH = {"torch", "transformers"}
VENDORS = {"tensorrt", "tensorrt_rtx", "triton", "polygraphy"}
DRAWN = {"rich", "matplotlib", "jinja2"}
GRAPHS = {"numpy", "onnx", "onnx_ir", "sympy", "onnxruntime", "onnxscript", "onnx_shape_inference"}
HELP = (112, TORCH | VENDORS | DRAWN | GRAPHS)
BUDGETS = {
    # words: (modules at most, packages that must not be among them)
    "--help": HELP,
    "view --help": HELP,
    "check --help": HELP,
    "fuse --help": (152, HELP[1]),
    "build --help": (152, HELP[1]),
    "bench --help": (127, HELP[1]),
    "report {folder}": (1170, TORCH | VENDORS | {"rich", "matplotlib", "onnxruntime", "onnxscript"}),
    "inspect {model}": (1240, TORCH | VENDORS | DRAWN | {"onnxscript"}),
    "fuse --no-verify {model} -o {out}": (1200, TORCH | VENDORS | DRAWN | {"onnxscript", "onnxruntime"}),
}
"""A tenth above what was counted with the versions of constraints.txt."""


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("budgets")
    model = small_models.save(small_models.attention("float32"), place / "net.onnx")
    words = ["-m", "export", "build", str(model), "-o", str(place / "o"), "--target", "ort", "--no-verify"]
    words += ["--shapes", "batch=1:2:3,length=1:6:9"]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT)
    return {"model": model, "folder": place / "o", "out": place / "fused.onnx"}


@pytest.mark.parametrize("words", BUDGETS)
def test_a_command_imports_no_more_than_its_budget(words: str, places: dict[str, Path]) -> None:
    most, without = BUDGETS[words]
    found = imported("-m", "export", *words.format(**places).split())
    assert not {name for name in found if name.partition(".")[0] in without}
    assert len(found) <= most, f"{words} imports {len(found)} modules, of {sorted({n.split('.')[0] for n in found})}"
    assert len(found) > most / 1.3, f"{words} imports {len(found)} modules only: lower its budget"


def test_importing_the_package_imports_next_to_nothing() -> None:
    bare = imported("-c", "pass")
    found = imported("-c", "import export") - bare
    assert len(found) <= 5, sorted(found)
