"""Small graphs as ONNX text: parsed, run on drawn inputs, and written back as nested expressions to compare."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from export.lower import lower

HEADER = '<ir_version: 8, opset_import: ["": 17]>'

SIZES: tuple[Mapping[str, int], ...] = (
    {"B": 2, "H": 3, "S": 5, "T": 7, "N": 8, "M": 4, "P": 6, "L": 11, "W": 11, "X": 7, "TWO": 4},
    {"B": 1, "H": 1, "S": 1, "T": 1, "N": 1, "M": 1, "P": 1, "L": 2, "W": 2, "X": 3, "TWO": 2},
    {"B": 3, "H": 2, "S": 6, "T": 4, "N": 6, "M": 2, "P": 3, "L": 9, "W": 9, "X": 8, "TWO": 6},
)
"""Sizes the symbols of the text graphs take. N is B*M, so that merged heads (B*M, S, T) can be split again.
L and W are P + S, TWO is 2*B, X is S + 2."""


def parse(text: str, *, deprecated: bool = False) -> ir.Model:
    """Returns the model of a graph in ONNX text; where the header is left out it is opset 17's."""
    text = text.strip()
    proto = onnx.parser.parse_model(text if text.startswith("<") else f"{HEADER}\n{text}")
    if not deprecated:  # the checker refuses operators that later opsets withdrew
        onnx.checker.check_model(proto)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return ir.from_proto(proto)


def draw(model: ir.Model, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs for a model: normal floats, booleans that are mostly true, small integers."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
        dtype = value.dtype
        assert dtype is not None
        if dtype == ir.DataType.BOOL:
            feeds[str(value.name)] = np.asarray(rng.random(shape) > 0.3)
        elif dtype.is_floating_point():
            feeds[str(value.name)] = rng.standard_normal(shape).astype(dtype.numpy())
        else:
            feeds[str(value.name)] = rng.integers(0, 4, shape).astype(dtype.numpy())
    return feeds


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs a model, fused or not, on ONNX Runtime's CPU provider."""
    return session(model)(feeds)


def session(model: ir.Model):
    """Returns a function that runs a model, lowered to what ONNX Runtime reads rightly."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(lower(model, "ort").model)
    loaded = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {i.name for i in loaded.get_inputs()}
    return lambda feeds: loaded.run(None, {n: a for n, a in feeds.items() if n in taken})


def assert_same(before: ir.Model, after: ir.Model, sizes: Iterable[Mapping[str, int]] = SIZES, rtol: float = 2e-5):
    """Holds two models to the same outputs at every size; a row without keys may be NaN before and 0 after."""
    old, new = session(before), session(after)
    half = any(value.dtype == ir.DataType.FLOAT16 for value in before.graph.inputs)
    for seed, bound in enumerate(sizes):
        feeds = draw(before, bound, seed)
        for want, have in zip(old(feeds), new(feeds), strict=True):
            assert want.shape == have.shape and want.dtype == have.dtype, (bound, want.shape, have.shape)
            if want.dtype.kind == "f":
                want = np.where(np.isnan(want) & (have == 0), 0, want)
                scale = max(1.0, float(np.abs(want).max(initial=0.0, where=np.isfinite(want))))
                tolerance = 4e-3 if half else rtol
                np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * scale, err_msg=str(bound))
            else:
                np.testing.assert_array_equal(have, want, err_msg=str(bound))


def serialised(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def check(model: ir.Model) -> None:
    """Lets ONNX's own checker and shape inference read a model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        onnx.checker.check_model(ir.to_proto(model), full_check=True)


def expressions(graph: ir.Graph) -> str:
    """Returns what a graph computes, one line an output; a tensor used twice has a line of its own (t0, t1, ...)."""
    return _Writer(graph).text()


class _Writer:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names: dict[ir.Value, str] = {v: str(v.name) for v in graph.inputs}
        self._lines: list[str] = []

    def text(self) -> str:
        for output in self._graph.outputs:
            node = output.producer()
            alone = output in self._names or node is None or len(node.outputs) > 1
            text = self._value(output) if alone else self._node(node)
            self._lines.append(f"{output.name} = {text}")
            self._names.setdefault(output, str(output.name))
        return "\n".join(self._lines)

    def _value(self, value: ir.Value | None) -> str:
        if value is None:
            return "_"
        if value in self._names:
            return self._names[value]
        node = value.producer()
        if value.const_value is not None and (node is None or node.op_type == "Constant"):
            return _constant(value.const_value.numpy())
        if node is None or node.graph is not self._graph:  # a tensor of the graph around this one
            return str(value.name)
        if len(node.outputs) == 1 and (len(value.uses()) == 1 or node.op_type == "Constant"):
            return self._node(node)
        text, names = self._node(node), []
        for output in node.outputs:
            names.append(f"t{sum(n.startswith('t') for n in self._names.values())}")
            self._names[output] = names[-1]
        self._lines.append(f"{', '.join(names)} = {text}")
        return self._names[value]

    def _node(self, node: ir.Node) -> str:
        attributes = ", ".join(f"{n}={_attribute(a)}" for n, a in sorted(node.attributes.items()))
        inputs = ", ".join(self._value(v) for v in node.inputs)
        domain = f"{node.domain}." if node.domain else ""
        return f"{domain}{node.op_type}{f'<{attributes}>' if attributes else ''}({inputs})"


def _attribute(attr: ir.Attr) -> str:
    if attr.type == ir.AttributeType.FLOAT:
        return f"{attr.value:.6g}"
    if attr.type == ir.AttributeType.TENSOR:
        return _constant(attr.as_tensor().numpy())
    if attr.type == ir.AttributeType.GRAPH:
        return f"{{{'; '.join(expressions(attr.as_graph()).splitlines())}}}"
    if attr.type == ir.AttributeType.INTS:
        return str(list(attr.value)).replace(" ", "")
    return str(attr.value)


def _constant(data: np.ndarray) -> str:
    """float32 and int64 as plain numbers, other types named; large ones by their shape alone."""
    if data.size > 16:
        return f"{data.dtype}{list(data.shape)}"
    text = _listed(data.tolist())
    return text if data.dtype in (np.float32, np.int64) else f"{data.dtype}({text})"


def _listed(data) -> str:
    if isinstance(data, list):
        return f"[{','.join(_listed(x) for x in data)}]"
    return f"{data:.6g}" if isinstance(data, float) else str(data)


@dataclass(frozen=True)
class Golden:
    """One case of a golden file: the graph before, and what is expected of it, as text."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return self.name


def read_goldens(text: str) -> list[Golden]:
    """Reads `=== name`, the graph, `--->`, the expectation; `#` starts a comment line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    cases = []
    for block in "\n".join(lines).split("=== ")[1:]:
        name, rest = block.split("\n", 1)
        before, after = rest.split("--->")
        cases.append(Golden(name.strip(), before.strip(), "\n".join(x.strip() for x in after.strip().splitlines())))
    return cases
