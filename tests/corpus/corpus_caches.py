"""Decoders with a cache: exported as a step whose past comes in and whose present goes out, judged token by token."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from corpus_count import count
from corpus_module import spread

from engines.ort_runner import OrtRunner
from export.capture.quiet import quiet
from export.fuse import FuseResult, fuse
from export.lower import lower
from export.parity import ParityCase
from export.parity.compare import compare
from export.parity.precision import precision
from export.parity.reference import Reference

_TEXT: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_SIZED = {**_GROUPED, "head_dim": 16}

DECODERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 99}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GROUPED, "sliding_window": 4}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _SIZED),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_SIZED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
"""Name: configuration, model, settings. The windows of 4 keys are shorter than every cache but the first tokens'."""

ROUTES = ("ts17", "d18", "d23")
LENGTHS = ("any length", "one token")
STEPS = 8
PADDED = (3, 0, 1)
"""Tokens of padding on the left of each row of the ragged batch."""


@dataclass(frozen=True)
class Way:
    """What is exported: which decoder, how it computes attention, through which exporter.

    Attributes:
        name: A name in DECODERS.
        impl: "eager" or "sdpa".
        route: A name in ROUTES.
        length: New tokens a call: "any length", or "one token" as a fixed size, as exporters of decoders write steps.
        positions: Whether positions are counted in the padding mask, as `generate` does, or follow the past's length.
    """

    name: str
    impl: str
    route: str
    length: str = "any length"
    positions: str = "past"

    def __str__(self) -> str:
        return "-".join((self.name, self.impl, self.route, self.length.replace(" ", "-"), self.positions))


class Step(torch.nn.Module):
    """A decoder that takes tokens, the padding mask of past and new, and past tensors; returns logits and present."""

    def __init__(self, model: Any, positions: str = "past") -> None:
        super().__init__()
        self.model = model
        self.positions = positions

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns logits [B, S, vocabulary] and, for each layer, keys and values [B, Hkv, P + S, D].

        Args:
            ids: [B, S].
            mask: [B, P + S], 1 = token, 0 = padding.
            *past: Keys and values of each layer, [B, Hkv, P, D]; none for a first call.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, pair in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(*pair, layer)
        places = {}
        if self.positions == "mask":
            counted = (mask.cumsum(-1) - 1).clamp(min=0)
            places["position_ids"] = counted[:, -ids.shape[1] :]
        made = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **places)
        return made.logits, *(x for layer in made.past_key_values.layers for x in (layer.keys, layer.values))


def build(way: Way) -> Step:
    """Returns the decoder with random weights, in eval mode."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config, model, settings = DECODERS[way.name]
    torch.manual_seed(0)
    made = getattr(transformers, model)._from_config(
        getattr(transformers, config)(**settings), attn_implementation=way.impl
    )
    spread(made)
    return Step(made, way.positions).eval()


def empty(step: Step, batch: int, length: int) -> tuple[torch.Tensor, ...]:
    """Returns random past tensors of a length, 0 for a first call."""
    config = step.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    noise = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch, heads, length, size, generator=noise) for _ in range(2 * config.num_hidden_layers))


def export(way: Way, step: Step, path: Path) -> None:
    """Exports a step with free batch, past and, unless it is for one token, new length."""
    past = empty(step, 2, 5)
    new = 1 if way.length == "one token" else 3
    inputs = (torch.full((2, new), 7), torch.ones(2, 5 + new, dtype=torch.int64), *past)
    pasts = [f"past.{i // 2}.{'key' if i % 2 == 0 else 'value'}" for i in range(len(past))]
    presents = [name.replace("past", "present") for name in pasts]
    names = {"input_names": ["ids", "mask", *pasts], "output_names": ["logits", *presents]}
    fresh = {} if new == 1 else {1: "new"}
    with quiet(), torch.no_grad():
        if way.route.startswith("ts"):
            axes = {"ids": {0: "batch", **fresh}, "mask": {0: "batch", 1: "total"}}
            axes |= {name: {0: "batch", 2: "past"} for name in pasts}
            axes |= {name: {0: "batch", 2: "total"} for name in presents}
            opset = int(way.route.removeprefix("ts"))
            torch.onnx.export(step, inputs, str(path), dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
            return
        free = torch.export.Dim.DYNAMIC
        shapes = ({0: free, **dict.fromkeys(fresh, free)}, {0: free, 1: free}, tuple({0: free, 2: free} for _ in past))
        program = torch.onnx.export(
            step,
            inputs,
            dynamo=True,
            opset_version=int(way.route.removeprefix("d")),
            dynamic_shapes=shapes,
            verbose=False,
            external_data=False,
            **names,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path))


@dataclass
class Judged:
    """What came of one way.

    Attributes:
        way: Which.
        expected: Attentions that PyTorch computes in a step.
        one_op: Those that are one op after fusing; cached: those of them with past and present.
        kept: Code and reason of each that stayed.
        failed: Why there is no export, in the exporter's words; else empty.
        wrong: What is wrong with the tokens' numbers, by batch; empty where all is right.
    """

    way: Way
    expected: int = 0
    one_op: int = 0
    cached: int = 0
    kept: list[tuple[str, str]] = field(default_factory=list)
    failed: str = ""
    wrong: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Says whether every attention is one op with a cache and every token right, or there is no export."""
        return bool(self.failed) or (self.one_op == self.cached == self.expected > 0 and not self.wrong)


