"""Reading an ONNX file, with all that can be wrong about it found before anyone works on it; and the way to write one.

`load` parses the structure only: weights stay lazy (in the parsed file, or memory-mapped when external), so a model of
any size loads in the time its structure takes.
"""

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from export import external_data, model_writer
from export.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

__all__ = ["OLDEST_OPSET", "custom_operators", "load", "nan_weights", "save"]

OLDEST_OPSET = 13
"""Before 13 Softmax flattened its input and `axes` were attributes: other operators under the same names."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Returns the ONNX model in `path`, checked, its weights not yet read.

    Args:
        path: A binary .onnx file. Its external data, if any, must lie in the same folder or below.

    Raises:
        ModelFileError: The file is missing, no ONNX model, truncated, of an opset that cannot be read, or its external
            data is missing, too short or outside the folder.
    """
    path = Path(path)
    proto = _parse(path)
    _check_header(path, proto)
    try:
        model = ir.from_proto(proto)
    except Exception as e:
        raise ModelFileError(f"{path} cannot be read as an ONNX graph: {_root_cause(e)}") from e
    external_data.check(model, Path(os.path.abspath(path.parent)))
    return model


def custom_operators(model: ir.Model) -> tuple[str, ...]:
    """Returns the sorted "domain::op" names that are neither ONNX operators nor functions of the model itself."""
    import onnx.defs

    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas()}
    known |= {(domain, name) for domain, name, _ in model.functions}
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    used = {(n.domain, n.op_type) for body in bodies for n in ir.traversal.RecursiveGraphIterator(body)}
    return tuple(sorted(f"{domain or 'ai.onnx'}::{name}" for domain, name in used - known))


def nan_weights(model: ir.Model) -> tuple[str, ...]:
    """Returns the names of the floating-point weights that hold a NaN; reads every weight once, from disk if needed."""
    import numpy as np

    found = []
    for name, tensor in external_data.tensors(model):
        if tensor.dtype.is_floating_point() and tensor.dtype.bitwidth >= 8:
            flat = tensor.numpy().reshape(-1)
            # In pieces: the boolean result of a whole embedding table would not be small.
            if any(bool(np.isnan(flat[i : i + 2**24]).any()) for i in range(0, flat.size, 2**24)):
                found.append(name)
    return tuple(found)


def save(model: ir.Model, path: str | os.PathLike[str], *, inline_limit: int = model_writer.INLINE_LIMIT) -> None:
    """Writes `model` to `path` atomically: a reader sees the old file or the new one, and a failure leaves the old one.

    Weights go to a data file beside the model ("model.onnx.data") when the model came with external data or when they
    exceed `inline_limit` bytes. Weights that the model being replaced already keeps in this folder (saving over the
    source) stay in their file, uncopied.

    Args:
        model: The model; not changed.
        path: The file to write. Its folder must exist.
        inline_limit: Bytes of weights that may go into the model file itself.

    Raises:
        UsageError: The folder is missing, not writable or full, or the graph without weights exceeds protobuf's 2 GiB.
    """
    path = Path(path)
    try:
        replaced = {
            os.path.realpath(t.path): os.fspath(t.location)
            for _, t in external_data.tensors(load(path))
            if isinstance(t, ir.ExternalTensor)
        }
    except ModelFileError:  # nothing there, or nothing whose data could be kept
        replaced = {}
    model_writer.write(model, path, replaced, inline_limit)


def _parse(path: Path) -> "onnx.ModelProto":
    """Returns the file's ModelProto, the file mapped and not copied while it is parsed."""
    import onnx

    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        hint = f" (it holds {', '.join(inside[:4])})" if inside else ""
        raise ModelFileError(f"{path} is a folder; name the .onnx file in it{hint}.")
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; check the path.")
    if not path.is_file():
        raise ModelFileError(f"{path} is not a regular file; name an .onnx file.")
    size = path.stat().st_size
    if size == 0:
        raise ModelFileError(f"{path} is empty: the export or download that wrote it failed; repeat it.")
    if size > model_writer.PROTOBUF_LIMIT:
        raise ModelFileError(
            f"{path} holds {size} bytes and protobuf reads at most {model_writer.PROTOBUF_LIMIT}; "
            "save the model with external data."
        )
    proto = onnx.ModelProto()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content[:32]
            with memoryview(content) as view:
                proto.ParseFromString(view)
    except OSError as e:
        raise ModelFileError(f"{path} cannot be read: {e.strerror}; check its permissions.") from e
    except Exception as e:  # protobuf's own error; its module has no type stubs
        raise ModelFileError(f"{path} {_what_it_is(start)}") from e
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise ModelFileError(f"{path} {_what_it_is(start)}")
    return proto


def _what_it_is(start: bytes) -> str:
    """Returns the rest of the sentence about a file that does not parse, from its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model itself; fetch it with: git lfs pull"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive (a PyTorch checkpoint or program?), not an ONNX model; export it to ONNX first."
    if len(start) > 1 and start[0] == 0x08 and 0 < start[1] < 64:  # field 1, ir_version: writers put it first
        return "starts as an ONNX model but ends early: it is truncated; export or download it again."
    return "is not an ONNX model (it does not parse as an ONNX protobuf); name a binary .onnx file."


def _check_header(path: Path, proto: "onnx.ModelProto") -> None:
    """Checks the versions, and what onnx-ir would drop without a word."""
    import onnx
    import onnx.defs

    newest = onnx.defs.onnx_opset_version()
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f"{path} has IR version {proto.ir_version}; the installed onnx {onnx.__version__} reads up to "
            f"{onnx.IR_VERSION}. Update it: pip install -U onnx"
        )
    if not proto.graph.output:
        raise ModelFileError(f"{path} has a graph without outputs: it is damaged or truncated; export it again.")
    if proto.graph.sparse_initializer:
        raise ModelFileError(
            f"{path} has sparse initializers (first: {proto.graph.sparse_initializer[0].values.name!r}), which are not "
            "supported; store them as dense tensors."
        )
    if not proto.opset_import:
        raise ModelFileError(
            f"{path} names no opset: it is truncated or was written by a broken tool; export it again."
        )
    imports = [("", proto.opset_import), *((f" of function {f.name}", f.opset_import) for f in proto.functions)]
    for where, opsets in imports:
        for opset in opsets:
            if opset.domain not in ("", "ai.onnx"):
                continue
            if opset.version > newest:
                raise ModelFileError(
                    f"{path} needs opset {opset.version}{where}; the installed onnx {onnx.__version__} knows up to "
                    f"{newest}. Export with a lower opset_version, or update: pip install -U onnx"
                )
            if opset.version < OLDEST_OPSET:
                raise ModelFileError(
                    f"{path} has opset {opset.version}{where}; the oldest that can be read is {OLDEST_OPSET}. Export "
                    "with a newer opset_version, or convert: onnx.version_converter.convert_version(model, 18)"
                )
    default = any(o.domain in ("", "ai.onnx") for o in proto.opset_import)
    if not default and any(n.domain in ("", "ai.onnx") for n in proto.graph.node):
        raise ModelFileError(f"{path} uses ONNX operators but names no opset for them; export it again.")


def _root_cause(e: BaseException) -> str:
    """Returns the first line of the innermost error: the outer ones speak of the reader's own functions."""
    while (inner := e.__cause__ or e.__context__) is not None:
        e = inner
    return str(e).splitlines()[0] if str(e) else type(e).__name__
