"""Where a target takes plugins: an attention that it refuses natively becomes one node of the plugin operator.

The operator (`plugins.contract`) knows softcap, causal after a cache, valid lengths and a window beside a mask, each of
which native TensorRT refuses or drops. It has one output and head sizes 16 to 256; what lies outside is left to the
steps that follow.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.graph.build import Builder
from export.graph.functions import inline
from export.graph.values import dim, dims, graphs
from export.lower.cache import outside
from export.lower.call import Call
from export.lower.extremes import typed
from export.lower.heads import split
from export.lower.rotation import fold_rotation
from export.lower.step import Step
from export.lower.structure import lower_structure
from export.lower.targets import Target
from plugins.contract import LOWER_RIGHT, MAX_HEAD_SIZE, MIN_HEAD_SIZE, ROTARY_ATTENTION, UPPER_LEFT, Settings
from plugins.onnx_function import onnx_function
from plugins.tensorrt_plugin import node_attributes

_NAME = (ROTARY_ATTENTION.domain, ROTARY_ATTENTION.name)
_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)


def lower_plugin(call: Call, row: Target, build: Builder) -> tuple[Call, tuple[Step, ...]]:
    """Decides whether the attention becomes a plugin node, and prepares its operands."""
    refused = _refused(call, row)
    if row.plugin in ("never", "function") or (row.plugin == "refused" and not refused):
        return call, ()
    obstacle = _obstacle(call)
    if obstacle:
        if row.plugin == "always":
            return call, (call.said("no plugin", f"The plugin kernel does not compute {obstacle}."),)
        return call, ()
    call = outside(split(replace(call, plugin=True), build), build)
    if call.offset is not None and not call.in_step:  # lower right counts from the last key, ONNX from the past's end
        call, _ = lower_structure(call, replace(row, extras=frozenset()), build)
    call, _ = typed(call, row, build)
    call, turned = fold_rotation(call, build)
    why = f"{row.title} does not compute {' and '.join(refused)} natively." if refused else "It was asked for."
    return call, (call.said("plugin", why), *turned)


def _refused(call: Call, row: Target) -> list[str]:
    """Returns what the target does not compute on the native operator, except by writing the attention out."""
    return ["softcap"] if call.softcap and "softcap" not in row.extras else []


def _obstacle(call: Call) -> str:
    """Returns what the plugin operator does not compute of this attention, or nothing."""
    if call.dtype not in _TYPES:
        return f"the type {call.dtype.name}"
    heads, kv_heads = call.query_heads, call.heads[1] if call.heads else dim(call.key, 1)
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        return "a number of heads that is not known"
    for size in (call.head_size, call.value_head_size):
        if size is None or not MIN_HEAD_SIZE <= size <= MAX_HEAD_SIZE:
            return f"a head size of {size or 'unknown size'}"
    if call.score_mode is not None:
        return "the scores as an output"
    if call.precision not in (None, ir.DataType.FLOAT, call.dtype):
        return f"a softmax in {call.precision.name}"
    left, right = call.window
    if right > 0 or (right == 0 and not call.causal) or (left >= 0 and not call.causal):
        return "a window without causal, or to the right"
    past = call.past is not None or call.offset is not None
    if past and call.lengths is not None:
        return "a past together with valid lengths"
    mask = call.keep if call.keep is not None else call.bias
    return "" if mask is None else _mask_obstacle(mask, call)


def _mask_obstacle(mask: ir.Value, call: Call) -> str:
    shape, keys = dims(mask), dim(call.key, 1 if call.heads else 2)
    if shape is None or len(shape) > 4:
        return "a mask whose shape is not known"
    if call.past is None and shape[-1] != keys:
        return f"a mask {list(shape)} for {keys} keys"
    return ""


def write_plugin(call: Call, build: Builder) -> ir.Value:
    """Inserts the plugin node that `call` says and returns its output [B, H, S, E]."""
    causal = 0
    if call.causal:
        causal = LOWER_RIGHT if call.offset is not None or call.lengths is not None else UPPER_LEFT
    scale = call.scale if call.scale is not None else float(call.head_size or 1) ** -0.5
    bias, turned = _bias(call, build), call.rotation
    settings = Settings(
        scale=scale,
        softcap=call.softcap,
        causal_kind=causal,
        window=call.window[0] + 1 if call.window[0] >= 0 else 0,
        rotary_embedding_dim=turned.size if turned else 0,
        interleaved=turned.interleaved if turned else 0,
        rotate_key=int(turned.key) if turned else 0,
        has_bias=int(bias is not None),
        has_lengths=int(call.lengths is not None),
    )
    no_table = build.constant(np.zeros((1, 1), np.float32))
    inputs = {
        "q": call.query,
        "k": call.key,
        "v": call.value,
        "cos": turned.cos if turned else no_table,
        "sin": turned.sin if turned else no_table,
        "bias": bias if bias is not None else build.constant(np.zeros((1, 1, 1, 1), call.dtype.numpy())),
        "lengths": _lengths(call, build),
    }
    shape = dims(call.query)
    graph = call.node.graph
    if isinstance(graph, ir.Graph):
        graph.opset_imports.setdefault(ROTARY_ATTENTION.domain, ROTARY_ATTENTION.version)
    node = build.node(
        ROTARY_ATTENTION.name,
        [inputs[i.name] for i in ROTARY_ATTENTION.inputs],
        node_attributes(settings),
        dtypes=(call.dtype,),
        shapes=(None if shape is None else ir.Shape([*shape[:3], call.value_head_size]),),
        name=call.name,
        domain=ROTARY_ATTENTION.domain,
    )
    return node.outputs[0]


def plug_out(model: ir.Model, title: str) -> tuple[Step, ...]:
    """Writes every plugin node of a model out as its ONNX function does, in place; `title` is who wants it so."""
    nodes = [n for g in graphs(model) for n in g if (n.domain, n.op_type) == _NAME]
    if not nodes:
        return ()
    for node in nodes:
        for name in node_attributes(Settings(scale=1.0)).keys() - Settings(scale=1.0).as_attributes().keys():
            node.attributes.pop(name, None)
    function = ir.from_proto(onnx_function(model.graph.opset_imports.get("", 23)))
    model.functions[function.identifier()] = function
    inline(model, lambda f: f.identifier() == function.identifier())
    why = f"{title} has no plugin of this name; this is the operator's ONNX function."
    return tuple(Step(node.name or "RotaryAttention", "plugin as function", why) for node in nodes)


def _bias(call: Call, build: Builder) -> ir.Value | None:
    """Returns both masks as one added to the scores, of four axes: -inf where a key is hidden."""
    bias = call.bias
    if call.keep is not None:
        seen = build.number(0.0, call.dtype) if bias is None else bias
        bias = build("Where", call.keep, seen, build.number(-np.inf, call.dtype), dtype=call.dtype)
    if bias is None:
        return None
    rank = 4 - len(dims(call.keep if call.keep is not None else bias) or (0,) * 4)
    if rank:
        bias = build("Unsqueeze", bias, build.axes(*range(rank)), dtype=call.dtype)
    return bias


def _lengths(call: Call, build: Builder) -> ir.Value:
    if call.lengths is None:
        return build.constant(np.zeros(1, np.int32))
    return build("Cast", call.lengths, dtype=ir.DataType.INT32, to=int(ir.DataType.INT32))
