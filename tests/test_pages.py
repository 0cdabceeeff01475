"""README.md and docs/ are true: files written, commands run, outputs as shown, links that lead somewhere."""

import json
import re
from pathlib import Path

import forms_table
import pages
import pytest
import reader_pictures

GROUPS = {p: [p, *(q for q in pages.PAGES if pages.after(q) == p)] for p in pages.PAGES if pages.after(p) is None}
"""The pages that are run in one folder, by the first of them."""
RUN = [p for p in GROUPS if "\n```sh\n" in p.read_text(encoding="utf-8") or pages.python(p)]


def relative(page: Path) -> str:
    return page.relative_to(pages.ROOT).as_posix()


@pytest.mark.parametrize("first", RUN, ids=relative)
def test_files_commands_and_transcripts_are_true(first: Path, tmp_path: Path) -> None:
    for page in GROUPS[first]:
        for shown in pages.play(page, tmp_path):
            given = (shown.text, shown.printed)
            text, printed = given if shown.exact else map(pages.masked, given)
            assert printed == text, f"{page.name}: {shown.command}"


def test_every_page_is_run_in_some_folder() -> None:
    assert sorted(page for group in GROUPS.values() for page in group) == sorted(pages.PAGES)


def test_a_command_that_fails_or_prints_something_else_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\necho 7 heads\n```\n\n<!-- output: echo 7 heads -->\n```text\n8 tails\n```\n")
    (shown,) = pages.play(page, tmp_path)
    assert not pages.same(shown)
    assert "8 tails" not in pages.refreshed(page, tmp_path) and "\n7 heads\n```" in pages.refreshed(page, tmp_path)
    page.write_text("```sh\necho 7 heads\n```\n\n<!-- exact output: echo 7 heads -->\n```text\n8 heads\n```\n")
    (shown,) = pages.play(page, tmp_path)
    assert not pages.same(shown)
    for wrong in ("```sh\nfalse\n```\n", "```python\nassert 0\n```\n", "<!-- output: ls -->\n```text\nx\n```\n"):
        page.write_text(wrong)
        with pytest.raises(pages.NotRightError):
            list(pages.play(page, tmp_path))


@pytest.mark.parametrize("page", pages.PAGES, ids=relative)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(pages.ROOT), link
        assert not anchor or anchor in anchors(there), link


def test_every_page_is_linked_from_the_index() -> None:
    """The index is docs/README.md, and the README links to it; a page of a folder may be linked from that folder's."""
    index = pages.ROOT / "docs" / "README.md"
    assert "docs/README.md" in links(pages.README)
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert not [relative(page) for page in pages.PAGES if page not in (pages.README, index) and page not in linked]


def links(page: Path) -> list[str]:
    """The relative links of a page, those in code left out."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_python_too() -> None:
    (plain,) = pages.python(pages.README)
    assert len([line for line in plain.splitlines() if line.strip()]) <= 8
    assert len(pages.README.read_text(encoding="utf-8").splitlines()) <= 500


def test_the_pictures_of_the_reader_are_what_is_drawn() -> None:
    held = {path.name: path.read_text() for path in reader_pictures.FOLDER.iterdir()}
    assert held == reader_pictures.drawn()
    boxes = held["before.svg"].count('font-size="10"')
    assert f"\n{boxes} boxes" in (pages.ROOT / "docs" / "reader.md").read_text()


def test_the_table_of_forms_is_that_of_the_json() -> None:
    rows, text = json.loads(forms_table.JSON.read_text()), forms_table.PAGE.read_text()
    assert text == forms_table.marked.with_text(text, forms_table.MARKED, forms_table.markdown(rows))


def test_every_form_is_in_the_table() -> None:
    from export.model import registry

    assert [row["form"] for row in json.loads(forms_table.JSON.read_text())] == list(registry.form_names())


def test_every_command_is_in_the_table_of_commands() -> None:
    from export.cli import VERBS

    listed = re.findall(r"^\| `(\w+)", pages.README.read_text(), re.MULTILINE)
    assert set(VERBS) <= set(listed)
