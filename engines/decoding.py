"""What a decode loop must know of its graphs: which inputs hold tokens, which tensors are the cache, how much fits.

It is the `decode` object of an artifact's engine.json; nothing here runs anything.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engines.errors import UsageError

Kind = Literal["growing", "static"]


@dataclass(frozen=True)
class Cache:
    """Keys or values of one attention: the graph's input, its output, and the axis that counts tokens."""

    past: str
    present: str
    axis: int


@dataclass(frozen=True)
class Decoding:
    """How a model is run a token at a time.

    Attributes:
        kind: "growing": the cache has the length of what was run so far, each present is the next past, and rows are
            padded on the left. "static": the cache has `capacity` slots, new keys and values are written at
            `write_indices` in place, and rows are padded on the right.
        tokens: Inputs that hold new tokens, [batch, length, ...].
        mask: Input that says which of past and new tokens are real, [batch, ..., past + length]; None for none.
        caches: The caches.
        capacity: Tokens a row of the cache may hold.
        write_indices: Input of a static cache: the slot of each row's first new token, int64 [batch].
        moves: Whether a row may be padded at will: the model's answer does not hang on where a row begins.
    """

    kind: Kind
    tokens: tuple[str, ...]
    mask: str | None
    caches: tuple[Cache, ...]
    capacity: int
    write_indices: str | None = None
    moves: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Decoding":
        """Returns what `as_dict` wrote; keys of others are ignored.

        Raises:
            UsageError: It is something else.
        """
        try:
            return Decoding(
                kind=_kind(data["kind"]),
                tokens=tuple(map(str, data["tokens"])),
                mask=data["mask"],
                caches=tuple(Cache(str(c["past"]), str(c["present"]), int(c["axis"])) for c in data["caches"]),
                capacity=int(data["capacity"]),
                write_indices=data["write_indices"],
                moves=bool(data["moves"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"This does not describe a decode loop ({error!r}). Build again with --decode.") from error


def _kind(text: str) -> Kind:
    if text == "growing":
        return "growing"
    if text == "static":
        return "static"
    raise ValueError(f"no kind of cache is {text!r}")
