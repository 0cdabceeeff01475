"""Attention weights as one HTML file that needs no network: every head, queries down and keys across."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import UsageError
from export.report.html.page import embedded, environment

if TYPE_CHECKING:
    from export.pictures.attention_map import AttentionMap

_LARGEST = 256


def write(out: Path, maps: "Sequence[AttentionMap]", batch: int, labels: Sequence[str], model: str) -> None:
    """Writes the page.

    Args:
        out: The file.
        maps: The weights.
        batch: The element of the batch to draw.
        labels: Names of the tokens; empty for their numbers.
        model: The model's name.

    Raises:
        UsageError: The file cannot be written.
        BackendMissingError: jinja2 is not installed.
    """
    from export.pictures import heat

    blocks = []
    for each in maps:
        weights = each.weights[batch]
        small = heat.pooled(weights, _LARGEST)
        block = {"name": each.name, "heads": len(weights), "queries": weights.shape[1], "keys": weights.shape[2]}
        blocks.append({**block, "cells": list(small.shape[1:]), "map": heat.packed(small)})
    page = environment().get_template("heat.html.j2")
    text = page.render(title=f"Attention weights of {model}", blocks=blocks, data=embedded([blocks, list(labels)]))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {out}: {error.strerror}.") from error
