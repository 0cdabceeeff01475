"""docs/targets/: the tables are those of the rows and of what was proved, and every step is explained."""

import pytest
import target_pages
import targets_table

from export.lower.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_page_shows_the_row_and_its_steps(name: str) -> None:
    page = target_pages.PAGES[name].read_text()
    assert page == target_pages.marked.with_text(page, target_pages.MARKED, target_pages.tables(TARGETS[name]))


def test_every_step_is_explained_and_every_explanation_is_of_a_step() -> None:
    cells = [cell for row in targets_table.stored().values() for cell in row.values()]
    taken = {target_pages.named(step) for cell in cells for step in cell.get("steps", ())}
    assert taken - {"no plugin"} == set(target_pages.STEPS)


def test_every_extra_has_words() -> None:
    assert set(target_pages.EXTRAS) == TARGETS["onnx"].extras | TARGETS["tensorrt"].extras
