"""One attention as arrays: Q, K, V, the mask and the rotations before them, and how its output shows in a tensor.

A graph whose attention is written out is fused first, in memory: the fuser reads what Q, K, V and the mask are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export.bisect import rotation
from export.bisect.rotation import ORDERS, Rotation
from export.bisect.tensors import Tensors
from export.graph.values import made_by
from export.lower.call import Call, read
from export.parity.attention import AttentionTruth, attention_truth
from export.parity.budgets import graph_budget
from export.parity.compare import Expected
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

_MASKED_SCORE = -9000.0
"""As in `export.parity.rounding`: a row whose largest mask is no higher sees no key."""


@dataclass(frozen=True)
class Operands:
    """One attention: softmax(mask + softcap(scale Q K^T)) V.

    Attributes:
        query, key, value: float64 [B, H, S, D], [B, Hkv, T, D], [B, Hkv, T, Dv]; a past is in front of K and V.
        mask: As the node has it, bool (True = attend) or float64, broadcastable to [B, H, S, T]; None without.
        limits: Further keys that are hidden (lengths, a window), bool; None without.
        causal: Query i sees keys 0 .. i + offset.
        offset: Keys that are in front of the first query.
        scale: Factor on Q K^T.
        softcap: 0 for none.
        rotations: "query" and "key" where one stands before it.
        order: Which axes order of [B, H, S, Dv] the block's tensor has.
    """

    query: "Array"
    key: "Array"
    value: "Array"
    mask: "Array | None"
    limits: "Array | None"
    causal: bool
    offset: int
    scale: float
    softcap: float
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    order: tuple[int, ...] = (0, 1, 2, 3)

    def truth(self) -> AttentionTruth:
        """Returns its output in float64 with the bound on its error."""
        return attention_truth(
            self.query, self.key, self.value, scale=self.scale, mask=self._hidden(), softcap=self.softcap
        )

    def empty_rows(self) -> "Array":
        """Returns the queries that see no key, bool broadcastable to [B, H, S, 1]: each runtime gives its own there."""
        import numpy as np

        hidden = self._hidden()
        if hidden is None:
            return np.zeros((1, 1, 1, 1), bool)
        seen = hidden if hidden.dtype == np.bool_ else hidden > _MASKED_SCORE
        return np.asarray(~seen.any(axis=-1, keepdims=True))

    def without_keys(self) -> "Iterator[Array]":
        """Yields what a row that sees no key may give, [B, H, S, Dv]: 0, V's mean, the weights without the mask."""
        import numpy as np

        free = replace(self, mask=None, limits=None, causal=False)
        yield np.zeros((*self.query.shape[:3], self.value.shape[-1]))
        yield replace(free, scale=0.0, softcap=0.0).truth().output
        if self.mask is not None and self.mask.dtype != np.bool_:
            yield free.truth().output

    def show(self, output: "Array", shape: tuple[int, ...]) -> "Array":
        """Returns something of shape [B, H, S, Dv] as the block's tensor shows it."""
        return output.transpose(self.order).reshape(shape)

    def _hidden(self) -> "Array | None":
        import numpy as np

        keep = self.limits
        if self.causal:
            sees = np.tri(self.query.shape[2], self.key.shape[2], self.offset, dtype=bool)[None, None]
            keep = sees if keep is None else keep & sees
        if self.mask is None:
            return keep
        if self.mask.dtype == np.bool_:
            return self.mask if keep is None else self.mask & keep
        return self.mask if keep is None else np.where(keep, self.mask, -np.inf)


def canonical(tensors: Tensors) -> Tensors:
    """Returns the graph with every attention as one op, as far as the fuser reads it."""
    from export.fuse import Options, fuse

    if not any(node.op_type == "Softmax" for node in tensors.model.graph.all_nodes()):
        return tensors
    return Tensors(fuse(tensors.model, Options(verify=False)).model)


def attention_before(graph: Tensors, name: str) -> ir.Node | None:
    """Returns the nearest Attention that a tensor is computed from, itself included."""
    if name not in graph.values:
        return None
    waiting, seen = [graph.values[name]], set[ir.Value]()
    while waiting:
        following: list[ir.Value] = []
        for value in waiting:
            if made_by(value, "Attention") is not None:
                return value.producer()
            node = value.producer()
            for source in node.inputs if node is not None else ():
                if source is not None and source not in seen:
                    seen.add(source)
                    following.append(source)
        waiting = following
    return None


def read_arrays(
    graph: Tensors, node: ir.Node, feeds: "Mapping[str, Array]", shown: Expected, dtype: Precision
) -> Operands | None:
    """Returns an attention's arrays; None where they do not give `shown` in any layout, so that nothing rests on them.

    Args:
        graph: The canonical graph.
        node: Its Attention.
        feeds: The graph's inputs.
        shown: The block's tensor in A, with its reach.
        dtype: The precision compared at.
    """
    operands = arrays_of(graph, node, feeds)
    orders = (replace(operands, order=order) for order in ORDERS)
    return next((found for found in orders if distance(found, shown.value, shown, dtype) <= 1.0), None)


