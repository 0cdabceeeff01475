"""`view MODEL.onnx --inputs X.npz -o heat.html|png`: the attention weights of a model, drawn."""

import argparse
import logging
from pathlib import Path

from export.errors import UsageError
from export.report import stdout

_log = logging.getLogger(__name__)
_ENDINGS = (".html", ".png")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `view`."""
    add = parser.add_argument
    add("model", metavar="MODEL.onnx", help="a fused model; of one without Attention ops every Softmax is drawn")
    add("--inputs", required=True, metavar="X.npz", help="arrays by input name (np.savez)")
    add(
        "-o", "--out", required=True, metavar="HEAT.html|png", help="the page or, with matplotlib, the picture to write"
    )
    add("--labels", metavar="A,B,...", help="what the tokens are called, or a file with one on each line")
    add("--attention", action="append", default=[], metavar="NAME", help="only attentions whose name holds NAME")
    add("--batch", type=int, default=0, metavar="N", help="the element of the batch to draw (default: 0)")


def execute(args: argparse.Namespace) -> int:
    """Runs the model once on ONNX Runtime's CPU provider and writes the picture."""
    from engines.npz import load_npz
    from engines.ort_runner import OrtRunner
    from export.pictures.attention_map import attention_maps
    from export.report import heat_page, heat_plot

    out = Path(args.out)
    if out.suffix not in _ENDINGS:
        raise UsageError(f"Cannot write {out}: view writes {' or '.join(_ENDINGS)}; name a file that ends so.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"Cannot write {out}: its folder does not exist; create it first.")
    if out.suffix == ".png":
        heat_plot.require()
    model = Path(args.model)
    feeds = load_npz(Path(args.inputs), OrtRunner(model, optimization="disable").inputs)
    maps = attention_maps(model, feeds, args.attention)
    if not 0 <= args.batch < min(len(each.weights) for each in maps):
        raise UsageError(f"--batch {args.batch} is not in the batch, which has {len(maps[0].weights)} elements.")
    labels = _labels(args.labels)
    if out.suffix == ".png":
        heat_plot.write(out, maps, args.batch, labels)
    else:
        heat_page.write(out, maps, args.batch, labels, model.name)
    _log.info("wrote     %s", out)
    rows = [
        {"name": m.name, "heads": m.weights.shape[1], "queries": m.weights.shape[2], "keys": m.weights.shape[3]}
        for m in maps
    ]
    if args.json:
        stdout.write_json({"schema": 1, "out": str(out), "attentions": rows})
    elif not args.quiet:
        shapes = (f"{r['name']}: {r['heads']} heads, {r['queries']} queries x {r['keys']} keys\n" for r in rows)
        stdout.write("".join(shapes))
    return 0


def _labels(given: str | None) -> tuple[str, ...]:
    """Returns the tokens: the lines of a file, or what stands between commas."""
    if given is None:
        return ()
    path = Path(given)
    try:
        if path.is_file():
            return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as labels: {error}.") from error
    return tuple(given.split(","))
