"""An entry as a PyTorch module with its inputs: weights drawn so that attention is far from uniform."""

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from corpus_entry import Entry, Input

_QK = re.compile(r"(^|[._])(w?(q|k|kv|qk|qkv)|query|key|query_key_value|in_proj|c_attn)(?![a-z])", re.IGNORECASE)
"""Names of the weights that make Q and K, alone or packed with V."""

EXPERTS = "batched_mm"
"""How a mixture of experts is computed: the default is an operator that no ONNX exporter knows."""

SPREAD = 1.6
"""Their standard deviation times the root of the channels they read: scores then have a deviation near 2.5."""


class Call(torch.nn.Module):
    """A model that takes its inputs by position and returns tensors only."""

    def __init__(self, model: torch.nn.Module, entry: Entry) -> None:
        super().__init__()
        self.model = model
        self.entry = entry

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Returns what the entry's call makes of the model's outputs."""
        return CALLS[self.entry.call](self.model, dict(zip(self.entry.inputs, tensors, strict=True)))


def _first_output(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]


def _text_and_picture(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    made = model(**inputs)
    return made.text_embeds, made.image_embeds


def _with_attentions(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    made = model(**inputs, output_attentions=True, return_dict=True)
    named = (made[key] for key in made if "attentions" in key)
    return (made[0], *(weights for layers in named for weights in layers))


def _hidden_and_pooled(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    made = model(**inputs)
    return made.last_hidden_state, made.pooler_output


def _hidden_and_predicted(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    made = model(**inputs)
    return made.last_hidden_state, made.predictor_output.last_hidden_state


CALLS = {
    "first output": _first_output,
    "hidden and pooled": _hidden_and_pooled,
    "hidden and predicted": _hidden_and_predicted,
    "text and picture": _text_and_picture,
    "with attentions": _with_attentions,
}
"""How a model's outputs become tensors, by `Entry.call`."""


def build(entry: Entry, impl: str, seed: int = 0) -> Call:
    """Returns the entry's module in eval mode.

    Args:
        entry: The architecture.
        impl: "eager" or "sdpa".
        seed: Seed of the weights.

    Raises:
        Exception: Whatever `transformers` raises where it has no such implementation.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, entry.config)(**_copied(entry.settings))
        for part in (config, getattr(config, "text_config", None)):
            if part is not None and getattr(part, "use_cache", None):
                part.use_cache = False
        torch.manual_seed(seed)
        made = getattr(transformers, entry.model)._from_config(
            config, attn_implementation=impl, experts_implementation=EXPERTS
        )
        model = made.eval()
    spread(model)
    return Call(model, entry).eval()


def _copied(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in settings.items()}


@torch.no_grad()
def spread(model: torch.nn.Module) -> None:
    """Draws weights that keep activations near one and spread attention, and leaves no bias or norm constant."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if not parameter.is_floating_point():
                continue
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn_like(parameter) * _deviation(module, name, parameter))
            elif parameter.numel() > 1 and bool((parameter == parameter[0]).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))


def _deviation(module: torch.nn.Module, name: str, parameter: torch.Tensor) -> float:
    if isinstance(module, torch.nn.Embedding) or re.search("rel|token|position|embed", name.rsplit(".", 1)[-1]):
        return 1.0
    conv = isinstance(module, torch.nn.modules.conv._ConvNd)
    read = parameter[0].numel() if conv else min(parameter.shape[-2:])
    return (SPREAD if _QK.search(name) else 1.0) / read**0.5


def draw(entry: Entry, case: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns the inputs of one of the entry's cases by name."""
    noise = torch.Generator().manual_seed(1000 * seed + case)
    return {
        name: _tensor(spec, [entry.size(a, case) for a in spec.axes], case, noise)
        for name, spec in entry.inputs.items()
    }


def _tensor(spec: Input, shape: list[int], case: int, noise: torch.Generator) -> torch.Tensor:
    if spec.kind in ("ids", "decoder ids"):
        return torch.randint(4, 98, shape, generator=noise)
    if spec.kind == "padding":
        mask = torch.ones(shape, dtype=torch.int64)
        if case == 0:
            mask[0, -3:] = 0
        elif case == 2:
            mask[0, :4] = 0
            mask[1, :1] = 0
        return mask
    if spec.kind == "zeros":
        return torch.zeros(shape, dtype=torch.int64)
    if spec.kind == "boxes":
        return torch.randint(0, 50, shape, generator=noise).cumsum(-1)
    return torch.randn(shape, generator=noise)
