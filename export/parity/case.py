"""What one case feeds: named inputs, or inputs by position for a function without names."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from export.errors import UsageError


@dataclass(frozen=True)
class ParityCase:
    """The inputs of one call.

    Attributes:
        name: What the case is about, e.g. "left-padding".
        inputs: Tensors or arrays by parameter name, in order; tuples, lists and dicts of them, None and plain numbers
            pass too. Floating-point ones are rounded to the dtype under test, and so drawn in it.
        positional: Whether the inputs are passed by position (their names are then only labels).
    """

    name: str
    inputs: Mapping[str, Any]
    positional: bool = False

    def arguments(self, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns (args, kwargs) to call with; `inputs` are this case's, cast."""
        return (tuple(inputs.values()), {}) if self.positional else ((), dict(inputs))

    def scaled(self, factor: float) -> "ParityCase":
        """Returns the case with every floating-point input multiplied by `factor`."""
        from export.parity.arrays import change_floats

        return replace(self, inputs=change_floats(self.inputs, lambda x: x * factor))


Given = ParityCase | Mapping[str, Any] | Sequence[Any]


def as_case(given: Given, index: int, reference: Callable[..., Any]) -> ParityCase:
    """Returns what a caller gave as a case.

    Args:
        given: A ParityCase, inputs by name, or inputs by position (a single tensor is one input).
        index: Its place among the cases, for a name.
        reference: What it will be fed to: inputs by position get the names of its parameters.

    Raises:
        UsageError: There are more inputs than parameters, or no inputs.
    """
    if isinstance(given, ParityCase):
        return given
    name = f"case-{index}"
    if isinstance(given, Mapping):
        return ParityCase(name, dict(given))
    values = list(given) if isinstance(given, tuple | list) else [given]
    if not values:
        raise UsageError(f"{name} has no inputs: give a dict by parameter name, or a tuple by position.")
    try:
        signature = inspect.signature(getattr(reference, "forward", reference))
        return ParityCase(name, dict(signature.bind(*values).arguments))
    except TypeError as error:
        raise UsageError(f"{name} does not fit the reference's parameters: {error}.") from error
    except ValueError:  # a builtin has no signature to read
        return ParityCase(name, {f"input{i}": value for i, value in enumerate(values)}, positional=True)