def judge(way: Way, folder: Path) -> Judged:
    """Exports, fuses, lowers for ONNX Runtime, and compares prefill and single tokens with one forward in PyTorch."""
    step = build(way)
    judged = Judged(way)
    past = empty(step, 2, 5)
    first = (torch.full((2, 3), 7), torch.ones(2, 8, dtype=torch.int64), *past)
    judged.expected = count(step, first).blocks
    path = folder / f"{way}.onnx"
    try:
        export(way, step, path)
    except Exception as error:  # whatever an exporter raises is its answer
        judged.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:240]
        return judged
    result = fuse(ir.load(path))
    _read(judged, result)
    judged.wrong = run(result.model, step, way)
    return judged


def _read(judged: Judged, result: FuseResult) -> None:
    judged.one_op = result.summary.fused + result.summary.already
    judged.cached = sum(row.cache == "past" for row in result.attentions)
    judged.kept = [(row.code, row.reason) for row in result.attentions if row.status == "kept"]


def run(model: ir.Model, step: Step, way: Way) -> dict[str, str]:
    """Returns what is wrong with a fused model's tokens, by batch; empty where all is right."""
    runner = OrtRunner(ir.to_proto(lower(model, "ort").model).SerializeToString(), threads=1)
    reference = Reference(step, precision("fp32"))
    batches = {"even": (0, 0), "one row": (0,), "ragged": PADDED}
    said = {name: _generate(runner, reference, step, way, padded) for name, padded in batches.items()}
    return {name: wrong for name, wrong in said.items() if wrong}


def _generate(runner: OrtRunner, reference: Reference, step: Step, way: Way, padded: tuple[int, ...]) -> str:
    """Returns what is wrong with a prompt and eight tokens after it, held to one forward over all; "" if nothing.

    Rows of padding are left out: what they give depends on how many keys there are, and nothing reads it.
    """
    batch, prompt = len(padded), 7
    noise = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 98, (batch, prompt + STEPS), generator=noise)
    mask = torch.ones_like(ids)
    for row, hidden in enumerate(padded):
        mask[row, :hidden] = 0
    truth = reference.truth(ParityCase("all at once", {"ids": ids, "mask": mask}, positional=True)).same
    caches = [x.numpy() for x in empty(step, batch, 0)]
    logits = []
    starts = range(prompt + STEPS) if way.length == "one token" else (0, *range(prompt, prompt + STEPS))
    for start, end in pairwise((*starts, prompt + STEPS)):
        feeds = [ids[:, start:end].numpy(), mask[:, :end].numpy(), *caches]
        made = list(runner.run(dict(zip((spec.name for spec in runner.inputs), feeds, strict=True))).values())
        logits.append(made[0])
        caches = made[1:]
    real = mask.numpy().astype(bool)
    for value, expected in zip([np.concatenate(logits, axis=1), *caches], truth, strict=True):
        if value.shape == expected.value.shape:
            tokens = real[:, :, None] if value.ndim == 3 else real[:, None, :, None]
            value = np.where(tokens, value, expected.value.astype(value.dtype))
        verdict = compare(value, replace(expected, dead=None, other=None), precision("fp32"))
        if not verdict.ok:
            return f"{verdict.reason} (error {verdict.max_error}, {verdict.ratio} of its budget)"
    return ""
