"""What the page says, from the JSON files of a folder: no model is opened and nothing is computed but places."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import BackendMissingError, UsageError
from export.report import latency, lowering
from export.report.html import blocks, matrix
from export.report.html.matrix import number
from export.report.terminal import byte_size

NAME = "report.html"
_REPORT, _PICTURES = "report.json", "pictures.json"
_VERSIONED = ("torch", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx", "tensorrt", "python")
_GRAPHS = {"exported": "model.onnx", "fused": "fused.onnx"}
Json = Mapping[str, Any]


def write(folder: Path, name: str | None = None) -> Path:
    """Writes report.html into an artifact folder and returns its path; `name` is what the user calls it, if not this.

    Raises:
        UsageError: The folder is no artifact of `build`, or cannot be written.
        BackendMissingError: jinja2 is not installed.
    """
    path = folder / NAME
    text = render(folder, name)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error
    return path


def render(folder: Path, name: str | None = None) -> str:
    """Returns the page about a folder.

    Raises:
        UsageError: The folder is no artifact of `build`.
        BackendMissingError: jinja2 is not installed.
    """
    from engines import engine_json

    report = _read(folder / _REPORT)
    if report is None:
        raise UsageError(
            f"There is no {folder / _REPORT}: {folder} is not an artifact folder. Name what `build` wrote."
        )
    if report.get("schema") != 1:
        raise UsageError(f"{folder / _REPORT} has schema {report.get('schema')}; this version reads 1. Build it again.")
    return of_json(
        report,
        record=_read(folder / engine_json.NAME) or {},
        pictures=_read(folder / _PICTURES),
        bench=latency.load(folder / latency.NAME),
        folder=name or str(folder),
    )


def of_json(
    report: Json,
    *,
    record: Json | None = None,
    pictures: Json | None = None,
    bench: Json | None = None,
    folder: str = "",
) -> str:
    """Returns the page.

    Args:
        report: report.json.
        record: engine.json: sha256s and versions.
        pictures: pictures.json.
        bench: What `bench -o` wrote.
        folder: The folder as the user gave it, for the page's commands.
    """
    attentions = report["attentions"]
    content = {
        "report": report,
        "folder": folder,
        "title": f"{_base(report['spec'].get('source', folder))}: {verdict(report)}",
        "verdict": verdict(report),
        "source": _base(report["spec"].get("source", folder)),
        "cards": _cards(report),
        "lowered": lowering.lines((s["attention"], s["action"], s["why"]) for s in report["lowering"]),
        "empty_rows": [a for a in attentions if a["status"] == "fused" and a["masked_rows"] != "keep"],
        "rows": [blocks.row(report, attention) for attention in attentions],
        "latency": _latency(report, bench),
        "measure": latency.how(_typed(report["spec"]), folder),
        "sizes": {engine["file"]: _sizes(engine) for engine in report["engines"]},
        "matrix": matrix.of(report["parity"]),
        "bisect": _bisect(report, folder),
        "decode": matrix.of(report["decode"]["parity"]) if report.get("decode") else None,
        "provenance": _provenance(report, record or {}),
        "hashes": sorted((record or {}).get("files", {}).items()),
        "command": command(report["spec"], folder),
        "pictures": pictures,
        "plots": _plots(bench),
        "data": embedded([blocks.drawer(report, attention, pictures) for attention in attentions]),
    }
    return str(environment().get_template("page.html.j2").render(content))


def verdict(report: Json) -> str:
    """Returns the page's verdict, which says of a build that passed how much of it was not run."""
    if not report["passed"]:
        return "FAILED"
    rows = [*report["parity"]["rows"], *(report["decode"]["parity"]["rows"] if report.get("decode") else ())]
    stages = [row["stage"] for row in rows if row["status"] == "not run"]
    return f"PASSED what ran; {len(stages)} NOT RUN ({', '.join(dict.fromkeys(stages))})" if stages else "PASSED"


def command(spec: Json, folder: str = "") -> str:
    """Returns the command line that builds what a spec says, into a folder."""
    words = ["python", "-m", "export", "build", _typed(spec)]
    for name, value in spec.items():
        if name in ("source", "out") or value in (None, False, [], {}, ""):
            continue
        if name == "verify":
            continue
        if name == "further-profiles":
            words += [word for text in value for word in ("--shapes", str(text))]
            continue
        if isinstance(value, Mapping):
            value = ",".join(f"{dim}={size}" for dim, size in value.items())
        if isinstance(value, list):
            value = ",".join(map(str, value))
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    words += ["--no-verify"] if spec.get("verify") is False else []
    return shlex.join(words + (["-o", folder] if folder else []))


