"""Lowering: a canonical graph becomes one that a given backend reads right, by steps derived from its row.

```
targets   one row a backend: what it accepts, measured          call      one attention as a value: read, write
refuse    what no step can bring to it                          lowering  the ladder of steps, lower(), for_ort_check()
value_type cache sizes decompose structure extremes masks marks rotary    one step each, or a family of them
```
"""

from export.lower.lowering import Lowered, for_ort_check, lower
from export.lower.step import Step
from export.lower.targets import TARGETS, Target

__all__ = ["TARGETS", "Lowered", "Step", "Target", "for_ort_check", "lower"]
