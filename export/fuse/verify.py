"""Proves each fused block on ONNX Runtime CPU: the region before against the region after, on adversarial inputs.

Both regions end in the block's output and begin in tensors that both graphs have, so laws, emission, rotary embeddings
and tidying are all inside. They agree if their difference is within the sum of both error bounds. The bound of an
attention in float32 is derived, not chosen: `c * u * (2 + s) * A` with u = 2^-24, A = P @ |V|, s the largest
`scale * |Q| @ |K|^T` of the row (the rounding of a dot product is relative to its absolute terms) and c = 10 a side.
"""

import numpy as np
import onnx
import onnx_ir as ir

from export.fuse import adversary
from export.fuse.graph import Refusal
from export.fuse.region import Cut, by_name, cut, to_model
from export.fuse.rows import Verification

_ROUNDOFF = 2.0**-24
_CONSTANT = 20.0
_TINY = 1e-30


def verify(
    before: ir.Model, after: ir.Model, attentions: list[ir.Node], masked_rows: str
) -> tuple[dict[str, Refusal], dict[str, Verification]]:
    """Runs every fused attention against what it replaced.

    Args:
        before: The model before fusing.
        after: The model after fusing; values that both have under one name are the same tensor.
        attentions: The Attention nodes that fusing wrote into `after`.
        masked_rows: The policy that was asked for.

    Returns:
        Why some are wrong, and the measurements of the right ones, both by node name.
    """
    old = by_name(before)
    failures: dict[str, Refusal] = {}
    verified: dict[str, Verification] = {}
    for node in attentions:
        try:
            verified[str(node.name)] = _Comparison(old, node, before, after, masked_rows).run()
        except Refusal as refusal:
            failures[str(node.name)] = refusal
    return failures, verified


class _Comparison:
    """One block: its two regions, and the trials run on them."""

    def __init__(
        self, old: dict[str, ir.Value], node: ir.Node, before: ir.Model, after: ir.Model, masked_rows: str
    ) -> None:
        self.node, self.masked_rows = node, masked_rows
        self.outputs = [o for o in (_visible(node.outputs[0], old), *_weights(node, old)) if o is not None]
        if not self.outputs or any(str(o.name) not in old for o in self.outputs):
            raise Refusal("V901", f"'{node.name}' has no output that the graph had before; it cannot be checked.")
        self.olds = [old[str(o.name)] for o in self.outputs]
        self.new_cut, self.old_cut = _common_cut(self.outputs, self.olds, old)
        self.leaves = {**self.old_cut.shaped, **self.new_cut.shaped, **self.old_cut.leaves, **self.new_cut.leaves}
        inputs = [v for v in node.inputs[:4] if v is not None]
        self.inside = [v for v in inputs if str(v.name) not in self.new_cut.leaves]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        data = cut([v for v in node.inputs[:3] if v is not None], lambda v: str(v.name) in self.new_cut.leaves)
        self.mask_only = set() if mask is None else set(self.new_cut.leaves) - set(data.leaves)
        opset = after.graph.opset_imports.get("", 23)
        self.new_model = to_model(self.new_cut, [*self.outputs, *dict.fromkeys(self.inside)], opset)
        self.old_model = to_model(self.old_cut, self.olds, before.graph.opset_imports.get("", 23))

    def run(self) -> Verification:
        """Runs all trials; raises the refusal of the first that differs."""
        old_run, new_run = _session(self.old_model), _session(_runnable(self.new_model))
        worst, cases = (0.0, 0.0, 0.0), 0
        for at, trial in enumerate(adversary.TRIALS):
            feeds = self._feeds(trial, np.random.default_rng(at))
            try:
                expected = old_run(feeds)
            except RuntimeError:
                continue  # sizes the original graph itself does not accept
            try:
                found = new_run(feeds)
            except RuntimeError as error:
                raise Refusal("V902", f"'{self.node.name}' does not run ({trial.name}): {error}") from error
            worst = max(worst, self._compare(trial, feeds, expected, found))
            cases += 1
        if not cases:
            raise Refusal(
                "V903", f"The block of '{self.node.name}' ran at none of the sizes tried; it was not checked."
            )
        return Verification(max_error=worst[1], budget=worst[2], cases=cases)

    def _feeds(self, trial: adversary.Trial, rng: np.random.Generator) -> dict[str, np.ndarray]:
        try:
            bound = adversary.bind(self.leaves, trial.sizes)
            return {
                name: adversary.draw(value, adversary.size(value, bound), trial, name in self.mask_only, rng)
                for name, value in self.leaves.items()
            }
        except ValueError as error:
            raise Refusal("V904", f"'{self.node.name}' cannot be checked: {error}.") from error

    def _compare(
        self,
        trial: adversary.Trial,
        feeds: dict[str, np.ndarray],
        expected: dict[str, np.ndarray],
        found: dict[str, np.ndarray],
    ) -> tuple[float, float, float]:
        """Returns (error / budget, error, budget) at the worst element."""
        known = {**feeds, **found}
        inputs = [known[str(v.name)] if v is not None else None for v in self.node.inputs[:4]]
        bound, row_bound = error_bound(self.node, *inputs)
        worst = (0.0, 0.0, 0.0)
        for output, budget in zip(self.outputs, (bound, row_bound), strict=False):
            want, have = expected[str(output.name)], found[str(output.name)]
            if want.shape != have.shape:
                raise Refusal("V905", f"'{self.node.name}' has shape {have.shape}, before {want.shape} ({trial.name}).")
            limit = np.broadcast_to(budget, have.shape) if budget.size != have.size else budget.reshape(have.shape)
            worst = max(worst, self._worst(trial, want, have, limit))
        return worst

    def _worst(
        self, trial: adversary.Trial, want: np.ndarray, have: np.ndarray, limit: np.ndarray
    ) -> tuple[float, float, float]:
        if have.size == 0:
            return (0.0, 0.0, 0.0)
        silent = np.isnan(want) & (have == 0.0)  # no key: NaN when written by hand, 0 from Attention
        if self.masked_rows == "zero" and trial.pattern == "row":
            silent |= np.broadcast_to((have == 0.0).all(axis=-1, keepdims=True), have.shape)
        error = np.where(silent, 0.0, np.abs(want.astype(np.float64) - have))
        if not np.isfinite(error).all():
            raise Refusal(
                "V906", f"'{self.node.name}' and the block before it differ in where they are finite ({trial.name})."
            )
        ratio = error / (limit + _TINY)
        at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if ratio[at] > 1.0:
            raise Refusal(
                "V907",
                f"'{self.node.name}' differs from the block before it by {error[at]:.3g} at {[int(i) for i in at]}, "
                f"its budget is {limit[at]:.3g} ({trial.name}).",
            )
        return float(ratio[at]), float(error[at]), float(limit[at])


