"""Registers the operator with full TensorRT as a quickly deployable plugin whose kernel is compiled ahead of time.

TensorRT's parser finds it for nodes of domain "attnproof" that carry `plugin_namespace`, `plugin_version` and `aot`
(`node_attributes`). The engine then holds the PTX of the architecture it was built on, so running it needs neither
Triton nor this package. Checked against the tensorrt 11.4 bindings; `tensorrt.plugin` is handed in, not imported here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from plugins.contract import MAX_HEAD_SIZE, MIN_HEAD_SIZE, ROTARY_ATTENTION, Settings
from plugins.kernels.arguments import Problem
from plugins.kernels.compile import Compiled, KernelError, compile_ahead

PLUGIN_ID = f"{ROTARY_ATTENTION.domain}::{ROTARY_ATTENTION.name}"
_DTYPES = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
_TYPES = "FP32|FP16|BF16"


def node_attributes(settings: Settings) -> dict[str, Any]:
    """Returns every attribute of the ONNX node: the settings, and those that name the plugin to TensorRT's parser."""
    return {
        **settings.as_attributes(),
        "plugin_namespace": ROTARY_ATTENTION.domain,
        "plugin_version": str(ROTARY_ATTENTION.version),
        "aot": 1,
    }


def register(plugin: Any, sm: int, compiler: Callable[[Problem, int], Compiled] = compile_ahead) -> None:
    """Registers RotaryAttention in TensorRT's plugin registry; a second call for the same module does nothing.

    Args:
        plugin: The module `tensorrt.plugin`.
        sm: Compute capability of the GPU the engine is built on, e.g. 90.
        compiler: What makes the kernel.
    """
    if getattr(plugin, "_attnproof_sm", None) == sm:
        return
    plugin._attnproof_sm = sm
    describe, tune, implement = _functions(plugin, sm, compiler)
    plugin.register(PLUGIN_ID)(describe)
    plugin.autotune(PLUGIN_ID)(tune)
    plugin.aot_impl(PLUGIN_ID)(implement)


def _functions(
    plugin: Any, sm: int, compiler: Callable[[Problem, int], Compiled]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Returns the three functions, annotated with the contract's inputs and attributes as the registry demands."""
    names = [i.name for i in ROTARY_ATTENTION.inputs]
    count = len(names)
    attributes = {a.name: a.kind for a in ROTARY_ATTENTION.attributes}

    def describe(*arguments: Any, **given: Any) -> Any:
        tensors = dict(zip(names, arguments, strict=True))
        out = tensors["q"].like()
        out.shape_expr[3] = tensors["v"].shape_expr[3]
        return out

    def tune(*arguments: Any, **given: Any) -> Any:
        combination = plugin.AutoTuneCombination()
        combination.pos((0, 1, 2, 5, count), _TYPES)  # q, k, v, bias and the output have one type
        combination.pos((3, 4), "FP32")
        combination.pos((6,), "INT32")
        return [combination]

    def implement(*arguments: Any, **given: Any) -> Any:
        tensors = dict(zip(names, arguments[:count], strict=True))
        values = dict(zip(attributes, arguments[count : count + len(attributes)], strict=True))
        compiled = compiler(_problem(tensors, Settings(**values)), sm)
        return _launch(plugin, compiled, tensors)

    _sign(describe, [*((n, plugin.TensorDesc) for n in names), *attributes.items()], plugin.TensorDesc)
    _sign(tune, [*((n, plugin.TensorDesc) for n in names), ("outputs", tuple[plugin.TensorDesc])], None)
    last = [("outputs", tuple[plugin.TensorDesc]), ("tactic", int)]
    returned = tuple[str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]
    _sign(implement, [*((n, plugin.TensorDesc) for n in names), *attributes.items(), *last], returned)
    return describe, tune, implement


def _sign(function: Callable[..., Any], parameters: list[tuple[str, Any]], returned: Any) -> None:
    """Gives a function the signature that the registry reads: it knows inputs and attributes by annotation alone."""
    import inspect

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters]
    signed = inspect.Signature(listed, return_annotation=inspect.Signature.empty if returned is None else returned)
    function.__signature__ = signed  # type: ignore[attr-defined]


def _problem(tensors: Mapping[str, Any], settings: Settings) -> Problem:
    """Returns what to compile; heads and head sizes must be fixed in the engine's profile."""
    sizes = {
        what: _constant(tensors[name].shape_expr[axis], what)
        for what, name, axis in (("H", "q", 1), ("G", "k", 1), ("D", "q", 3), ("E", "v", 3))
    }
    for letter in "DE":
        if not MIN_HEAD_SIZE <= sizes[letter] <= MAX_HEAD_SIZE:
            raise KernelError(f"The head size {sizes[letter]} is outside {MIN_HEAD_SIZE} to {MAX_HEAD_SIZE}.")
    dtype = _DTYPES[tensors["q"].dtype.name]
    return Problem(settings, sizes["H"], sizes["G"], sizes["D"], sizes["E"], dtype)


def _constant(expression: Any, what: str) -> int:
    if not expression.is_constant:
        raise KernelError(f"The size {what} of a RotaryAttention changes between calls; only B, S and T may.")
    return int(expression.constant_value())


def _launch(plugin: Any, compiled: Compiled, tensors: Mapping[str, Any]) -> tuple[str, str, Any, Any]:
    q, k, bias = (tensors[name].shape_expr for name in ("q", "k", "bias"))
    launch = plugin.KernelLaunchParams()
    launch.grid_x = plugin.cdiv(q[2], compiled.variant.block_m)
    launch.grid_y = q[0] * q[1]
    launch.block_x = compiled.threads
    launch.shared_mem = compiled.shared
    integers = plugin.SymIntExprs(6)
    for at, size in enumerate((q[2], k[2], tensors["cos"].shape_expr[0], bias[0], bias[1], bias[2])):
        integers[at] = plugin.SymInt32(size)
    return compiled.name, compiled.ptx, launch, integers
