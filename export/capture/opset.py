"""Which opset an export gets, and whether what was written really is that opset."""

from typing import TYPE_CHECKING

from export.errors import CaptureError, UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

DEFAULT = {"dynamo": 23, "torchscript": 20}
"""dynamo: the first opset with Attention, so that scaled_dot_product_attention arrives as one node. torchscript: its
last, and measured the best: what is valid at 17 is valid at 20, and bf16 masks (ConstantOfShape) only there."""

LOWEST = {"dynamo": 18, "torchscript": 9}

CHECKED_BYTES = 1_500_000_000
"""A protobuf ends at 2 GB: above this size the checker is given no weights, and ONNX Runtime is left to judge."""


def choose(exporter: str, asked: int | None) -> int:
    """Returns the opset to ask the exporter for.

    Raises:
        UsageError: The exporter is unknown, or has nothing for the opset that was asked for.
    """
    if exporter not in DEFAULT:
        raise UsageError(f"There is no exporter {exporter!r}: choose one of {', '.join(DEFAULT)}.")
    if asked is None:
        return DEFAULT[exporter]
    if asked < LOWEST[exporter]:
        raise UsageError(
            f"The {exporter} exporter writes opset {LOWEST[exporter]} and above, not {asked}. Leave --opset out for "
            f"{DEFAULT[exporter]}."
        )
    if exporter == "torchscript" and asked > DEFAULT[exporter]:
        raise UsageError(
            f"The torchscript exporter writes opsets up to {DEFAULT[exporter]}, not {asked}. Leave --opset out, or use "
            "--exporter dynamo."
        )
    return asked


def written(model: "ir.Model") -> int:
    """Returns the opset of the standard operators that a model imports."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def refuse_wrong(model: "ir.Model", asked: int, exporter: str) -> str | None:
    """Returns None if a model is valid ONNX of the opset asked for, else what only the type checker objects to.

    torch 2.13 asked for opset 26 writes operators of 23 into a model of opset 18, and returns normally.

    Raises:
        CaptureError: The opset is another, or an operator does not exist in it.
    """
    import onnx
    import onnx_ir as ir

    wrote = written(model)
    if wrote != asked:
        raise CaptureError(
            f"The {exporter} exporter was asked for opset {asked} and wrote opset {wrote}: it cannot convert its graph "
            f"to {asked}, and the file would be invalid. Leave --opset out, which gives {DEFAULT[exporter]}."
        )
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx"):
            try:
                onnx.defs.get_schema(node.op_type, wrote, "")
            except onnx.defs.SchemaError as error:
                raise CaptureError(
                    f"The {exporter} exporter wrote the operator {node.op_type}, which opset {wrote} does not have "
                    f"(node {node.name}). Export at another --opset, or leave it out for {DEFAULT[exporter]}."
                ) from error
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > CHECKED_BYTES:
        return None
    proto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise CaptureError(
            f"The {exporter} exporter wrote an invalid graph at opset {asked}: {_first_line(error)}. Try the other "
            "--exporter, or another --opset."
        ) from error
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
