"""The tables of docs/rules.md: `python tests/fuse/rules_table.py` makes them of the pages in export/rules/."""

import sys
from pathlib import Path

from export import rules

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402

PAGE, MARKED = ROOT / "docs" / "rules.md", "rules"
FAMILIES = {
    "F": "The attention was fused",
    "A": "It was one op on arrival",
    "K1": "What happens to the scores between QK^T and Softmax is no step of attention",
    "K2": "Shapes, types or uses do not fit one op",
    "K3": "What happens to the weights between Softmax and V is no step of attention",
    "K9": "The opset cannot be raised to one that has Attention",
    "R0": "A rotary embedding became one op, was one, or was repaired",
    "R1": "Why a rotation was not made a RotaryEmbedding",
    "V": "The fused block was run beside the original and put back",
}


def tables() -> str:
    """Returns a table for each family: the code, which is a link to its page, its title, and its sentence."""
    lines = []
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", "| code | | |", "|---|---|---|"]
        for rule in map(rules.rule, rules.codes()):
            if rule.code.startswith(family):
                lines.append(f"| [{rule.code}](../export/rules/{rule.code}.md) | {rule.title} | {rule.meaning} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    marked.write(PAGE, MARKED, tables())
