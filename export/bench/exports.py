"""The plain export of a module to a file: PyTorch's own exporters at their usual opsets, batch and length free."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.bench.contender import Unavailable
from export.bench.quiet import quiet

ROUTES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {"torchscript-17": ("torchscript", 17), "dynamo-18": ("dynamo", 18), "dynamo-23": ("dynamo", 23)}
)
"""{name: (exporter, opset)}."""
AXES = {0: "batch", 1: "length"}
_SMALL = (2, 16)
"""Batch and length that an export is traced at: neither 0 nor 1, which exporters treat as constants."""


def export(module: Any, inputs: Mapping[str, Any], route: str, path: Path) -> Path:
    """Writes a module's ONNX file and returns its path; nothing of this project touches it.

    Args:
        module: In eval mode.
        inputs: Example inputs by parameter name, in forward's order; axes 0 and 1 are batch and length.
        route: A key of `ROUTES`.
        path: The file.

    Raises:
        Unavailable: The exporter raises.
    """
    import torch

    exporter, opset = ROUTES[route]
    small = {name: _small(x) for name, x in inputs.items()}
    axes = {name: {axis: word for axis, word in AXES.items() if axis < x.ndim} for name, x in inputs.items()}
    names, args = list(small), tuple(small.values())
    try:
        with quiet(), torch.no_grad():
            if exporter == "torchscript":
                torch.onnx.export(
                    module,
                    args,
                    str(path),
                    dynamo=False,
                    opset_version=opset,
                    input_names=names,
                    dynamic_axes=axes,
                )
            else:
                dims = {name: torch.export.Dim(name) for name in AXES.values()}
                torch.onnx.export(
                    module,
                    args,
                    str(path),
                    dynamo=True,
                    opset_version=opset,
                    input_names=names,
                    dynamic_shapes={name: {axis: dims[word] for axis, word in axes[name].items()} for name in names},
                    external_data=False,
                    verbose=False,
                )
    except Exception as error:  # exporters raise whatever tracing raises
        lines = str(error).strip().splitlines() or ["no message"]
        raise Unavailable(f"PyTorch's {exporter} exporter raised {type(error).__name__}: {lines[0][:160]}") from error
    return path


def _small(x: Any) -> Any:
    if x.shape[0] < _SMALL[0]:
        x = x.expand(_SMALL[0], *x.shape[1:])
    return x[: _SMALL[0]].contiguous() if x.ndim == 1 else x[: _SMALL[0], : _SMALL[1]].contiguous()
