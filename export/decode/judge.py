"""Is prefill and step after step what one forward over everything gives? Every padding, and the end of the cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.decoding import Cache, Decoding
from engines.errors import CacheFullError, RaggedError, ToolkitError
from engines.generator import Generator, rolled
from export.decode.truth import Truth
from export.parity.compare import Expected, compare
from export.parity.precision import precision
from export.parity.result import FAIL, NOT_RUN, OK, NotRun, ParityRow

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray]

STEPS, PROMPT, ROWS = 64, 8, 3

_CUTS = {
    "steps": ((0, 0),),
    "left-padding": ((3, 0), (0, 0), (1, 0)),
    "right-padding": ((0, 3), (0, 0), (0, 1)),
    "ragged": ((2, 1), (0, 5), (6, 0)),
}
"""Columns of padding (before, behind) the prompt of 8, row by row."""


@dataclass(frozen=True)
class Own:
    """What the model itself has of what a decode loop sees to: names of padding masks, and caches."""

    masks: tuple[str, ...] = ()
    caches: tuple[Cache, ...] = ()


@dataclass(frozen=True)
class Sequences:
    """Whole sequences, the prompt at the left, and what one forward makes of them.

    Attributes:
        feeds: Inputs by name, tokens [batch, total, ...]; row b has `lengths[b]` tokens, and behind them padding.
        lengths: int64 [batch].
        expected: What each output must be, by name.
    """

    feeds: "Arrays"
    lengths: "np.ndarray"
    expected: Mapping[str, Expected]


class Judge:
    """Judges decode loops of one model against its truth.

    Attributes:
        decoding: How the model is run.
    """

    def __init__(
        self,
        truth: Truth,
        decoding: Decoding,
        dims: Mapping[str, tuple[int, int, int]],
        axes: tuple[int | str, int | str],
        own: Own,
        dtype: str,
    ) -> None:
        """Takes the truth and how the model is run; whether padding on the left is harmless is found out here.

        Args:
            truth: What one forward gives.
            decoding: Names and capacity.
            dims: (min, opt, max) of each dimension of the model that the truth runs.
            axes: Its batch and token dimensions.
            own: Its padding masks and caches, which a loop makes itself or does without.
            dtype: "fp16", "bf16" or "fp32".
        """
        self._truth, self._dtype, self._axes, self._own = truth, precision(dtype), axes, own
        self._sizes = {name: opt for name, (_, opt, _) in dims.items()}
        self._rows = axes[0] if isinstance(axes[0], int) else ROWS
        self._prompt = max(1, min(PROMPT, decoding.capacity // 2))
        self._total = min(self._prompt + STEPS, decoding.capacity)
        self._known: dict[str, Sequences] = {}
        self.decoding = decoding
        self.decoding = replace(decoding, moves=self._moves())

    @property
    def steps(self) -> int:
        """Steps after the prompt."""
        return self._total - self._prompt

    def rows(self, stage: str, make: "Callable[[], Generator] | NotRun") -> list[ParityRow]:
        """Returns a row for each case of one pair of graphs.

        Args:
            stage: What to call it.
            make: Returns a new loop, or why there is none here.
        """
        found = []
        for case in (*_CUTS, "cache-full"):
            if isinstance(make, NotRun):
                found.append(ParityRow(case, stage, NOT_RUN, reason=make.reason))
                continue
            try:
                row = self._full(make()) if case == "cache-full" else self._run(make(), case)
            except RaggedError as error:
                row = ParityRow(case, stage, NOT_RUN, reason=str(error))
            except ToolkitError as error:
                row = ParityRow(case, stage, FAIL, reason=f"It did not run: {error}")
            found.append(replace(row, stage=stage))
        return found

    def _moves(self) -> bool:
        """Says whether tokens behind padding give what they give without it."""
        if not self.decoding.mask:
            return True
        known = self._sequences("left-padding")
        by = self._total - known.lengths
        names = (*self.decoding.tokens, *self._own.masks)
        moved = {n: rolled(x, by) if n in names else x for n, x in known.feeds.items()}
        found = {}
        for name, e in self._truth.expected("left-padding", moved).items():
            if name in known.expected:
                found[name] = self._kept(known, name, rolled(e.value, -by).astype(e.dtype))
        return self._verdict("left-padding", found, known).status == OK

    def _run(self, loop: Generator, case: str) -> ParityRow:
        import numpy as np

        known, every = self._sequences(case), np.arange(self._rows)
        real, prompt = self._padded(known, case)
        made = [loop.prefill(prompt, None if real.all() else real)]
        for step in range(self.steps):
            at = known.lengths - self.steps + step
            made.append(loop.step({n: known.feeds[n][every, at][:, None] for n in self.decoding.tokens}))
        found = {}
        for name in known.expected:
            whole = np.concatenate([made[0][name], *(m[name] for m in made[1:])], axis=1)
            ran = np.concatenate([real, np.ones((self._rows, self.steps), bool)], axis=1)
            packed = np.zeros_like(whole)
            for row in every:
                packed[row, : known.lengths[row]] = whole[row, ran[row]]
            found[name] = self._kept(known, name, packed)
        return self._verdict(case, found, known)

    def _padded(self, known: Sequences, case: str) -> "tuple[np.ndarray, Arrays]":
        """Returns which columns of the prompt are tokens, and the prompt; other tokens stand in the padding."""
        import numpy as np

        real = np.ones((self._rows, self._prompt), bool)
        prompt = self._fed(known.feeds)
        for name in self.decoding.tokens:
            prompt[name] = known.feeds[name][:, : self._prompt].copy()
        for row, (before, behind) in enumerate(self._cuts(case)):
            real[row, :before] = real[row, self._prompt - behind :] = False
            for name in self.decoding.tokens:
                given = known.feeds[name][row, : self._prompt - before - behind]
                prompt[name][row] = known.feeds[name][(row + 1) % self._rows, -self._prompt :]
                prompt[name][row, real[row]] = given
        return real, prompt

    def _full(self, loop: Generator) -> ParityRow:
        """A token too many is an error before anything runs; what is cached stays."""
        import numpy as np

        case, capacity = "cache-full", self.decoding.capacity
        fed = self._fed(self._truth.draw(self._at(capacity)))

        def cut(start: int, end: int) -> "Arrays":
            return {n: x[:, start:end] if n in self.decoding.tokens else x for n, x in fed.items()}

        def new(count: int) -> "Arrays":
            return {n: np.repeat(fed[n][:, :1], count, axis=1) for n in self.decoding.tokens}

        loop.prefill(cut(0, max(1, capacity - 1)))
        if capacity > 1:
            loop.step({n: fed[n][:, -1:] for n in self.decoding.tokens})
        before = loop.cached()
        for what, run, given in (("step", loop.step, new(1)), ("prompt", loop.prefill, {**fed, **new(capacity + 1)})):
            try:
                run(given)
            except CacheFullError:
                continue
            return ParityRow(case, "", FAIL, reason=f"A {what} beyond {capacity} tokens was not refused.")
        changed = [name for name, x in loop.cached().items() if not np.array_equal(x, before[name], equal_nan=True)]
        if changed or loop.lengths is None or (loop.lengths != capacity).any():
            return ParityRow(case, "", FAIL, reason=f"A refused token changed {', '.join(changed) or 'the lengths'}.")
        return ParityRow(case, "", OK)

    def _cuts(self, case: str) -> list[tuple[int, int]]:
        cuts = _CUTS[case]
        found = [cuts[row % len(cuts)] for row in range(self._rows)]
        return [(b, a) if b + a < self._prompt else (0, 0) for b, a in found]

    def _at(self, total: int) -> dict[str, int]:
        return {
            **self._sizes,
            **{name: size for name, size in zip(self._axes, (self._rows, total), strict=True) if isinstance(name, str)},
        }

    def _fed(self, feeds: "Arrays") -> "Arrays":
        """Returns what a caller of the loop gives: not the mask and the caches, which are the loop's."""
        own = {*self._own.masks, *(cache.past for cache in self._own.caches)}
        return {name: x for name, x in feeds.items() if name not in own}

    def _sequences(self, case: str) -> Sequences:
        """Returns whole sequences as long as the case's prompts and all steps, and their truth."""
        import numpy as np

        lengths = np.asarray([self._prompt - before - behind + self.steps for before, behind in self._cuts(case)])
        key = ",".join(map(str, lengths))
        if key not in self._known:
            feeds = dict(self._truth.draw(self._at(self._total)))
            for cache in self._own.caches:  # there is no past yet
                feeds[cache.past] = np.take(feeds[cache.past], [], axis=cache.axis)
            kept = np.arange(self._total)[None] < lengths[:, None]
            for mask in self._own.masks:
                shape = (self._rows, *[1] * (feeds[mask].ndim - 2), self._total)
                feeds[mask] = kept.reshape(shape).astype(feeds[mask].dtype)
            caches = {cache.present for cache in self._own.caches}
            expected = {n: e for n, e in self._truth.expected(case, feeds).items() if n not in caches}
            self._known[key] = Sequences(feeds, lengths, expected)
        return self._known[key]

    def _kept(self, known: Sequences, name: str, value: "np.ndarray") -> "np.ndarray":
        """Returns the value where there are tokens, and what is expected where there is padding."""
        import numpy as np

        real = np.arange(self._total)[None] < known.lengths[:, None]
        real = real.reshape(*real.shape, *[1] * (value.ndim - 2))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where(real, value, known.expected[name].value.astype(value.dtype))

    def _verdict(self, case: str, found: Mapping[str, "np.ndarray"], known: Sequences) -> ParityRow:
        exact = {name: replace(known.expected[name], dead=None, other=None, unabsorbed=None) for name in found}
        verdicts = [compare(value, exact[name], self._dtype) for name, value in found.items()]
        if not verdicts:
            return ParityRow(case, "", FAIL, reason="There is no output of the tokens: nothing was compared.")
        worst = max(verdicts, key=lambda v: (not v.ok, -1.0 if v.ratio is None else v.ratio))
        largest = max((v.max_error for v in verdicts if v.max_error is not None), default=None)
        place = (worst.output, worst.worst, worst.expected, worst.actual)
        return ParityRow(case, "", OK if worst.ok else FAIL, largest, worst.budget, worst.ratio, *place, worst.reason)
