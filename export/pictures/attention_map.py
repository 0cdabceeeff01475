"""The attention weights of any fused model on inputs of the user's: what `view` draws."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class AttentionMap:
    """The weights of one attention.

    Attributes:
        name: Of its node.
        weights: softmax(QK^T), [batch, heads, queries, keys], float64; a row sums to 1.
    """

    name: str
    weights: "npt.NDArray[np.floating[Any]]"


def attention_maps(
    model: Path, inputs: "Mapping[str, npt.NDArray[np.generic]]", only: Sequence[str] = ()
) -> tuple[AttentionMap, ...]:
    """Returns the weights of each attention of a model, computed by ONNX Runtime's CPU provider.

    Args:
        model: An .onnx file with Attention ops or, where it has none, with Softmax.
        inputs: Arrays by the names of the graph's inputs.
        only: Names, or parts of names, of the attentions wanted; empty for all.

    Raises:
        ModelFileError: The file cannot be read.
        UsageError: It has no attention of that name whose weights can be shown, or does not take the inputs.
    """
    import numpy as np

    from export import model_file
    from export.ort_view import open_graph
    from export.pictures import heat
    from export.pictures.weights import show

    loaded = model_file.load(model)
    shown = show(loaded)
    chosen = {name: out for name, out in shown.outputs.items() if not only or any(part in name for part in only)}
    if not chosen:
        reasons = " ".join(shown.reasons.values())
        have = f" It has {', '.join(shown.outputs)}." if shown.outputs else ""
        raise UsageError(f"{model} has no attention to show{' of that name' if only else ''}.{have} {reasons}".rstrip())
    heads = {str(node.name): _heads(node) for node in loaded.graph if node.op_type == "Attention"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / model.name
        model_file.save(shown.model, path)
        outputs = open_graph(path).run(inputs)
    return tuple(
        AttentionMap(name, heat.per_head(outputs[out].astype(np.float64), heads.get(name)))
        for name, out in chosen.items()
    )


def _heads(node: object) -> int | None:
    from export.graph.values import dim

    query = node.inputs[0]  # type: ignore[attr-defined]
    named = node.attributes.get("q_num_heads")  # type: ignore[attr-defined]
    size = named.as_int() if named is not None else dim(query, 1)
    return size if isinstance(size, int) else None
