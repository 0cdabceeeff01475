"""Whether a target has one kernel for an attention: the question of several steps."""

from export.lower.call import Call
from export.lower.targets import Target


def fusable(call: Call, row: Target) -> bool:
    """Says whether the row's fused kernel takes this attention as it stands now, by type and head sizes."""
    smallest, largest = row.fused_sizes
    size = call.head_size
    return (
        call.dtype in row.fused_types
        and size is not None
        and smallest <= size <= largest
        and call.value_head_size == size
        and not call.softcap
        and call.score_mode is None
    )
