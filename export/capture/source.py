"""What the user named, loaded: a form of the zoo, or a module of their own with its example inputs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from export.capture import factory, tree
from export.capture.contract import Source
from export.errors import UsageError
from export.model.form import Case, Form

if TYPE_CHECKING:
    import torch

    from export.capture.given import Given

PRIMES = (2, 5, 7, 11, 13, 17, 19, 23)
"""Sizes a form is traced at: all different, none 0 or 1, so that no two dimensions are taken for one another."""


def is_onnx(text: str) -> bool:
    """Says whether a source is a ready ONNX file, which is loaded and not captured."""
    return text.endswith(".onnx")


def load_source(text: str, *, seed: int = 0) -> Source:
    """Returns what the user named, checked as far as it can be before exporting.

    Args:
        text: A form's name, `path/to/file.py:factory` or `package.module:factory`. The factory returns
            (module, inputs) or (module, inputs, dynamic_shapes): inputs a tuple or dict of tensors, dynamic_shapes as
            torch.export takes them.
        seed: Seeds torch's generator while the factory runs.

    Raises:
        UsageError: There is no such form, file or factory; the factory raises or returns something else; the inputs do
            not fit forward; a weight is NaN or infinite.
    """
    if is_onnx(text):
        raise UsageError(f"{text} is an ONNX file, which needs no export. Load it with export.model_file.load.")
    if factory.is_factory(text):
        return _of_factory(text, seed)
    from export.model import registry

    return _of_form(registry.get(text))


def of_module(name: str, module: Any, inputs: Any, dynamic_shapes: Any = None) -> Source:
    """Returns a source from a module in hand; see `load_source` for what the arguments may be.

    Raises:
        UsageError: As `load_source`.
    """
    from export.capture import axes
    from export.capture.inputs import bind, refuse_mismatch
    from export.capture.precision import refuse_non_finite, to_dtype

    module = _bare(module)
    refuse_non_finite(module)
    ready = to_dtype(module.to("cpu").eval(), "fp32")
    bound = bind(ready, inputs, name)
    if not any(hasattr(leaf, "shape") for _, leaf in tree.leaves(bound)):
        raise UsageError(f"{name}: there is no tensor among the inputs, so the graph would have none. Add one.")
    refuse_mismatch(ready, bound, name)
    if dynamic_shapes is None:
        found = axes.find(ready, bound)
        return Source(name, ready, found.inputs, found.dynamic, found.dims, warnings=tuple(found.notes))
    return _of_given(name, ready, bound, dynamic_shapes)


def _bare(module: "torch.nn.Module") -> "torch.nn.Module":
    """Returns the user's own module out of torch.compile and DataParallel, whose forward takes anything."""
    import torch

    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while isinstance(module, wrappers) or hasattr(module, "_orig_mod"):
        inner: Any = module.module if isinstance(module, wrappers) else module._orig_mod
        module = inner
    return module


def _of_factory(text: str, seed: int) -> Source:
    from export.capture.quiet import stdout_to_stderr

    module, inputs, shapes = factory.run(text, seed=seed)
    with stdout_to_stderr():
        source = of_module(text, module, inputs, shapes)
    return source


def _of_form(form: Form) -> Source:
    sizes = traced_sizes(form.dims)
    inputs = dict(form.draw(Case("example", sizes)))
    return Source(form.name, form.make(), inputs, form.dynamic, form.dims, form)


def traced_sizes(dims: Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    """Returns a small size for each dimension of a form, as different from one another as their ranges allow."""
    sizes: dict[str, int] = {}
    for name, (low, opt, high) in dims.items():
        free = [p for p in PRIMES if low <= p <= high and p not in sizes.values() and (name == "batch" or p > 2)]
        sizes[name] = free[0] if free else opt
    return sizes


def _of_given(name: str, module: "torch.nn.Module", inputs: dict[str, Any], shapes: Any) -> Source:
    from export.capture import axes, given, program

    read = given.read(shapes, module, inputs, name)
    grown = _grown(module, inputs, read)
    source = Source(name, module, grown, read.dynamic, read.dims, shapes=read.axes)
    try:
        made = program.run(module, grown, read.axes)
    except Exception:  # the exporter that is asked for will say why; TorchScript may not mind
        return source
    layout, notes = made.layout(grown), list[str]()
    if read.unnamed:  # nobody promised what is equal there
        layout, notes = axes.proved(module, grown, layout)
    dynamic = given.resolved(read, layout)
    return replace(source, dynamic=dynamic, warnings=(*notes, *_fixed(read, dynamic)))


def _grown(module: "torch.nn.Module", inputs: dict[str, Any], read: "Given") -> dict[str, Any]:
    """Returns the inputs with dynamic axes of size 1 at 2: torch.export takes a 1 for a constant."""
    from export.capture.inputs import try_call
    from export.capture.sizes import resized

    leaves = dict(tree.leaves(inputs))
    ones = {
        leaf: {axis: 2 for axis, dim in axes.items() if leaves[leaf].shape[axis] == 1 and dim.isidentifier()}
        for leaf, axes in read.dynamic.items()
    }
    if not any(ones.values()):
        return inputs
    grown = resized(inputs, ones)
    return grown if try_call(module, grown) is None else inputs


def _fixed(read: "Given", dynamic: Mapping[str, Mapping[int, str]]) -> list[str]:
    return [
        f"axis {axis} of `{leaf}` was given as dynamic but stays fixed: torch.export pinned it to a number."
        for leaf, axes in read.dynamic.items()
        for axis in axes
        if axis not in dynamic.get(leaf, {})
    ]
