"""Runs a model a token at a time: the prompt at once, then step after step, its cache staying on the device.

    loop = Generator(prefill, step, decoding)
    logits = loop.prefill({"ids": prompt}, real=mask)["logits"]      # [batch, length, ...], the caller's padding
    while ...:
        logits = loop.step({"ids": chosen})["logits"]                # [batch, 1, ...]

Rows of a batch may differ in length, padded on the left or on the right; the loop moves them to where its graphs want
them, and the outputs back.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from engines.decoding import Decoding
from engines.errors import CacheFullError, RaggedError, UsageError
from engines.feeds import as_dtype
from engines.runner import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray]


class Resident(Protocol):
    """A runner that can leave tensors on its device between runs (`engines.ort_runner`, `engines.engine_runner`)."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the graph's order."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the graph's order."""

    def zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        """Returns a tensor of zeros on the device, of the type of that input."""

    def fetched(self, name: str, value: Any) -> "np.ndarray":
        """Returns a copy in host memory of what `resume` kept, or `zeros` made, for that input."""

    def resume(
        self, feeds: Mapping[str, "np.ndarray"], carried: Mapping[str, Any], kept: Mapping[str, Any]
    ) -> "tuple[Arrays, dict[str, Any]]":
        """Returns (outputs by name, those of `kept` as tensors on the device).

        Args:
            feeds: Inputs from the host.
            carried: Inputs that are on the device.
            kept: Outputs to leave there: the tensor to write to, or None for a new one.
        """


