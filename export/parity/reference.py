"""The truth of a case: a PyTorch module or function in float64, and what PyTorch itself makes of it at the dtype.

Weights are rounded to the dtype under test first and then widened, so that both compute with the same numbers; RoPE
tables that a module keeps in float32 stay what they are; inputs are drawn at the dtype and widened.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from export.capture import precision as conversion
from export.capture.quiet import plain_attention
from export.errors import UsageError
from export.parity import arrays, rounding
from export.parity.case import ParityCase
from export.parity.compare import Expected
from export.parity.precision import Precision
from export.parity.reach import DRAWS, reach
from export.parity.unabsorbed import unabsorbed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    AnyArray = npt.NDArray[np.generic]
    Bools = npt.NDArray[np.bool_]
    Outputs = dict[str, AnyArray]

STORED_AS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "tf32": "fp32"}
"""The dtype of weights and inputs by dtype under test; TF32 is a mode of float32's matrix products."""


@dataclass(frozen=True)
class Truth:
    """Everything a case's stages are judged by, computed once.

    Attributes:
        pytorch: PyTorch's outputs at the dtype under test, by name.
        alone: What PyTorch's own outputs are judged by: the reach of the moved runs only.
        same: What a stage is judged by that must do as the module does in every row.
        keep: As `same`, but a row that is NaN for want of keys may be computed with zero weights instead.
        zero: What a stage is judged by where rows that see no key are declared to get zero weights.
    """

    pytorch: "Mapping[str, AnyArray]"
    alone: tuple[Expected, ...]
    same: tuple[Expected, ...]
    keep: tuple[Expected, ...]
    zero: tuple[Expected, ...]


class Reference:
    """A module or function, ready to give the truth of cases at one dtype."""

    def __init__(self, target: Callable[..., Any], dtype: Precision, *, draws: int = DRAWS) -> None:
        """Rounds a module's weights to the dtype and widens a copy to float64; the target itself is left alone.

        Args:
            target: A module in float32, or a function of tensors, called like the cases' inputs.
            dtype: The dtype under test.
            draws: How many moved runs the reach is taken over.

        Raises:
            UsageError: `draws` is below 1, or a weight does not fit the dtype's range.
        """
        if draws < 1:
            raise UsageError(f"{draws} moved runs measure no reach: draw at least 1.")
        self._dtype, self._draws = dtype, draws
        self._narrow, self._wide = target, target
        if isinstance(target, torch.nn.Module):
            self._narrow = at_dtype(target, dtype)
            self._wide = conversion.reference(target, STORED_AS[dtype.name]).eval()

    def inputs(self, case: ParityCase) -> dict[str, Any]:
        """Returns the case's inputs as tensors, floating-point ones rounded to the dtype under test."""
        return arrays.cast(case.inputs, conversion.DTYPES[STORED_AS[self._dtype.name]])

    def truth(self, case: ParityCase) -> Truth:
        """Returns the truth of a case: a float64 run, one at the dtype, and the moved runs.

        Raises:
            UsageError: The target does not take these inputs; the message carries PyTorch's own.
        """
        inputs = self.inputs(case)
        own = self._own(case, inputs)
        values, masked = self._exact(case, inputs, zero=False)
        moved = self._moved(case, inputs, zero=False)
        if not masked:
            same = _expected(own, values, {}, {}, [*moved, own])
            return Truth(own, _expected(own, values, {}, {}, moved), same, same, same)
        zeroed, _ = self._exact(case, inputs, zero=True)
        dead = {name: _differ(value, zeroed[name]) for name, value in values.items()}
        # PyTorch's plain run knows nothing of the policy: under "zero" only the moved runs tell the reach.
        zero = _expected(own, zeroed, dead, {}, self._moved(case, inputs, zero=True))
        same = self._unabsorbed(case, inputs, _expected(own, values, dead, own, [*moved, own]))
        return Truth(own, _expected(own, values, dead, own, moved), same, _nan_or_zero(same, zero), zero)

    def in_range(self, case: ParityCase) -> bool:
        """Says whether every step taken at the dtype is finite where float64 is, with a factor of two to spare."""
        louder = case.scaled(2**0.5)  # scores are products of two inputs
        inputs = self.inputs(louder)
        values, _ = self._exact(louder, inputs, zero=False)
        return all(
            bool((_finite(run[name]) | ~_finite(value)).all())
            for run in (self._own(louder, inputs), *self._moved(louder, inputs, zero=False))
            for name, value in values.items()
        )

    def _own(self, case: ParityCase, inputs: dict[str, Any]) -> "Outputs":
        args, kwargs = case.arguments(inputs)
        # The fast path of nn.MultiheadAttention answers a row without keys with NaN where the steps it stands for, and
        # the float64 run, give 0: a module has one meaning.
        with torch.no_grad(), plain_attention():
            value = _called(case, self._dtype.name, lambda: self._narrow(*args, **kwargs))
        return arrays.outputs(value)

    def _exact(self, case: ParityCase, inputs: dict[str, Any], *, zero: bool) -> "tuple[Outputs, bool]":
        args, kwargs = case.arguments(arrays.cast(inputs, torch.float64))
        outcome = _called(case, "float64", lambda: rounding.exact(self._wide, args, kwargs, zero=zero))
        return arrays.outputs(outcome.value), outcome.dead

    def _moved(self, case: ParityCase, inputs: dict[str, Any], *, zero: bool) -> "list[Outputs]":
        args, kwargs = case.arguments(inputs)
        tf32 = self._dtype.name == "tf32"
        runs = (rounding.rounded(self._narrow, args, kwargs, seed=s, zero=zero, tf32=tf32) for s in range(self._draws))
        return [arrays.outputs(run.value) for run in runs]

    def _unabsorbed(
        self, case: ParityCase, inputs: dict[str, Any], expected: tuple[Expected, ...]
    ) -> tuple[Expected, ...]:
        """Returns what is expected, with the answer at dead elements of a runtime that keeps scores in float32."""
        if self._dtype.name != "fp16" or not any(e.dead is not None for e in expected):
            return expected  # a wider dtype's own fills swallow any score in float32 too
        args, kwargs = case.arguments(inputs)
        seeds = (None, *range(self._draws))
        center, *runs = [arrays.outputs(unabsorbed(self._narrow, args, kwargs, seed=seed)) for seed in seeds]
        result = []
        for e in expected:
            if e.dead is None:
                result.append(e)
                continue
            answer = _float64(center[e.name])
            far, _ = reach(answer, [_float64(run[e.name]) for run in runs], e.dead, None)
            result.append(replace(e, unabsorbed=answer, unabsorbed_reach=far))
        return tuple(result)


