"""The packages whose versions matter to what the toolkit builds: the one list of `doctor` and of every fingerprint."""

from importlib import metadata

PACKAGES = (
    "attnproof",
    "torch",
    "numpy",
    "ml_dtypes",
    "sympy",
    "jinja2",
    "rich",
    "onnx",
    "onnx-ir",
    "onnx-shape-inference",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-rtx",
    "tensorrt",
    "polygraphy",
    "triton",
)


def versions() -> dict[str, str | None]:
    """Returns the version of every package of the list, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
