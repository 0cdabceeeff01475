"""Fusing a ready ONNX graph: what `fuse`, `inspect` and their Python namesakes share.

Nothing here imports torch: a graph from any exporter is read as a graph.
"""

import logging
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from export.fuse.rows import Attention, Rotation, Summary, as_json, summarise
from export.spec import MaskedRows

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from export.fuse import FuseResult
    from export.lower import Step

    Model = str | PathLike[str] | ir.Model | onnx.ModelProto


@dataclass(frozen=True)
class Fused:
    """A fused and lowered graph, and what was said about each attention.

    Attributes:
        model: The graph for the target.
        attentions: One row for each attention found, in graph order.
        steps: What lowering changed for the target, and why.
        rotations: One row for each rotary embedding found.
    """

    model: "ir.Model"
    attentions: tuple[Attention, ...]
    steps: "tuple[Step, ...]"
    rotations: tuple[Rotation, ...] = ()

    @property
    def summary(self) -> Summary:
        """Counts of found, fused, kept and already fused attentions."""
        return summarise(self.attentions)

    def _repr_html_(self) -> str:
        """Returns the rows as a notebook shows them."""
        from export.report import notebook

        return notebook.of_attentions(self.attentions)

    def as_json(self) -> dict[str, Any]:
        """Returns the report of `fuse --report` (schema 1)."""
        return as_json(self.attentions, self.rotations)


def fuse(
    model: "Model",
    out: str | PathLike[str] | None = None,
    *,
    target: str | None = None,
    verify: bool = True,
    masked_rows: MaskedRows = "keep",
) -> Fused:
    """Returns the model with every attention that can be one op made one op, lowered for `target`.

    Args:
        model: Path of an .onnx file, an `onnx.ModelProto`, or an `onnx_ir.Model` (not changed).
        out: Where to write the result; None writes nothing.
        target: "onnx" (the ops as the standard allows them), "ort", "tensorrt-rtx" or "tensorrt". None is "ort", whose
            graphs are standard ONNX in the spellings that ONNX Runtime runs, or "onnx" where that is refused.
        verify: Whether each fusion is run before and after on ONNX Runtime CPU, and rolled back where they differ.
        masked_rows: "keep" what a fully masked row gave, or "zero".

    Raises:
        ModelFileError: The file cannot be read as an ONNX model.
        LoweringRefusedError: The target would refuse the graph or misread it.
        UsageError: `out` cannot be written.
    """
    from export import model_file
    from export.errors import LoweringRefusedError
    from export.fuse import Options
    from export.fuse import fuse as fuse_graph
    from export.lower import lower

    result = fuse_graph(_load(model), Options(verify=verify, masked_rows=masked_rows))
    try:
        lowered = lower(result.model, target or "ort")
    except LoweringRefusedError as refusal:
        if target is not None:
            raise
        _log.warning("The graph is written as the standard allows it; ONNX Runtime may not run it: %s", refusal)
        lowered = lower(result.model, "onnx")
    if out is not None:
        model_file.save(lowered.model, out)
    return Fused(lowered.model, result.attentions, lowered.steps, result.rotations)


def inspect(model: "Model", *, verify: bool = True, masked_rows: MaskedRows = "keep") -> tuple[Attention, ...]:
    """Returns what `fuse` would do with each attention of the model; nothing is written.

    Args:
        model: As for `fuse`.
        verify: As for `fuse`.
        masked_rows: As for `fuse`.

    Raises:
        ModelFileError: The file cannot be read as an ONNX model.
    """
    return inspect_all(model, verify=verify, masked_rows=masked_rows).attentions


def inspect_all(model: "Model", *, verify: bool = True, masked_rows: MaskedRows = "keep") -> "FuseResult":
    """Returns what `fuse` would make of the model, rotary embeddings included; otherwise like `inspect`."""
    from export.fuse import Options
    from export.fuse import fuse as fuse_graph

    return fuse_graph(_load(model), Options(verify=verify, masked_rows=masked_rows))


def unmet(attentions: tuple[Attention, ...], require: str | None) -> str | None:
    """Returns why `--require` is not met ("all", or a number of attentions that must be one op), or None when it is.

    "all" is not met by a graph in which no attention was found: nothing was shown to be fused there.
    """
    if require is None:
        return None
    count = summarise(attentions)
    done = count.fused + count.already
    if require == "all":
        if count.found == 0:
            return "--require all: no attention was found in the graph."
        if count.kept:
            return f"--require all: {count.kept} of {count.found} attentions stayed decomposed."
        return None
    if done < int(require):
        return f"--require {require}: only {done} of {count.found} attentions found are one op."
    return None


def _load(model: "Model") -> "ir.Model":
    import onnx_ir as ir

    if isinstance(model, ir.Model):
        return model
    if isinstance(model, str | PathLike):
        from export import model_file

        return model_file.load(model)
    return ir.from_proto(model)
