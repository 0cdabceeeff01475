"""Attention blocks in two spellings, a small PyTorch module and a hand-built graph of one Attention op, with cases."""

from dataclasses import dataclass
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from engines.ort_runner import OrtRunner
from export.parity import ParityCase, ParityReport, check_stages

ONNX_DTYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
MAX_LENGTH = 64
HALF_FILL = -6e4
"""-1e9 at float16: there too it swallows any score it is added to."""


@dataclass(frozen=True)
class Spec:
    name: str
    heads: int = 4
    kv_heads: int = 4
    head_size: int = 8
    rope: str = "none"
    mask: str = "none"
    causal: bool = False
    softcap: float = 0.0
    cross: bool = False
    fill: float = float("-inf")


SPECS = (
    Spec("plain"),
    Spec("one-head", heads=1, kv_heads=1, head_size=16),
    Spec("causal", causal=True),
    Spec("bool-mask", mask="bool"),
    Spec("float-mask", mask="float"),
    Spec("finite-fill", mask="bool", fill=-1e9),
    Spec("cross", cross=True, mask="bool"),
    Spec("gqa", heads=6, kv_heads=2, causal=True),
    Spec("softcap", softcap=5.0),
    Spec("rope-half", rope="half", mask="bool"),
    Spec("rope-interleaved", rope="interleaved", heads=6, kv_heads=3, causal=True),
)
BY_NAME = {spec.name: spec for spec in SPECS}


class Block(nn.Module):
    """Attention written out by hand, with projections."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        width, inner = 24, spec.heads * spec.head_size
        self.wq = nn.Linear(width, inner)
        self.wk = nn.Linear(width, spec.kv_heads * spec.head_size)
        self.wv = nn.Linear(width, spec.kv_heads * spec.head_size)
        self.wo = nn.Linear(inner, width)
        for layer in (self.wq, self.wk):
            nn.init.normal_(layer.weight, std=0.35)  # attention far from uniform
        angles = torch.arange(MAX_LENGTH)[:, None] * 100.0 ** (-torch.arange(spec.head_size // 2) / spec.head_size * 2)
        self.tables = (angles.cos().float(), angles.sin().float())

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        spec = self.spec
        source = x if memory is None else memory
        q = self._rotated(self._split(self.wq(x), spec.heads))
        k = self._rotated(self._split(self.wk(source), spec.kv_heads))
        v = self._split(self.wv(source), spec.kv_heads)
        k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, dim=1) for t in (k, v))
        s = q @ k.transpose(-1, -2) * spec.head_size**-0.5
        if spec.softcap:
            s = spec.softcap * torch.tanh(s / spec.softcap)
        if mask is not None:
            fill = max(spec.fill, HALF_FILL) if s.dtype == torch.float16 and spec.fill > -np.inf else spec.fill
            s = s.masked_fill(~mask, fill) if mask.dtype == torch.bool else s + mask
        if spec.causal:
            s = s.masked_fill(torch.ones(s.shape[-2:]).tril() == 0, float("-inf"))
        out = torch.softmax(s, dim=-1) @ v
        return self.wo(out.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _rotated(self, x: Tensor) -> Tensor:
        if self.spec.rope == "none":
            return x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        cos, sin = (t[: x.shape[-2]] for t in self.tables)
        if self.spec.rope == "half":
            a, b = wide.chunk(2, dim=-1)
            out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        else:
            a, b = wide[..., 0::2], wide[..., 1::2]
            out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        return out.to(x.dtype)


def block(spec: Spec, seed: int = 0) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Block(spec).eval()


def cases(spec: Spec, seed: int = 0, magnitude: float = 1.0) -> list[ParityCase]:
    """A grid like the forms': one token, odd, one batch row, padded both ways, a row without keys, large logits."""
    grid = {"typical": (2, 8), "one-token": (2, 1), "one-batch": (1, 6), "odd": (3, 7)}
    shapes = [(name, batch, length, "none", 1.0) for name, (batch, length) in grid.items()]
    shapes.append(("peaked", 2, 9, "none", 5.0))
    shapes.append(("large-logits", 2, 8, "none", 20.0))
    if spec.mask != "none":
        shapes += [(f"{p}-padding", 3, 9, p, 1.0) for p in ("right", "left")]
        shapes += [("fully-masked-row", 3, 9, "full-row", 1.0)]
    generator = torch.Generator().manual_seed(seed)
    return [_case(spec, generator, name, b, n, p, m * magnitude) for name, b, n, p, m in shapes]


