"""Masks as small graphs: written node by node, run on ONNX Runtime, and a proved meaning evaluated in numbers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.fuse.masks.formula import Formula
from export.fuse.masks.polynomial import Atom, Poly
from export.fuse.masks.prove import Proof, Prover
from export.graph import shapes

TYPES = {"bool": TensorProto.BOOL, "int": TensorProto.INT64, "float": TensorProto.FLOAT, "half": TensorProto.FLOAT16}
KINDS = {"bool": np.bool_, "int": np.int64, "float": np.float32, "half": np.float16}

Number = bool | int | float


class MaskGraph:
    """A graph under construction; every value is a name, and the last one made is the mask.

    Attributes:
        inputs: Name: (type, dimensions) of the graph's inputs.
    """

    def __init__(self, **inputs: tuple[str, tuple[int | str, ...]]) -> None:
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *operands: str | None, **attributes: object) -> str:
        """Adds a node and returns its output."""
        name = f"n{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, [o or "" for o in operands], [name], name, **attributes))
        return name

    def constant(self, data: object, kind: str = "int") -> str:
        """Adds an initializer."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(data, KINDS[kind]), name))
        return name

    def size(self, value: str, at: int) -> str:
        """Returns a dimension of a value as a scalar."""
        return self("Gather", self("Shape", value), self.constant(at))

    def positions(self, size: str, *, row: bool) -> str:
        """Returns [n, 1] or [1, n]: 0 to n - 1."""
        ramp = self("Range", self.constant(0), size, self.constant(1))
        return self("Unsqueeze", ramp, self.constant([1 if row else 0]))

    def model(self, mask: str) -> onnx.ModelProto:
        """Returns the graph with one output."""
        given = [helper.make_tensor_value_info(n, TYPES[t], d) for n, (t, d) in self.inputs.items()]
        made = [helper.make_empty_tensor_value_info(mask)]
        graph = helper.make_graph(self.nodes, "mask", given, made, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def proved(graph: MaskGraph, mask: str, frame: Sequence[int | str]) -> tuple[ir.Model, Proof | None]:
    """Returns the model with its shapes, and what is proved of its mask."""
    model = ir.from_proto(graph.model(mask))
    shapes.infer(model)
    return model, Prover().prove(model.graph.outputs[0], tuple(frame))


def run(graph: MaskGraph, mask: str, sizes: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns every tensor of the graph, for inputs drawn at these sizes.

    Raises:
        RuntimeError: The graph does not run at these sizes.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for name, (kind, shape) in graph.inputs.items():
        concrete = [d if isinstance(d, int) else sizes[d] for d in shape]
        drawn = rng.standard_normal(concrete) if kind in ("float", "half") else rng.random(concrete) > 0.4
        feeds[name] = np.asarray(drawn).astype(KINDS[kind])
    proto = graph.model(mask)
    del proto.graph.output[:]
    made = [node.output[0] for node in graph.nodes]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in made)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        found = dict(zip(made, session.run(None, feeds), strict=True))
    except Exception as error:
        raise RuntimeError(str(error)) from error
    return {**found, **feeds, **{c.name: numpy_helper.to_array(c) for c in graph.constants}}


class Numbers:
    """Evaluates formulas and polynomials at one position of one run."""

    def __init__(self, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int], at: Mapping[str, int]) -> None:
        self.arrays, self.sizes, self.place = arrays, sizes, at

    def poly(self, poly: Poly) -> Number:
        return sum(count * np.prod([self.atom(a) for a in monomial], dtype=object) for monomial, count in poly.terms)

    def size(self, poly: Poly) -> float:
        """Returns the sum of the terms' magnitudes, which no number on the way to the polynomial's value exceeds."""
        return float(
            sum(abs(count * np.prod([self.atom(a) for a in term], dtype=object)) for term, count in poly.terms)
        )

    def atom(self, atom: Atom) -> Number:
        match atom.kind:
            case "axis":
                return self.place[atom.text]
            case "size":
                return eval(atom.text, {"Min": min, "Max": max}, dict(self.sizes))
            case "abs":
                return abs(self.poly(atom.payload))
            case "quotient":
                return self.poly(atom.payload[0]) // atom.payload[1]
        value, indices = atom.payload
        return self.arrays[value.name][tuple(int(self.poly(p)) for p in indices)].item()

    def formula(self, formula: Formula) -> bool:
        match formula.kind:
            case "least":
                return self.poly(formula.poly) >= 0
            case "zero":
                return self.poly(formula.poly) == 0
            case "flag":
                return bool(self.atom(formula.flag))
            case "not":
                return not self.formula(formula.parts[0])
            case "all":
                return all(map(self.formula, formula.parts))
            case "any":
                return any(map(self.formula, formula.parts))
        return formula.kind == "true"


def roundings(count: int, dtype: np.dtype) -> float:
    """Returns how far `count` roundings to a type may move a number, relative to the largest on its way."""
    return float(np.expm1(count * np.log1p(float(np.finfo(dtype).eps) / 2)))


def everywhere(shape: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yields the positions of a frame."""
    for place in product(*map(range, shape)):
        yield dict(zip("bhij", place, strict=True))


def hold(graph: MaskGraph, mask: str, frame: Sequence[int | str], proof: Proof, sizes: Mapping[str, int]) -> None:
    """Holds a proof to what ONNX Runtime computes at one size.

    Raises:
        RuntimeError: The graph does not run at this size.
    """
    arrays = run(graph, mask, sizes)
    shape = [d if isinstance(d, int) else sizes[d] for d in frame]
    have = np.broadcast_to(arrays[mask], shape)
    keep = np.zeros(shape, bool)
    for at in everywhere(shape):
        place = tuple(at.values())
        numbers, got = Numbers(arrays, sizes, at), have[place]
        keep[place] = numbers.formula(proof.keep)
        assert keep[place] == all(numbers.formula(part) for _, part in proof.parts)
        for kind, part in proof.parts:
            if kind == "causal":
                offset = 0 if part == proof.causal else shape[3] - shape[2]
                assert numbers.formula(part) == (at["j"] <= at["i"] + offset), (sizes, at)
        if have.dtype == bool:
            assert keep[place] == got, (sizes, at, str(proof.keep))
        elif not keep[place]:
            assert float(got) in proof.fills or (proof.fills and not np.isfinite(got)) or got < -1e8, (sizes, at, got)
        elif proof.bias is not None:
            want = sum((float(numbers.poly(b)) for b in proof.bias), 0.0)
            terms = sum((numbers.size(b) for b in proof.bias), 0.0)
            assert abs(float(got) - want) <= roundings(len(graph.nodes), have.dtype) * terms, (sizes, at, got, want)
    if proof.sees:
        assert keep.any(-1).all(), (sizes, str(proof.keep))
    for kind, part in proof.parts:
        if kind == "padding":
            assert part.axes <= {"b", "j"}
