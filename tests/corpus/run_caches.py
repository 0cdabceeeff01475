"""`python tests/corpus/run_caches.py`: every decoder with a cache, each exported, fused and run token by token.

Exit code 1 if an attention is no op with past and present, or a token is wrong.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from corpus_caches import DECODERS, LENGTHS, ROUTES, Judged, Way, judge


def ways(names: list[str]) -> Iterator[Way]:
    """Yields all ways of the decoders; two of them with positions counted in the mask, absolute and rotary ones."""
    for name in names:
        for impl in ("eager", "sdpa"):
            for route in ROUTES:
                for length in LENGTHS:
                    yield Way(name, impl, route, length)
                if name in ("gpt2", "llama"):
                    yield Way(name, impl, route, positions="mask")


def line(row: Judged) -> str:
    """Returns a row of the table, and under it what is wrong."""
    way = row.way
    verdict = "no export" if row.failed else "ok" if row.ok else "WRONG" if row.wrong else "kept"
    head = f"{way.name:10}{way.impl:6}{way.route:5}{way.length:11}positions from the {way.positions:5} {verdict:10}"
    if row.failed:
        return head + row.failed
    notes = [f"kept {code}: {reason}" for code, reason in row.kept]
    notes += [f"{batch} batch: {said}" for batch, said in row.wrong.items()]
    head += f"{row.one_op}/{row.expected} one op, {row.cached}/{row.expected} with past and present"
    return "\n".join([head, *(f"      {note[:400]}" for note in notes)])


def _judged(way: Way) -> Judged:
    with tempfile.TemporaryDirectory() as folder:
        return judge(way, Path(folder))


def main(words: list[str]) -> int:
    """Runs what is named, everything by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"decoders (default: all of {', '.join(DECODERS)})")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(words)
    unknown = [n for n in args.names if n not in DECODERS]
    if unknown:
        parser.error(f"no such decoders: {', '.join(unknown)}")
    start, rows = time.monotonic(), []
    with ProcessPoolExecutor(args.workers) as pool:
        for row in pool.map(_judged, ways(args.names or list(DECODERS))):
            rows.append(row)
            print(line(row), flush=True)
    live = [row for row in rows if not row.failed]
    counts = (sum(row.cached for row in live if row.ok), sum(row.expected for row in live))
    print(
        f"{time.monotonic() - start:.0f} s. with past and present, and right: {counts[0]} of {counts[1]} attentions in "
        f"{len(live)} exports of {len({row.way.name for row in live})} decoders; {len(rows) - len(live)} not exported"
    )
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
