"""A graph while a random program is written: its nodes, what is known of their shapes, what was chosen so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

INT64, BOOL, FLOAT = ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.FLOAT
HALF, DOUBLE, BRAIN = ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16

Dim = int | str
Shape = tuple[Dim, ...]


class Choose:
    """Where every decision of a program comes from; the first option is the one that shrinking prefers."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._below = draw

    def one(self, *options: Any) -> Any:
        return options[self._below(len(options))]

    def chance(self, percent: int) -> bool:
        return self._below(100) >= 100 - percent


@dataclass(frozen=True)
class Input:
    """An input of a program; what it is fed with depends on its name (see fuzz_feeds)."""

    shape: Shape
    kind: ir.DataType


@dataclass(frozen=True)
class Program:
    """A finished program.

    Attributes:
        proto: The model.
        inputs: What its inputs are.
        near: The near misses in it; without any it is softmax attention.
        stages: All that was chosen, in order.
        kind: The element type of Q, K and V.
    """

    proto: onnx.ModelProto
    inputs: dict[str, Input]
    kind: ir.DataType
    near: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


@dataclass
class Draft:
    """See the module."""

    choose: Choose
    opset: int
    kind: ir.DataType
    inputs: dict[str, Input] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    outputs: dict[str, None] = field(default_factory=dict)
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    kinds: dict[str, ir.DataType] = field(default_factory=dict)
    near: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    conditions: list[tuple[str, bool]] = field(default_factory=list)

    def note(self, stage: str) -> None:
        self.stages.append(stage)

    def miss(self, stage: str) -> None:
        """Notes a stage that makes the program something else than softmax attention."""
        self.near.append(stage)
        self.stages.append(stage)

    def take(self, name: str, shape: Shape, kind: ir.DataType | None = None) -> str:
        """Returns a new input of the graph."""
        kind = kind or self.kind
        while name in self.inputs:
            name += "_"
        self.inputs[name] = Input(tuple(shape), kind)
        self.shapes[name], self.kinds[name] = tuple(shape), kind
        return name

    def number(self, value: Any, kind: ir.DataType | None = None) -> str:
        """Returns a constant, as an initializer or a Constant node."""
        kind = kind or self.kind
        name = f"c{len(self.constants) + len(self.nodes)}"
        with np.errstate(over="ignore"):
            data = np.asarray(value).astype(kind.numpy())
        tensor = ir.to_proto(ir.tensor(np.ascontiguousarray(data).reshape(data.shape), dtype=kind, name=name))
        self.constants.append(tensor)
        self.shapes[name], self.kinds[name] = data.shape, kind
        return name

    def integers(self, *values: int) -> str:
        return self.number(np.asarray(values, np.int64), INT64)

    def add(
        self,
        op: str,
        *inputs: str,
        shape: Shape | None = None,
        kind: ir.DataType | None = None,
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """Writes a node; its shape is only what the generator needs to know later."""
        names = [f"n{len(self.nodes)}{'abcdefgh'[at] if at else ''}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{names[0]}", **attributes))
        for name in names:
            self.shapes[name] = shape
            self.kinds[name] = kind or self.kinds[inputs[0]]
        return names[0] if outputs == 1 else names

    # What nearly every stage needs.

    def both(self, op: str, a: str, b: str, kind: ir.DataType | None = None) -> str:
        """An elementwise operator of two tensors."""
        return self.add(op, a, b, shape=joint(self.shapes[a], self.shapes[b]), kind=kind)

    def like(self, op: str, a: str, kind: ir.DataType | None = None, **attributes: Any) -> str:
        """An elementwise operator of one tensor."""
        return self.add(op, a, shape=self.shapes[a], kind=kind, **attributes)

    def cast(self, a: str, kind: ir.DataType) -> str:
        return self.like("Cast", a, kind=kind, to=int(kind))

    def turn(self, a: str, *perm: int) -> str:
        shape = self.shapes[a]
        return self.add("Transpose", a, shape=None if shape is None else tuple(shape[p] for p in perm), perm=perm)

    def swap(self, a: str) -> str:
        """Exchanges the last two axes."""
        rank = self.rank(a)
        return self.turn(a, *range(rank - 2), rank - 1, rank - 2)

    def rank(self, a: str) -> int:
        return len(self.shape(a))

    def shape(self, a: str) -> Shape:
        found = self.shapes[a]
        assert found is not None, a
        return found

    def size(self, a: str, axis: int, *, scalar: bool = False) -> str:
        """Reads one dimension of a tensor, as exporters do."""
        shape = self.add("Shape", a, kind=INT64, shape=(self.rank(a),))
        if scalar or self.choose.chance(50):
            index = self.number(np.int64(axis), INT64)
            one = self.add("Gather", shape, index, kind=INT64, shape=())
            return one if scalar else self.add("Unsqueeze", one, self.integers(0), kind=INT64, shape=(1,))
        return self.add("Slice", shape, self.integers(axis), self.integers(axis + 1), kind=INT64, shape=(1,))

    def reshape(self, a: str, *shape: Dim, sources: dict[str, tuple[str, int]] | None = None) -> str:
        """Reshapes to known dimensions: literal, one -1, or read from tensors (`sources`: symbol -> tensor, axis)."""
        own = self.shape(a)
        kept = [at for at, d in enumerate(shape) if isinstance(d, str) and at < len(own) and own[at] == d]
        plain = [d if isinstance(d, int) else 0 if at in kept else -1 for at, d in enumerate(shape)]
        if kept and -1 not in plain and self.choose.chance(50):
            plain[kept[-1]] = -1
        if plain.count(-1) <= 1 and not (sources and self.choose.chance(40)):
            return self.add("Reshape", a, self.integers(*plain), shape=tuple(shape))
        known = {**{str(d): (a, at) for at, d in enumerate(own) if isinstance(d, str)}, **(sources or {})}
        parts, inferred = [], False
        for d in shape:
            if isinstance(d, int):
                parts.append(self.integers(d))
            elif d in known:
                parts.append(self.size(*known[d]))
            else:
                assert not inferred, (shape, known)
                parts.append(self.integers(-1))
                inferred = True
        return self.add("Reshape", a, self.add("Concat", *parts, axis=0, kind=INT64), shape=tuple(shape))

    def reduce(self, op: str, a: str, axis: int = -1) -> str:
        """A reduction that keeps its axis; until opset 18 all but ReduceSum have axes as an attribute."""
        at = axis % self.rank(a)
        shape = tuple(1 if n == at else d for n, d in enumerate(self.shape(a)))
        if op == "ReduceSum" or self.opset >= 18:
            return self.add(op, a, self.integers(axis), shape=shape, keepdims=1)
        return self.add(op, a, shape=shape, keepdims=1, axes=[axis])

    def noise(self, a: str) -> str:
        """Sometimes writes something that changes nothing."""
        if not self.choose.chance(12):
            return a
        what = self.choose.one("Identity", "Cast", "twice turned", "times one", "plus zero", "unsqueezed")
        self.note(f"noise: {what}")
        if what == "Identity":
            return self.like("Identity", a)
        if what == "Cast":
            return self.cast(a, self.kinds[a])
        if what == "times one" and self.kinds[a] not in (INT64, BOOL):
            return self.both("Mul", a, self.number(1.0, self.kinds[a]))
        if what == "plus zero" and self.kinds[a] not in (INT64, BOOL):
            return self.both("Add", a, self.number(0.0, self.kinds[a]))
        if what == "unsqueezed":
            up = self.add("Unsqueeze", a, self.integers(0), shape=(1, *self.shape(a)))
            return self.add("Squeeze", up, self.integers(0), shape=self.shape(a))
        return self.swap(self.swap(a)) if self.rank(a) >= 2 else a

    def program(self) -> Program:
        """Finishes the graph."""
        inputs = [helper.make_tensor_value_info(n, int(i.kind), i.shape) for n, i in self.inputs.items()]
        outputs = [helper.make_tensor_value_info(n, int(self.kinds[n]), self.shapes[n]) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "random", inputs, outputs, self.constants)
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        onnx.checker.check_model(model)
        return Program(model, dict(self.inputs), self.kind, tuple(self.near), tuple(self.stages))


def joint(a: Shape | None, b: Shape | None) -> Shape | None:
    """The shape two tensors broadcast to."""
    if a is None or b is None:
        return None
    length = max(len(a), len(b))
    a, b = (1,) * (length - len(a)) + tuple(a), (1,) * (length - len(b)) + tuple(b)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
