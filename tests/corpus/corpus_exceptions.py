"""What is not fused, or not right, in the corpus and why that is as it should be: each exception with its reason."""

from dataclasses import dataclass
from fnmatch import fnmatch

from corpus_judge import Row


@dataclass(frozen=True)
class Excuse:
    """Exports of which some blocks rightly stay.

    Attributes:
        name, impl, route: Patterns of the exports, as in a shell.
        code: The rule code that the kept blocks have.
        blocks: How many blocks stay in each.
        reason: Why that is right.
    """

    name: str
    impl: str
    route: str
    code: str
    blocks: int
    reason: str


EXCUSES: tuple[Excuse, ...] = (
    Excuse(
        "groupvit_vision", "*", "*", "K304", 2,
        "It assigns each token to one group: the weights are made hard by an argmax before they meet V.",
    ),
    Excuse(
        "lilt", "*", "*", "K210", 3,
        "The scores of text and of layout are added to one another and then go through a softmax each, so that neither "
        "product of Q and K ends in one attention.",
    ),
)  # fmt: skip


def excused(row: Row) -> tuple[int, tuple[str, ...]]:
    """Returns how many missing blocks of a row are excused, and why."""
    found = [
        e
        for e in EXCUSES
        if fnmatch(row.name, e.name)
        and fnmatch(row.impl, e.impl)
        and fnmatch(row.route, e.route)
        and any(code == e.code for code, _ in row.kept)
    ]
    return sum(e.blocks for e in found), tuple(e.reason for e in found)


def gap(row: Row) -> bool:
    """Says whether a row is neither right nor excused."""
    if row.failed or (not row.judged and not row.crash):
        return False  # the exporter's answer, which the row itself quotes
    return bool(row.crash or row.wrong) or row.expected - row.right > excused(row)[0]
