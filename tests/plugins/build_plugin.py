"""Plays TensorRT's builder on the real bindings: registers the plugin, makes one of a node, asks types, shapes, launch.

Its C++ half is stubbed, so integers that know whether they are constant play the dimension expressions. Prints JSON.
"""

import json
import operator
import sys
from typing import Any, ClassVar

import numpy as np
import tensorrt as trt


class Dimension:
    """An integer as `IDimensionExpr`: known to the engine, or only of this call."""

    def __init__(self, value: int, constant: bool) -> None:
        self.value, self.constant = value, constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.value


class ExpressionBuilder:
    """What `IExprBuilder` does, on those integers."""

    operations: ClassVar = {
        trt.DimensionOperation.SUM: operator.add,
        trt.DimensionOperation.SUB: operator.sub,
        trt.DimensionOperation.PROD: operator.mul,
        trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    }

    def constant(self, value: int) -> Dimension:
        return Dimension(value, True)

    def operation(self, kind: Any, left: Dimension, right: Dimension) -> Dimension:
        return Dimension(self.operations[kind](left.value, right.value), left.constant and right.constant)


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[name, version, namespace]


registry = Registry()
trt.IDimensionExpr = Dimension
trt.get_plugin_registry = lambda: registry

import tensorrt.plugin as trtp  # noqa: E402 (it reads the names above when it is imported)
from tensorrt_bindings.plugin._tensor import SymIntExpr  # noqa: E402

from plugins.contract import ROTARY_ATTENTION, Settings  # noqa: E402
from plugins.kernels.compile import Compiled  # noqa: E402
from plugins.kernels.variants import Variant  # noqa: E402
from plugins.tensorrt_plugin import node_attributes, register  # noqa: E402

asked = []


def compiler(problem: Any, sm: int) -> Compiled:
    asked.append(repr((problem, sm)))
    return Compiled("kernel", "PTX", sm, Variant(64, 32, 4, 2), 4096, 100, 0, 0)


SETTINGS = Settings(0.125, 30.0, 2, 0, 64, 0, 1, 1, 0)
SHAPES = {
    "q": (2, 8, 130, 64),
    "k": (2, 4, 7, 64),
    "v": (2, 4, 7, 32),
    "cos": (512, 32),
    "sin": (512, 32),
    "bias": (1, 8, 1, 7),
    "lengths": (1,),
}
TYPES = {"cos": trt.DataType.FLOAT, "sin": trt.DataType.FLOAT, "lengths": trt.DataType.INT32}

register(trtp, 90, compiler)
register(trtp, 90, compiler)  # the second time changes nothing
creator = registry.get_creator(ROTARY_ATTENTION.name, "1", ROTARY_ATTENTION.domain)
kinds = {float: trt.PluginFieldType.FLOAT64, int: trt.PluginFieldType.INT64}
fields = [
    trt.PluginField(n, np.array([v]), kinds[type(v)])
    for n, v in node_attributes(SETTINGS).items()
    if not isinstance(v, str) and n != "aot"
]
made = creator.create_plugin(
    ROTARY_ATTENTION.name,
    ROTARY_ATTENTION.domain,
    trt.PluginFieldCollection(fields),
    trt.TensorRTPhase.BUILD,
    trt.QuickPluginCreationRequest.STRICT_AOT,
)
types = [TYPES.get(n, trt.DataType.HALF) for n in SHAPES]
told: dict[str, Any] = {
    "plugin": type(made).__name__,
    "types": [t.name for t in made.get_output_data_types(types, [len(s) for s in SHAPES.values()])],
}
SymIntExpr._exprBuilder = ExpressionBuilder()
tensors = []
for (name, shape), dtype in zip(SHAPES.items(), types, strict=True):
    tensor = trtp.TensorDesc()
    tensor.dtype = dtype
    fixed = {"q": (1, 3), "k": (1, 3), "v": (1, 3)}.get(name, ())
    tensor.shape_expr = trtp.ShapeExprs(len(shape))
    for axis, size in enumerate(shape):
        tensor.shape_expr[axis] = trtp.ShapeExpr(Dimension(size, axis in fixed))
    tensor._immutable = True
    tensors.append(tensor)
described = made.register_function(*tensors, **made.attrs)
told["shape"] = [e._expr.value for e in described.shape_expr]
told["constant"] = [e.is_constant for e in described.shape_expr]
combinations = made.autotune_function(*tensors, (described,))[0]._get_combinations()
told["combinations"] = [[t.name for t in c.types] for c in combinations]
name, ptx, launch, integers = made.aot_impl_function(*tensors, *made.attrs.values(), (described,), 0)
told["kernel"] = [name, ptx]
told["launch"] = {n: getattr(launch, n)._expr.value for n in ("grid_x", "grid_y", "grid_z", "block_x", "shared_mem")}
told["integers"] = [[i._expr.value, type(i).__name__] for i in integers]
told["asked"] = asked
if "--changing-heads" in sys.argv:
    tensors[0]._immutable = False
    tensors[0].shape_expr[1] = trtp.ShapeExpr(Dimension(8, False))
    made.aot_impl_function(*tensors, *made.attrs.values(), (described,), 0)
print(json.dumps(told))
