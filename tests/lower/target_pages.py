"""The tables of docs/targets/: `python tests/lower/target_pages.py` makes them of the rows and of what was proved."""

import re
import sys
from collections import Counter
from pathlib import Path

import targets_table

from export.lower.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import marked  # noqa: E402

FOLDER = ROOT / "docs" / "targets"
PAGES = {name: FOLDER / f"{name}.md" for name in TARGETS}
MARKED = "target"

STEPS = {
    "add present outputs": "A past whose present outputs nobody reads: they are written; it computes both or none.",
    "additive mask": "A bool mask beside a bias becomes part of it: the operator has one mask.",
    "batch as heads": "One head under a mask: batch and head change places, since the fused kernel takes masks from "
    "two heads on. The numbers lie in the same order.",
    "cache outside": "Past and present become a Concat in front of the attention: it has no second output.",
    "cast mask": "A mask of another type is cast to Q's.",
    "cast value": "V is cast to Q's type: both are computed in one.",
    "count keys": "Valid lengths alone go to `TRT_Attention`, an operator of the target's own that counts keys, where "
    "the graph promises each row a key.",
    "decompose": "MatMul, Softmax, MatMul, for what no form of the operator says to it.",
    "drop softmax precision": "`softmax_precision` goes where the kernel computes in at least that precision anyway.",
    "drop unread outputs": "Outputs that nobody reads go: a second output is a parse error.",
    "expand mask": "The mask is repeated along axes of size 1 that the standard repeats and the target does not.",
    "expand rotary batch": "Tables of batch 1 are repeated: it reads them only with the batch of what they rotate.",
    "finite mask": "-inf and False become a finite number low enough, and rows without a key are set to 0 afterwards: "
    "what it gives on a row of -inf is not the standard's 0, or not known.",
    "fold": "`is_causal`, a window or valid lengths become part of the mask: it drops, refuses or misreads them.",
    "inline functions": "Functions become plain nodes, because a function's name may be an operator's.",
    "mark decomposable": "`TRT_decomposable=1`: without it an attention that misses the fused kernel does not build.",
    "mask the shown scores outside": "Scores that somebody wants to see after the mask: the mask is added outside.",
    "pad heads": "Zero channels bring a head size into the fused kernel's range; they add nothing and are cut off.",
    "plugin": "A node of the plugin operator, for what it does not compute natively ([plugin.md](plugin.md)).",
    "plugin as function": "A plugin node is computed by its ONNX function: there are no plugins.",
    "raise lowest": "The lowest finite number of a mask is raised: it is taken for -inf here, and a row full of it "
    "would give 0 where the standard gives the mean of V.",
    "rotate in one type": "RotaryEmbedding's tables are cast to the type of what they rotate.",
    "rotation in the plugin": "RotaryEmbedding on Q, and on K, becomes part of the plugin node.",
    "scale on query": "A scale that is negative or zero is multiplied onto Q: its square root, which would go onto Q "
    "and K, is no number, or it is refused.",
    "scale query": "The scale goes onto Q where attentions share Q or K: the builder crashes on a shared operand.",
    "unsqueeze mask": "The mask gets four axes: fewer are not surely read as [heads, queries, keys].",
}
"""What each step of lowering does, and why."""

EXTRAS = {
    "past": "past and present",
    "unread present": "a past whose present is unread",
    "nonpad_kv_seqlen": "nonpad_kv_seqlen",
    "kv_lengths": "valid lengths alone (TRT_Attention)",
    "window": "a window",
    "softcap": "softcap",
    "softmax_precision": "softmax_precision",
    "mask and causal": "a mask and is_causal on one node",
    "value type": "V of another type",
    "value size": "V of another head size",
    "rotary batch": "rotary tables of batch 1",
    "shared operands": "one tensor as Q or K of several attentions",
    "any scale": "a scale of 0 or less",
    "one query among new keys": "one causal query among several new keys",
    "subgraphs": "attentions in the body of If, Loop, Scan",
}


MASKS = {"bool": "bool", "float": "numbers of Q's type", "any float": "of any floating type", "int": "integers"}


def tables(target: Target) -> str:
    """Returns what a row accepts, and which steps were taken for it in the graphs of docs/targets.md."""
    return "\n".join([*_accepts(target), "", *_steps(target), ""])


def _accepts(target: Target) -> list[str]:
    yes = [words for name, words in EXTRAS.items() if name in target.extras]
    no = [words for name, words in EXTRAS.items() if name not in target.extras]
    rows = {
        "newest opset": target.opset or "no limit met",
        "types of Q, K and V": _listed(sorted(t.name.lower() for t in target.types)),
        "masks": f"{_listed([MASKS[n] for n in MASKS if n in target.mask_types])}; "
        f"of {_listed(sorted(target.mask_ranks))} axes",
        "mask axes of size 1 that stand for all": _listed(["batch", "head", *sorted(target.mask_repeats)]),
        "rows without a key, read as the standard says": _listed(sorted(target.mask_values)) or "not known: guarded",
        "honours": _listed(yes) or "nothing beyond the plain operator",
        "does not": _listed(no) or "-",
        "scores as an output, modes": _listed(sorted(map(str, target.scores))) or "none",
    }
    if target.fused_types:
        low, high = target.fused_sizes
        rows["fused kernel"] = (
            f"{_listed(sorted(t.name.lower() for t in target.fused_types))}; head sizes {low} to {high}; masks from "
            f"{target.masked_heads} heads on; one query from {target.one_query_heads} heads on, head size a multiple "
            f"of {target.one_query_step}"
        )
    return ["| | |", "|---|---|", *(f"| {title} | {value} |" for title, value in rows.items())]


def _steps(target: Target) -> list[str]:
    counted = steps(target.name)
    if not counted:
        return ["No step is ever taken."]
    lines = ["| step | what and why | graphs |", "|---|---|---|"]
    return lines + [f"| {name} | {STEPS[name]} | {count} |" for name, count in sorted(counted.items())]


def steps(target: str) -> Counter[str]:
    """Returns in how many graphs of docs/targets.md each step was taken for a target."""
    cells = [row[target] for row in targets_table.stored().values()]
    return Counter(name for cell in cells for name in {named(step) for step in cell.get("steps", ())})


def named(step: str) -> str:
    """Returns the name of a step without what differs from graph to graph."""
    return "fold" if step.startswith("fold ") else re.sub(r"\d+ ", "", step)


def _listed(words: list[str] | list[int]) -> str:
    return ", ".join(map(str, words))


if __name__ == "__main__":
    for name, path in PAGES.items():
        marked.write(path, MARKED, tables(TARGETS[name]))
    sys.exit()
