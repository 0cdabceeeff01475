"""What a form refuses to be built or called with, and the sentence it says; one function a refusal."""

from engines.errors import UsageError


def head_size(embed_dim: int, num_heads: int) -> int:
    """Returns embed_dim / num_heads.

    Raises:
        UsageError: `num_heads` is not positive or does not divide `embed_dim`.
    """
    if num_heads <= 0 or embed_dim % num_heads:
        raise UsageError(
            f"The embedding size {embed_dim} cannot be split into {num_heads} heads of equal size. "
            "Choose a number of heads that divides it."
        )
    return embed_dim // num_heads


def require_even(rotary_dim: int, what: str = "head size") -> None:
    """Checks that channels can be paired for RoPE.

    Raises:
        UsageError: `rotary_dim` is odd or not positive.
    """
    if rotary_dim <= 0 or rotary_dim % 2:
        raise UsageError(
            f"RoPE rotates channels in pairs, but the {what} is {rotary_dim}. Choose an even number of channels."
        )


def require_length(length: int, limit: int, what: str) -> None:
    """Checks that a sequence fits a table of `limit` positions, where the length is a number.

    While an exporter traces with a dynamic length, `length` is symbolic (`torch.SymInt`, or a tensor under the
    TorchScript tracer) and the check stands aside: comparing would specialise or guard the exported graph. That graph
    slices the table, which stops at its end, and ONNX Runtime then refuses to combine `limit` rows with a longer
    sequence (an error, not a wrong answer, for any limit above 1). Keep a TensorRT profile's maximum within the limit.

    Args:
        length: Positions in the sequence.
        limit: Positions the table holds.
        what: What holds them, e.g. "the causal mask buffer (max_length)".

    Raises:
        UsageError: The sequence is longer than the table.
    """
    if type(length) is int and length > limit:
        raise UsageError(
            f"The sequence has {length} positions, but {what} holds {limit}. Build the module with a larger one."
        )