def arrays_of(graph: Tensors, node: ir.Node, feeds: "Mapping[str, Array]") -> Operands:
    """Returns an attention's arrays, its output in the layout [B, H, S, Dv]."""
    call = read(node)
    rotations = {part: found for part, x in (("query", call.query), ("key", call.key)) if (found := rotation.before(x))}
    wanted = [v for v in node.inputs if v is not None]
    wanted += [v for turn in rotations.values() for v in (*turn.inputs, turn.outputs[0]) if v is not None]
    names = list(dict.fromkeys(str(v.name) for v in wanted))
    known = _fetch(graph, names, feeds)
    operands = _of(call, known)
    for part, turn in rotations.items():
        made = rotation.carried(turn, known, getattr(operands, part))
        if made is not None:
            operands = replace(operands, rotations={**operands.rotations, part: made})
    return operands


def distance(
    operands: Operands, tensor: "Array", shown: Expected, dtype: Precision, *, empty_rows: bool = False
) -> float:
    """Returns how far a tensor is from what an attention gives, in units of what rounding explains.

    That is the bound of the attention's own rounding, and what A's tensor may be off by for what comes before it.

    Args:
        operands: The attention.
        tensor: What is judged.
        shown: A's tensor, with its reach.
        dtype: The precision compared at.
        empty_rows: Whether a row that sees no key must look like one: NaN, 0, the mean of V, or what the scores give
            where a finite mask does not swallow them. Else such rows are left out, and count for nothing.
    """
    import numpy as np

    truth = operands.truth()
    if truth.output.size != tensor.size:
        return float("inf")
    alive = np.broadcast_to(~operands.empty_rows(), truth.output.shape)
    before = graph_budget(shown.value.astype(np.float64), np.asarray(shown.reach), dtype)
    limit = operands.show(truth.elementwise(dtype.name, fused=False), tensor.shape) + before
    seen, living = tensor.astype(np.float64), operands.show(alive, tensor.shape)
    error = np.abs(operands.show(truth.output, tensor.shape) - seen) / limit
    error = np.where(np.isnan(error), np.inf, error)
    if empty_rows and not living.all():
        others = [np.abs(operands.show(x, tensor.shape) - seen) / limit for x in operands.without_keys()]
        nearest = np.min([np.where(np.isnan(seen), 0.0, other) for other in others], axis=0)
        error, living = np.where(living, error, nearest), np.ones_like(living)
    return float(error[living].max()) if living.any() else float("inf")


def _fetch(graph: Tensors, names: list[str], feeds: "Mapping[str, Array]") -> "dict[str, Array]":
    known: dict[str, Any] = {name: feeds[name] for name in names if name in feeds}
    for name in names:
        value = graph.model.graph.initializers.get(name)
        if value is not None and value.const_value is not None:
            known[name] = value.const_value.numpy()
    inner = [name for name in names if name not in known]
    return {**known, **graph.runner(inner).run(feeds)} if inner else known


def _of(call: Call, known: "Mapping[str, Array]") -> Operands:
    import numpy as np

    def get(value: ir.Value | None) -> "Array | None":
        if value is None:
            return None
        array = known[str(value.name)]
        return array if array.dtype == np.bool_ or array.dtype.kind in "iu" else array.astype(np.float64)

    q, k, v = (_split(get(x), heads) for x, heads in _with_heads(call))
    past = tuple(get(x) for x in call.past) if call.past else ()
    offset = past[0].shape[2] if past and past[0] is not None else 0
    if past and past[0] is not None and past[1] is not None:
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    mask = get(call.keep if call.keep is not None else call.bias)
    scale = q.shape[-1] ** -0.5 if call.scale is None else call.scale
    limits = _limits(call, get(call.lengths), q.shape[2], k.shape[2], offset)
    return Operands(q, k, v, mask, limits, call.causal, offset, scale, call.softcap)


def _limits(call: Call, lengths: "Array | None", queries: int, keys: int, offset: int) -> "Array | None":
    import numpy as np

    limits = None
    if lengths is not None:
        limits = (np.arange(keys)[None] < lengths[:, None])[:, None, None]
    if call.window != (-1, -1):
        far = np.arange(keys)[None] - (np.arange(queries)[:, None] + offset)
        left, right = call.window
        near = (far >= -left if left >= 0 else True) & (far <= right if right >= 0 else np.ones_like(far, bool))
        limits = near[None, None] if limits is None else limits & near
    return limits


def _with_heads(call: Call) -> "Iterator[tuple[ir.Value, int | None]]":
    q, kv = call.heads or (None, None)
    yield from ((call.query, q), (call.key, kv), (call.value, kv))


def _split(array: "Array | None", heads: int | None) -> "Array":
    if array is None:
        raise ValueError("an attention without Q, K or V")
    if heads is None:
        return array
    batch, length, width = array.shape
    return array.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)
