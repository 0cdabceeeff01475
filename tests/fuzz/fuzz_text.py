"""Programs as ONNX text, as golden files hold them: one that was found wrong once stays a test."""

import onnx
import onnx.parser
import onnx.printer
import onnx_ir as ir
from fuzz_draft import Input, Program


def text(proto: onnx.ModelProto) -> str:
    """Returns a program in ONNX text, without the names of nodes."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    for node in model.graph.node:
        node.ClearField("name")
    lines = (line.strip().replace('[""] ', "") for line in onnx.printer.to_text(model).splitlines())
    return "\n".join(line for line in lines if line)


def parse(written: str) -> Program:
    """Reads a program back; the names of its inputs say what they are fed with (see fuzz_feeds)."""
    proto = onnx.parser.parse_model(written)
    onnx.checker.check_model(proto)
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    inputs = {value.name: _input(value) for value in proto.graph.input}
    kinds = [i.kind for name, i in inputs.items() if name[0] in "qkvx" and i.kind.is_floating_point()]
    return Program(proto, inputs, kinds[0])


def _input(value: onnx.ValueInfoProto) -> Input:
    kind = value.type.tensor_type
    return Input(tuple(d.dim_param or d.dim_value for d in kind.shape.dim), ir.DataType(kind.elem_type))


def codes(found: tuple[str, ...]) -> str:
    """Returns what became of a program as a golden file says it."""
    said = ["fused" if code == "F001" else "already" if code == "A001" else f"kept {code}" for code in found]
    return "\n".join(said) or "nothing"