def at_dtype(module: torch.nn.Module, dtype: Precision) -> torch.nn.Module:
    """Returns a copy of the module in eval mode with its weights rounded to the dtype."""
    return conversion.to_dtype(module, STORED_AS[dtype.name]).eval()


def _called(case: ParityCase, where: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, UsageError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UsageError(
            f"The reference does not run on case {case.name!r} in {where}: {type(error).__name__}: {line}. "
            "Correct the case's inputs, or the module where it names a dtype of its own."
        ) from error


def _expected(
    own: "Outputs", values: "Outputs", dead: "Mapping[str, Bools]", other: "Outputs", runs: "Sequence[Outputs]"
) -> tuple[Expected, ...]:
    """Returns what each output must be; `other` is a second right answer at `dead` elements, where there is one."""
    result = []
    for name, value in values.items():
        dtype = own[name].dtype.name
        if value.dtype.kind in "biu":
            result.append(Expected(name, dtype, value))
            continue
        hidden = dead[name] if name in dead and dead[name].any() else None
        second = _float64(other[name]) if hidden is not None and name in other else None
        far, norm = reach(_float64(value), [_float64(run[name]) for run in runs], hidden, second)
        result.append(Expected(name, dtype, _float64(value), far, norm, hidden, second))
    return tuple(result)


def _nan_or_zero(same: tuple[Expected, ...], zero: tuple[Expected, ...]) -> tuple[Expected, ...]:
    """Returns `same` with a second right answer, that of `zero`, where a row is NaN because it sees no key."""
    import numpy as np

    result = []
    for kept, zeroed in zip(same, zero, strict=True):
        if kept.dead is None or kept.other is None:
            result.append(kept)
            continue
        nan = kept.dead & np.isnan(kept.value) & np.isnan(kept.other)
        second, far = np.where(nan, zeroed.value, kept.other), np.where(nan, zeroed.reach, kept.reach)
        result.append(replace(kept, other=second, reach=far))
    return tuple(result)


def _float64(x: "AnyArray") -> "npt.NDArray[np.float64]":
    return x.astype("float64")


def _finite(x: "AnyArray") -> "Bools":
    import numpy as np

    finite: Bools = np.isfinite(x.astype("float64"))
    return finite


def _differ(a: "AnyArray", b: "AnyArray") -> "Bools":
    differ: Bools = (a != b) & ~((a != a) & (b != b))
    return differ
