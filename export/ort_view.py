"""An ONNX graph as ONNX Runtime's CPU provider can run it, whoever it was made for.

That provider reads some standard masks wrongly or not at all and knows no TensorRT attribute, so a graph that holds
Attention is lowered once more, for it alone; the numbers stay those of the graph. A graph that cannot be brought
there is an error here, never a wrong answer.
"""

import tempfile
from pathlib import Path

from engines.ort_runner import OrtRunner


def open_graph(path: Path, *, optimization: str = "layout") -> OrtRunner:
    """Returns a CPU runner of the graph in `path`.

    Args:
        path: An .onnx file; its external data, if any, lies beside it.
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
        return OrtRunner(path, optimization=optimization)
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / path.name
        model_file.save(for_ort_check(model), copy)
        runner = OrtRunner(copy, optimization=optimization)
    runner.name = str(path)
    return runner
