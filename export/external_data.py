"""Where a model's weights lie: every tensor of a model, and whether its bytes are where the file says.

A model must not make us read a file that is not its own, so external data is accepted only below the model's folder;
it is checked without being read: the weights stay on disk until someone asks for one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import onnx_ir as ir

from export.errors import ModelFileError


def tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yields (name, tensor) for every initializer and every tensor attribute, subgraphs and functions included."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield f"{node.name or node.op_type}.{attribute.name}", attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    for tensor in attribute.as_tensors():
                        yield f"{node.name or node.op_type}.{attribute.name}", tensor


def size(model: ir.Model) -> int:
    """Returns the bytes of all tensors of a model."""
    return sum(tensor.nbytes for _, tensor in tensors(model) if tensor.dtype != ir.DataType.STRING)


def release(tensor: ir.TensorProtocol) -> None:
    """Gives back the memory that reading an external tensor has mapped; the next to read it maps it again."""
    if isinstance(tensor, ir.ExternalTensor):
        with suppress(BufferError):  # somebody is still reading it
            tensor.release()


def check(model: ir.Model, folder: Path) -> None:
    """Resolves external tensors against `folder` and checks that every tensor has all its bytes.

    Args:
        model: A model just deserialised.
        folder: Absolute path of the folder that holds the model's file.

    Raises:
        ModelFileError: A data file is missing, too short or outside `folder`, or a tensor holds too few bytes.
    """
    for name, tensor in tensors(model):
        if tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.dtype == ir.DataType.UNDEFINED or any(not isinstance(d, int) or d < 0 for d in tensor.shape):
            raise ModelFileError(f"Tensor {name!r} has no valid type and shape: the model is damaged; export it again.")
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = os.fspath(folder)
            _check_external(name, tensor, folder)
        elif isinstance(tensor, ir.TensorProtoTensor):
            _check_inline(name, tensor)


def _check_inline(name: str, tensor: ir.TensorProtoTensor) -> None:
    """Compares what the tensor holds in the file with what its shape needs."""
    proto = tensor.raw
    if proto.HasField("raw_data"):
        held, needed, unit = len(proto.raw_data), tensor.nbytes, "bytes"
    else:
        fields = (proto.float_data, proto.int32_data, proto.int64_data, proto.double_data, proto.uint64_data)
        held, needed, unit = sum(len(f) for f in fields), tensor.size, "values"
        if tensor.dtype.bitwidth < 8 or tensor.dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            return  # several values (or half a value) an entry: left to onnx-ir
    if held != needed:
        raise ModelFileError(
            f"Tensor {name!r} holds {held} {unit} where its shape {list(tensor.shape)} needs {needed}: "
            "the model is damaged; export or download it again."
        )


def _check_external(name: str, tensor: ir.ExternalTensor, folder: Path) -> None:
    location = os.fspath(tensor.location)
    # Windows spellings are refused everywhere: the file would mean something else on another machine.
    parts = re.split(r"[\\/]", location)
    if not location or parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise ModelFileError(
            f"Tensor {name!r} keeps its data in {location!r}, which is not a path inside the model's folder. "
            "Data outside it is not read; put the data file beside the model and save the model again."
        )
    path = folder / location
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise ModelFileError(
            f"Tensor {name!r} keeps its data in {location!r}, a link to {real!r} outside the model's folder. "
            "Data outside it is not read; copy the data file into the folder in place of the link."
        )
    try:
        status = os.stat(real)
    except OSError as e:
        raise ModelFileError(
            f"Tensor {name!r} keeps its data in {path}, which cannot be read ({e.strerror}). "
            "A model with external data is several files: copy them together."
        ) from e
    if not os.path.isfile(real):
        raise ModelFileError(f"Tensor {name!r} keeps its data in {path}, which is not a file.")
    if status.st_nlink > 1:
        # A hard link can bring a foreign file into the folder unseen; onnx-ir and onnx refuse it when they read it.
        raise ModelFileError(
            f"Tensor {name!r} keeps its data in {path}, which has {status.st_nlink} hard links and may be another "
            "program's file; replace it by a copy (cp data copy && mv copy data)."
        )
    offset, length, needed = tensor.offset or 0, tensor.length, tensor.nbytes
    if offset < 0 or (length is not None and length < needed):
        raise ModelFileError(
            f"Tensor {name!r} declares {length} bytes at offset {offset} of {path} where its shape "
            f"{list(tensor.shape)} needs {needed}: the model is damaged; export or download it again."
        )
    if offset + needed > status.st_size:
        raise ModelFileError(
            f"Tensor {name!r} needs bytes {offset} to {offset + needed} of {path}, which holds only {status.st_size}: "
            "the data file is truncated or belongs to another model; download or export it again."
        )
