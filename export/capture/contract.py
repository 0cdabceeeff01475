"""What capture takes and gives: a loaded module with its inputs, and the graph that was written for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from export.capture import tree
from export.errors import UsageError
from export.model.form import Case, Form

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir
    import torch

Dynamic = Mapping[str, Mapping[int, str]]
"""{input name, nested ones as "past_0_1": {axis: name of its dimension, or arithmetic such as "past + length"}}."""


@dataclass(frozen=True, eq=False)
class Source:
    """What the user named, loaded: a form, `file.py:factory` or `package.module:factory`.

    Attributes:
        name: Short name for messages and folders.
        module: In eval mode, fp32, on the CPU.
        inputs: Example inputs by forward's parameter names, in its order; floating-point tensors are fp32, and no two
            share memory (an exporter would take them for one input).
        dynamic: Which axes vary, and under which name.
        dims: {dimension: (min, opt, max)} as far as the form or the user's dynamic_shapes say; may be empty.
        form: The form, where the source is one.
        shapes: {input: {axis: what torch.export is told}} from the user's own dynamic_shapes; None without them.
        warnings: What the user should know, such as an axis that stays fixed and why.
    """

    name: str
    module: "torch.nn.Module"
    inputs: dict[str, Any]
    dynamic: Dynamic
    dims: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    form: Form | None = None
    shapes: Mapping[str, Mapping[int, Any]] | None = None
    warnings: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Returns the size every plainly named dimension has in the example inputs."""
        leaves = dict(tree.leaves(self.inputs))
        found: dict[str, int] = {}
        for name, axes in self.dynamic.items():
            for axis, dim in axes.items():
                if dim.isidentifier():
                    found.setdefault(dim, int(leaves[name].shape[axis]))
        return found

    def draw(self, case: Case) -> dict[str, Any]:
        """Returns inputs at the case's sizes: the form's own, or the example inputs resized and drawn anew."""
        if self.form is not None:
            return dict(self.form.draw(case))
        from export.capture import sizes

        return sizes.draw(self, case.dims, seed=case.seed, magnitude=case.magnitude)


@dataclass(frozen=True)
class TensorSpec:
    """One input of the graph.

    Attributes:
        name: Its name in the graph.
        dtype: numpy or ml_dtypes name, e.g. "float16", "bfloat16", "int64", "bool".
        shape: Sizes, and names (or arithmetic on names) of the dimensions that vary.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Captured:
    """The exported graph, after it has been run.

    Attributes:
        model: The graph.
        inputs: Its inputs, flattened.
        outputs: Names of its outputs, flattened.
        opset: The opset that was written, read from the model.
        exporter: "dynamo" or "torchscript".
        warnings: What the user should know; a check that was not run is here.
        parameters: forward's parameter names, so that feeds of another name are refused.
    """

    model: "ir.Model"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    opset: int
    exporter: str
    warnings: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def flatten(self, inputs: Mapping[str, Any]) -> "dict[str, npt.NDArray[np.generic]]":
        """Returns what a runtime is fed: one array per graph input, from inputs by forward's parameter names.

        None, numbers and texts are part of the graph, not inputs of it, and are left out, as are tensors that reach
        no output. Floating-point values are cast to the graph's type.

        Raises:
            UsageError: A name is not a parameter of forward, or a graph input is missing.
        """
        unknown = [name for name in inputs if self.parameters and name not in self.parameters]
        if unknown:
            raise UsageError(
                f"forward has no parameter `{unknown[0]}`: the model takes {', '.join(self.parameters)}. "
                "Name the inputs after forward's parameters."
            )
        given = dict(tree.leaves(inputs))
        missing = [spec.name for spec in self.inputs if not hasattr(given.get(spec.name), "shape")]
        if missing:
            raise UsageError(
                f"The graph's input `{missing[0]}` is not among the inputs given ({', '.join(given) or 'none'}). "
                "Give a tensor for every input that had one when the module was exported."
            )
        from export.capture.arrays import as_array

        return {spec.name: as_array(given[spec.name], spec.dtype) for spec in self.inputs}
