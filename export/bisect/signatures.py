"""The likely causes of an attention that is wrong: a table of mistakes that fusers, exporters and runtimes make.

Each is one change to A's Q, K, V, mask or rotation. An attention recomputed with it in float64 that gives what B gives,
within the bound of its rounding, explains B; A without the change does not, or the two would not part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from export.bisect.judging import Judged
from export.bisect.operands import Operands, distance
from export.bisect.result import Cause
from export.bisect.rotation import ORDERS
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray

Change = Callable[[Operands], Operands | None]


@dataclass(frozen=True)
class Signature:
    """One mistake.

    Attributes:
        code: Its stable name.
        part: What of the attention it is about.
        sentence: What B then does.
        change: A's operands -> B's, or None where it cannot be (no mask to drop, one head).
    """

    code: str
    part: str
    sentence: str
    change: Change


def explain(
    operands: Operands,
    block: Judged,
    dtype: Precision,
    parts: frozenset[str] | None = None,
    inside: "Array | None" = None,
) -> tuple[Cause, ...]:
    """Returns the mistakes that give what B gives, the closest first.

    Args:
        operands: A's attention.
        block: The block's tensor.
        dtype: The precision compared at.
        parts: Only mistakes about these; None for all.
        inside: A tensor of B that parts before Q, K or V: of mistakes that give one output (scores know only how far
            two rotations are apart), the one whose operand is nearest to it comes first.
    """
    found: list[tuple[float, Cause]] = []
    for signature in SIGNATURES:
        if parts is not None and signature.part not in parts:
            continue
        try:
            changed = signature.change(operands)
            ratio = _far(changed, block, dtype)
        except (ValueError, IndexError):  # shapes that do not broadcast: the mistake cannot have been made here
            continue
        if changed is not None and ratio <= 1.0:
            found.append((_away(changed, inside), Cause(signature.code, signature.sentence, signature.part, ratio)))
    return tuple(cause for _, cause in sorted(found, key=lambda item: (item[0], item[1].ratio or 0.0)))


def _away(changed: Operands, inside: "Array | None") -> float:
    """Returns how far the nearest of Q, K and V is from a tensor, in any layout."""
    import numpy as np

    if inside is None:
        return 0.0
    flat = inside.astype(np.float64).reshape(-1)
    same = [x for x in (changed.query, changed.key, changed.value) if x.size == flat.size]
    turned = (x.transpose(order).reshape(-1) for x in same for order in ORDERS)
    return min((float(np.linalg.norm(x - flat)) for x in turned), default=float("inf"))


def _far(changed: Operands | None, block: Judged, dtype: Precision) -> float:
    return float("inf") if changed is None else distance(changed, block.actual, block.expected, dtype, empty_rows=True)


def overflow(operands: Operands, actual: "Array", dtype: Precision) -> Cause | None:
    """Returns where Q K^T leaves the dtype's range, if B is not finite."""
    import numpy as np

    if np.isfinite(actual.astype(np.float64)).all():
        return None
    groups = operands.query.shape[1] // operands.key.shape[1]
    product = np.abs(operands.query @ np.repeat(operands.key, groups, axis=1).swapaxes(-1, -2))
    at = tuple(int(i) for i in np.unravel_index(int(product.argmax()), product.shape))
    largest = float(product[at])
    if largest <= dtype.largest:
        return None
    text = f"Q K^T before its scale reaches {largest:.6g} at {list(at)}; {dtype.storage} ends at {dtype.largest:.6g}."
    return Cause("overflow", text, "overflow")


def _masked(change: "Callable[[Array], Array | None]") -> Change:
    def apply(o: Operands) -> Operands | None:
        return None if o.mask is None else replace(o, mask=change(o.mask))

    return apply


def _inverted(mask: "Array") -> "Array":
    import numpy as np

    if mask.dtype == np.bool_:
        return ~mask
    deep = mask < -1000.0
    return np.where(deep, 0.0, -10000.0)


