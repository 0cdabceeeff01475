"""What lowering changed, in a line for each change: the attentions that share one are named together."""

from collections.abc import Iterable

_NAMED = 2


def lines(steps: Iterable[tuple[str, str, str]]) -> list[str]:
    """Returns "a, b and 30 more: what was done: why" for each different change.

    Args:
        steps: (attention, what was done, why), in the order of the graph.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for attention, action, why in steps:
        alike.setdefault((action, why), []).append(attention)
    return [f"{_listed(names)}: {action}: {why}" for (action, why), names in alike.items()]


def _listed(names: list[str]) -> str:
    if len(names) <= _NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
