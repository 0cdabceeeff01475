"""`python benchmarks/pass_time.py`: how long the pass takes as graphs grow, and how much memory, beside the peers'.

A llama of `DEPTHS` layers is exported by three routes, and one of so many layers that TorchScript writes 100,000 nodes
for it. Each pass gets the file in a process of its own; reading it, writing it and importing the tool are not counted.
Ours is timed without verification, and once with it; memory is by how much resident memory rises at its peak above the
loaded model. Seconds are of the process, so other work on the machine counts little. A tool that does not end
within the limit is not given a deeper model of that route. The JSON is benchmarks/results/pass_time.json, and
docs/measurements.md has a table of it and the least-squares lines.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import marked
from fusion import PACKAGES, merged
from fusion_passes import AGAIN, LIMIT, PASSES, pass_time
from fusion_table import ROUTES as TITLES
from fusion_tools import loaded

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "corpus")]

RESULTS = Path(__file__).parent / "results" / "pass_time.json"
PAGE, MARKED = ROOT / "docs" / "measurements.md", "pass time"
ROUTES = ("eager-d18", "sdpa-d18", "eager-ts17")
DEPTHS = (2, 8, 32, 128)
LARGE = 446
"""Layers that TorchScript writes 100,000 nodes for."""
OURS = next(iter(PASSES))
KEYS = ("route", "layers", "tool")

Row = dict[str, Any]


def exported(layers: int, route: str, folder: Path) -> Path:
    """Returns the file of a llama of so many layers, exported where it is not kept."""
    from corpus_export import export
    from corpus_registry import ENTRIES

    llama = ENTRIES["llama"]
    deep = replace(llama, name=f"llama-{layers}", settings={**llama.settings, "num_hidden_layers": layers})
    made = export(deep, *route.split("-"), folder)
    if made.path is None:
        raise SystemExit(f"The exporter failed on {layers} layers: {made.reason}")
    return made.path


def memory(path: Path) -> Row:
    """Returns the bytes that our pass needs at its peak above the loaded model, what it imports included; or None."""
    from export.bench import memory as resident
    from export.fuse import Options, fuse

    model = loaded(path)
    return {"memory": resident.peak(partial(fuse, model, Options(verify=False)))[1]}


def verified(path: Path) -> Row:
    """Returns the process seconds of our verification: every block run before and after, or known to be another's."""
    from export.fuse import fuse
    from export.fuse.proof import verify as proof

    model, spent, check = loaded(path), list[float](), proof.verify

    def timed(*given: Any) -> Any:
        start = time.process_time()
        try:
            return check(*given)
        finally:
            spent.append(time.process_time() - start)

    proof.verify = timed  # type: ignore[assignment]
    start = time.process_time()
    fuse(model)
    if time.process_time() - start < AGAIN:  # as the pass: the better of two, without what is imported once
        fuse(model)
    return {"verification": round(min(spent), 3)}


def measured(tool: str, path: Path, limit: float) -> Row:
    """Returns all that is measured of a tool on a file, each in a process of its own."""
    row: Row = {}
    for what in ("seconds", "memory", "verification") if tool == OURS else ("seconds",):
        words = [sys.executable, __file__, "--one", what, tool, str(path), "--limit", str(limit)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        row |= json.loads(done.stdout.splitlines()[-1])
    return row


def one(what: str, tool: str, path: Path, limit: float) -> Row:
    """Returns one measurement, made in this process."""
    if what == "seconds":
        return pass_time(tool, path, limit)
    return memory(path) if what == "memory" else verified(path)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """Yields a row for each route, depth and tool, the shallow first."""
    late = set()
    jobs = [(route, depth) for route in args.routes for depth in sorted(args.depths)]
    jobs += [("eager-ts17", LARGE)] if args.large else []
    for route, layers in jobs:
        path = exported(layers, route, args.folder)
        for tool in args.tools:
            if (route, tool) not in late:
                row = {"route": route, "layers": layers, "tool": tool, **measured(tool, path, args.limit)}
                late |= {(route, tool)} if row["seconds"] is None else set()
                print(row, file=sys.stderr, flush=True)
                yield row


def line(points: list[tuple[float, float]]) -> Row:
    """Returns the least-squares line through points (nodes, amount): slope, intercept, R^2; and the growth's exponent.

    The exponent is the slope between the logarithms of the two largest graphs: 1 where twice the nodes take twice.
    """
    import numpy as np

    x, y = np.array(sorted(points), np.float64).T
    slope, intercept = np.polyfit(x, y, 1)
    rest = y - (slope * x + intercept)
    exponent = math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])
    return {
        "slope": float(slope),
        "intercept": float(intercept),
        "r2": float(1.0 - (rest**2).sum() / ((y - y.mean()) ** 2).sum()),
        "exponent": float(exponent),
        "points": len(points),
    }


