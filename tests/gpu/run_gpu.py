"""`make gpu`: every test marked `gpu`, a group a process, all at once; writes benchmarks/results/gpu.json.

A group that lacks a package, whose driver crashes or that takes too long leaves the others alone, and what did not run
is in the results with its reason. `--pack FOLDER` copies the pure Python packages that a bare GPU machine may lack
(pytest, ONNX tools) into a folder to take along: there, `PYTHONPATH=FOLDER python tests/gpu/run_gpu.py`.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
SECONDS = 440
"""What one group may take: the whole stays under eight minutes."""

DTYPES = ("fp16", "bf16", "fp32")
GROUPS = {
    "runners": ("tests/engines", ""),
    "plugin": ("tests/gpu/test_gpu_plugin.py", ""),
    "decode": ("tests/gpu/test_gpu_decode.py", ""),
    **{f"onnxruntime {dtype}": ("tests/gpu/test_gpu_ort.py", f"-{dtype}]") for dtype in DTYPES},
    **{
        f"{target} {dtype}": ("tests/gpu/test_gpu_engines.py", f"-{dtype}-{target}]")
        for target in ("tensorrt", "tensorrt-rtx")
        for dtype in DTYPES
    },
}
"""Group: (what pytest is given, parts that the names of its tests have, by commas)."""

PURE = ("pytest", "pluggy", "iniconfig", "packaging", "pygments", "onnx-ir", "onnx-shape-inference")
VERSIONS = ("torch", "triton", "onnx", "onnx-ir", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "transformers")


def run(name: str, place: Path, more: list[str], seconds: float) -> dict[str, Any]:
    """Returns what became of a group: how its process ended, and a row for each test."""
    paths, parts = GROUPS[name]
    rows = place / f"{name}.jsonl"
    here = [str(ROOT), str(ROOT / "tests" / "gpu"), os.environ.get("PYTHONPATH", "")]
    words = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "record_results", "--gpu-results", str(rows)]
    words += [f"--gpu-tests-with={parts}", *more, paths]
    start, ended = time.monotonic(), "in time"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, here))},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
        code, said = done.returncode, (done.stdout + done.stderr).strip().splitlines()
    except subprocess.TimeoutExpired:
        code, said, ended = -1, [], f"stopped after {seconds:g} s"
    tests = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    if code < 0 and ended == "in time":
        ended = f"crashed with signal {-code}"
    elif code not in (-1, 0, 1, 5):
        ended = f"pytest could not run it (exit {code}): {' '.join(said[-3:])}"
    return {"group": name, "ended": ended, "seconds": round(time.monotonic() - start, 1), "tests": tests}


def machine() -> dict[str, str]:
    """Returns the GPU, its driver and the system, as far as they can be told."""
    found = {"python": platform.python_version(), "system": platform.platform(), "gpu": "none"}
    tool = shutil.which("nvidia-smi")
    if tool:
        asked = [tool, "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        found["gpu"] = done.stdout.strip() or done.stderr.strip()
    return found


def versions() -> dict[str, str]:
    """Returns the version of each package that matters, or that it is not installed."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def failed(group: dict[str, Any]) -> bool:
    """Says whether a group found something wrong, or could not be brought to an end."""
    return group["ended"] != "in time" or any(test["outcome"] == "failed" for test in group["tests"])


def told(groups: list[dict[str, Any]]) -> str:
    """Returns a line for each group, and below it each failure and each reason for a skip with its count."""
    lines = []
    for group in groups:
        counts = Counter(test["outcome"] for test in group["tests"])
        numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no test"
        lines.append(f"{group['group']:20} {numbers}; {group['ended']}, {group['seconds']} s")
        lines += [
            f"    FAILED {t['test']}: {t['why'].splitlines()[-1:]}" for t in group["tests"] if t["outcome"] == "failed"
        ]
        reasons = Counter(t["why"] for t in group["tests"] if t["outcome"] == "skipped")
        lines += [f"    {number} x {why}" for why, number in reasons.items()]
    return "\n".join(lines)


def pack(folder: Path) -> None:
    """Copies the pure Python packages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PURE:
        files = metadata.distribution(name).files or []
        for file in files:
            if file.suffix == ".so":
                raise SystemExit(f"{name} is not pure Python: {file} belongs to this Python and system.")
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


def main(words: list[str]) -> int:
    """Runs the groups and writes the JSON; exit code 1 if one found something wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(map(repr, GROUPS))} (default: all)")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what one group may take (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=min(len(GROUPS), os.cpu_count() or 1), help="groups at once")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="copy what a bare machine may lack, and end")
    parser.add_argument("--on-cpu", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.pack:
        pack(args.pack)
        return 0
    unknown = [name for name in args.groups if name not in GROUPS]
    if unknown:
        parser.error(f"there is no group {unknown[0]!r}")
    more = (["--gpu-on-cpu"] if args.on_cpu else []) + (["-k", args.only] if args.only else [])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.on_cpu:
        os.environ["TRITON_INTERPRET"] = "1"
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(args.jobs) as pool:
        asked = args.groups or list(GROUPS)
        groups = list(pool.map(lambda name: run(name, Path(place), more, args.seconds), asked))
    results = {
        "schema": 1,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "command": " ".join(["python tests/gpu/run_gpu.py", *words]),
        "groups": groups,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(told(groups))
    wrong = [group["group"] for group in groups if failed(group)]
    ran = any(test["outcome"] == "passed" for group in groups for test in group["tests"])
    print(f"FAILED: {', '.join(wrong)}" if wrong else "PASSED" if ran else "NOT RUN: no GPU test ran here")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
