"""The inputs an ONNX file is judged on: random ones, at the corners of its profile."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from engines import feeds as feeding
from engines.runner import TensorSpec
from export.subject import Tensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[np.generic]]

_PRIMES = (7, 11, 5, 13)


def cases(
    inputs: Sequence[Tensor], profile: Mapping[str, tuple[int, int, int]], seed: int = 0
) -> "Iterator[tuple[str, Arrays]]":
    """Yields (name, arrays by input name) at typical, single, odd and largest sizes of a profile.

    Args:
        inputs: The graph's inputs.
        profile: {dimension: (min, opt, max)}.
        seed: Of the first case; each further one has the next.
    """

    def sizes(batch: int | None = None, lengths: tuple[int, ...] = ()) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, (name, (low, opt, high)) in enumerate(profile.items()):
            want = batch if "batch" in name.lower() else lengths[i % len(lengths)] if lengths else None
            found[name] = min(max(opt if want is None else want, low), high)
        return found

    plans = {
        "typical": sizes(),
        "one-token": sizes(lengths=(1,)),
        "one-batch": sizes(1),
        "odd": sizes(3, _PRIMES),
        "profile-max": {name: high for name, (_, _, high) in profile.items()},
    }
    seen: list[dict[str, int]] = []
    for at, (name, plan) in enumerate(plans.items()):
        if plan not in seen:
            seen.append(plan)
            yield name, draw(inputs, plan, seed + at)


def draw(inputs: Sequence[Tensor], sizes: Mapping[str, int], seed: int) -> "Arrays":
    """Returns random arrays by input name, at these sizes of the dimensions."""
    specs = [TensorSpec(t.name, t.dtype, t.shape) for t in inputs]
    drawn = feeding.random_feeds(specs, sizes, seed)
    for name, array in drawn.items():
        if "mask" in name.lower() and array.dtype.kind in "iu" and array.ndim:
            kept = array % 2  # an integer mask is 1 = keep; the first key stays so that no row is empty
            kept[..., 0] = 1
            drawn[name] = kept
    return drawn


def tensor(value: ir.Value) -> Tensor:
    """Returns an input of a graph; an axis without a name is called "<input>.<axis>"."""
    shape: list[int | str] = []
    for axis, dim in enumerate(value.shape or ()):
        size = dim if isinstance(dim, int) else dim.value
        shape.append(f"{value.name}.{axis}" if size is None else size)
    dtype = value.dtype or ir.DataType.UNDEFINED
    return Tensor(str(value.name), dtype.numpy().name if dtype != ir.DataType.UNDEFINED else "", tuple(shape))
