"""The user's example inputs, bound to forward's parameters and made safe to trace."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from export.capture import tree
from export.capture.frames import described
from export.errors import UsageError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def bind(module: torch.nn.Module, inputs: Any, origin: str) -> dict[str, Any]:
    """Returns {forward's parameter: value} in forward's order, every tensor a float32 or integer copy of its own.

    Copies, because an exporter takes two inputs that are one tensor (`(x, x, x)` for query, key and value) for one
    input of the graph.

    Args:
        module: The module.
        inputs: A tuple or list by position, or a dict by name; values may nest tuples, lists, dicts and None.
        origin: What messages call the inputs, e.g. "bert.py:make".

    Raises:
        UsageError: The inputs do not fit forward's signature, or hold something that is no tensor, number or None.
    """
    parameters = _parameters(module, origin)
    named = _by_name(inputs, parameters, type(module).__name__, origin)
    ordered = {name: named[name] for name in parameters if name in named}
    return tree.rebuild(ordered, lambda name, leaf: _leaf(name, leaf, origin))


def try_call(module: torch.nn.Module, inputs: dict[str, Any]) -> Exception | None:
    """Returns what calling the module on the inputs raises, or None where it runs."""
    try:
        call(module, inputs)
    except Exception as error:  # forward is the user's code
        return error
    return None


def call(module: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """Returns module(**inputs) without gradients, by the operators an exporter sees.

    nn.MultiheadAttention and nn.TransformerEncoderLayer have a fast path in eval mode whose operators do not export.
    scaled_dot_product_attention runs as its formula: the fast CPU kernel takes a key and a value of different lengths
    without a word, and computes something.
    """
    from export.capture.quiet import plain_attention

    with torch.no_grad(), plain_attention(), sdpa_kernel(SDPBackend.MATH):
        return module(**inputs)


def refuse_mismatch(module: torch.nn.Module, inputs: dict[str, Any], origin: str) -> None:
    """Returns if the module runs on the inputs and returns tensors.

    Raises:
        UsageError: It does not, and the message gives the user's line; or it returns something no graph can.
    """
    name = type(module).__name__
    try:
        leaves = tree.outputs(call(module, inputs))
    except Exception as error:  # forward is the user's code
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tree.leaves(inputs) if hasattr(x, "shape"))
        raise UsageError(
            f"{origin}: {name} does not run on its own example inputs ({shapes}): {described(error)}. "
            "Return inputs from the factory that the module accepts."
        ) from error
    foreign = [leaf for _, leaf in leaves if not isinstance(leaf, (torch.Tensor, *tree.CONSTANTS))]
    if foreign:
        raise UsageError(
            f"{origin}: {name} returns a {type(foreign[0]).__name__}, which a graph cannot. Return tensors, tuples and "
            "dicts of them; Hugging Face models do with use_cache=False."
        )
    if not any(isinstance(leaf, torch.Tensor) for _, leaf in leaves):
        raise UsageError(f"{origin}: {name} returns no tensor, so there is nothing to export. Return its result.")


def _parameters(module: torch.nn.Module, origin: str) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(module.forward)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise UsageError(
                f"{origin}: forward's parameter `{parameter.name}` is positional-only, so the graph's input cannot be "
                "fed by name. Remove the `/` from forward's signature."
            )
    return {p.name: p for p in signature.parameters.values() if p.kind in _NAMED}


def _by_name(inputs: Any, parameters: dict[str, inspect.Parameter], module: str, origin: str) -> dict[str, Any]:
    takes = f"{module}.forward takes ({', '.join(parameters)})"
    if isinstance(inputs, Mapping):
        named = {str(name): value for name, value in inputs.items()}
        unknown = [name for name in named if name not in parameters]
        if unknown:
            close = difflib.get_close_matches(unknown[0], parameters, n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise UsageError(
                f"{origin}: the inputs name `{unknown[0]}`, but {takes}; *args and **kwargs cannot become inputs of a "
                f"graph.{hint}"
            )
    else:
        positional = [name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(inputs) > len(positional):
            raise UsageError(
                f"{origin}: there are {len(inputs)} inputs, but {takes}, {len(positional)} of them by position. "
                "Return as many inputs, or a dict by name; *args cannot become inputs of a graph."
            )
        named = dict(zip(positional, inputs, strict=False))
    for name, parameter in parameters.items():
        if name not in named and parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{origin}: {takes}, and the inputs give no `{name}`. Add it to the inputs.")
    return named


def _leaf(name: str, leaf: Any, origin: str) -> Any:
    if isinstance(leaf, tree.CONSTANTS):
        return leaf
    if not isinstance(leaf, torch.Tensor):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        hint = " Use torch.from_numpy." if kind == "numpy.ndarray" else ""
        raise UsageError(
            f"{origin}: the input `{name}` is a {kind}; inputs are tensors, tuples, lists and dicts of them, numbers "
            f"and None.{hint}"
        )
    if leaf.is_meta or leaf.layout is not torch.strided or leaf.is_complex():
        what = "on the meta device" if leaf.is_meta else "complex" if leaf.is_complex() else "sparse"
        raise UsageError(f"{origin}: the input `{name}` is {what}, which ONNX inputs cannot be. Give a plain tensor.")
    copied = leaf.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copied.float() if copied.is_floating_point() else copied
