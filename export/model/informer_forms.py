"""The Informer forms: the attention call sites of an encoder-decoder, and how each one's inputs are drawn.

The call sites are AttentionLayer's with one tensor as queries, keys and values (self-attention) and only tensors as
outputs, so that the exported graph has no empty second output.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from export.model.draw import generator, normal, seeded
from export.model.form import Case, Form
from export.model.informer import AttentionLayer, DSAttention, FullAttention
from export.model.probattention import ProbAttention, sample_count, sample_keys


class SelfAttention(AttentionLayer):
    """Encoder self-attention, and the decoder's masked one."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, L, E] for x [B, L, E]."""
        return super().forward(x, x, x)[0]


class CrossAttention(AttentionLayer):
    """The decoder's look at the encoder's output."""

    def forward(self, x: Tensor, cross: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, L, E] for x [B, L, E] and cross [B, S, E]."""
        return super().forward(x, cross, cross)[0]


class DeStationarySelfAttention(AttentionLayer):
    """Encoder self-attention with the learned de-stationary factors."""

    def forward(self, x: Tensor, tau: Tensor, delta: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, L, E] for x [B, L, E], tau [B, 1] and delta [B, L]."""
        return super().forward(x, x, x, tau=tau, delta=delta)[0]


class ProbSelfAttention(AttentionLayer):
    """ProbSparse self-attention with the sampled keys as an input."""

    def forward(self, x: Tensor, index_sample: Tensor) -> Tensor:  # type: ignore[override]
        """Returns [B, L, E] for x [B, L, E] and index_sample int64 [L, U]."""
        return super().forward(x, x, x, index_sample=index_sample)[0]


WIDTH, HEADS, FACTOR, FIXED_LENGTH = 32, 2, 2, 24
DIMS = {"batch": (1, 2, 4), "length": (1, 32, 64)}


def _draw_self(case: Case) -> dict[str, Tensor]:
    return {"x": normal(case, generator(case), case.dims["batch"], case.dims["length"], WIDTH)}