def _shifted(by: int) -> "Callable[[Array], Array]":
    """Every key has its neighbour's mask; the key at the end keeps its own."""

    def shift(mask: "Array") -> "Array":
        import numpy as np

        keys = mask.shape[-1]
        return np.take(mask, np.clip(np.arange(keys) + by, 0, keys - 1), axis=-1)

    return shift


def _first(mask: "Array") -> "Array | None":
    import numpy as np

    return np.broadcast_to(mask[:1], mask.shape) if mask.ndim == 4 and mask.shape[0] > 1 else None


def _added(mask: "Array") -> "Array | None":
    import numpy as np

    return mask.astype(np.float64) if mask.dtype == np.bool_ else None


def _causal(offset: "Callable[[Operands], int] | None") -> Change:
    """Query i sees keys 0 .. i + offset; None drops the rule."""

    def apply(o: Operands) -> Operands | None:
        if offset is None:
            return replace(o, causal=False) if o.causal else None
        far = offset(o)
        return None if o.causal and far == o.offset else replace(o, causal=True, offset=far)

    return apply


def _moved_causal(by: int) -> Change:
    return lambda o: replace(o, offset=o.offset + by) if o.causal else None


def _scaled(scale: Callable[[Operands], float]) -> Change:
    def apply(o: Operands) -> Operands | None:
        value = scale(o)
        return None if value == o.scale else replace(o, scale=value)

    return apply


