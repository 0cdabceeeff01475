"""The real TensorRT 11.4 bindings on a machine without its libraries, which are replaced by stubs without content."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "tensorrt_cu13_bindings==11.4.0.106"
ROOT = Path(__file__).parents[1]

_STUBS = """
void *createInferBuilder_INTERNAL() { return 0; }
void *createInferRefitter_INTERNAL() { return 0; }
void *createInferRuntime_INTERNAL() { return 0; }
void *createNvOnnxParser_INTERNAL() { return 0; }
void *createNvOnnxParserRefitter_INTERNAL() { return 0; }
void *getPluginRegistry() { return 0; }
void *getBuilderPluginRegistry() { return 0; }
int getNvOnnxParserVersion() { return 0; }
int initLibNvInferPlugins() { return 1; }
"""
_LIBRARIES = ("libnvinfer.so.11", "libnvonnxparser.so.11", "libnvinfer_plugin.so.11")


class NotHereError(Exception):
    """The bindings cannot be had on this machine; the sentence says why."""


def install(folder: Path) -> dict[str, str]:
    """Puts the bindings and the stubs into `folder`; returns the environment in which `import tensorrt` finds them.

    Raises:
        NotHereError: There is no compiler, or the wheel cannot be downloaded.
    """
    if not sys.platform.startswith("linux"):
        raise NotHereError("the stubbed libraries are Linux's")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise NotHereError("there is no C compiler to make the stubbed libraries with")
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "-d", folder]
    quick = ["--timeout=10", "--retries=0", "--disable-pip-version-check"]
    done = subprocess.run([*download, *quick, WHEEL], capture_output=True, text=True, timeout=120, check=False)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise NotHereError(f"the wheel {WHEEL} cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
    zipfile.ZipFile(wheels[0]).extractall(folder)
    package = folder / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    (package / "plugin.py").write_text("from tensorrt_bindings.plugin import *\n")
    (folder / "stubs.c").write_text(_STUBS)
    for library in _LIBRARIES:
        shared = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, folder / "stubs.c"]
        subprocess.run(shared, check=True)
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
