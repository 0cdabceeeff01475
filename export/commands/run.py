"""`run MODEL`: computes a model's outputs on the provider that was asked for, or exits 3."""

import argparse
import logging
from pathlib import Path

from engines.providers import PROVIDERS
from export.errors import UsageError
from export.report import stdout

_log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `run`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="an artifact folder, an .onnx file, or an engine with its engine.json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--inputs", metavar="X.npz", help="arrays by input name (np.savez)")
    source.add_argument("--random", action="store_true", help="draw the inputs")
    add(
        "--provider",
        choices=tuple(PROVIDERS),
        help="what computes; never another one (default: cpu, for an engine its own)",
    )
    add("-o", "--out", metavar="Y.npz", help="write the outputs, whole or not at all; bfloat16 as raw two-byte values")
    add("--shapes", metavar="batch=2,...", help="sizes of symbolic dimensions of --random inputs")
    add("--seed", type=int, metavar="N", help="seed of --random (default: 0)")
    add("--threads", type=int, metavar="N", help="threads inside one operator of ONNX Runtime")
    add("--runtime-cache", metavar="FILE", help="keep the kernels that TensorRT-RTX compiles in FILE for later runs")
    add("--repeat", type=int, metavar="N", help="time N more runs and print the median and the 90th percentile")


def execute(args: argparse.Namespace) -> int:
    """Runs the model once, or --repeat times more, and prints its outputs' names, dtypes and shapes."""
    _check(args)
    from engines.engine_runner import EngineRunner
    from engines.feeds import parse_dims, random_feeds, resolve_dims
    from engines.npz import load_npz, save_npz
    from export.report.outputs import Run, describe
    from export.runnable import open_runnable

    given = parse_dims(args.shapes or "")
    kernels = Path(args.runtime_cache) if args.runtime_cache else None
    chosen = open_runnable(
        Path(args.model), args.provider, threads=args.threads, verbose=int(args.verbose) > 1, runtime_cache=kernels
    )
    runner = chosen.runner
    _log.info("run       %s on %s: %s", chosen.file.name, runner.provider, chosen.why)
    if runner.fallback:
        _log.info("run       bookkeeping on the CPU: %s", ", ".join(runner.fallback))
    dims = resolve_dims(runner.inputs, given, chosen.usual) if args.random else {}
    feeds = (
        random_feeds(runner.inputs, dims, args.seed or 0) if args.random else load_npz(Path(args.inputs), runner.inputs)
    )
    outputs = runner.run(feeds)
    latency = runner.latency(feeds, args.repeat) if args.repeat else None
    if isinstance(runner, EngineRunner):
        runner.keep_runtime_cache()
    if args.out:
        save_npz(Path(args.out), outputs)
    done = Run(
        model=args.model,
        file=str(chosen.file),
        why=chosen.why,
        provider=runner.provider,
        fallback=runner.fallback,
        dims=dims,
        outputs=tuple(describe(name, array) for name, array in outputs.items()),
        latency=latency,
        saved=args.out,
    )
    if args.json:
        stdout.write_json(done.as_json())
    elif not args.quiet:
        stdout.write(done.as_text())
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses, before anything is loaded, what could only fail after the work."""
    if not args.random and (args.shapes is not None or args.seed is not None):
        raise UsageError("--shapes and --seed are for --random inputs; the arrays of --inputs have their own sizes.")
    if args.repeat is not None and args.repeat < 1:
        raise UsageError(f"--repeat {args.repeat} times nothing; give 1 or more.")
    if args.out and not Path(args.out).parent.is_dir():
        raise UsageError(f"Could not write {args.out}: there is no folder {Path(args.out).parent}.")
