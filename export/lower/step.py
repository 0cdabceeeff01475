"""What lowering did, one sentence a step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One change made for a target.

    Attributes:
        attention: Name of the node it was made for.
        action: What was done, a few words that stay the same from release to release.
        why: One sentence: what the target does with the graph as it was.
    """

    attention: str
    action: str
    why: str