def fits(found: list[Row]) -> list[Row]:
    """Returns the line of each route, tool and measure that has three graphs or more."""
    lines = []
    for route in dict.fromkeys(r["route"] for r in found):
        for tool in dict.fromkeys(r["tool"] for r in found):
            mine = [r for r in found if (r["route"], r["tool"]) == (route, tool) and r["seconds"] is not None]
            for of in ("seconds", "verification", "memory"):
                points = [(r["nodes"], r[of]) for r in mine if r.get(of)]
                if len(points) >= 3:
                    lines.append({"route": route, "tool": tool, "of": of, **line(points)})
    return lines


def markdown(results: Row) -> str:
    """Returns the table of what was measured, that of the lines, and how."""
    found = results["rows"]
    tools = [tool for tool in PASSES if any(r["tool"] == tool for r in found)]
    body = []
    for key in dict.fromkeys((r["route"], r["layers"], r["nodes"]) for r in found):
        by = {r["tool"]: r for r in found if (r["route"], r["layers"], r["nodes"]) == key}
        mine = by[OURS]
        cells = [f"{mine['memory'] / 2**20:.0f} MiB", f"{mine['verification']:.2f} s"]
        body.append([f"{_title(key[0])}, {key[1]} layers", key[2], *(_cell(by.get(t)) for t in tools), *cells])
    heads = ["llama exported by", "nodes", *tools, f"{OURS}: memory", f"{OURS}: verification"]
    drawn = []
    for r in results["fits"]:
        scale, unit = (1024, "KiB") if r["of"] == "memory" else (1e-6, "µs")
        start = f"{r['intercept'] / 2**20:.1f} MiB" if r["of"] == "memory" else f"{r['intercept']:.2f} s"
        amount = f"{r['slope'] / scale:.1f} {unit}"
        what = f"{r['tool']}: {r['of']}"
        drawn.append([_title(r["route"]), what, amount, start, f"{r['r2']:.4f}", f"{r['exponent']:.2f}", r["points"]])
    said = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join(
        [
            *marked.table(heads, body),
            "",
            *marked.table(["route", "of", "a node", "intercept", "R²", "exponent", "graphs"], drawn),
            "",
            f"Measured {results['date']} on a {results['machine']} by `{results['command']}` with {said}.",
            "",
        ]
    )


def _title(route: str) -> str:
    impl, name = route.split("-")
    return f"{impl}, {TITLES[name]}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return row["said"] if row["seconds"] is None else f"{row['seconds']:.2f} s, {row['blocks']} blocks"


def main(words: list[str]) -> int:
    """Measures what is named, everything by default, and writes the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=ROUTES)
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS), help="layers")
    parser.add_argument("--large", action="store_true", help="the graph of 100,000 nodes too")
    parser.add_argument("--tools", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--limit", type=float, default=LIMIT, help="process seconds that a pass has (default: 60)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "attnproof-corpus")
    parser.add_argument("--add", action="store_true", help="keep what the JSON holds of other graphs and tools")
    parser.add_argument("--render", action="store_true", help="only write the page from the JSON")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.one:
        print(json.dumps(one(args.one[0], args.one[1], Path(args.one[2]), args.limit)))
        return 0
    if not args.render:
        from export.bench.result import machine

        held = json.loads(RESULTS.read_text()) if args.add else {"rows": [], "command": ""}
        command = " ".join(["python benchmarks/pass_time.py", *words])
        results = {
            "schema": 1,
            "kind": "pass time",
            "date": date.today().isoformat(),
            "machine": machine(),
            "versions": {package: version(package) for package in PACKAGES},
            "seed": 0,
            "limits": {"pass": args.limit, "again": AGAIN, "unit": "process seconds"},
            "command": "; ".join(filter(None, [held["command"], command])),
            "rows": held["rows"],
        }
        for row in rows(args):
            results["rows"] = merged(results["rows"], [row], KEYS)
            results["fits"] = fits(results["rows"])
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    marked.write(PAGE, MARKED, markdown(json.loads(RESULTS.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
