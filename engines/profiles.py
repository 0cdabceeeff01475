"""Optimisation profiles: the smallest, usual and largest size of every input, from named dimensions or given outright.

A dimension is one thing wherever its name appears, so giving it once, or giving one input's shapes, settles it for all
inputs, and two inputs that contradict each other are an error here and not a failure at run time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engines import dimension
from engines.errors import UsageError

Range = tuple[int, int, int]
"""Smallest, usual and largest size: min, opt, max."""

DEFAULT_BATCH: Range = (1, 1, 8)
DEFAULT_LENGTH: Range = (1, 128, 512)


@dataclass(frozen=True)
class InputShapes:
    """The three shapes of one input, e.g. (1, 1, 64), (2, 128, 64) and (8, 512, 64) for [batch, length, C].

    Attributes:
        min: The smallest, axis by axis.
        opt: The one whose kernels are chosen for speed.
        max: The largest, axis by axis.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __str__(self) -> str:
        return ":".join("x".join(map(str, shape)) for shape in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class Profile:
    """What an engine is built for.

    Attributes:
        inputs: The shapes of every input, by its name in the graph.
        dims: The range each symbolic dimension got.
        defaulted: The dimensions nobody gave, which got a default range; a report names them.
        further: Other ranges that the same engine is built for, each with kernels of its own.
    """

    inputs: Mapping[str, InputShapes]
    dims: Mapping[str, Range]
    defaulted: tuple[str, ...] = ()
    further: tuple["Profile", ...] = ()

    @property
    def all(self) -> tuple["Profile", ...]:
        """Every profile, in the engine's order: this one is number 0."""
        return (self, *self.further)


@dataclass(frozen=True)
class Shapes:
    """What a user asked for with --shapes: ranges of dimensions, and whole inputs.

    Attributes:
        dims: {symbolic dimension: (min, opt, max)}.
        inputs: {input: its three shapes}.
    """

    dims: Mapping[str, Range] = field(default_factory=dict)
    inputs: Mapping[str, InputShapes] = field(default_factory=dict)


def parse(text: str | Iterable[str]) -> Shapes:
    """Returns what `--shapes` says.

    Args:
        text: Parts separated by commas, each a dimension ("length=1:128:512", or "batch=4" for a fixed size) or an
            input ("x=1x1x64:2x128x64:8x512x64", or "x=2x128x64"); or several such texts.

    Raises:
        UsageError: A part is neither, a size is not positive, or opt is outside min..max.
    """
    texts = [text] if isinstance(text, str) else list(text)
    dims: dict[str, Range] = {}
    inputs: dict[str, InputShapes] = {}
    for part in (p.strip() for t in texts for p in t.split(",")):
        if not part:
            continue
        name, equals, value = (w.strip() for w in part.partition("="))
        if not equals or not name or not value:
            raise UsageError(f"{part!r} is no shape: {_HOW}")
        if name in dims or name in inputs:
            raise UsageError(f"--shapes gives {name!r} twice; give it once.")
        words = value.split(":")
        if len(words) == 2:
            raise UsageError(f"{part!r} has two sizes; give one for a fixed size or three, min:opt:max.")
        if len(words) not in (1, 3):
            raise UsageError(f"{part!r} has {len(words)} sizes between colons: {_HOW}")
        if "x" in value.lower():
            shapes = [tuple(_size(size, part) for size in word.lower().split("x")) for word in (words * 3)[:3]]
            if len({len(s) for s in shapes}) != 1:
                raise UsageError(f"{part!r} mixes ranks {', '.join(str(len(s)) for s in shapes)}; give them the same.")
            for sizes in zip(*shapes, strict=True):
                _ordered(name, sizes, part)
            inputs[name] = InputShapes(*shapes)
        else:
            dims[name] = _ordered(name, (_size(word, part) for word in (words * 3)[:3]), part)
    return Shapes(dims, inputs)


def derive(
    inputs: Mapping[str, tuple[int | str, ...]],
    dims: Mapping[str, Range] | None = None,
    overrides: Shapes | None = None,
) -> Profile:
    """Returns the profile of a graph with these inputs.

    What the user gives wins over `dims`; a dimension that neither gives is 1:1:8 where its name holds "batch", else
    1:128:512, and is named in `defaulted`.

    Args:
        inputs: Shape of every graph input, ints for fixed sizes and names for symbolic ones. A name may be arithmetic
            on others, e.g. "past + length"; an axis without one ("") is called "<input>.<axis>".
        dims: The model's own ranges, (min, opt, max) by dimension name; names it does not have are ignored.
        overrides: What the user asked for (`parse`).

    Raises:
        UsageError: An unknown name, a non-positive size, opt outside min..max, a rank or a fixed size that differs, or
            two inputs that disagree about a dimension.
    """
    asked = overrides or Shapes()
    inputs = {n: tuple(f"{n}.{i}" if d == "" else d for i, d in enumerate(shape)) for n, shape in inputs.items()}
    names = list(dict.fromkeys(n for shape in inputs.values() for d in shape for n in dimension.names(d)))
    _known(asked, inputs, names)
    ranges = {n: _ordered(n, r, f"{n}={_text(r)}") for n, r in (dims or {}).items() if n in names}
    ranges |= asked.dims
    ranges |= _bind(inputs, asked)
    defaulted = tuple(n for n in names if n not in ranges)
    ranges |= {n: DEFAULT_BATCH if "batch" in n.lower() else DEFAULT_LENGTH for n in defaulted}
    shapes = {name: _shapes(name, shape, ranges) for name, shape in inputs.items()}
    for name, given in asked.inputs.items():
        if given != shapes[name]:
            raise UsageError(
                f"Input {name!r} is [{', '.join(map(str, inputs[name]))}] in the model, so --shapes "
                f"{name}={given} cannot be; with the other sizes it must be {name}={shapes[name]}."
            )
    return Profile(shapes, {n: ranges[n] for n in names}, defaulted)


_HOW = "write a dimension as length=1:128:512 or an input as x=1x1x64:2x128x64:8x512x64."


def _text(sizes: Iterable[int]) -> str:
    return ":".join(map(str, sizes))


def _size(word: str, part: str) -> int:
    if not word.isascii() or not word.isdecimal():
        raise UsageError(f"{word!r} in {part!r} is not a size: {_HOW}")
    return int(word)


def _ordered(name: str, sizes: Iterable[int], part: str) -> Range:
    low, opt, high = sizes
    if low < 1:
        raise UsageError(f"{part!r} has a size of {low}; {name} must be at least 1.")
    if not low <= opt <= high:
        raise UsageError(f"{part!r} is not min:opt:max: opt {opt} lies outside {low}..{high}; give min <= opt <= max.")
    return low, opt, high


def _known(asked: Shapes, inputs: Mapping[str, tuple[int | str, ...]], names: list[str]) -> None:
    has = f"its dimensions are {', '.join(names)}" if names else "all of its dimensions are fixed"
    for name in asked.dims:
        if name not in names and name in inputs:
            raise UsageError(f"{name!r} is an input with {len(inputs[name])} axes; give all its sizes, e.g. 1x128x64.")
        if name not in names:
            raise UsageError(f"The model has no dimension {name!r}: {has}.")
    for name in asked.inputs:
        if name not in inputs:
            raise UsageError(f"The model has no input {name!r}; its inputs are {', '.join(inputs)}, and {has}.")


def _bind(inputs: Mapping[str, tuple[int | str, ...]], asked: Shapes) -> dict[str, Range]:
    """Returns the dimensions that the user's per-input shapes settle."""
    bound = dict(asked.dims)
    where = {name: f"{name}={_text(sizes)}" for name, sizes in bound.items()}
    for name, given in asked.inputs.items():
        shape = inputs[name]
        if len(shape) != len(given.min):
            raise UsageError(f"Input {name!r} has {len(shape)} axes, but {name}={given} gives {len(given.min)}.")
        for d, sizes in zip(shape, zip(given.min, given.opt, given.max, strict=True), strict=True):
            if not isinstance(d, str) or dimension.names(d) != (d,):
                continue  # a fixed size, or arithmetic: compared once all is known
            if bound.setdefault(d, sizes) != sizes:
                raise UsageError(f"{name}={given} makes {d} {_text(sizes)}, and {where[d]} says otherwise.")
            where.setdefault(d, f"{name}={given}")
    return bound


def _shapes(name: str, shape: tuple[int | str, ...], ranges: Mapping[str, Range]) -> InputShapes:
    columns = []
    for d in shape:
        sizes = [dimension.value(d, {n: r[i] for n, r in ranges.items()}) for i in range(3)]
        columns.append(_ordered(f"{d} of input {name}", sizes, f"{d}={_text(sizes)}"))
    low, opt, high = zip(*columns, strict=True) if columns else ((), (), ())
    return InputShapes(low, opt, high)