def _draw_cross(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length, memory = case.dims["batch"], case.dims["length"], case.dims["memory"]
    return {"x": normal(case, rng, batch, length, WIDTH), "cross": normal(case, rng, batch, memory, WIDTH)}


def _draw_destationary(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    batch, length = case.dims["batch"], case.dims["length"]
    # tau and delta are learned factors, positive and about 1 and 0; the case's magnitude is the activations' own.
    return {
        "x": normal(case, rng, batch, length, WIDTH),
        "tau": torch.exp(0.5 * torch.randn(batch, 1, generator=rng)),
        "delta": torch.randn(batch, length, generator=rng),
    }


def _draw_prob(case: Case) -> dict[str, Tensor]:
    rng = generator(case)
    length = case.dims["length"]
    sample = sample_keys(FACTOR, length, length, rng)
    return {"x": _distinct(case, rng, length, sample), "index_sample": sample}


def _draw_prob_fixed(case: Case) -> dict[str, Tensor]:
    sample = sample_keys(FACTOR, FIXED_LENGTH, FIXED_LENGTH, torch.Generator().manual_seed(0))
    return {"x": _distinct(case, generator(case), FIXED_LENGTH, sample)}


def _distinct(case: Case, rng: torch.Generator, length: int, sample: Tensor) -> Tensor:
    """Returns x [B, L, E] for which the choice of queries is not within rounding of a tie.

    Where the last chosen and the first rejected query all but tie, two right implementations may choose differently
    and then differ by whole rows; that says nothing about either. So each batch row is the clearest of 64 draws.
    """
    layer = _prob_layer(masked=False).double()
    draws = normal(case, rng, case.dims["batch"], 64, length, WIDTH)
    return torch.stack([row[_clearness(layer, row.double(), sample).argmax()] for row in draws])


def _clearness(layer: ProbSelfAttention, x: Tensor, sample: Tensor) -> Tensor:
    """Returns, for each of x [N, L, E], the gap between the last chosen and the first rejected query of any head.

    The gap is a part of the range of that head's M; where every query is chosen it is 1.
    """
    count, length = sample_count(FACTOR, x.shape[1]), x.shape[1]
    if count == length:
        return x.new_ones(x.shape[0])
    inner = layer.inner_attention
    assert isinstance(inner, ProbAttention)
    with torch.no_grad():
        query, key = (
            projection(x).view(x.shape[0], length, HEADS, -1).transpose(1, 2)
            for projection in (layer.query_projection, layer.key_projection)
        )
        measure = inner.measure(query, key, sample).sort(dim=-1, descending=True).values
    gap = (measure[..., count - 1] - measure[..., count]) / (measure[..., 0] - measure[..., -1])
    return gap.amin(-1)


def _prob_layer(masked: bool) -> ProbSelfAttention:
    return seeded(lambda: ProbSelfAttention(ProbAttention(mask_flag=masked, factor=FACTOR), WIDTH, HEADS))


def _prob_fixed_layer() -> SelfAttention:
    inner = ProbAttention(mask_flag=False, factor=FACTOR, lengths=(FIXED_LENGTH, FIXED_LENGTH))
    return seeded(lambda: SelfAttention(inner, WIDTH, HEADS))


def _form(name: str, summary: str, make: Callable[[], nn.Module], **changes: Any) -> Form:
    common = Form(
        name=name,
        summary=summary,
        source="thuml/Time-Series-Library layers/SelfAttention_Family.py; zhouhaoyi/Informer2020 models/attn.py",
        make=make,
        draw=_draw_self,
        dynamic={"x": {0: "batch", 1: "length"}},
        dims=DIMS,
    )
    return replace(common, **changes)


def _prob_form(name: str, summary: str, masked: bool) -> Form:
    return _form(
        name,
        summary,
        lambda: _prob_layer(masked),
        draw=_draw_prob,
        dynamic={"x": {0: "batch", 1: "length"}, "index_sample": {0: "length", 1: "sampled"}},
        # sampled = sample_count(FACTOR, length) at every point of the profile, as in every case.
        dims={**DIMS, "sampled": tuple(sample_count(FACTOR, length) for length in DIMS["length"])},
        notes=(
            "One softmax attention, of the chosen queries only; the measure that chooses them has no softmax.",
            "Heads and time are scrambled on the way out, as in the library.",
            "Inputs are drawn so that the choice is not within rounding of a tie.",
        ),
    )


CROSS: dict[str, Any] = {
    "draw": _draw_cross,
    "dynamic": {"x": {0: "batch", 1: "length"}, "cross": {0: "batch", 1: "memory"}},
    "dims": {"batch": (1, 2, 4), "length": (1, 12, 64), "memory": (1, 6, 64)},
}

FORMS = (
    _form(
        "informer-encoder-self",
        "encoder self-attention: einsum over [B, L, H, D], scale after the scores, no mask",
        lambda: seeded(lambda: SelfAttention(FullAttention(mask_flag=False), WIDTH, HEADS)),
    ),
    _form(
        "informer-decoder-self",
        "decoder self-attention: causal mask filled with -inf before the scale",
        lambda: seeded(lambda: SelfAttention(FullAttention(mask_flag=True), WIDTH, HEADS)),
    ),
    _form(
        "informer-decoder-cross",
        "decoder cross-attention, queries and keys of different lengths, no mask",
        lambda: seeded(lambda: CrossAttention(FullAttention(mask_flag=False), WIDTH, HEADS)),
        **CROSS,
    ),
    _form(
        "informer-cross-values",
        "as informer-decoder-cross, value heads of another size (24) than query heads (16)",
        lambda: seeded(lambda: CrossAttention(FullAttention(mask_flag=False), WIDTH, HEADS, d_keys=16, d_values=24)),
        **CROSS,
    ),
    _form(
        "informer-dsattention",
        "de-stationary attention: scores times tau plus delta, causal",
        lambda: seeded(lambda: DeStationarySelfAttention(DSAttention(mask_flag=True), WIDTH, HEADS)),
        draw=_draw_destationary,
        dynamic={"x": {0: "batch", 1: "length"}, "tau": {0: "batch"}, "delta": {0: "batch", 1: "length"}},
    ),
    _prob_form("probattention", "ProbSparse attention: the top u queries attend, the rest get mean(V)", masked=False),
    _prob_form("probattention-masked", "as probattention, causal: the rest get cumsum(V)", masked=True),
    _form(
        "probattention-buffer",
        f"as probattention, at a fixed length of {FIXED_LENGTH}, its sampled keys a seeded buffer",
        _prob_fixed_layer,
        draw=_draw_prob_fixed,
        dynamic={"x": {0: "batch"}},
        dims={"batch": (1, 2, 4)},
        notes=("The sample fixes the length; only the batch is dynamic.",),
    ),
)
