"""What each rule code means: one page a code, `CODE.md` in this folder, and the registry read from their headings.

A page is the only place where a code is described: its title, one sentence, an example, why, and what to change. The
pages are part of the package, so that an installed `python -m export rule CODE` has them.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_CODE = re.compile(r"([A-Z]\d{3})\.md")
_HEAD = re.compile(r"# (?P<code>[A-Z]\d{3}): (?P<title>.+)\n\n(?P<meaning>.+)\n")


@dataclass(frozen=True)
class Rule:
    """One rule code.

    Attributes:
        code: "K203" and the like. The letter is the family: F fused, A already one op, K kept, R rotation, V verified.
        title: A few words.
        meaning: One sentence.
        change: What the author of the model may change, one paragraph on one line.
        page: The whole page, Markdown.
    """

    code: str
    title: str
    meaning: str
    change: str
    page: str


@cache
def codes() -> tuple[str, ...]:
    """Returns every code that has a page, sorted."""
    found = (_CODE.fullmatch(entry.name) for entry in resources.files(__name__).iterdir())
    return tuple(sorted(match[1] for match in found if match is not None))


@cache
def rule(code: str) -> Rule:
    """Returns the rule with a code.

    Raises:
        KeyError: No page describes the code.
    """
    if code not in codes():
        raise KeyError(code)
    page = resources.files(__name__).joinpath(f"{code}.md").read_text(encoding="utf-8")
    head = _HEAD.match(page)
    _, _, rest = page.partition("\n## What to change\n\n")
    change = " ".join(rest.partition("\n\n")[0].split())
    if head is None or head["code"] != code or not change:
        raise ValueError(f"export/rules/{code}.md lacks its heading, its sentence or its section 'What to change'")
    return Rule(code, head["title"], head["meaning"], change, page)


def near(code: str) -> tuple[str, ...]:
    """Returns the codes most like one that does not exist, its own family first."""
    found = difflib.get_close_matches(code.upper(), codes(), n=12, cutoff=0.5)
    wanted = code.upper()
    return tuple(sorted(found, key=lambda c: (c[0] != wanted[:1], not c.startswith(wanted)))[:4])
