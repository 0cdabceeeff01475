"""Attention weights as a PNG picture, drawn by matplotlib: a row for each attention, a map for each head."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import BackendMissingError, UsageError

if TYPE_CHECKING:
    from export.pictures.attention_map import AttentionMap

_FEW = 48
"""Tokens up to which each gets its label."""


def require() -> None:
    """Raises BackendMissingError where matplotlib is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise BackendMissingError(
            "A PNG file needs matplotlib, which is not installed: pip install 'attnproof[report]', or write .html."
        )


def write(out: Path, maps: "Sequence[AttentionMap]", batch: int, labels: Sequence[str]) -> None:
    """Writes the picture; the arguments are those of `heat_page.write`.

    Raises:
        UsageError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(each.weights.shape[1] for each in maps)
    figure = Figure(figsize=(3.0 * columns + 0.8, 3.1 * len(maps)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for row, each in zip(axes, maps, strict=True):
        weights = each.weights[batch]
        for head, axis in enumerate(row):
            if head >= len(weights):
                axis.set_axis_off()
                continue
            image = axis.imshow(
                weights[head], vmin=0, vmax=weights[weights == weights].max(initial=1e-9), aspect="auto"
            )
            axis.set_title(f"{each.name}\nhead {head}" if head == 0 else f"head {head}", fontsize=9, loc="left")
            _label(axis, labels, weights.shape[1:], first=head == 0)
        figure.colorbar(image, ax=list(row), shrink=0.9, label="weight")
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise UsageError(f"Cannot write {out}: {error.strerror}.") from error


def _label(axis: Any, labels: Sequence[str], shape: tuple[int, ...], *, first: bool) -> None:
    queries, keys = shape
    axis.set_xlabel("key")
    if first:
        axis.set_ylabel("query")
    if labels and keys <= _FEW:
        # tokens may hold a dollar sign, which would start a formula
        words = [word.replace("$", r"\$") for word in labels]
        axis.set_xticks(range(min(keys, len(words))), words[:keys], rotation=90, fontsize=7)
        offset = keys - queries if len(words) >= keys >= queries else 0
        shown = words[offset : offset + queries]
        axis.set_yticks(range(len(shown)), shown, fontsize=7)
