"""Every code that a row can show has a page, every page a code, and every example really shows its code."""

import re
from pathlib import Path

import pytest
import rules_table
from test_near_misses import ELSEWHERE
from text_graphs import parse

from export import rules
from export.fuse import Options, fuse

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "export").rglob("*.py"))

HOW = """
A code is described on a page of its own: write export/rules/{0}.md like the others (heading "# {0}: a few words", one
sentence, "## Example" with a graph in a ```onnx block that shows the code, "## Why", "## What to change", whose first
paragraph is printed with every row that has the code). A page whose code is gone from the sources is deleted."""


def used() -> set[str]:
    """The codes in the product's sources."""
    return {code for path in SOURCES for code in re.findall(r'"([FAKRV]\d{3})"', path.read_text(encoding="utf-8"))}


def example(code: str) -> str | None:
    found = re.search(r"^```onnx\n(.*?)^```$", rules.rule(code).page, re.MULTILINE | re.DOTALL)
    return found[1] if found else None


def test_every_code_has_a_page() -> None:
    missing = sorted(used() - set(rules.codes()))
    assert not missing, f"no page for {', '.join(missing)}.{HOW.format(missing[0])}"


def test_every_page_has_a_code() -> None:
    orphans = sorted(set(rules.codes()) - used())
    assert not orphans, f"no source uses {', '.join(orphans)}.{HOW.format(orphans[0])}"


def test_docs_list_every_code_once() -> None:
    text = rules_table.PAGE.read_text()
    assert text == rules_table.marked.with_text(text, rules_table.MARKED, rules_table.tables())
    assert re.findall(r"^\| \[(\w+)\]", text, re.MULTILINE) == sorted(rules.codes(), key=family)


def family(code: str) -> tuple[int, str]:
    return next(at for at, begin in enumerate(rules_table.FAMILIES) if code.startswith(begin)), code


@pytest.mark.parametrize("code", rules.codes())
def test_a_page_has_its_parts(code: str) -> None:
    found = rules.rule(code)
    assert found.meaning.endswith("."), found.meaning
    assert found.change.endswith((".", "`")), found.change
    assert not found.title.endswith(".")
    headings = re.findall(r"^## (.+)$", found.page, re.MULTILINE)
    assert headings == ["Example", "Why", "What to change"]
    assert not re.search(r"^## .+\n+(## |\Z)", found.page, re.MULTILINE), "a section is empty"
    assert max(map(len, found.page.splitlines())) < 700


@pytest.mark.parametrize("code", rules.codes())
def test_the_example_of_a_page_shows_its_code(code: str) -> None:
    """A verification that fails is a defect, so the V pages have none to show; test_rollback breaks blocks for them."""
    text = example(code)
    if text is None:
        assert code in ELSEWHERE or code.startswith("V"), f"{code} has no ```onnx example.{HOW.format(code)}"
        return
    assert code not in ELSEWHERE or code in ("K902", "K904")
    result = fuse(parse(text, deprecated=True), Options(verify=False))
    rows = (*result.attentions, *result.rotations)
    assert code in {row.code for row in rows}, [(row.code, row.reason) for row in rows]


def test_a_kept_row_says_what_to_change() -> None:
    for code in ("K203", "K117"):
        (row,) = fuse(parse(example(code)), Options(verify=False)).attentions
        assert row.change == rules.rule(code).change
    (row,) = fuse(parse(example("F001")), Options(verify=False)).attentions
    assert row.change is None


def test_a_code_that_does_not_exist() -> None:
    with pytest.raises(KeyError):
        rules.rule("K000")
    assert rules.near("k204")[0] == "K204"
    assert all(code.startswith("V") for code in rules.near("V999"))
    assert rules.near("nonsense") == ()
