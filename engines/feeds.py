"""The arrays a model is fed: checked against its inputs before a runtime sees them, or drawn at random.

A runtime's own complaint names neither the symbolic dimension nor the remedy, and a GPU engine may not complain at all.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engines import dimension
from engines.errors import UsageError
from engines.runner import TensorSpec

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BATCH = 2
DEFAULT_SIZE = 16
KEEP = 0.8  # share of True in a random bool tensor: masks that hide something and leave something


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, object]) -> dict[str, "np.ndarray"]:
    """Returns the feeds as contiguous native-endian arrays, in the order of `specs`.

    Args:
        specs: The model's inputs.
        feeds: Arrays by input name.

    Raises:
        UsageError: An input is unknown or missing, or has the wrong dtype, rank or size, or two inputs disagree about
            a symbolic dimension.
    """
    import numpy as np

    known = {spec.name: spec for spec in specs}
    unknown = [name for name in feeds if name not in known]
    missing = [name for name in known if name not in feeds]
    if unknown:
        near = difflib.get_close_matches(unknown[0], missing or known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"The model has no input {unknown[0]!r}; it takes {_listed(specs)}.{hint}")
    if missing:
        raise UsageError(f"The feeds lack {', '.join(map(repr, missing))}: the model takes {_listed(specs)}.")
    arrays = {}
    for spec in specs:
        array = np.asarray(feeds[spec.name], order="C")
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        _check_dtype(spec, array)
        arrays[spec.name] = array
    bind_dims(specs, {name: array.shape for name, array in arrays.items()})
    return arrays


def bind_dims(specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the size of every symbolic dimension, as these shapes bind it.

    Raises:
        UsageError: A rank or a fixed size differs, or two axes bind one dimension to different sizes.
    """
    bound: dict[str, int] = {}
    first: dict[str, str] = {}
    derived: list[tuple[str, int, str]] = []
    for spec in specs:
        shape = shapes[spec.name]
        if len(shape) != len(spec.shape):
            raise UsageError(
                f"Input {spec.name!r} has {len(shape)} axes, {list(shape)}; the model takes {len(spec.shape)}: {spec}."
            )
        for axis, (size, want) in enumerate(zip(shape, spec.shape, strict=True)):
            where = f"axis {axis} of {spec.name!r}"
            if isinstance(want, int):
                if size != want:
                    raise UsageError(
                        f"Axis {axis} of input {spec.name!r} is {size}; the model fixes it to {want}: {spec}. "
                        "Feed that size, or export with that axis dynamic."
                    )
            elif dimension.names(want) != (want,):
                derived.append((want, size, where))
            elif bound.setdefault(want, size) != size:
                raise UsageError(
                    f"Dimension {want!r} is {bound[want]} in {first[want]} and {size} in {where}: "
                    "one symbolic dimension has one size in a run."
                )
            else:
                first.setdefault(want, where)
    for want, size, where in derived:
        if set(dimension.names(want)) <= bound.keys() and dimension.value(want, bound) != size:
            sizes = ", ".join(f"{n} = {bound[n]}" for n in dimension.names(want))
            raise UsageError(f"Dimension {want!r} is {size} in {where}, but {dimension.value(want, bound)} by {sizes}.")
    return bound


def parse_dims(text: str) -> dict[str, int]:
    """Returns {"batch": 2, "length": 16} for "batch=2,length=16".

    Raises:
        UsageError: The text is not a list of name=size, or a size is below 1.
    """
    dims = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, size = part.partition("=")
        if not equals or not name.strip() or not size.strip().isdecimal() or int(size) < 1:
            raise UsageError(f"{part!r} is not a size: write --shapes name=size,name=size, e.g. batch=2,length=16.")
        dims[name.strip()] = int(size)
    return dims


def resolve_dims(
    specs: Sequence[TensorSpec], given: Mapping[str, int], usual: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Returns a size for every symbolic dimension of the inputs.

    Args:
        specs: The model's inputs.
        given: Sizes the user asked for.
        usual: Sizes that are typical of this model, e.g. the `opt` of its profile; where they are silent too, a
            dimension whose name holds "batch" gets 2 and any other 16.

    Raises:
        UsageError: A given name is no symbolic dimension of these inputs.
    """
    usual = usual or {}
    names = list(dict.fromkeys(n for spec in specs for d in spec.shape for n in dimension.names(d)))
    for name in given:
        if name not in names:
            has = f"its dimensions are {', '.join(names)}" if names else "all of its dimensions are fixed"
            raise UsageError(f"The model has no symbolic dimension {name!r}: {has}.")
    return {n: given.get(n, usual.get(n, DEFAULT_BATCH if "batch" in n.lower() else DEFAULT_SIZE)) for n in names}


def random_feeds(specs: Sequence[TensorSpec], dims: Mapping[str, int], seed: int = 0) -> dict[str, "np.ndarray"]:
    """Returns an array for every input, the same ones for the same seed.

    Floating-point tensors are standard normal, drawn in float32 and rounded to their dtype. Bool tensors keep about
    four in five, and no row along the last axis is all True or all False where it is long enough, since most are
    masks. Integers lie in 0 .. m-1, with m the smallest symbolic size (or the smallest axis of that tensor where
    nothing is symbolic): they are then valid as positions, as lengths and as indices into any dynamic axis; a scalar
    integer is 0.

    Args:
        specs: The model's inputs.
        dims: Size of every symbolic dimension, e.g. of `resolve_dims`.
        seed: Seed of the generator.

    Raises:
        UsageError: An input has a dtype this cannot draw.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        shape = tuple(dimension.value(d, dims) for d in spec.shape)
        dtype = as_dtype(spec.dtype)
        if dtype == np.bool_:
            feeds[spec.name] = _random_mask(generator, shape)
        elif np.issubdtype(dtype, np.integer):
            bound = min(dims.values(), default=min(shape, default=1)) if shape else 1
            feeds[spec.name] = generator.integers(0, max(bound, 1), shape).astype(dtype)
        elif "float" in dtype.name:
            feeds[spec.name] = generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        else:
            raise UsageError(f"Cannot draw random values of {spec.dtype} for {spec}: give the inputs in a .npz file.")
    return feeds


def as_dtype(name: str) -> "np.dtype":
    """Returns the numpy dtype of a name of `TensorSpec.dtype`, ml_dtypes' included.

    Raises:
        UsageError: numpy and ml_dtypes have no such type.
    """
    import ml_dtypes
    import numpy as np

    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as error:
        raise UsageError(f"There is no array type for {name!r} tensors.") from error


def _random_mask(generator: "np.random.Generator", shape: tuple[int, ...]) -> "np.ndarray":
    import numpy as np

    mask = np.asarray(generator.random(shape) < KEEP)
    if shape and shape[-1] > 0:
        mask[..., 0] = True
        if shape[-1] > 1:
            mask[..., -1] = False
    return mask


def _check_dtype(spec: TensorSpec, array: "np.ndarray") -> None:
    import numpy as np

    wanted = as_dtype(spec.dtype)
    if array.dtype == wanted:
        return
    if array.dtype.kind in "OSUMm" or array.dtype.type is np.void:
        raise UsageError(f"Input {spec.name!r} holds {array.dtype} values, not numbers; the model takes {spec}.")
    module = "ml_dtypes" if wanted.type.__module__.startswith("ml_dtypes") else "np"
    raise UsageError(
        f"Input {spec.name!r} is {array.dtype}; the model takes {spec.dtype}. "
        f"Cast it: array.astype({module}.{'bool_' if spec.dtype == 'bool' else spec.dtype})."
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) if specs else "no input"
