"""Calls of the plugin operator that the kernel, its ONNX function and its PyTorch operator are all checked on."""

from dataclasses import dataclass, field

import torch

from plugins.contract import Settings


@dataclass(frozen=True)
class Call:
    """One call: sizes, settings, and the pieces that the settings switch on."""

    name: str
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 37
    keys: int = 53
    size: int = 32
    value_size: int = 0
    bias: tuple[int, int, int] = ()  # type: ignore[assignment]
    lengths: tuple[int, ...] = ()
    gain: float = 1.0
    more: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        values = {"scale": self.size**-0.5, "has_bias": int(bool(self.bias)), "has_lengths": int(bool(self.lengths))}
        return Settings(**{**values, **self.more})  # type: ignore[arg-type]

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        made = torch.Generator().manual_seed(len(self.name) * 1000 + self.size)
        half = max(self.settings.rotary_embedding_dim // 2, 1)
        angles = torch.arange(96.0)[:, None] * 10000.0 ** (-torch.arange(half) / half)

        def normal(*shape: int) -> torch.Tensor:
            return (self.gain * torch.randn(*shape, generator=made)).to(dtype)

        return {
            "q": normal(self.batch, self.heads, self.queries, self.size),
            "k": normal(self.batch, self.kv_heads, self.keys, self.size),
            "v": normal(self.batch, self.kv_heads, self.keys, self.value_size or self.size),
            "cos": angles.cos(),
            "sin": angles.sin(),
            "bias": normal(*self.bias, self.keys) if self.bias else torch.zeros(1, 1, 1, 1, dtype=dtype),
            "lengths": torch.tensor(self.lengths or (0,), dtype=torch.int32),
        }


CALLS = (
    Call("plain"),
    Call("one-query-one-key", queries=1, keys=1),
    Call("multi-query", kv_heads=1),
    Call("all-heads", kv_heads=4),
    Call("odd-head", size=40),
    Call("head-16", size=16),
    Call("head-100", size=100, queries=5),
    Call("head-256", size=256, queries=5, keys=20),
    Call("values-of-their-own-size", size=64, value_size=24),
    Call("causal", queries=53, more={"causal_kind": 1}),
    Call("causal-cross", more={"causal_kind": 1}),
    Call("causal-after-a-cache", more={"causal_kind": 2}),
    Call("decode", queries=1, lengths=(20, 53), more={"causal_kind": 2}),
    Call("more-queries-than-keys", queries=40, keys=9, more={"causal_kind": 2}),
    Call("window", queries=53, more={"causal_kind": 1, "window": 7}),
    Call("window-after-a-cache", queries=3, lengths=(11, 50), more={"causal_kind": 2, "window": 4}),
    Call("lengths-and-none", lengths=(0, 31)),
    Call("lengths-beyond", lengths=(99, -3)),
    Call("softcap", more={"softcap": 5.0}, gain=3.0),
    Call("softcap-that-saturates", more={"softcap": 2.0, "scale": 10.0}, gain=4.0),
    Call("bias-by-key", bias=(2, 1, 1)),
    Call("bias-by-head", bias=(1, 4, 37)),
    Call("bias-full", bias=(2, 4, 37), lengths=(53, 8), more={"softcap": 5.0}),
    Call("rope", queries=53, more={"rotary_embedding_dim": 32, "rotate_key": 1, "causal_kind": 1}),
    Call("rope-of-queries", more={"rotary_embedding_dim": 32}),
    Call("rope-partial", size=40, more={"rotary_embedding_dim": 16, "rotate_key": 1}),
    Call("rope-interleaved", more={"rotary_embedding_dim": 32, "rotate_key": 1, "interleaved": 1}),
    Call(
        "rope-interleaved-partial-decode",
        queries=1,
        size=40,
        lengths=(20, 53),
        more={"rotary_embedding_dim": 12, "rotate_key": 1, "interleaved": 1, "causal_kind": 2},
    ),
    Call(
        "everything",
        bias=(1, 4, 1),
        lengths=(50, 29),
        more={"rotary_embedding_dim": 32, "rotate_key": 1, "causal_kind": 2, "window": 20, "softcap": 8.0},
    ),
)

ROPE = {"rotary_embedding_dim": 32, "rotate_key": 1}
DECODE_CALLS = (
    Call("plain", queries=1),
    Call("more-than-a-tile-of-rows", heads=16, kv_heads=2, queries=3, keys=40),
    Call("all-heads", kv_heads=4, queries=1),
    Call("after-a-cache", queries=2, keys=150, lengths=(150, 61), more={"causal_kind": 2}),
    Call("causal", queries=4, keys=90, more={"causal_kind": 1}),
    Call("lengths-and-none", queries=1, lengths=(0, 31)),
    Call("fewer-keys-than-queries", queries=5, keys=70, lengths=(3, 70), more={"causal_kind": 2}),
    Call("window", queries=3, keys=120, lengths=(120, 50), more={"causal_kind": 2, "window": 40}),
    Call("bias-by-head", queries=2, bias=(1, 4, 2)),
    Call("bias-by-row", queries=3, bias=(2, 1, 3)),
    Call("bias-by-key", queries=3, bias=(2, 1, 1)),
    Call("odd-sizes", queries=1, size=40, value_size=24, more={"softcap": 5.0}, gain=3.0),
    Call("rope", queries=2, lengths=(53, 20), more={**ROPE, "causal_kind": 2}),
    Call("everything", queries=2, keys=90, bias=(1, 4, 1), lengths=(50, 90),
         more={**ROPE, "causal_kind": 2, "window": 30, "softcap": 8.0, "interleaved": 1}),
)  # fmt: skip
"""Few queries: the decode kernel is checked on these."""
SPLITS = {"fp32": 9, "fp16": 1, "bf16": 3}
"""In how many splits: more than the combining kernel adds at once, most of them without keys; one piece; several."""

VARIANTS = ("values-of-their-own-size", "causal", "more-queries-than-keys", "window-after-a-cache", "lengths-and-none",
            "bias-full", "rope")  # fmt: skip
"""Calls on which loops without masks and loads by descriptors are checked."""