def _heads(order: "Callable[[int, int], list[int]]", *parts: str) -> Change:
    """Key/value heads in another order: order(Hkv, groups) gives the head that each place reads."""

    def apply(o: Operands) -> Operands | None:
        heads = o.key.shape[1]
        chosen = order(heads, o.query.shape[1] // heads)
        if chosen == list(range(heads)):
            return None
        taken = {part: getattr(o, part)[:, chosen] for part in parts}
        if len(chosen) != heads:  # heads are repeated: the others are as well
            import numpy as np

            rest = {p: np.repeat(getattr(o, p), len(chosen) // heads, axis=1) for p in ("key", "value")}
            return replace(o, **{**rest, **taken})
        return replace(o, **taken)

    return apply


def _reversed(heads: int, groups: int) -> list[int]:
    return list(range(heads))[::-1]


def _modulo(heads: int, groups: int) -> list[int]:
    """Query head h reads head h % Hkv rather than h // (H / Hkv)."""
    return [h % heads for h in range(heads * groups)] if heads > 1 and groups > 1 else list(range(heads))


def _swapped(o: Operands) -> Operands | None:
    return replace(o, key=o.value, value=o.key) if o.key.shape == o.value.shape else None


def _unturned(*parts: str) -> Change:
    def apply(o: Operands) -> Operands | None:
        if not all(part in o.rotations for part in parts):
            return None
        return _with(o, {part: o.rotations[part].unturned() for part in parts})

    return apply


def _turned(change: "Callable[[tuple[Array | None, ...]], tuple[Array | None, ...]]", *, other: bool = False) -> Change:
    def apply(o: Operands) -> Operands | None:
        if not o.rotations:
            return None
        return _with(o, {p: r.turned(change(r.arrays), other_pairs=other) for p, r in o.rotations.items()})

    return apply


def _with(o: Operands, parts: "dict[str, Array]") -> Operands:
    return replace(o, query=parts.get("query", o.query), key=parts.get("key", o.key))


def _backwards(arrays: "tuple[Array | None, ...]") -> "tuple[Array | None, ...]":
    x, cos, sin, *rest = arrays
    return (x, cos, None if sin is None else -sin, *rest)


def _tables_swapped(arrays: "tuple[Array | None, ...]") -> "tuple[Array | None, ...]":
    x, cos, sin, *rest = arrays
    return (x, sin, cos, *rest)


def _order(order: tuple[int, ...]) -> Change:
    return lambda o: None if o.order == order else replace(o, order=order)


def _table() -> Iterator[Signature]:
    yield Signature("mask-dropped", "mask", "It attends without the mask.", _masked_away)
    yield Signature("mask-inverted", "mask", "It attends to what the mask hides.", _masked(_inverted))
    yield Signature("mask-one-key-late", "mask", "Every key has the next key's mask.", _masked(_shifted(1)))
    yield Signature("mask-one-key-early", "mask", "Every key has the previous key's mask.", _masked(_shifted(-1)))
    swapped = _masked(lambda mask: mask.swapaxes(-1, -2) if mask.ndim > 1 else None)
    yield Signature("mask-transposed", "mask", "The mask's queries and keys are exchanged.", swapped)
    yield Signature("mask-of-first-row", "mask", "Every batch row has the first one's mask.", _masked(_first))
    yield Signature(
        "mask-added-as-numbers", "mask", "The bool mask is added as 0 and 1; it hides no key.", _masked(_added)
    )
    yield Signature("causal-dropped", "causal", "Queries see the keys after them.", _causal(None))
    lower = _causal(lambda o: o.key.shape[2] - o.query.shape[2])
    yield Signature("causal-upper-left", "causal", "Query i sees keys 0 .. i (upper-left).", _causal(lambda o: 0))
    yield Signature("causal-lower-right", "causal", "The last query sees the last key (lower-right).", lower)
    yield Signature("causal-one-more", "causal", "Query i sees one key more, 0 .. i + 1.", _moved_causal(1))
    yield Signature("causal-one-less", "causal", "Query i does not see key i.", _moved_causal(-1))
    yield Signature("scale-dropped", "scale", "Q K^T has no scale.", _scaled(lambda o: 1.0))
    yield Signature("scale-twice", "scale", "The scale is applied twice.", _scaled(lambda o: o.scale**2))
    yield Signature(
        "scale-root", "scale", "The square root of the scale is applied.", _scaled(lambda o: abs(o.scale) ** 0.5)
    )
    usual = _scaled(lambda o: o.query.shape[-1] ** -0.5)
    yield Signature("scale-default", "scale", "The scale is 1/sqrt(head size).", usual)
    yield Signature("scale-negated", "scale", "The scale has the other sign.", _scaled(lambda o: -o.scale))
    yield Signature("softcap-dropped", "softcap", "The scores have no softcap.", _uncapped)
    yield Signature("key-value-swapped", "key-value", "K and V have changed places.", _swapped)
    yield Signature(
        "kv-heads-reversed", "heads", "The heads of K and V are in reverse.", _heads(_reversed, "key", "value")
    )
    yield Signature("value-heads-reversed", "heads", "The heads of V are in reverse.", _heads(_reversed, "value"))
    yield Signature("key-heads-reversed", "heads", "The heads of K are in reverse.", _heads(_reversed, "key"))
    modulo = "Query head h reads key/value head h % Hkv, not h // (H / Hkv)."
    yield Signature("gqa-order", "heads", modulo, _heads(_modulo, "key", "value"))
    kept = "The heads are merged without being moved back behind the queries."
    yield Signature("heads-not-moved-back", "heads", kept, _order((0, 1, 2, 3)))
    other = "The rotation pairs other channels: interleaved for halves, or the reverse."
    yield Signature("rope-pairing", "rope", other, _turned(lambda arrays: arrays, other=True))
    yield Signature("rope-cos-sin-swapped", "rope", "The rotation has cos and sin exchanged.", _turned(_tables_swapped))
    yield Signature("rope-backwards", "rope", "The rotation turns the other way.", _turned(_backwards))
    yield Signature("rope-missing-on-key", "rope", "K is not rotated.", _unturned("key"))
    yield Signature("rope-missing-on-query", "rope", "Q is not rotated.", _unturned("query"))
    yield Signature("rope-missing", "rope", "Neither Q nor K is rotated.", _unturned("query", "key"))


def _masked_away(o: Operands) -> Operands | None:
    return None if o.mask is None else replace(o, mask=None)


def _uncapped(o: Operands) -> Operands | None:
    return replace(o, softcap=0.0) if o.softcap else None


SIGNATURES = tuple(_table())
"""Every mistake that is known, in the order it is told where two fit equally."""