def environment() -> Any:
    """Returns where templates come from, escaping all that is put into them.

    Raises:
        BackendMissingError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise BackendMissingError("report.html needs jinja2: pip install jinja2.") from error
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded(value: Any) -> str:
    """Returns JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}). Build again.") from error
    return content if isinstance(content, dict) else None


def _base(source: str) -> str:
    """Returns a source without the folders of the machine it was built on."""
    return os.path.basename(source)


def _typed(spec: Json) -> str:
    """Returns a spec's source as one types it where the page is made: relative, if it lies below."""
    return str(spec.get("source", "")).removeprefix(os.path.join(os.getcwd(), ""))


def _cards(report: Json) -> list[tuple[str, str, str]]:
    summary, rows = report["summary"], report["parity"]["rows"]
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "fail", "not run")}
    worst = max(
        (row for row in rows if number(row["ratio"]) is not None),
        key=lambda r: number(r["ratio"]) or 0.0,
        default=None,
    )
    cards = [
        ("attentions", f"{summary['fused'] + summary['already']} of {summary['found']}", "are one operator"),
        ("parity", *_counted(counts)),
    ]
    if worst:
        cards.append(("error / budget", f"{number(worst['ratio']):.2f}", f"largest: {worst['stage']}, {worst['case']}"))
    kernels = [kernel["fused"] for engine in report["engines"] for kernel in engine["attentions"].values()]
    if kernels:
        count = len(report["engines"])
        made = f"are one fused kernel, in {count} engine{'' if count == 1 else 's'}"
        cards.append(("kernels", f"{kernels.count(True)} of {len(kernels)}", made))
    return cards


def _counted(counts: Mapping[str, int]) -> tuple[str, str]:
    ok, failed, absent = (counts[status] for status in ("ok", "fail", "not run"))
    if failed:
        return f"{failed} of {ok + failed} failed", f"{ok} ok, {absent} not run"
    return f"{ok} ok", f"0 failed, {absent} not run"


def _bisect(report: Json, folder: str) -> str:
    """Returns the command that finds where the fused graph parts, nothing where it does not."""
    failed = {row["stage"] for row in report["parity"]["rows"] if row["status"] == "fail"}
    graph = next((name for stage, name in _GRAPHS.items() if stage in failed), None)
    source = _typed(report["spec"])
    return "" if graph is None else shlex.join(["python", "-m", "export", "bisect", source, f"{folder}/{graph}"])


def _sizes(engine: Json) -> tuple[str, str]:
    scratch = engine["scratch"]
    return byte_size(engine["size"]), "-" if scratch is None else byte_size(scratch)


def _provenance(report: Json, record: Json) -> list[tuple[str, str]]:
    parts = record.get("parts", {})
    spec = report["spec"]
    versions = [f"{name} {parts[name]}" for name in _VERSIONED if parts.get(name) not in (None, "not installed")]
    return [
        ("source", _base(str(spec.get("source")))),
        ("truth", report["truth"]),
        ("target", f"{spec.get('target')}, {spec.get('dtype')}"),
        ("opset written", f"{report['opset']} by {report['exporter']}"),
        ("engine builder", report["builder"] or "none"),
        ("SM", ", ".join(str(engine["sm"]) for engine in report["engines"]) or "none"),
        ("GPUs here", parts.get("gpus", "not recorded")),
        ("versions", ", ".join(versions) or "not recorded"),
        ("took", _took(report)),
        ("digest of the request", report["digest"]),
    ]


def _took(report: Json) -> str:
    seconds, memory = report.get("seconds"), report.get("memory")
    parts = [] if seconds is None else [f"{seconds:.1f} s"]
    return ", ".join(parts if memory is None else [*parts, f"{memory / 2**20:.0f} MiB at its peak"]) or "not recorded"


def _latency(report: Json, bench: Json | None) -> list[dict[str, Any]]:
    """Returns a pair of bars for each case of a bench: before and after, in milliseconds."""
    found = []
    for case in (bench or {}).get("cases", []):
        times = latency.before_and_after(case)
        if times:
            top = max(times)
            found.append({"name": case["name"], "before": times[0], "after": times[1], "top": top})
    return found


def _plots(bench: Json | None) -> list[Any]:
    if not bench:
        return []
    from markupsafe import Markup

    from export.report import bench_plot

    return [Markup(plot(dict(bench))) for plot in (bench_plot.speedup, bench_plot.roofline)]
