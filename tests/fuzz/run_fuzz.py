"""Fuses many random programs in parallel processes and counts what becomes of them; exit code 1 if one is wrong.

python tests/fuzz/run_fuzz.py [-n PROGRAMS] [--jobs JOBS] [--seed SEED]
python tests/fuzz/run_fuzz.py --golden NAME --seed SEED     find the wrong program of one seed again, shrink it, keep it

A run is made of chunks of programs, each with a seed of its own; a chunk ends at a program that is wrong, which is
printed shrunk and in ONNX text.
"""

import argparse
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
CHUNK = 200


@dataclass
class Tally:
    """What a chunk found: codes of all programs, of those that are softmax attention, notes, and the wrong one."""

    seed: int
    programs: int = 0
    fused: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    wrong: str = ""
    golden: str = ""


def run(seed: int, count: int) -> Tally:
    """Runs one chunk."""
    sys.path[:0] = [str(HERE), str(HERE.parent / "fuse"), str(HERE.parents[1])]
    from fuzz_draft import Program
    from fuzz_judge import judge
    from fuzz_programs import programs
    from fuzz_text import codes, text
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    tally = Tally(seed)

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(programs())
    def chunk(program: Program) -> None:
        try:
            verdict = judge(program)
        except Exception as error:
            tally.golden = f"{text(program.proto)}\n--->\n?"
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        if not tally.wrong:
            tally.programs += 1
            tally.fused += "F001" in verdict.codes
            found = set(verdict.codes) or {"nothing found"}
            tally.codes.update(found)
            tally.notes.update(verdict.notes)
            if not program.near:
                tally.gaps.update(found - {"F001", "A001"})
        if verdict.wrong:
            tally.wrong = "\n".join([*verdict.wrong, *program.stages])
            tally.golden = f"{text(program.proto)}\n--->\n{codes(verdict.codes)}"
            raise AssertionError(verdict.wrong[0])

    try:
        chunk()
    except AssertionError as error:
        tally.wrong = tally.wrong or str(error)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--programs", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the first chunk; the others follow")
    parser.add_argument("--golden", help="run the chunk of --seed alone and keep its wrong program under this name")
    given = parser.parse_args()
    if given.golden:
        return keep(run(given.seed, CHUNK), given.golden)
    total, wrong, began = Tally(given.seed), [], time.monotonic()
    chunks = [(given.seed + i, min(CHUNK, given.programs - i * CHUNK)) for i in range(-(-given.programs // CHUNK))]
    with ProcessPoolExecutor(given.jobs) as pool:
        for done in as_completed([pool.submit(run, *chunk) for chunk in chunks]):
            tally = done.result()
            total.programs += tally.programs
            total.fused += tally.fused
            for name in ("codes", "gaps", "notes"):
                getattr(total, name).update(getattr(tally, name))
            if tally.wrong:
                wrong.append(tally.seed)
                print(f"WRONG (seed {tally.seed})\n{tally.wrong}\n{tally.golden}\n", flush=True)
            elif sys.stderr.isatty():
                print(f"{total.programs} programs", end="\r", file=sys.stderr)
    report(total, wrong, time.monotonic() - began)
    return 1 if wrong else 0


def report(total: Tally, wrong: list[int], seconds: float) -> None:
    print(f"{total.programs} programs in {seconds:.0f} s: {total.fused} fused, {len(wrong)} wrong {wrong or ''}")
    for title, counts in (
        ("rows", total.codes),
        ("kept, though softmax attention", total.gaps),
        ("notes", total.notes),
    ):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))


def keep(tally: Tally, name: str) -> int:
    """Appends a chunk's wrong program to the golden file."""
    if not tally.golden:
        print(f"no program of seed {tally.seed} is wrong")
        return 1
    with (HERE / "goldens.txt").open("a") as file:
        file.write(f"\n=== {name}\n{tally.golden}\n")
    print(f"{tally.wrong}\nkept in {HERE / 'goldens.txt'}; put what is right after its --->")
    return 0


if __name__ == "__main__":
    sys.exit(main())
