"""An ONNX graph as ONNX Runtime's CPU provider can run it, whoever it was made for.

That provider reads some standard masks wrongly or not at all and knows no TensorRT attribute, so a graph that holds
Attention is lowered once more, for it alone; the numbers stay those of the graph. A graph that cannot be brought
there is an error here, never a wrong answer.
"""

import os
from pathlib import Path

import onnx_ir as ir

from engines.ort_runner import OrtRunner
from export import external_data
from export.errors import UsageError

LEAN_FROM = 1 << 27
"""Bytes of weights from which a session keeps no second copy of them; it is slower then."""


def open_graph(path: Path, *, optimization: str = "layout") -> OrtRunner:
    """Returns a CPU runner of the graph in `path`.

    Args:
        path: An .onnx file; its external data, if any, lies beside it and is mapped from there.
        optimization: What the session may rewrite: "all", ... "disable".

    Raises:
        UsageError: ONNX Runtime's CPU provider cannot run the graph.
    """
    from export import model_file
    from export.lower import for_ort_check

    model = model_file.load(path)
    nodes = list(model.graph.all_nodes())
    if not any(
        node.op_type in ("Attention", "TRT_Attention", "RotaryEmbedding") and node.domain == "" for node in nodes
    ):
        return OrtRunner(path, optimization=optimization, lean=external_data.size(model) >= LEAN_FROM)
    return open_model(for_ort_check(model), path, optimization=optimization)


def open_model(model: ir.Model, path: Path, *, optimization: str) -> OrtRunner:
    """Returns a CPU runner of a graph that was made of the file in `path`, whose external data it may share.

    Raises:
        UsageError: ONNX Runtime's CPU provider cannot run the graph.
    """
    try:
        content = ir.to_proto(model).SerializeToString()
    except ValueError as error:  # protobuf's 2 GiB
        raise UsageError(
            f"{path} does not fit into memory as one piece ({error}); save it with external data."
        ) from error
    lean = external_data.size(model) >= LEAN_FROM
    runner = OrtRunner(content, optimization=optimization, lean=lean, data=path.absolute().parent)
    runner.name = os.fspath(path)
    return runner
