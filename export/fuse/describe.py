"""The report row of an attention op, read off the graph."""

from collections.abc import Callable

import onnx_ir as ir

from export.fuse.emit import Emitted
from export.fuse.masks.upgrade import Upgrade
from export.fuse.rows import Attention, Verification
from export.graph.source_lines import module_path, source_line
from export.graph.values import array, dim, made_by


def describe(
    node: ir.Node,
    status: str,
    code: str,
    reason: str,
    upgrade: Upgrade,
    made: Emitted | None = None,
    verification: Verification | None = None,
) -> Attention:
    """Returns the report row of an attention op in the graph."""
    heads, kv_heads, head_size = _heads(node)
    scale = node.attributes.get("scale")
    softcap = node.attributes.get("softcap")
    capped = float(softcap.as_float()) if softcap is not None else 0.0
    if made is None and scale is None and head_size is not None:
        factor: float | None = head_size**-0.5  # the default the standard gives
    else:
        factor = None if scale is None else float(scale.as_float())
    return Attention(
        name=node.name or "",
        status=status,
        code=code,
        reason=reason,
        op=f"{node.domain or 'ai.onnx'}::{node.op_type}",
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        scale=factor,
        softcap=capped or None,
        mask=upgrade.kind or (made.mask if made is not None else _mask(node)),
        rope=_rope(node),
        cache=_cache(node),
        masked_rows="zero"
        if upgrade.zeroed or (made is not None and "before" in made.masked_rows and not upgrade.sees)
        else "keep",
        source=source_line(node),
        block=module_path(node),
        verify=verification,
        trail=made.trail if made is not None else (),
    )


def _heads(node: ir.Node) -> tuple[int | None, int | None, int | None]:
    query, key = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    named = [node.attributes.get(n) for n in ("q_num_heads", "kv_num_heads", "num_heads")]
    numbers = [a.as_int() if a is not None else None for a in named]
    if query is not None and query.shape is not None and len(query.shape) == 4:
        found = (dim(query, 1), dim(key, 1), dim(query, 3))
    else:
        heads = numbers[0] or numbers[2]
        width = dim(query, -1)
        size = width // heads if heads and isinstance(width, int) and node.domain == "" else None
        found = (heads, numbers[1] or heads, size)
    return tuple(d if isinstance(d, int) else None for d in found)  # type: ignore[return-value]


def _mask(node: ir.Node) -> str:
    mask = node.inputs[3] if len(node.inputs) > 3 and node.domain == "" else None
    kinds = ["causal"] if _is_causal(node) else []
    if mask is not None:
        kinds.append("bool" if mask.dtype == ir.DataType.BOOL else "float")
    return "+".join(kinds) or "none"


def _cache(node: ir.Node) -> str:
    past = node.inputs[4] if len(node.inputs) > 4 and (node.domain, node.op_type) == ("", "Attention") else None
    return "none" if past is None else "past"


def _is_causal(node: ir.Node) -> bool:
    found = [node.attributes.get(name) for name in ("is_causal", "unidirectional")]
    return any(a is not None and a.as_int() == 1 for a in found)


def _rope(node: ir.Node) -> str:
    rotated = "".join(
        letter for letter, value in zip("qk", node.inputs[:2], strict=False) if value is not None and rotated_by(value)
    )
    return rotated or "none"


_LAYOUT = ("Transpose", "Reshape", "Cast", "Mul", "Expand", "Unsqueeze", "Squeeze")


def rotated_by(value: ir.Value) -> ir.Node | None:
    """Returns the RotaryEmbedding a Q or K comes from, through layout changes and casts, or None."""
    return nearest(value, lambda node: node.op_type == "RotaryEmbedding" and node.domain in ("", "ai.onnx"))


def nearest(value: ir.Value, wanted: Callable[[ir.Node], bool]) -> ir.Node | None:
    """Returns the node of a kind that a Q or K comes from, through layout changes and casts, or None."""
    current: ir.Value | None = value
    for _ in range(8):
        maker = current.producer() if current is not None else None
        if maker is not None and wanted(maker):
            return maker
        step = made_by(current, *_LAYOUT, "Concat", "ScatterND")
        if step is None:
            return None
        if step.op_type in ("Concat", "ScatterND"):  # partial rotation, prefix tokens, a cache
            parts = (v for v in step.inputs if v is not None)
            return next((found for v in parts if (found := nearest(v, wanted)) is not None), None)
        current = next((v for v in step.inputs[:2] if array(v) is None), None)
    return None