def _visible(output: ir.Value, old: dict[str, ir.Value]) -> ir.Value | None:
    """Returns the first tensor at or after the op's output that the graph had before."""
    current = output
    for _ in range(4):
        if str(current.name) in old:
            return current
        users = [u for u, _ in current.uses() if u.op_type in ("Reshape", "Squeeze", "Transpose", "Cast")]
        if len(users) != 1:
            return None
        current = users[0].outputs[0]
    return None


def _weights(node: ir.Node, old: dict[str, ir.Value]) -> list[ir.Value | None]:
    return [_visible(node.outputs[3], old)] if len(node.outputs) > 3 else []


def _common_cut(new: list[ir.Value], olds: list[ir.Value], old: dict[str, ir.Value]) -> tuple[Cut, Cut]:
    """Cuts both graphs at the same tensors, moving the cut back until the old region needs nothing else."""
    targets = {str(v.name) for v in new}
    opened: set[str] = set()
    while True:

        def stop(value: ir.Value, opened: frozenset[str] = frozenset(opened)) -> bool:
            name = str(value.name)
            is_data = value.dtype is not None and (value.dtype.is_floating_point() or value.dtype == ir.DataType.BOOL)
            return is_data and name in old and name not in opened and name not in targets

        new_cut = cut(new, stop)
        old_cut = cut(olds, lambda value: str(value.name) in new_cut.leaves)  # noqa: B023
        extra = set(old_cut.leaves) - set(new_cut.leaves)
        dependent = {name for name in new_cut.leaves if name in old and extra & set(cut([old[name]], _never).leaves)}
        dependent -= opened | extra
        if not dependent:
            return new_cut, old_cut
        opened |= dependent


def _never(_: ir.Value) -> bool:
    return False


def error_bound(
    node: ir.Node, query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the float32 error bounds of an Attention's output and of its weights.

    Args:
        node: The Attention; its scale, softcap and causality are read.
        query: [B, H, S, D].
        key: [B, Hkv, T, D].
        value: [B, Hkv, T, Dv].
        mask: Boolean (True = attend) or additive, broadcastable to [B, H, S, T], or None.
    """
    q, k, v = (x.astype(np.float64) for x in (query, key, value))
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, axis=1), np.repeat(v, repeats, axis=1)
    scale = node.attributes["scale"].as_float()
    cap = node.attributes["softcap"].as_float() if "softcap" in node.attributes else 0.0
    scores = scale * (q @ k.swapaxes(-1, -2))
    size = abs(scale) * (np.abs(q) @ np.abs(k).swapaxes(-1, -2))
    if cap:
        scores = cap * np.tanh(scores / cap)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    factor = _CONSTANT * _ROUNDOFF * (2.0 + size.max(axis=-1, keepdims=True))
    absolute = factor * (weights @ np.abs(v)) + _ROUNDOFF * np.abs(v).max(axis=-2, keepdims=True)
    return absolute, factor * weights + _ROUNDOFF


def _runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Spells the region so that ONNX Runtime reads it rightly; that lowering is a proven identity of its own."""
    try:
        from export.lower import lower
    except ImportError:
        return _tmp(model)
    return ir.to_proto(lower(ir.from_proto(model), "ort").model)


def _tmp(model):
    out = onnx.ModelProto()
    out.CopyFrom(model)
    nodes = list(out.graph.node)
    del out.graph.node[:]
    for n in nodes:
        if n.op_type == "Attention" and len(n.input) > 3 and n.input[3]:
            b = n.name
            out.graph.node.extend(
                [
                    onnx.helper.make_node("Shape", [n.input[0]], [b + "_s"], start=2, end=3),
                    onnx.helper.make_node("Constant", [], [b + "_11"], value_ints=[1, 1]),
                    onnx.helper.make_node("Constant", [], [b + "_1"], value_ints=[1]),
                    onnx.helper.make_node("Concat", [b + "_11", b + "_s", b + "_1"], [b + "_t"], axis=0),
                    onnx.helper.make_node("Expand", [n.input[3], b + "_t"], [b + "_m"]),
                ]
            )
            n.input[3] = b + "_m"
        out.graph.node.append(n)
    return out


def _session(model: onnx.ModelProto):  # type: ignore[no-untyped-def]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = [o.name for o in model.graph.output]
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Refusal("V908", f"ONNX Runtime does not load the region: {error}") from error
    wanted = {i.name for i in session.get_inputs()}

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            results = session.run(names, {n: a for n, a in feeds.items() if n in wanted})
        except Exception as error:
            raise RuntimeError(str(error).splitlines()[0]) from error
        return dict(zip(names, results, strict=True))

    return run
