"""docs/parity.md says what the code says: its formulas are those of the budgets, its numbers come from them."""

import re
from pathlib import Path

import mutants
import numpy as np

from export.parity import budgets, compare, reach, rounding
from export.parity.precision import PRECISIONS

PAGE = (Path(__file__).parents[2] / "docs" / "parity.md").read_text()


def test_every_formula_stands_in_the_code() -> None:
    blocks = re.findall(r"^```formula\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == 4
    code = [line.strip() for line in (budgets.__doc__ or "").splitlines()]
    assert not [line for line in lines if line not in code]


def test_the_numbers_worked_by_hand() -> None:
    found = re.search(r"x = 2⁻¹¹ .* = ([\d.]+), and 1 · \(exp\(x\) - 1\) \+ 2⁻²⁴ = ([\d.]+)\.", PAGE)
    assert found is not None
    peak, sums = np.array(3.0), np.array(3.0 + 2**0.5)
    growth = float(budgets.attention_growth("fp16", fused=True, peak=peak, sums=sums))
    assert found[1] == f"{growth:.7f}"
    assert found[2] == f"{np.expm1(growth) + 2.0**-24:.7f}"


def test_the_facts_in_words() -> None:
    assert [PRECISIONS[name].u for name in ("fp32", "fp16", "bf16")] == [2.0**-24, 2.0**-11, 2.0**-8]
    assert "2⁻²⁴ in fp32, 2⁻¹¹ in fp16, 2⁻⁸ in bf16" in PAGE and budgets.ACCUMULATOR_U == 2.0**-24
    assert budgets.ROUNDINGS == {"wide": 1.0, "stored": 3.0}
    assert (budgets.REACH_FACTOR, budgets.REACH_ULPS, reach.DRAWS, compare.BLUNT) == (2, 4, 8, 0.5)
    assert f"no score above {rounding.MASKED_SCORE:.0f}" in PAGE
    ratios = "elementwise .67 fp32, .58 fp16, .53 bf16; norm .62, .62, .58"
    assert ratios in " ".join((budgets.__doc__ or "").split())
    assert "0.67 (fp32), 0.58\n(fp16) and 0.53 (bf16) for elements, 0.62, 0.62 and 0.58 for norms" in PAGE
    words = ("scale dropped", "applied twice", "causal off by one", "mask inverted", "RoPE missing on K")
    assert all(word in PAGE for word in words)
    assert {"scale_dropped", "scale_twice", "causal_off_by_one", "mask_inverted", "rope_missing_on_key"} <= set(
        mutants.MUTANTS
    )
