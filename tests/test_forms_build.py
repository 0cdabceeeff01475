"""Every form, built for real at fp16 for SM 89 and 120, gives the row that the table in docs/forms.md shows.

Parity is left to tests/parity, which runs every form through every CPU stage; here it is replaced by one row.
"""

import json
from pathlib import Path

import forms_table
import pytest

from export.model import registry
from export.parity import ParityReport, ParityRow
from export.subject import ModuleSubject

TABLE = {row["form"]: row for row in json.loads(forms_table.JSON.read_text())}


@pytest.mark.parametrize("form", registry.form_names())
def test_a_build_gives_the_row_of_the_table(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = ParityReport((ParityRow("typical", "pytorch", "ok", 0.0, 0.0, 0.0),))
    monkeypatch.setattr(ModuleSubject, "judge", lambda *args: judged)
    made = forms_table.engines(form, "fp16", tmp_path)
    shown = TABLE[form]["engines"]["fp16"]
    assert {**made, "stages": None} == {**shown, "stages": None}
    assert made["one_op"] == registry.get(form).attentions


def test_no_cell_of_the_table_says_that_something_is_wrong() -> None:
    for row in TABLE.values():
        for facts in row["engines"].values():
            assert "fail" not in facts.get("stages", {}).values(), row["form"]
        for outcomes in row["parity"].values():
            assert set(outcomes.values()) == {"ok"}, row["form"]
