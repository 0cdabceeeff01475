"""Cases for a user's own model: its example inputs resized along their dynamic axes, its masks given real patterns.

Drawing at other sizes is `Source.draw`'s; here is which sizes, and what a mask hides. A bool input, an
integer one that is mostly ones, or a float one that holds -inf or -1e4 in the example is taken for a mask.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from export.capture import tree
from export.model.form import Case
from export.parity.case import ParityCase

if TYPE_CHECKING:
    from export.capture.contract import Source

FILL = -1e4
"""A float input with a value this low is an additive mask."""

PADDINGS = {"right": "right-padding", "left": "left-padding", "full-row": "fully-masked-row"}


def example_cases(source: "Source") -> list[ParityCase]:
    """Returns the example itself, then redrawn and resized ones, then padded ones where there is a mask."""
    cases = [ParityCase("example", source.inputs)]
    sizes = source.sizes()
    for seed, (name, dims) in enumerate(_plans(sizes, source), start=1):
        cases.append(ParityCase(name, source.draw(Case(name, dims, seed=seed))))
    examples = dict(tree.leaves(source.inputs))
    if any(_hides(x) is not None for x in examples.values()):
        drawn = source.draw(Case("padding", sizes, seed=99))
        for padding, name in PADDINGS.items():
            cases.append(ParityCase(name, padded(drawn, examples, padding)))
    return cases


def padded(inputs: dict[str, Any], examples: dict[str, Any], padding: str) -> dict[str, Any]:
    """Returns the inputs with every mask hiding what the padding says.

    Args:
        inputs: Inputs by parameter name, masks among them.
        examples: Leaf by name of the example inputs, which tell masks and their visible value.
        padding: "right" or "left": the first batch row's last or first third of the keys; "full-row": every key of
            the last batch row. Everything else is visible, but a causal triangle stays.
    """

    def change(name: str, leaf: Any) -> Any:
        hides = _hides(examples.get(name))
        if hides is None or not leaf.numel() or not leaf.ndim:
            return leaf
        visible, hidden = hides
        result = leaf.clone() if _triangular(leaf == visible) else torch.full_like(leaf, visible)
        keys = leaf.shape[-1]
        part = max(1, keys // 3) if keys > 1 else 0
        place = {"right": slice(keys - part, None), "left": slice(part), "full-row": slice(None)}[padding]
        row = result if leaf.ndim == 1 else result[-1 if padding == "full-row" else 0]
        row[..., place] = hidden
        return result

    changed: dict[str, Any] = tree.rebuild(inputs, change)
    return changed


def _plans(sizes: dict[str, int], source: "Source") -> Iterator[tuple[str, dict[str, int]]]:
    def at(batch: int | None, length: int | None) -> dict[str, int]:
        fitted = {}
        for name, size in sizes.items():
            want = batch if "batch" in name.lower() else length
            low, _, high = source.dims.get(name, (1, size, size))
            fitted[name] = min(max(size if want is None else want, low), high)
        return fitted

    yield "redrawn", dict(sizes)
    if not sizes:
        return
    lengths = [size for name, size in sizes.items() if "batch" not in name.lower()]
    plans = {"one-batch": at(1, None), "one-token": at(None, 1)}
    if lengths:
        shortest = min(lengths)
        plans["odd"] = at(3, max(1, shortest - 1 if shortest % 2 == 0 else shortest - 2))
    if source.dims:
        plans["profile-max"] = {name: source.dims[name][2] if name in source.dims else s for name, s in sizes.items()}
    for name, plan in plans.items():
        if plan != sizes:
            yield name, plan


def _hides(example: Any) -> tuple[Any, Any] | None:
    """Returns (visible, hidden) values of a mask, None for an input that is no mask."""
    if not isinstance(example, torch.Tensor) or not example.numel():
        return None
    if example.dtype == torch.bool:
        usual = bool(example.float().mean() >= 0.5)  # a lower triangle with its diagonal is more than half
        return usual, not usual
    if not example.is_floating_point():
        # Ones are a mask of keys; zeros alone may be token types, of which 1 need not be one.
        ones = example.ndim > 1 and int(example.max()) == 1 and int(example.min()) >= 0
        return (1, 0) if ones and bool(example.float().mean() >= 0.5) else None
    if bool((example <= FILL).any()):
        return 0.0, float(example.amin())
    return None


def _triangular(x: torch.Tensor) -> bool:
    """Says whether the last two axes are a lower triangle of True."""
    if x.ndim < 2 or x.shape[-1] < 2 or x.shape[-1] != x.shape[-2]:
        return False
    return bool((x == torch.ones(x.shape, dtype=torch.bool).tril()).all())
