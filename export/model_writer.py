"""Writing an ONNX file so that it is whole or not there, its large weights in a data file beside it."""

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import onnx_ir as ir

from export import external_data
from export.copy_range import copy_range
from export.errors import UsageError

PROTOBUF_LIMIT = 2**31 - 1
INLINE_LIMIT = 2_000_000_000
"""Bytes of weights that still go into the model file; the rest of protobuf's 2 GiB is left to the structure."""

EXTERNAL_FROM = 1024
"""Bytes from which a weight goes to the data file: smaller ones are shapes and scalars that readers want at hand."""


def write(model: ir.Model, path: Path, replaced: Mapping[str, str], inline_limit: int) -> None:
    """Writes `model` to `path` as `export.model_file.save` describes.

    A data file is never written over, because model and data cannot be replaced in one step: the new model names a new
    data file, then replaces the old model, and only then is the old model's own data file removed.

    Args:
        model: The model; not changed.
        path: The file to write.
        replaced: {real path: location} of the data files that the model now at `path` names.
        inline_limit: Bytes of weights that may go into the model file itself.

    Raises:
        UsageError: The folder is missing, not writable or full, or the graph without weights exceeds protobuf's 2 GiB.
    """
    if path.is_dir():
        raise UsageError(f"Cannot write {path}: it is a folder; name the .onnx file to write in it.")
    if not path.parent.is_dir():
        raise UsageError(f"Cannot write {path}: there is no folder {path.parent}; create it first.")
    data: Path | None = None
    try:
        copy = model.clone()
        to_move = _place(copy, replaced, inline_limit)
        if to_move:
            data = _free_name(path)
            _write_data(to_move, data)
        _write_model(copy, path)
    except BaseException as e:
        if data is not None:
            data.unlink(missing_ok=True)
        if isinstance(e, OSError):
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            remedy = "free some space or write elsewhere" if full else "check the folder and its permissions"
            where = f" ({e.filename})" if e.filename and not str(e.filename).endswith(".tmp") else ""
            raise UsageError(
                f"Cannot write {path}: {e.strerror or e}{where}; {remedy}. Nothing was left behind."
            ) from e
        raise
    _remove_stale(copy, path, replaced)


def _place(model: ir.Model, replaced: Mapping[str, str], inline_limit: int) -> list[ir.Value]:
    """Decides where each weight goes: points those that stay at their file, returns those that need a new data file."""
    movable: list[ir.Value] = []
    inline, came_external = 0, False
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            if isinstance(tensor, ir.ExternalTensor):
                location = replaced.get(os.path.realpath(tensor.path))
                if location is not None:
                    value.const_value = _external(tensor, location, tensor.offset or 0)
                    continue
                came_external = True
            inline += tensor.nbytes
            if tensor.nbytes >= EXTERNAL_FROM and tensor.dtype != ir.DataType.STRING:
                movable.append(value)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    held = attribute.value
                    node.attributes[name] = ir.AttrTensor(name, ir.Tensor(held.numpy().copy(), name=held.name))
    return movable if came_external or inline > inline_limit else []


def _external(tensor: ir.TensorProtocol, location: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name or ""
    )


def _free_name(path: Path) -> Path:
    """Returns the first of model.onnx.data, model.onnx.1.data, ... that does not exist."""
    candidate, number = path.with_name(f"{path.name}.data"), 0
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}.{number}.data")
    return candidate


def _write_data(values: list[ir.Value], data: Path) -> None:
    """Streams the weights into `data` one by one and points the values at it."""
    with _replacing(data) as file:
        for value in values:
            tensor = value.const_value
            if tensor is None:
                continue
            offset = file.tell()
            if isinstance(tensor, ir.ExternalTensor) and hasattr(os, "copy_file_range"):
                copy_range(Path(tensor.path), tensor.offset or 0, tensor.nbytes, file)
            elif hasattr(tensor, "tofile"):
                tensor.tofile(file)
            else:
                file.write(tensor.tobytes())
            value.const_value = _external(tensor, data.name, offset)


def _write_model(model: ir.Model, path: Path) -> None:
    try:
        content = ir.to_proto(model).SerializeToString()
    except OSError:
        raise
    except Exception as e:  # protobuf has no one exception for "too large"
        raise UsageError(
            f"Cannot write {path}: the graph does not serialise ({e}). Protobuf ends at {PROTOBUF_LIMIT} bytes; "
            "large Constant nodes must become initializers first."
        ) from e
    if len(content) > PROTOBUF_LIMIT:
        raise UsageError(
            f"Cannot write {path}: {len(content)} bytes without its external weights, and protobuf ends at "
            f"{PROTOBUF_LIMIT}; large Constant nodes must become initializers first."
        )
    with _replacing(path) as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file in the same folder that becomes `path` at the end, or disappears on any failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: its 0600 would survive the rename; this way the user's umask decides, as for any file.
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_stale(model: ir.Model, path: Path, replaced: Mapping[str, str]) -> None:
    """Removes the data files that the replaced model alone had: ours by name, and named no more."""
    named = {t.location for _, t in external_data.tensors(model) if isinstance(t, ir.ExternalTensor)}
    ours = re.compile(re.escape(path.name) + r"(\.\d+)?\.data")
    for location in set(replaced.values()) - named:
        if ours.fullmatch(location):
            with suppress(OSError):
                path.with_name(location).unlink()
