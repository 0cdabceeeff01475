"""Two graphs on one case: any paired tensor of B judged by what A says it must be, a batch at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engines.runner import Runner
from export.bisect.pairs import Pair
from export.bisect.result import Parting
from export.bisect.tensors import LIMIT, Tensors
from export.bisect.yardstick import Yardstick
from export.parity.compare import Expected, Verdict, compare
from export.parity.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Judged:
    """One tensor.

    Attributes:
        pair: Which.
        verdict: What came of the comparison.
        expected: What it must be.
        actual: What B gives.
    """

    pair: Pair
    verdict: Verdict
    expected: Expected
    actual: "np.ndarray"

    @property
    def parted(self) -> bool:
        """Whether it lies beyond its budget."""
        return not self.verdict.ok

    def parting(self) -> Parting:
        """Returns it for the record."""
        v = self.verdict
        place = (v.worst, v.expected, v.actual)
        return Parting(self.pair.name, self.pair.key, v.ratio, v.max_error, *place, v.reason)


@dataclass
class Judge:
    """B's tensors on one case.

    Attributes:
        b: The graph that is judged.
        feeds: Its inputs.
        dtype: The precision compared at.
        limit: Bytes that the arrays of one batch may take.
        runner: What gives B's outputs where that is an engine.
        compared: How many tensors were compared so far.
    """

    b: Tensors
    feeds: "Arrays"
    dtype: Precision
    limit: int = LIMIT
    runner: Runner | None = None
    compared: int = field(default=0)

    def each(self, yardstick: Yardstick, pairs: Sequence[Pair]) -> Iterator[Judged]:
        """Yields the verdicts in order; an inner tensor of another shape or kind met its name by chance."""
        by_name = {pair.name: pair for pair in pairs}
        for batch in self.b.batches(list(by_name), self.feeds, self.limit):
            expected = yardstick.expected([by_name[name].key for name in batch])
            actual = self._run(batch)
            for name in batch:
                pair = by_name[name]
                wanted, have = expected.pop(pair.key, None), actual.pop(name)
                if wanted is None or not self._comparable(name, wanted, have):
                    continue
                self.compared += 1
                wanted = replace(wanted, name=name, dtype=have.dtype.name)  # an island of another type is no mistake
                yield Judged(pair, compare(have, wanted, self.dtype), wanted, have)

    def first(self, yardstick: Yardstick, pairs: Sequence[Pair]) -> tuple[Judged | None, tuple[Pair, ...]]:
        """Returns the first that lies beyond its budget, and those before it, which agree."""
        agreed: list[Pair] = []
        for found in self.each(yardstick, pairs):
            if found.parted:
                return found, tuple(agreed)
            agreed.append(found.pair)
        return None, tuple(agreed)

    def _run(self, names: Sequence[str]) -> "dict[str, np.ndarray]":
        if self.runner is not None and set(names) <= set(self.b.outputs):
            given = self.runner.run(self.feeds)
            return {name: given[name] for name in names}
        return self.b.runner(names).run(self.feeds)

    def _comparable(self, name: str, wanted: Expected, have: "np.ndarray") -> bool:
        if name in self.b.outputs:
            return True
        number = ("f", "V")
        kinds = tuple("f" if x.dtype.kind in number else x.dtype.kind for x in (wanted.value, have))
        return wanted.value.shape == have.shape and kinds[0] == kinds[1]
