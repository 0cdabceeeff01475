"""The truth about an ONNX file without its PyTorch source: the same graph computed in float64.

Every floating-point type in the graph is widened to float64 and run on ONNX Runtime; where that has no float64 kernel
for an operator, on ONNX's own reference evaluator; where neither can, on ONNX Runtime in float32 with its graph
optimisations off, which is said. The weights are the file's own, so all of them compute with the same numbers.

Large weights are widened one by one on their way to a temporary file, which ONNX Runtime maps. The largest go to
float32 only, which is as good as exact beside half precision.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from engines.errors import ToolkitError
from export import external_data, model_writer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]
    Feeds = Mapping[str, npt.NDArray[np.generic]]
    Run = Callable[[Feeds], Arrays]

LARGE = 1 << 30
"""Bytes of widened weights from which they go through a file."""

WIDEST = 1 << 32
"""Bytes of float64 weights from which half precision is judged by float32."""

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
_TYPE_ATTRIBUTES = ("to", "dtype", "softmax_precision")


@dataclass(frozen=True)
class Truth:
    """A way to compute what a graph means.

    Attributes:
        run: Feeds in the graph's own dtypes -> outputs by name, as precise as can be.
        how: The words for the report, e.g. "float64 on ONNX Runtime".
    """

    run: "Callable[[Feeds], Arrays]"
    how: str


def of(model: ir.Model, trial: "Feeds") -> Truth:
    """Returns the most precise way to run `model` that works on the trial feeds.

    Raises:
        UsageError: ONNX Runtime does not take the model at all.
    """
    failures: list[str] = []
    for how, make in _float64(model, failures):
        try:
            run = _fed_as(make(widened(model, ir.DataType.DOUBLE)), "float64")
            run(trial)
            return Truth(run, how)
        except Exception as error:  # a missing kernel shows as any exception of either library
            failures.append(f"{how}: {_first_line(error)}")
    run = _fed_as(session(widened(model, ir.DataType.FLOAT)), "float32")
    run(trial)
    return Truth(run, f"float32 on ONNX Runtime, optimisations off (not possible in {'; nor in '.join(failures)})")


def _float64(model: ir.Model, failures: list[str]) -> "list[tuple[str, Callable[[ir.Model], Run]]]":
    """Returns the ways to compute in float64 that the size of the weights allows; `failures` takes why none is."""
    held = [tensor for _, tensor in external_data.tensors(model) if tensor.dtype in _NARROW]
    size = 8 * sum(tensor.size for tensor in held)
    on_ort, evaluator = ("float64 on ONNX Runtime", session), ("float64 on ONNX's reference evaluator", _evaluator)
    if size >= WIDEST and not any(tensor.dtype == ir.DataType.FLOAT and tensor.nbytes >= LARGE for tensor in held):
        failures.append(f"float64, whose weights would take {size / 2**30:.1f} GiB")
        return []
    return [on_ort] if size >= LARGE else [on_ort, evaluator]


def widened(model: ir.Model, to: ir.DataType) -> ir.Model:
    """Returns a copy in which every floating-point type narrower than `to` is `to`: inputs, weights and casts."""
    narrow = tuple(t for t in _NARROW if t != to)
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in narrow:
                value.const_value = _cast(value.const_value, to)
                value.type = ir.TensorType(to)
        for value in graph.inputs:
            _retype(value, narrow, to)
    bodies: list[ir.Graph | ir.Function] = [copy.graph, *copy.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for value in node.outputs:
                _retype(value, narrow, to)
            for attribute in list(node.attributes.values()):
                changed = _attribute(attribute, narrow, to)
                if changed is not None:
                    node.attributes[attribute.name] = changed
            if node.op_type == "Constant":
                _plain_constant(node, to)
    return copy


def _retype(value: ir.Value, narrow: tuple[ir.DataType, ...], to: ir.DataType) -> None:
    if value.dtype in narrow:
        value.type = ir.TensorType(to)


def _attribute(attribute: ir.Attr, narrow: tuple[ir.DataType, ...], to: ir.DataType) -> ir.Attr | None:
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in narrow:
        return ir.AttrTensor(attribute.name, _cast(attribute.as_tensor(), to))
    if attribute.type == ir.AttributeType.INT and attribute.name in _TYPE_ATTRIBUTES and attribute.value in narrow:
        return ir.AttrInt64(attribute.name, int(to))
    return None


def _plain_constant(node: ir.Node, to: ir.DataType) -> None:
    """`Constant(value_float=...)` is float32 by definition, so it becomes a tensor."""
    import numpy as np

    for name in ("value_float", "value_floats"):
        attribute = node.attributes.pop(name, None)
        if attribute is not None:
            tensor = ir.Tensor(np.asarray(attribute.value, to.numpy()))
            node.attributes["value"] = ir.AttrTensor("value", tensor)


def _cast(tensor: ir.TensorProtocol, to: ir.DataType) -> ir.TensorProtocol:
    def cast() -> ir.TensorProtocol:
        made = ir.Tensor(tensor.numpy().astype(to.numpy()), name=tensor.name)
        external_data.release(tensor)
        return made

    if tensor.nbytes < model_writer.EXTERNAL_FROM:
        return cast()
    return ir.LazyTensor(cast, to, ir.Shape(tensor.shape.numpy()), name=tensor.name or "", cache=False)


def session(model: ir.Model) -> "Callable[[Feeds], Arrays]":
    """Returns a way to run a graph on ONNX Runtime, nothing optimised; weights of a large one are mapped from a file.

    Raises:
        UsageError: ONNX Runtime does not take the graph.
    """
    from engines.ort_runner import OrtRunner
    from export import model_file

    if external_data.size(model) < LARGE:
        return OrtRunner(ir.to_proto(model).SerializeToString(), optimization="disable").run
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # Windows removes no file that is mapped
        path = Path(place, "truth.onnx")
        model_file.save(model, path, inline_limit=0)
        return OrtRunner(path, lean=True).run


def _evaluator(model: ir.Model) -> "Callable[[Feeds], Arrays]":
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(ir.to_proto(model))
    return lambda feeds: dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def _fed_as(run: "Callable[[Feeds], Arrays]", dtype: str) -> "Callable[[Feeds], Arrays]":
    def widen(feeds: "Feeds") -> "Arrays":
        floating = ("float", "bfloat")
        return run({n: x.astype(dtype) if x.dtype.name.startswith(floating) else x for n, x in feeds.items()})

    return widen


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    prefix = "" if isinstance(error, ToolkitError) else f"{type(error).__name__}: "
    return f"{prefix}{text.splitlines()[0]}"[:160]
