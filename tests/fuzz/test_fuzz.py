"""Random attention programs and near misses of them: fused or refused, and never wrong. `make fuzz` runs many more."""

from collections import Counter
from pathlib import Path

import pytest
from fuzz_draft import Program
from fuzz_judge import judge
from fuzz_programs import programs
from fuzz_text import codes, parse, text
from hypothesis import HealthCheck, Phase, given, settings
from text_graphs import Golden, read_goldens

GOLDENS = read_goldens((Path(__file__).parent / "goldens.txt").read_text())
PROGRAMS = 200


def test_random_programs() -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=PROGRAMS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def fused_or_refused_never_wrong(program: Program) -> None:
        verdict = judge(program)
        assert not verdict.wrong, "\n".join([*verdict.wrong, text(program.proto)])
        seen.update(verdict.codes)

    fused_or_refused_never_wrong()
    assert seen["F001"] >= PROGRAMS // 10, seen
    assert len(seen) >= 10, seen  # and near misses for many reasons


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_a_program_that_was_wrong_once(golden: Golden) -> None:
    verdict = judge(parse(golden.before))
    assert not verdict.wrong
    assert codes(verdict.codes) == codes(verdict.read) == golden.after
