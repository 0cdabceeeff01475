"""The plugin operator as an ONNX operator schema, for tools that write nodes of it."""

from typing import Any

from plugins.contract import ROTARY_ATTENTION

_ONNX_TYPES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)", "fp32": "tensor(float)", "int32": "tensor(int32)"}


def onnx_schema() -> Any:
    """Returns the `onnx.defs.OpSchema` of the contract; it is not registered with onnx."""
    from onnx.defs import OpSchema

    floats = next(i.dtypes for i in ROTARY_ATTENTION.inputs if i.name == "q")
    inputs = []
    for given in ROTARY_ATTENTION.inputs:
        kind = "T" if given.dtypes in (floats, ("Q",)) else _ONNX_TYPES[given.dtypes[0]]
        inputs.append(OpSchema.FormalParameter(given.name, kind, given.meaning))
    kinds = {int: OpSchema.AttrType.INT, float: OpSchema.AttrType.FLOAT}
    return OpSchema(
        ROTARY_ATTENTION.name,
        ROTARY_ATTENTION.domain,
        ROTARY_ATTENTION.version,
        doc=ROTARY_ATTENTION.summary,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("out", "T", "Attention, in the layout and type of q.")],
        type_constraints=[("T", [_ONNX_TYPES[name] for name in floats], "Type of queries, keys, values and output.")],
        attributes=[OpSchema.Attribute(a.name, kinds[a.kind], a.meaning) for a in ROTARY_ATTENTION.attributes],
    )
