"""Which cases a form or a user's model is checked at: the sizes, masks and scales at which attention goes wrong."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from export.model.form import Case, Form
from export.parity.case import ParityCase

LOUD = (30.0, 10.0, 3.0)
"""Factors on the inputs for the large-logits case; the largest whose steps the dtype can hold is taken."""

PEAKED, SMALL = 5.0, 1 / 64
_PRIMES = (7, 11, 5, 13)


def source_cases(source: Any, dtype: str) -> list[ParityCase]:
    """Returns the grid of a source's form, or for a user's own model the cases made from its example inputs.

    Args:
        source: What `export.capture.load_source` returned.
        dtype: The dtype under test: large logits stay within its range.

    Raises:
        UsageError: The module does not run at this dtype.
    """
    if source.form is not None:
        return form_cases(source.form, dtype, module=source.module)
    from export.parity.resize import example_cases

    cases = example_cases(source)
    return [*cases, *_loud(lambda m: cases[0].scaled(m), source.module, dtype)]


def form_cases(form: Form, dtype: str, *, module: Any = None) -> list[ParityCase]:
    """Returns the parity grid of a form.

    One token, odd and (where the form has two lengths) equal and differing lengths, one batch row, the largest
    profile, every padding of its mask with a fully masked row among them, peaked and saturated softmaxes, and inputs
    near the dtype's smallest normal numbers.

    Args:
        form: The form.
        dtype: The dtype under test.
        module: Its module, if already made.

    Raises:
        UsageError: The module does not run at this dtype.
    """
    cases = [_drawn(form, case) for case in _points(form)]
    typical = _sizes(form.dims, batch=2)
    return [
        *cases,
        *_loud(
            lambda m: _drawn(form, Case("large-logits", typical, magnitude=m, seed=90)),
            form.make() if module is None else module,
            dtype,
        ),
    ]


def _points(form: Form) -> Iterator[Case]:
    dims = form.dims
    lengths = [name for name in dims if "batch" not in name]
    typical = _sizes(dims, batch=2)
    yield Case("typical", typical, seed=1)
    yield Case("one-token", _sizes(dims, batch=2, lengths=(1,)), seed=2)
    yield Case("one-batch", _sizes(dims, batch=1, lengths=(8, 6, 8, 6)), seed=3)
    yield Case("cross-lengths" if len(lengths) > 1 else "odd", _sizes(dims, batch=3, lengths=_PRIMES), seed=4)
    if len(lengths) > 1:
        yield Case("self-lengths", _sizes(dims, batch=3, lengths=(9,)), seed=5)
    yield Case("profile-max", {name: high for name, (_, _, high) in dims.items()}, seed=6)
    for i, padding in enumerate(form.padding):
        name = "fully-masked-row" if padding == "full-row" else f"{padding}-padding"
        yield Case(name, _sizes(dims, batch=3, lengths=(10, 9, 10, 9)), padding, seed=10 + i)
    yield Case("peaked", typical, magnitude=PEAKED, seed=7)
    yield Case("small-inputs", typical, magnitude=SMALL, seed=8)


def _sizes(dims: Mapping[str, tuple[int, int, int]], *, batch: int, lengths: tuple[int, ...] = ()) -> dict[str, int]:
    """Returns a size within the profile for each dimension; the optimum where no length is asked for."""
    sizes = {}
    position = 0
    for name, (low, optimum, high) in dims.items():
        if "batch" in name:
            want = batch
        else:
            want = lengths[position % len(lengths)] if lengths else optimum
            position += 1
        sizes[name] = min(max(want, low), high)
    return sizes


def _drawn(form: Form, case: Case) -> ParityCase:
    return ParityCase(case.name, form.draw(case))


def _loud(make: Callable[[float], ParityCase], module: Any, dtype: str) -> list[ParityCase]:
    """Returns the large-logits case, as loud as the dtype can hold; none where even the quietest overflows."""
    from dataclasses import replace

    from export.parity.precision import precision
    from export.parity.reference import Reference

    reference = Reference(module, precision(dtype), draws=1)
    for factor in LOUD:
        case = replace(make(factor), name="large-logits")
        if reference.in_range(case):
            return [case]
    return []
