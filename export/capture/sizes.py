"""Inputs at other sizes, made from the example inputs: what a run at another shape is fed."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from engines import dimension
from export.capture import tree
from export.capture.inputs import try_call
from export.errors import UsageError

if TYPE_CHECKING:
    from export.capture.contract import Dynamic, Source

FEW = 8
"""A floating-point input with at most this many distinct values is a mask or a table, and keeps its values."""


def draw(source: "Source", sizes: Mapping[str, int], *, seed: int = 0, magnitude: float = 1.0) -> dict[str, Any]:
    """Returns the example inputs resized, their random-looking values drawn anew.

    Integers, bools and masks keep the example's values, repeated from the start where an axis grows: an index stays in
    range and a mask stays a mask. One that hides nothing (all ones, or a bool of one value) hides a tail of each row
    in a new draw. Other floating-point inputs are drawn from a normal distribution with the example's mean and spread,
    clipped to its range before `magnitude` scales them.

    Args:
        source: Whose inputs.
        sizes: {dimension: size}; what is absent keeps its size in the example.
        seed: 0 keeps the example's own values, repeated where an axis grows.
        magnitude: Factor on the floating-point inputs that are drawn.

    Raises:
        UsageError: A name in `sizes` is no dimension of the source.
    """
    known = source.sizes()
    unknown = [name for name in sizes if name not in known]
    if unknown:
        raise UsageError(f"There is no dimension {unknown[0]!r}; {source.name} has {', '.join(known) or 'none'}.")
    rng = torch.Generator().manual_seed(seed)

    def change(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        axes = source.dynamic.get(name, {})
        shape = {axis: dimension.value(dim, {**known, **sizes}) for axis, dim in axes.items()}
        resized = resize(leaf, shape)
        if not _is_random(leaf):
            return _hiding(resized, rng) if seed else resized
        if seed == 0:
            return resized * magnitude
        low, high = leaf.min(), leaf.max()
        drawn = torch.randn(resized.shape, generator=rng) * leaf.std() + leaf.mean()
        return drawn.clamp(low, high) * magnitude

    return tree.rebuild(source.inputs, change)


def resize(leaf: torch.Tensor, shape: Mapping[int, int]) -> torch.Tensor:
    """Returns a copy with some axes at other sizes: cut at the end, or repeated from the start."""
    for axis, size in shape.items():
        index = torch.arange(size) % max(1, leaf.shape[axis])
        leaf = leaf.index_select(axis, index)
    return leaf.clone()


def resized(inputs: dict[str, Any], shapes: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    """Returns inputs with {leaf: {axis: size}} applied."""
    return tree.rebuild(
        inputs, lambda name, leaf: resize(leaf, shapes.get(name, {})) if isinstance(leaf, torch.Tensor) else leaf
    )


def three(source: "Source") -> list[dict[str, int]]:
    """Returns the sizes a graph is run at: the example's, larger ones, and a batch of one, where the module runs.

    Every dimension differs from its size in the example in one of them, unless the module runs at no other size: a
    model with a table of positions may not grow, so shrinking is tried too. Without dynamic dimensions there is one.
    """
    base = source.sizes()
    chosen: list[dict[str, int]] = [base]
    spare: list[dict[str, int]] = []
    for sizes in _candidates(base, source.dims):
        still = [name for name, size in base.items() if all(one[name] == size for one in chosen)]
        if len(chosen) == 3:
            break
        if sizes in chosen or not runs_at(source, sizes):
            continue
        useful = not still or any(sizes[name] != base[name] for name in still)
        (chosen if useful else spare).append(sizes)
    return (chosen + spare)[:3]


def runs_at(source: "Source", sizes: Mapping[str, int]) -> bool:
    """Says whether the module itself runs on inputs of these sizes."""
    from export.model.form import Case

    try:
        inputs = source.draw(Case("shape", dict(sizes)))
    except UsageError:  # a form refuses sizes it cannot draw
        return False
    return try_call(source.module, inputs) is None


def fits(sizes: Mapping[str, int], dims: Mapping[str, tuple[int, int, int]]) -> bool:
    """Says whether every size lies in its dimension's range."""
    return all(dims[name][0] <= size <= dims[name][2] for name, size in sizes.items() if name in dims)


def _candidates(base: Mapping[str, int], dims: Mapping[str, tuple[int, int, int]]) -> Iterator[dict[str, int]]:
    def within(name: str, size: int) -> int:
        low, _, high = dims.get(name, (1, size, size))
        # Where it may not grow it shrinks, so that the size is another one than the example's.
        return max(low, 1, size if size <= high else min(high, base[name] - 1))

    names = list(base)
    # Increments differ from dimension to dimension, so that two that were equal in the example part company.
    grown = {name: within(name, base[name] + 3 + 2 * i) for i, name in enumerate(names)}
    one_batch = {name: within(name, 1 if name == "batch" else base[name] + 1 + i) for i, name in enumerate(names)}
    one_less = {name: within(name, base[name] - 1) for name in names}
    half = {name: within(name, base[name] // 2) for name in names}
    double, triple = ({name: within(name, n * size) for name, size in base.items()} for n in (2, 3))
    yield from (grown, one_batch, half, one_less, double, triple)
    for other in (grown, one_less, half):
        yield from ({**base, name: other[name]} for name in names)


def _hiding(mask: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Returns a mask of one value with the tail of each row turned over, at least its first key left alone."""
    single = mask.ndim >= 1 and mask.shape[-1] > 1 and bool((mask == mask.flatten()[0]).all())
    if not single or mask.is_floating_point() or (mask.dtype is not torch.bool and int(mask.flatten()[0]) != 1):
        return mask
    ends = torch.randint(1, mask.shape[-1], (*mask.shape[:-1], 1), generator=rng)
    tail = torch.arange(mask.shape[-1]) >= ends
    return mask ^ tail if mask.dtype is torch.bool else torch.where(tail, torch.zeros_like(mask), mask)


def _is_random(leaf: torch.Tensor) -> bool:
    if not leaf.is_floating_point() or leaf.numel() <= FEW or not bool(torch.isfinite(leaf).all()):
        return False
    return len(set(leaf.flatten()[:4096].tolist())) > FEW


def dynamic_names(dynamic: "Dynamic") -> list[str]:
    """Returns every plainly named dimension once, in order."""
    return list(dict.fromkeys(d for axes in dynamic.values() for d in axes.values() if d.isidentifier()))
