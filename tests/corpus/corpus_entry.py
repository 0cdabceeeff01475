"""What one architecture of the corpus is: a configuration, a class, its inputs, and the sizes it is judged at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CASES = ("as exported", "one, short", "left padding")
"""The three cases of every judgement: the exported sizes, a batch of one at another length, longer and padded left."""

SIZES: Mapping[str, tuple[int, int, int]] = {"batch": (2, 1, 3), "length": (9, 5, 12), "decoder": (7, 4, 10)}
"""The sizes of each dynamic axis in the three cases, unless an entry says otherwise."""

Kind = Literal["ids", "decoder ids", "padding", "floats", "image", "zeros", "boxes", "speech"]


@dataclass(frozen=True)
class Input:
    """One tensor of a call.

    Attributes:
        kind: How it is drawn: "ids" (tokens), "padding" (1 = token, 0 = padding), "floats" (normal), ...
        axes: A number for each fixed axis, a name for each dynamic one.
    """

    kind: Kind
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class Entry:
    """One architecture with random weights.

    Attributes:
        name: Its name in the table.
        config: The configuration's class in `transformers`.
        model: The model's class in `transformers`.
        settings: The configuration's arguments: hidden size 64 and two layers where it has such.
        inputs: The forward's arguments by name, in order.
        sizes: Sizes of its own dynamic axes in the three cases.
        call: How `corpus_module` turns the inputs into outputs.
        impls: The attention implementations it has.
    """

    name: str
    config: str
    model: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Input]
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    call: str = "first output"
    impls: tuple[str, ...] = ("eager", "sdpa")

    def size(self, axis: int | str, case: int) -> int:
        """Returns how long an axis is in a case."""
        return axis if isinstance(axis, int) else {**SIZES, **self.sizes}[axis][case]

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in which some input differs."""
        return CASES if any(isinstance(a, str) for i in self.inputs.values() for a in i.axes) else CASES[:1]


HIDDEN: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
TEXT: Mapping[str, Any] = {**HIDDEN, "vocab_size": 99}
GROUPED: Mapping[str, Any] = {**TEXT, "num_key_value_heads": 2}
SEQ2SEQ: Mapping[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
IMAGE: Mapping[str, Any] = {**HIDDEN, "image_size": 32, "patch_size": 8}

IDS = Input("ids", ("batch", "length"))
PADDING = Input("padding", ("batch", "length"))
TOKENS = {"input_ids": IDS, "attention_mask": PADDING}
PAIRS = {**TOKENS, "decoder_input_ids": Input("decoder ids", ("batch", "decoder"))}
PIXELS = {"pixel_values": Input("image", ("batch", 3, 32, 32))}


def texts(rows: Mapping[str, tuple[str, str, Mapping[str, Any]]]) -> tuple[Entry, ...]:
    """Returns entries that read tokens and a padding mask."""
    return tuple(Entry(name, config, model, settings, TOKENS) for name, (config, model, settings) in rows.items())
