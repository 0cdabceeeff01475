"""A model's config.pbtxt for Triton Inference Server: what the server must know of it, and that as text.

The fields and types are those of `inference.ModelConfig` in the server's public schema (model_config.proto of
triton-inference-server/common, as of commit b0b53873 of 2026-04-02).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engines import dimension
from engines.errors import UsageError
from engines.runner import TensorSpec

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""numpy or ml_dtypes name -> member of the server's DataType."""

KINDS = {"auto": "KIND_AUTO", "gpu": "KIND_GPU", "cpu": "KIND_CPU"}


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository.

    Attributes:
        name: The model's name, which is also its folder's.
        platform: "tensorrt_plan" or "onnxruntime_onnx".
        max_batch_size: Largest batch, where the server may add the first axis of every tensor; 0 where it may not.
        inputs, outputs: With their full shapes; names for sizes that vary.
        file: The model's file in its version folder.
        by_capability: {"8.9": file} where there is one for each compute capability.
        kind: "auto", "gpu" or "cpu": where instances run.
        instances: How many.
        remarks: Comment lines at the top.
    """

    name: str
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file: str
    by_capability: Mapping[str, str] = field(default_factory=dict)
    kind: str = "auto"
    instances: int = 1
    remarks: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Returns the protobuf text.

        Raises:
            UsageError: The server has no type for a tensor.
        """
        batched = self.max_batch_size > 0
        lines = [*(f"# {remark}" for remark in self.remarks)]
        lines += [
            f"name: {_quote(self.name)}",
            f"platform: {_quote(self.platform)}",
            f"max_batch_size: {self.max_batch_size}",
            f"default_model_filename: {_quote(self.file)}",
        ]
        for capability, file in self.by_capability.items():
            lines.append(f"cc_model_filenames {{ key: {_quote(capability)} value: {_quote(file)} }}")
        lines += [line for spec in self.inputs for line in _tensor("input", spec, batched)]
        lines += [line for spec in self.outputs for line in _tensor("output", spec, batched)]
        lines += ["instance_group {", f"  kind: {KINDS[self.kind]}", f"  count: {self.instances}", "}"]
        return "\n".join(lines) + "\n"


def max_batch_size(tensors: Iterable[TensorSpec], dims: Mapping[str, tuple[int, int, int]]) -> int:
    """Returns the largest batch the server may form, or 0 where the first axis is not a batch in all tensors.

    It is one where it has one name everywhere, that name sizes no other axis, and a batch of one is allowed: the server
    sends single requests, too.

    Args:
        tensors: Inputs and outputs.
        dims: (min, opt, max) of each symbolic dimension.
    """
    shapes = [spec.shape for spec in tensors]
    first = {shape[0] if shape else None for shape in shapes}
    name = first.pop() if len(first) == 1 else None
    if not isinstance(name, str) or name not in dims:
        return 0
    elsewhere = any(name in dimension.names(size) for shape in shapes for size in shape[1:])
    low, _, high = dims[name]
    return 0 if elsewhere or low != 1 else high


def _tensor(what: str, spec: TensorSpec, batched: bool) -> list[str]:
    if spec.dtype not in TYPES:
        raise UsageError(
            f"The {what} {spec.name!r} is {spec.dtype or 'of a type that ONNX files name and numpy does not'}, and "
            f"Triton Inference Server has no such type; it has {', '.join(TYPES)}. Cast it in the model."
        )
    dims = [size if isinstance(size, int) else -1 for size in spec.shape[1 if batched else 0 :]]
    lines = [f"{what} {{", f"  name: {_quote(spec.name)}", f"  data_type: {TYPES[spec.dtype]}"]
    if dims:
        lines.append(f"  dims: [ {', '.join(map(str, dims))} ]")
    else:  # the server takes no empty dims, and offers this instead
        lines += ["  dims: [ 1 ]", "  reshape { shape: [ ] }"]
    return [*lines, "}"]


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