def _case(
    spec: Spec, generator: torch.Generator, name: str, batch: int, length: int, padding: str, magnitude: float
) -> ParityCase:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * magnitude

    inputs = {"x": normal(batch, length, 24)}
    keys = length
    if spec.cross:
        keys = length + 3
        inputs["memory"] = normal(batch, keys, 24)
    if spec.mask != "none":
        mask = torch.ones(batch, 1, length, keys, dtype=torch.bool)
        part = slice(keys - keys // 3, None) if padding == "right" else slice(keys // 3)
        if padding == "full-row":
            mask[-1] = False
        elif padding != "none":
            mask[0, ..., part] = False
        bias = torch.randn(batch, 1, length, keys, generator=generator)
        inputs["mask"] = mask if spec.mask == "bool" else bias.masked_fill(~mask, float("-inf"))
    return ParityCase(name, inputs)


def graph(module: Block, dtype: str, *, three_d: bool = False) -> onnx.ModelProto:
    """The block as MatMul, RotaryEmbedding and one ai.onnx::Attention.

    A finite fill becomes a float mask, and rows that it fills get equal scores.
    """
    spec, kind = module.spec, ONNX_DTYPES[dtype]
    numpy_dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(onnx.numpy_helper.from_array(value, name))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def linear(x: str, layer: nn.Linear, name: str) -> str:
        weight = constant(f"{name}.w", layer.weight.detach().numpy().T.astype(numpy_dtype))
        bias = constant(f"{name}.b", layer.bias.detach().numpy().astype(numpy_dtype))
        return add("Add", [add("MatMul", [x, weight], f"{name}.mm"), bias], name)

    def heads(x: str, count: int) -> str:
        if three_d:
            return x
        shape = constant(f"{x}.shape", np.array([0, 0, count, spec.head_size]))
        return add("Transpose", [add("Reshape", [x, shape], f"{x}.4d")], f"{x}.heads", perm=[0, 2, 1, 3])

    def rotated(x: str, count: int) -> str:
        if spec.rope == "none":
            return x
        caches = ["cos", "sin"]
        wide = add("Cast", [x], f"{x}.wide", to=TensorProto.FLOAT)
        interleaved = int(spec.rope == "interleaved")
        extra = {"num_heads": count} if three_d else {}
        turned = add("RotaryEmbedding", [wide, *caches, "positions"], f"{x}.turned", interleaved=interleaved, **extra)
        return add("Cast", [turned], f"{x}.rope", to=kind)

    source = "memory" if spec.cross else "x"
    q, k, v = linear("x", module.wq, "q"), linear(source, module.wk, "k"), linear(source, module.wv, "v")
    q, k, v = heads(q, spec.heads), heads(k, spec.kv_heads), heads(v, spec.kv_heads)
    if spec.rope != "none":
        for name, table in zip(("cos", "sin"), module.tables, strict=True):
            constant(name, table.numpy())
        size = add("Shape", ["x"], "size", start=1, end=2)
        length = add("Squeeze", [size], "length")
        ends = [constant("zero", np.array(0)), length, constant("one", np.array(1))]
        row = add("Unsqueeze", [add("Range", ends, "range"), constant("axis0", np.array([0]))], "row")
        batch = add("Shape", ["x"], "batch", start=0, end=2)
        add("Expand", [row, batch], "positions")
    q, k = rotated(q, spec.heads), rotated(k, spec.kv_heads)
    if np.isfinite(spec.fill):
        # ONNX Runtime adds a float16 mask in float32, where -6e4 swallows nothing: equal scores need equal queries.
        visible = add(
            "ReduceMax", [add("Cast", ["mask"], "seen", to=kind), constant("last", np.array([-1]))], "visible"
        )
        if three_d:
            visible = add("Squeeze", [visible, constant("heads", np.array([1]))], "visible.3d")
        q = add("Mul", [q, visible], "q.visible")
    inputs = [q, k, v]
    if spec.mask == "bool" and np.isfinite(spec.fill):
        low = HALF_FILL if dtype == "fp16" else spec.fill
        zero, fill = constant("free", np.array(0, numpy_dtype)), constant("fill", np.array(low, numpy_dtype))
        inputs.append(add("Where", ["mask", zero, fill], "bias"))
    elif spec.mask != "none":
        inputs.append("mask")
    attributes: dict[str, object] = {"scale": spec.head_size**-0.5}
    if spec.causal:
        attributes["is_causal"] = 1
    if spec.softcap:
        attributes["softcap"] = spec.softcap
    if three_d:
        attributes |= {"q_num_heads": spec.heads, "kv_num_heads": spec.kv_heads}
    out = add("Attention", inputs, "attention", **attributes)
    if not three_d:
        flat = constant("flat", np.array([0, 0, -1]))
        out = add("Reshape", [add("Transpose", [out], "back", perm=[0, 2, 1, 3]), flat], "merged")
    linear(out, module.wo, "output")
    values = [helper.make_tensor_value_info("x", kind, ["batch", "length", 24])]
    if spec.cross:
        values.append(helper.make_tensor_value_info("memory", kind, ["batch", "memory", 24]))
    if spec.mask != "none":
        element = TensorProto.BOOL if spec.mask == "bool" else kind
        keys = "memory" if spec.cross else "length"
        values.append(helper.make_tensor_value_info("mask", element, ["batch", 1, "length", keys]))
    result = helper.make_tensor_value_info("output", kind, ["batch", "length", 24])
    body = helper.make_graph(nodes, spec.name, values, [result], weights)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model, full_check=True)
    return model


def runner(model: onnx.ModelProto) -> OrtRunner:
    return OrtRunner(model.SerializeToString(), threads=1)


def stages(module, candidates, cases, dtype, **options) -> ParityReport:
    """The report over candidates by stage, as a pipeline asks for it."""
    source = SimpleNamespace(module=module, form=None)
    return check_stages(source, None, candidates, dtype=dtype, cases=cases, **options)


def statuses(report: ParityReport, stage: str) -> set[str]:
    return {row.status for row in report.rows if row.stage == stage}
