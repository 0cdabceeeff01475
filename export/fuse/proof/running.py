"""Runs a region on ONNX Runtime's CPU provider; what the runtime refuses is said in a sentence of ours."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from export.graph.values import Refusal

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Spells the region so that ONNX Runtime reads it rightly; that lowering is a proven identity of its own."""
    if not any(node.op_type in ("Attention", "RotaryEmbedding") for node in model.graph.node):
        return model
    from export.errors import LoweringRefusedError
    from export.lower import lower

    try:
        return ir.to_proto(lower(ir.from_proto(model), "ort").model)
    except LoweringRefusedError as error:
        raise Refusal(
            "V909", f"ONNX Runtime cannot be given the fused block, so it was not checked: {error}"
        ) from error


def session(model: onnx.ModelProto, threads: int = 1) -> Run:
    """Returns a function that runs a model.

    The function raises RuntimeError where the model does not run on what it is given.

    Args:
        model: The region.
        threads: How many threads an operator may have; they do not spin between two operators.

    Raises:
        Refusal: The runtime does not load the model.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [o.name for o in model.graph.output]
    try:
        loaded = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors have no type in common
        raise Refusal(
            "V908", f"ONNX Runtime does not load the block, so it was not checked; it says {said(error)}."
        ) from error
    wanted = {i.name for i in loaded.get_inputs()}

    def run(feeds: Arrays) -> dict[str, np.ndarray]:
        try:
            results = loaded.run(names, {n: a for n, a in feeds.items() if n in wanted})
        except Exception as error:  # the runtime's errors have no type in common
            raise RuntimeError(said(error)) from error
        return dict(zip(names, results, strict=True))

    return run


def said(error: Exception) -> str:
    """Returns the first line of a message in quotes, to stand inside a sentence."""
    lines = str(error).splitlines() or [type(error).__name__]
    return f'"{lines[0].strip().rstrip(".")}"'
