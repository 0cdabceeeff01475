"""The plugin operator as data: names, inputs, attributes and shapes, shared by lowering, kernel, registration and docs.

Full TensorRT alone can run it as a plugin. TensorRT-RTX has no plugins, so a graph that holds the operator is refused
before its parser sees it; ONNX Runtime runs the ONNX function that is written beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Input:
    """One input of the operator. All of them are always there: TensorRT plugins have no optional inputs.

    Attributes:
        name: Its name in every language.
        shape: Its axes. A letter binds at its first use; "*" is any size, "1|X" is 1 or the X of the call.
        dtypes: Element types, as "fp32", "fp16", "bf16", "int32"; ("Q",) is the type of Q.
        switch: The attribute that must not be 0 for the input to be read; "" where it is always read. What is not
            read is a tensor of the same rank and type whose every axis is 1.
        meaning: One sentence.
    """

    name: str
    shape: tuple[str, ...]
    dtypes: tuple[str, ...]
    switch: str
    meaning: str


@dataclass(frozen=True)
class Attribute:
    """One attribute: its name, its Python type, and one sentence."""

    name: str
    kind: type
    meaning: str


@dataclass(frozen=True)
class PluginOp:
    """One plugin operator.

    Attributes:
        domain: ONNX domain of the node, and plugin namespace in TensorRT.
        name: ONNX op type, and plugin name in TensorRT.
        version: Opset version of the domain.
        summary: What it computes, in one line.
        inputs: In order.
        attributes: In order; a node carries every one of them.
        output: Axes of the one output, in the letters of the inputs; its type is that of Q.
    """

    domain: str
    name: str
    version: int
    summary: str
    inputs: tuple[Input, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    output: tuple[str, ...] = ()


FLOATS = ("fp16", "bf16", "fp32")
UPPER_LEFT, LOWER_RIGHT = 1, 2
"""Values of `causal_kind`: query i sees keys up to i, or up to i + (visible keys - queries), as after a cache."""

MIN_HEAD_SIZE, MAX_HEAD_SIZE = 16, 256

ROTARY_ATTENTION = PluginOp(
    domain="attnproof",
    name="RotaryAttention",
    version=1,
    summary="RoPE on Q and optionally K, mask and attention in one kernel",
    inputs=(
        Input("q", ("B", "H", "S", "D"), FLOATS, "", "Queries."),
        Input(
            "k", ("B", "G", "T", "D"), ("Q",), "", "Keys; H is a multiple of G, and query head h reads h // (H / G)."
        ),
        Input("v", ("B", "G", "T", "E"), ("Q",), "", "Values."),
        Input("cos", ("P", "R"), ("fp32",), "rotary_embedding_dim", "Cosines by position; R is half of that dim."),
        Input("sin", ("P", "R"), ("fp32",), "rotary_embedding_dim", "Sines by position."),
        Input("bias", ("1|B", "1|H", "1|S", "T"), ("Q",), "has_bias", "Added to the scores, after the softcap."),
        Input(
            "lengths", ("B",), ("int32",), "has_lengths", "How many keys of each batch row may be seen, from the first."
        ),
    ),
    attributes=(
        Attribute("scale", float, "Factor of Q K^T."),
        Attribute("softcap", float, "c of c*tanh(x/c), or 0 for none."),
        Attribute("causal_kind", int, "0 none; 1 query i sees keys <= i; 2 query i sees keys <= i + (visible - S)."),
        Attribute("window", int, "A query sees only keys that lie less than this many before it; 0 for all."),
        Attribute("rotary_embedding_dim", int, "How many of the D columns are rotated, from the first; 0 for none."),
        Attribute("interleaved", int, "1: columns 2i and 2i+1 are a pair; 0: i and i + rotary_embedding_dim / 2."),
        Attribute("rotate_key", int, "1: K is rotated too, key j at position j; 0: it was rotated before."),
        Attribute("has_bias", int, "1: bias is read."),
        Attribute("has_lengths", int, "1: lengths is read; else every key may be seen."),
    ),
    output=("B", "H", "S", "E"),
)
OPS = (ROTARY_ATTENTION,)


def find(domain: str, name: str) -> PluginOp | None:
    """Returns the plugin operator of that ONNX domain and op type, or None."""
    return next((op for op in OPS if (op.domain, op.name) == (domain, name)), None)


@dataclass(frozen=True)
class Settings:
    """The attributes of one RotaryAttention; the fields are `ROTARY_ATTENTION.attributes`, in order.

    Raises:
        ValueError: A value has no meaning; the sentence says which.
    """

    scale: float
    softcap: float = 0.0
    causal_kind: int = 0
    window: int = 0
    rotary_embedding_dim: int = 0
    interleaved: int = 0
    rotate_key: int = 0
    has_bias: int = 0
    has_lengths: int = 0

    def __post_init__(self) -> None:
        if self.causal_kind not in (0, UPPER_LEFT, LOWER_RIGHT):
            raise ValueError(f"causal_kind is {self.causal_kind}; it is 0 (none), 1 (upper left) or 2 (lower right).")
        if self.softcap < 0 or self.window < 0 or self.rotary_embedding_dim < 0:
            raise ValueError("softcap, window and rotary_embedding_dim are 0 (off) or positive.")
        if self.rotary_embedding_dim % 2:
            raise ValueError(
                f"rotary_embedding_dim is {self.rotary_embedding_dim}; columns turn in pairs: give an even number."
            )
        if self.rotate_key and not self.rotary_embedding_dim:
            raise ValueError("rotate_key needs a rotary_embedding_dim.")

    def as_attributes(self) -> dict[str, int | float]:
        """Returns name to value, in the order of the contract."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def output_shape(settings: Settings, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Checks the shapes of a call against the contract and returns that of the output.

    Args:
        settings: The attributes.
        shapes: Of every input, by name.

    Raises:
        ValueError: A shape breaks the contract; the sentence names the input, its axes and what they should be.
    """
    bound: dict[str, int] = {}
    for expected in ROTARY_ATTENTION.inputs:
        shape = tuple(shapes[expected.name])
        if len(shape) != len(expected.shape):
            raise ValueError(f"{expected.name} is {list(shape)}; it has the axes [{', '.join(expected.shape)}].")
        if expected.switch and not getattr(settings, expected.switch):
            continue
        for axis, size in zip(expected.shape, shape, strict=True):
            letter = axis.removeprefix("1|")
            if letter != axis and size == 1:
                continue
            if bound.setdefault(letter, size) != size:
                raise ValueError(
                    f"{expected.name} is {list(shape)}; its axes are [{', '.join(expected.shape)}], and {letter} is "
                    f"{bound[letter]} in this call."
                )
    _check_sizes(settings, bound)
    return tuple(bound[letter] for letter in ROTARY_ATTENTION.output)


def _check_sizes(settings: Settings, bound: Mapping[str, int]) -> None:
    heads, groups = bound["H"], bound["G"]
    if groups == 0 or heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key heads: the first must be a multiple.")
    for letter in "DE":
        if not MIN_HEAD_SIZE <= bound[letter] <= MAX_HEAD_SIZE:
            raise ValueError(f"The head size {bound[letter]} is outside {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE}.")
    turned = settings.rotary_embedding_dim
    if turned > bound["D"]:
        raise ValueError(f"rotary_embedding_dim is {turned}, more than the head size {bound['D']}.")
    if turned and bound["R"] * 2 != turned:
        raise ValueError(f"cos and sin have {bound['R']} columns; rotary_embedding_dim {turned} needs {turned // 2}.")
