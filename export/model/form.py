"""What a form is: one attention of the zoo, with everything the pipeline needs to export, fuse and check it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Dims = Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """One point of the parity grid.

    Attributes:
        name: What the case is about, e.g. "left-padding".
        dims: Concrete size of every symbolic dimension, e.g. {"batch": 2, "length": 7}.
        padding: Which keys a mask input hides: "none", "right", "left", or "full-row" (one batch row sees no key
            at all). `export.model.draw.keep_mask` draws them.
        magnitude: Factor on the floating-point inputs; 30 drives the softmax into saturation.
        seed: Seed of the generator that draws the inputs.
    """

    name: str
    dims: Dims
    padding: str = "none"
    magnitude: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Form:
    """One attention form.

    Attributes:
        name: Kebab-case name that `python -m export build NAME` takes.
        summary: One line for `python -m export forms`.
        source: Where the semantics come from (public project and file, or paper).
        make: Returns the module in eval mode, fp32, with seeded weights (a small configuration).
        draw: Returns the inputs for a case, by forward's parameter names and in its order: floating-point
            tensors in float32 (the caller casts them to the dtype under test), masks bool, indices int64.
        dynamic: For each input name, {axis: dimension name}.
        dims: {dimension name: (min, opt, max)} used for optimisation profiles.
        attentions: How many softmax attentions one forward pass computes (0 for linear attention).
        ropes: How many RoPE rotations one forward pass computes.
        exporters: The exporters this form goes through.
        padding: The paddings that apply to its mask inputs (empty when it takes no mask).
        notes: Exceptions and quirks, one sentence each, shown in the README's table.
    """

    name: str
    summary: str
    source: str
    make: Callable[[], "torch.nn.Module"]
    draw: Callable[[Case], dict[str, "torch.Tensor"]]
    dynamic: Mapping[str, Mapping[int, str]]
    dims: Mapping[str, tuple[int, int, int]]
    attentions: int = 1
    ropes: int = 0
    exporters: tuple[str, ...] = ("dynamo", "torchscript")
    padding: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
