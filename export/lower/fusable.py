"""Whether a target has one kernel for an attention: the question of several steps."""

from export.lower.call import Call
from export.lower.targets import Target


def unfused(call: Call, row: Target) -> str | None:
    """Returns why the row's fused kernel surely does not take this attention as it stands, or None."""
    smallest, largest = row.fused_sizes
    size = call.head_size
    if call.dtype not in row.fused_types:
        return f"computes {call.dtype.name} in separate kernels"
    if size is None:
        return "has a fused kernel for known head sizes only"
    if not smallest <= size <= largest or call.value_head_size != size:
        return f"has no fused kernel for head size {size} (but for {smallest} to {largest})"
    if call.masked and call.query_heads is not None and call.query_heads < row.masked_heads:
        return f"has no fused kernel for a mask with fewer than {row.masked_heads} heads"
    if call.queries == 1:
        return one_query(call, row)
    return None


def one_query(call: Call, row: Target) -> str | None:
    """Returns why the row's kernel for a single query does not take this attention, or None."""
    size, heads = call.head_size, call.query_heads
    if heads is None or heads < row.one_query_heads:
        return f"has no fused kernel for one query with fewer than {row.one_query_heads} heads"
    if size is None or size % row.one_query_step:
        return f"has no fused kernel for one query with a head size that is no multiple of {row.one_query_step}"
    return None


def length_may_be_one(call: Call) -> bool:
    """Says whether a profile can fix the number of queries at 1."""
    return not isinstance(call.queries, int)
