"""The table of features and targets, docs/targets.md: `python tests/lower/targets_table.py` proves it and writes it.

Every feature of `target_features` goes to every target; what was seen goes to targets_table.json, and the page is
made from that. A cell is proved again only where the graph that lowering makes has
changed since; `test_targets_table.py` fails when there is such a cell.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import target_proof
from target_features import FEATURES

ROOT = Path(__file__).parents[2]
JSON = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "targets.md"
HEAD = """\
# Every feature on every target

What becomes of everything that `ai.onnx::Attention` (opset 23 to 25) and `RotaryEmbedding` can say, and of nodes that a
parser takes for something else: {count} small graphs, lowered for each target. Why each target is given what
it is given: [onnx](targets/onnx.md), [ort](targets/ort.md), [tensorrt-rtx](targets/tensorrt-rtx.md),
[tensorrt](targets/tensorrt.md), [the plugin](targets/plugin.md). The page is the output of
`python tests/lower/targets_table.py`.

- *native*: the operator as it is. *lowered*: other nodes around one attention operator. *plugin*: one plugin node.
  *decomposed*: MatMul, Softmax, MatMul. *refused*: with a sentence, before any parser. *passed on*: a foreign operator
  that your own library computes. On `tensorrt-rtx` also what the builder made of it for SM 89: *fused* is one kernel.
- The numbers of every lowered graph are within their derived bound of float64, written from the operator's text, at two
  sizes with and without keys, on ONNX Runtime's CPU provider (bf16: in ONNX's reference implementation). On
  `tensorrt-rtx` an engine was built, and the parsed network has the causal rule and the mask that the graph has.
- Engines of `tensorrt` were NOT RUN or built: it needs a GPU. Its graphs were checked against what its importer, which
  it shares with TensorRT-RTX, refuses or drops without a word; plugin nodes were computed by their ONNX function.

## By kind

{summary}
## Every graph
"""

Table = dict[str, dict[str, dict[str, Any]]]


def stored() -> Table:
    """Returns the table as it was proved last: {feature: {column: cell}}."""
    return json.loads(JSON.read_text()) if JSON.exists() else {}  # type: ignore[no-any-return]


def proved(old: Table, *, again: bool = False, only: str = "") -> Table:
    """Returns the table with every cell proved whose lowered graph is another than when it was proved."""
    table: Table = {}
    with tempfile.TemporaryDirectory() as place:
        for name, feature in FEATURES.items():
            cells = dict(old.get(name, {}))
            for column in target_proof.COLUMNS:
                now = target_proof.digest(target_proof.lowered(feature, column))
                kept = cells.get(column, {})
                if (again and only in name) or kept.get("digest") != now or kept["outcome"] == "WRONG":
                    cells[column] = target_proof.cell(feature, column, Path(place))
                    print(name, "|", column, "|", shown(cells[column]), cells[column].get("wrong", ""), flush=True)
            table[name] = {column: cells[column] for column in target_proof.COLUMNS}
    return table


def shown(cell: dict[str, Any]) -> str:
    """Returns the one or two words of a cell."""
    outcome, kernel = cell["outcome"], {"decomposed": "unfused"}.get(cell.get("engine", ""), cell.get("engine"))
    if kernel not in ("fused", "unfused") or (outcome, kernel) == ("decomposed", "unfused"):
        return str(outcome)
    return kernel if outcome == "native" else f"{outcome} and {kernel}"


def summary(table: Table) -> str:
    """Returns the short table: a line a group, each cell with its outcomes and how many features have them."""
    columns = list(target_proof.COLUMNS)
    groups: dict[str, list[str]] = {}
    for feature in FEATURES.values():
        groups.setdefault(feature.group, []).append(feature.name)
    lines = [f"| what the graph says | graphs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for group, names in groups.items():
        cells = []
        for column in columns:
            words = [shown(table[name][column]) for name in names]
            counts = {word: words.count(word) for word in words}
            most = sorted(counts.items(), key=lambda item: -item[1])
            cells.append(", ".join(f"{n} {word}" if len(counts) > 1 else word for word, n in most))
        lines.append(f"| {group} | {len(names)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(table: Table) -> str:
    """Returns docs/targets.md: the words, the short table, and every cell with its steps, kernels and sentences."""
    columns = list(target_proof.COLUMNS)
    lines = [
        HEAD.format(count=len(FEATURES), summary=summary(table)),
        f"| what the graph says | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    notes: dict[str, int] = {}
    for name in FEATURES:
        cells = []
        for column in columns:
            cell = table[name][column]
            text = shown(cell)
            if cell.get("steps"):
                text += f": {', '.join(cell['steps'])}"
            for sentence in (*([cell["sentence"]] if "sentence" in cell else ()), *cell.get("why", ())):
                text += f" [{notes.setdefault(sentence, len(notes) + 1)}]"
            cells.append(text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{at}. {sentence}" for sentence, at in notes.items())]) + "\n"


def main(words: list[str]) -> int:
    """Proves what has changed, writes the JSON and the page; returns 1 where a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="prove every cell again")
    parser.add_argument("--only", default="", help="with --all: only features whose name holds this")
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    args = parser.parse_args(words)
    table = stored() if args.render else proved(stored(), again=args.all, only=args.only)
    JSON.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(page(table))
    return int(any(cell["outcome"] == "WRONG" for cells in table.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
