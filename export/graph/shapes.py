"""Symbolic shapes of every value of a graph: with `refresh.py`, `lessons.py` all that knows the (alpha) library."""

import logging
import re
import warnings
from functools import lru_cache

import onnx_ir as ir

from export.graph.lessons import teach
from export.graph.refresh import Known, forget, hold, names_in, refresh, remember, take_type
from export.graph.values import graphs

_LOG = logging.getLogger(__name__)


def infer(model: ir.Model) -> None:
    """Writes the inferred symbolic shapes and element types into the model's values, in place.

    A value whose shape cannot be inferred keeps what the exporter recorded; nothing is guessed. Called again after a
    law, it infers again what the law changed.
    """
    teach()
    known = Known(name for value in model.graph.inputs for name in _names(value.shape))
    if not refresh(model, known, _normalise):
        _type_constants(model)
        _infer_all(model, known)
        remember(model)


def copy(model: ir.Model) -> ir.Model:
    """Returns a clone of a model whose shapes are inferred, which knows that they are."""
    clone = model.clone()
    remember(clone)
    return clone


def clean(model: ir.Model) -> None:
    """Removes what inference noted in the model for its own use."""
    from onnx_shape_inference import SYM_DATA_KEY

    forget(model)
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                value.metadata_props.pop(SYM_DATA_KEY, None)


def _infer_all(model: ir.Model, known: Known) -> None:
    _forget_names(model, known)
    carried = _carried(model)
    named = [(tensor, tensor.name) for tensor in _in_functions(model)]
    for loop, at, init, _ in carried:
        loop.replace_input_with(at, ir.Value(name=init.name, type=init.type))
    _infer_with_library(model)
    for tensor, name in named:
        tensor.name = name
    for loop, at, init, _ in carried:
        loop.replace_input_with(at, init)
    ranks = [(inner, len(init.shape)) for _, _, init, inner in carried if init.shape is not None]
    for inner, length in ranks:
        inner.shape = ir.Shape([ir.SymbolicDim(None)] * length)
    if ranks:
        _infer_all(model, known)


def _carried(model: ir.Model) -> list[tuple[ir.Node, int, ir.Value, ir.Value]]:
    """Returns what enters the Loops of a model and what it is called inside, where that has no shape of its own.

    The library takes the shape before the first round for that of every round; a cache that grows has another.
    """
    loops = [node for graph in graphs(model) for node in graph if node.op_type == "Loop" and node.domain == ""]
    found = []
    for node in loops:
        inside = node.attributes["body"].as_graph().inputs
        for at in range(2, min(len(node.inputs), len(inside))):
            init = node.inputs[at]
            if init is not None and inside[at].shape is None:
                found.append((node, at, init, inside[at]))
    return found


def _infer_with_library(model: ir.Model) -> None:
    from onnx_shape_inference import ShapeInferenceError, infer_symbolic_shapes

    library = logging.getLogger("onnx_shape_inference")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                infer_symbolic_shapes(model)
            except ShapeInferenceError:  # one node contradicts itself; the others can still be told
                infer_symbolic_shapes(model, policy="skip")
    except Exception as error:  # an alpha library on a foreign graph: shapes are a help, not a condition
        _LOG.warning("symbolic shape inference stopped early: %s", error)
    finally:
        library.setLevel(level)
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                _normalise(value)


def _type_constants(model: ir.Model) -> None:
    """Gives initializers and constants the type and shape of their data, where the file does not say them twice.

    A Constant's output holds its tensor then; else the library names the tensor, which is the user's model's too.
    """
    for graph in graphs(model):
        for node in graph:
            hold(node)
        for value in graph.initializers.values():
            take_type(value)


def _in_functions(model: ir.Model) -> list[ir.TensorProtocol]:
    """Returns the tensors of the Constants in functions: the library names those of the copies it makes of a body."""
    nodes = [node for function in model.functions.values() for node in function.graph.all_nodes()]
    held = [attribute for node in nodes for attribute in node.attributes.values() if not attribute.is_ref()]
    return [attribute.value for attribute in held if attribute.type == ir.AttributeType.TENSOR]


def _forget_names(model: ir.Model, known: Known) -> None:
    """Drops the names that an earlier round or the exporter gave to dimensions it did not know.

    The library never replaces a name by a better one; only the names of the graph's own inputs mean something.
    """
    for graph in graphs(model):
        for node in graph:
            for value in node.outputs:
                shape = value.shape
                if shape is not None and not _names(shape) <= known:
                    kept = [
                        d if isinstance(d, int) or names_in(d.value or "") <= known else ir.SymbolicDim(None)
                        for d in shape
                    ]
                    value.shape = ir.Shape(kept)


def _names(shape: ir.Shape | None) -> set[str]:
    """Returns the identifiers in a shape's symbols and expressions."""
    texts = [d.value for d in shape or () if not isinstance(d, int) and d.value is not None]
    return {name for text in texts for name in names_in(text)}


def _normalise(value: ir.Value) -> None:
    """Writes integers as integers (the library leaves some as text, "16") and arithmetic in its simplest form."""
    shape = value.shape
    if shape is None or all(isinstance(d, int) for d in shape):
        return
    fixed: list[int | ir.SymbolicDim] = []
    for dim in shape:
        text = dim.value if not isinstance(dim, int) else None
        plain = text if text is None else simplest(text)
        fixed.append(dim if plain is None else int(plain) if plain.lstrip("-").isdigit() else ir.SymbolicDim(plain))
    if fixed != list(shape):
        value.shape = ir.Shape(fixed)


@lru_cache(maxsize=4096)
def simplest(text: str) -> str:
    """Returns a dimension's expression simplified, knowing that every symbol is a positive integer."""
    if re.fullmatch(r"[\w.]+", text):
        return text
    import sympy

    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in names_in(text)}
    try:
        return str(sympy.simplify(sympy.sympify(text, locals=symbols)))
    except (sympy.SympifyError, TypeError, AttributeError, SyntaxError):
        return text
