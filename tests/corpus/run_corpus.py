"""`python tests/corpus/run_corpus.py`: exports, fuses and judges every architecture; prints a table and a last line.

Exit code 1 if a block is neither fused and right, nor excused in `corpus_exceptions.py`, nor lost by the exporter.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import corpus_registry
from corpus_exceptions import excused, gap
from corpus_judge import Row, judge
from corpus_pool import outcomes

FOLDER = Path(tempfile.gettempdir()) / "attnproof-corpus"


Job = tuple[str, str, tuple[str, ...], Path, bool]


def judged(job: Job) -> list[Row]:
    """Returns the rows of one architecture and implementation; an error is a row that says so."""
    name, impl, routes, folder, numbers = job
    try:
        return judge(corpus_registry.ENTRIES[name], impl, routes, folder, numbers=numbers)
    except Exception as error:  # one architecture must not stop the others
        return [Row(name, impl, "all", crash=f"the corpus itself: {type(error).__name__}: {error}")]


def died(job: Job) -> list[Row]:
    """Returns the row of a job whose process is gone."""
    return [Row(job[0], job[1], "all", crash="The process was ended by a signal.")]


def line(row: Row) -> str:
    """Returns a row of the table, and under it what is to be said about it."""
    head = f"{row.name:30} {row.impl:6}{row.route:5} {row.verdict:11}"
    if row.failed:
        return f"{head}the exporter: {row.failed}"
    counts = f"{row.one_op}/{row.expected} ({row.already} on arrival)  rope {row.rotary}  "
    counts += f"{row.nodes} nodes {row.seconds:.2f} s"
    notes = [f"kept {code}: {reason}" for code, reason in dict(row.kept).items()] if row.one_op < row.expected else []
    notes += [f"excused: {reason}" for reason in excused(row)[1]]
    notes += [f"fused graph, {case}: {said}" for case, said in row.wrong.items()]
    for case, said in row.exporters_fault.items():
        notes.append(f"the export itself, {case}: {said[:200]} -> the fused graph: {row.fused.get(case, '-')[:60]}")
    notes += [row.crash] if row.crash else []
    return "\n".join([head + counts, *(f"      {note[:400]}" for note in notes)])


def summary(rows: list[Row]) -> str:
    """Returns the last line."""
    kinds = Counter(row.verdict for row in rows)
    live = [row for row in rows if row.judged or row.crash]
    expected, right = sum(r.expected for r in live), sum(r.right for r in live)
    allowed = sum(min(excused(r)[0], r.expected - r.right) for r in live)
    said = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    return (
        f"fused-and-right {right} of {expected} blocks ({allowed} excused) in {len(live)} exports of "
        f"{len({r.name for r in live})} architectures; exports: {said}; gaps: {sum(gap(r) for r in rows)}"
    )


def main(words: list[str]) -> int:
    """Runs what is named, everything by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures (default: all)")
    parser.add_argument("--impls", nargs="+", default=["eager", "sdpa"])
    parser.add_argument("--routes", nargs="+", default=list(corpus_registry.ROUTES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where exports are kept (default: {FOLDER})")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--count", action="store_true", help="fuse and count only; run and compare nothing")
    parser.add_argument("--bad", action="store_true", help="print only what is not ok")
    args = parser.parse_args(words)
    unknown = [n for n in args.names if n not in corpus_registry.ENTRIES]
    if unknown:
        parser.error(f"no such architectures: {', '.join(unknown)}")
    work = [
        (name, impl)
        for name in args.names or corpus_registry.ENTRIES
        for impl in corpus_registry.ENTRIES[name].impls
        if impl in args.impls
    ]
    rows: list[Row] = []
    start = time.monotonic()
    jobs = [(name, impl, tuple(args.routes), args.folder, not args.count) for name, impl in work]
    for made in outcomes(judged, jobs, args.workers, died):
        for row in made:
            rows.append(row)
            if not args.bad or row.verdict != "ok" or row.exporters_fault:
                print(line(row), flush=True)
    rows.sort(key=lambda r: (r.name, r.impl, r.route))
    if args.json:
        args.json.write_text(json.dumps([{**asdict(r), "verdict": r.verdict} for r in rows], indent=1) + "\n")
    print(f"{time.monotonic() - start:.0f} s. {summary(rows)}")
    return 1 if any(gap(row) for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
