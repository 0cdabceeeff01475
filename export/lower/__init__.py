"""Lowering: a canonical graph becomes one that a given backend reads right, by steps derived from its row.

```
targets    one row a backend: what it accepts, as measured
refuse     what no step can bring to a backend
call       one attention as a value: read from the graph, changed by the steps, written back
lowering   the ladder of steps; lower(), for_ort_check()
           value_type cache sizes decompose lengths structure extremes masks single_head marks layout: its rungs
rotary     RotaryEmbedding's tables
unshare    the scale of attentions that share Q or K
share      one lowered mask for all layers that have one mask
bounds fusable heads numbering shapes: what the rungs ask
```
"""

from export.lower.lowering import Lowered, for_ort_check, lower
from export.lower.step import Step
from export.lower.targets import TARGETS, Target

__all__ = ["TARGETS", "Lowered", "Step", "Target", "for_ort_check", "lower"]