class Generator:
    """One decode loop over one batch.

    Attributes:
        decoding: What it knows of its graphs.
        lengths: Tokens of each row so far, the prompt's included; None before `prefill`.
    """

    def __init__(self, prefill: Resident, step: Resident, decoding: Decoding) -> None:
        """Makes a loop of two graphs, which may be one and the same."""
        self._prefill, self._step = prefill, step
        self.decoding = decoding
        self.lengths: np.ndarray | None = None
        self._real: np.ndarray | None = None
        self._fixed: Arrays = {}
        self._caches: dict[str, Any] = {}

    def prefill(self, feeds: Mapping[str, "np.ndarray"], real: "np.ndarray | None" = None) -> "Arrays":
        """Returns the outputs of the prompt, [batch, length, ...] as it was given; an earlier cache is forgotten.

        Args:
            feeds: The prompt under the names of `decoding.tokens`, [batch, length, ...], and what else the graph takes
                that stays the same at every step.
            real: Which of it are tokens and not padding, bool [batch, length]: in each row one run, of at least one.
                None: all are.

        Raises:
            CacheFullError: The prompt is longer than the cache; nothing was run.
            RaggedError: The graph cannot hide padding.
            UsageError: The feeds do not fit.
        """
        import numpy as np

        batch, length = self._size(feeds)
        told = real is not None
        real = np.ones((batch, length), bool) if real is None else np.asarray(real).astype(bool)
        first, lengths = self._runs(real, (batch, length))
        growing = self.decoding.kind == "growing"
        self._refuse_full(length if growing else int(lengths.max()), 0)
        by = length - first - lengths if growing else -first
        if growing and told and not real.all():
            self._refuse_ragged(lengths, length)
        if not growing:
            length = min(length, self.decoding.capacity)  # longer than the cache by padding alone
        moved = {n: rolled(x, by)[:, :length] if n in self.decoding.tokens else x for n, x in feeds.items()}
        self._fixed = {n: x for n, x in feeds.items() if n not in self.decoding.tokens}
        self._caches = self._empty(batch)
        self.lengths, self._real = np.zeros(batch, np.int64), np.zeros((batch, 0), bool)
        outputs = self._run(self._prefill, moved, rolled(real, by)[:, :length], lengths)
        return {n: rolled(_padded(x, real.shape[1]), -by) for n, x in outputs.items()}

    def step(self, feeds: Mapping[str, "np.ndarray"]) -> "Arrays":
        """Returns the outputs of the next token of each row, [batch, 1, ...].

        Args:
            feeds: The token under the names of `decoding.tokens`, [batch, 1, ...]. A growing cache takes more than one.

        Raises:
            CacheFullError: The cache has no room for it; nothing was run and nothing overwritten.
            UsageError: The feeds do not fit, or there was no `prefill`.
        """
        import numpy as np

        if self.lengths is None or self._real is None:
            raise UsageError("There is no prompt yet: call prefill before step.")
        batch, new = self._size(feeds)
        if batch != len(self.lengths):
            raise UsageError(f"This step has {batch} rows; the prompt had {len(self.lengths)}.")
        if new != 1 and self.decoding.kind == "static":
            raise UsageError(f"A step of a static cache is one token, and {new} were given. Give them one by one.")
        used = self._real.shape[1] if self.decoding.kind == "growing" else int(self.lengths.max())
        self._refuse_full(new, used)
        given = {**self._fixed, **feeds}
        return self._run(self._step, given, np.ones((batch, new), bool), np.full(batch, new))

    def cached(self) -> "Arrays":
        """Returns a copy of the cached keys and values in host memory, by the names of the past inputs."""
        return {name: self._step.fetched(name, value) for name, value in self._caches.items()}

    def _run(
        self, runner: Resident, feeds: Mapping[str, "np.ndarray"], real: "np.ndarray", new: "np.ndarray"
    ) -> "Arrays":
        import numpy as np

        known = self.decoding
        if self.lengths is None or self._real is None:
            raise UsageError("There is no prompt yet: call prefill before step.")
        whole = np.concatenate([self._real, real], axis=1)
        given = dict(feeds)
        specs = {spec.name: spec for spec in runner.inputs}
        if known.mask:
            spec = specs[known.mask]
            shape = (whole.shape[0], *[1] * (len(spec.shape) - 2), whole.shape[1])
            given[known.mask] = whole.reshape(shape).astype(as_dtype(spec.dtype))
        if known.write_indices:
            given[known.write_indices] = self.lengths.astype(np.int64)
        held = {cache.present: self._caches[cache.past] if known.kind == "static" else None for cache in known.caches}
        outputs, kept = runner.resume(given, self._caches, held)
        self._caches = {cache.past: kept[cache.present] for cache in known.caches}
        self.lengths = self.lengths + new
        self._real = whole
        return outputs

    def _empty(self, batch: int) -> dict[str, Any]:
        specs = {spec.name: spec for spec in self._prefill.inputs}
        slots = self.decoding.capacity if self.decoding.kind == "static" else 0
        found = {}
        for cache in self.decoding.caches:
            spec = specs[cache.past]
            shape = [size if isinstance(size, int) else batch for size in spec.shape]
            shape[cache.axis] = slots
            found[cache.past] = self._prefill.zeros(cache.past, tuple(shape))
        return found

    def _size(self, feeds: Mapping[str, "np.ndarray"]) -> tuple[int, int]:
        missing = [name for name in self.decoding.tokens if name not in feeds]
        if missing:
            raise UsageError(f"The feeds lack {', '.join(missing)}: each call brings its tokens, [batch, length, ...].")
        sizes = {tuple(feeds[name].shape[:2]) for name in self.decoding.tokens}
        if len(sizes) != 1 or len(size := sizes.pop()) != 2 or 0 in size:
            raise UsageError("The inputs that hold tokens must be [batch, length, ...], and of one size.")
        return size[0], size[1]

    @staticmethod
    def _runs(real: "np.ndarray", size: tuple[int, int]) -> "tuple[np.ndarray, np.ndarray]":
        """Returns where each row's tokens begin, and how many there are."""
        import numpy as np

        if real.shape != size:
            raise UsageError(f"`real` is {list(real.shape)}; the tokens are {list(size)}.")
        first, lengths = real.argmax(axis=1), real.sum(axis=1)
        places = np.arange(size[1])
        run = (places >= first[:, None]) & (places < (first + lengths)[:, None])
        if (lengths == 0).any() or (run != real).any():
            row = int(np.flatnonzero((lengths == 0) | (run != real).any(axis=1))[0])
            raise UsageError(f"Row {row} of `real` is not one run of tokens with padding before or after it.")
        return first, lengths

    def _refuse_full(self, new: int, used: int) -> None:
        capacity = self.decoding.capacity
        if used + new > capacity:
            raise CacheFullError(
                f"The cache holds {capacity} tokens a row: {used} are in it, and {new} more were asked for. Nothing "
                f"was run. Start anew with prefill, or build with --cache-length {used + new} or more."
            )

    def _refuse_ragged(self, lengths: "np.ndarray", length: int) -> None:
        if not self.decoding.mask:
            raise RaggedError(
                f"The rows have {lengths.tolist()} tokens of {length}, and the graph has no padding mask to hide the "
                "rest. Run rows of one length together, or give the model an input `mask` [batch, length]."
            )
        if not self.decoding.moves:
            raise RaggedError(
                "This model counts positions from the first column, padding included, so that padding on the left, "
                "which its cache needs, changes its answer. Run rows of one length together, or take the positions "
                "from the mask in its forward."
            )


def rolled(x: "np.ndarray", by: "np.ndarray") -> "np.ndarray":
    """Returns x with each row moved along axis 1."""
    import numpy as np

    return np.stack([np.roll(row, int(k), axis=0) for row, k in zip(x, by, strict=True)]) if by.any() else x


def _padded(x: "np.ndarray", length: int) -> "np.ndarray":
    """Returns x with as many rows of zeros behind axis 1 as it takes; what was cut off was padding."""
    import numpy as np

    missing = length - x.shape[1]
    return np.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)]) if missing > 0 else x
