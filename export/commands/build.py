"""`build [SOURCE]`: the whole flow, from a PyTorch attention or an ONNX file to checked engines."""

import argparse
import logging
from typing import Any

from engines import flags
from export.errors import UsageError
from export.report import formats
from export.spec import ATTENTIONS, DEFAULT_SOURCE, DTYPES, EXPORTERS, MASKED_ROWS, TARGETS, Spec, read_toml

_log = logging.getLogger(__name__)
_ALSO = ("triton-repository",)
_FLAGS = (
    "out",
    "target",
    "dtype",
    "opset",
    "exporter",
    "sm",
    "masked_rows",
    "attention",
    "require",
    "decode",
    "cache_length",
    "seed",
    *flags.NAMES,
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `build`."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a form (see forms), path/to/file.py:factory, package.module:factory, or an .onnx file "
        f"(default: {DEFAULT_SOURCE})",
    )
    add = parser.add_argument
    add("-o", "--out", metavar="DIR", help="folder of the artifacts (default: out/NAME)")
    add(
        "--target",
        choices=TARGETS,
        help="what to build for (default: tensorrt where it is installed with a GPU, else tensorrt-rtx)",
    )
    add(
        "--dtype",
        choices=DTYPES,
        help="precision (default: fp16; an .onnx file keeps its own, or fp32 is converted)",
    )
    add("--opset", type=int, metavar="N", help="ONNX opset of the export")
    add("--exporter", choices=EXPORTERS, help="PyTorch exporter (default: dynamo)")
    add("--sm", metavar="89,120", help="compute capabilities (default: the GPU's own; 89,120 without a GPU)")
    add(
        "--shapes",
        action="append",
        metavar="batch=1:2:8,...",
        help="min:opt:max of a dimension, or of an input as x=1x1x64:...; given again: another profile of the engine",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        help="plugin: our kernel wherever it can (tensorrt); native: where needed",
    )
    add(
        "--masked-rows",
        choices=MASKED_ROWS,
        help="what a query row without keys gives (default: keep, as PyTorch, except that a fused one gives 0 for NaN)",
    )
    add("--require", metavar="all|N", help="exit 1 unless all, or N, attentions end as one op")
    add("--decode", action="store_const", const=True, help="also make prefill and step graphs with a key/value cache")
    add("--cache-length", type=int, metavar="N", help="tokens the cache holds (default: the largest length)")
    add("--seed", type=int, metavar="N", help="seeds a factory's random weights and the inputs (default: 0)")
    add("--no-verify", action="store_true", help="do not run each fusion before and after on ONNX Runtime")
    add(
        "--format",
        action="append",
        choices=(*formats.FORMATS, *_ALSO),
        help="how the result is printed: human (default), json, github (workflow commands) or junit; and, given once "
        "more, triton-repository: also write the model into DIR.triton (see: package --help)",
    )
    add("--config", metavar="X.toml", help="read these settings from a file; flags win over it")
    add("--force", action="store_true", help="build again even if the folder is up to date or the cache has the engine")
    add("--no-cache", action="store_true", help="neither take engines from the engine cache nor put them there")
    _engine_flags(parser.add_argument_group("how the engine builder is asked"))


def _engine_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--timing-cache", metavar="FILE", help="keep kernel timings in FILE for later builds (tensorrt)")
    add(
        "--hardware-compatibility",
        choices=tuple(flags.HARDWARE),
        help="ampere-plus: run on SM 80 and up; same-compute-capability: on any GPU of that SM (tensorrt)",
    )
    on: dict[str, Any] = {"action": "store_const", "const": True}
    add("--version-compatible", **on, help="run on later versions of the same major, too (tensorrt)")
    add("--refit", **on, help="let the weights of the engine be exchanged")
    add("--strip-plan", **on, help="write the engine without its weights; running it takes them from the ONNX file")


def spec_of(args: argparse.Namespace) -> Spec:
    """Returns the spec the arguments ask for: the config file's values, then the flags'.

    Raises:
        UsageError: A value cannot be meant.
    """
    spec = read_toml(args.config) if args.config else Spec()
    given = {name.replace("_", "-"): getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    if args.shapes:
        given["shapes"], given["further-profiles"] = args.shapes[0], args.shapes[1:]
    if args.source is not None:
        given["source"] = args.source
    if args.no_verify:
        given["verify"] = False
    return spec.with_values(given, "the command line")


def execute(args: argparse.Namespace) -> int:
    """Builds and prints the report."""
    from export import pipeline, repository
    from export.report import console

    asked = args.format or []
    printed = [form for form in asked if form not in _ALSO]
    if len(printed) > 1:
        raise UsageError(f"--format {' and '.join(printed)} are two formats for one stdout; leave one of them out.")
    form = formats.chosen(args, printed[0] if printed else None)
    with console.watching():
        report = pipeline.build(spec_of(args), force=args.force, cache=not args.no_cache)
    if len(printed) < len(asked) and report.passed:
        done = repository.write(report.folder, report.folder.with_name(f"{report.folder.name}.triton"))
        _log.info("wrote     %s, platform %s", done.model, done.config.platform)
    formats.write_report(args, form, report, reused=report.reused)
    return 0 if report.passed else 1
