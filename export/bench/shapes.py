"""What is computed, as numbers: the attention shapes of a set, and how much work one of them is."""

from dataclasses import dataclass

HEAD_SIZE = 64


@dataclass(frozen=True)
class Shape:
    """One attention, Q, K and V given: no projections.

    Attributes:
        family: Which module computes it: "padded" (BERT-like: keys hidden by a padding mask that is an input),
            "lengths" (the same, the mask made of lengths), or "causal" (LLaMA-like: causal, grouped key/value heads,
            RoPE on Q and K). On a GPU also "full" (RoPE, no mask) and "decode" (the last query after a cache of rotated
            keys).
        batch: B.
        queries: S, and how many keys there are unless `keys` says so.
        heads: Query heads H.
        kv_heads: Key/value heads Hkv.
        size: Head size D.
        keys: T; 0 means S.
        kept: Of "lengths": the share of the keys that every batch row keeps; 0 means lengths uniform in [S/4, S].
    """

    family: str
    batch: int
    queries: int
    heads: int = 12
    kv_heads: int = 12
    size: int = HEAD_SIZE
    keys: int = 0
    kept: float = 0.0

    @property
    def name(self) -> str:
        """The words for tables, as in "padded B8 S512"; heads and head size where they are not 12 and 64."""
        tail = "" if (self.heads, self.size) == (12, HEAD_SIZE) else f" H{self.heads}/{self.kv_heads} D{self.size}"
        cache = f" T{self.keys}" if self.keys else ""
        kept = f" {self.kept:.0%} kept" if self.kept else ""
        return f"{self.family} B{self.batch} S{self.queries}{cache}{tail}{kept}"

    @property
    def key_count(self) -> int:
        """T."""
        return self.keys or self.queries

    @property
    def sizes(self) -> dict[str, int]:
        """What a result says of the shape, by name."""
        return {
            "batch": self.batch,
            "queries": self.queries,
            "keys": self.key_count,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_size": self.size,
        }

    def flops(self, kept: int | None = None) -> int:
        """Returns the floating-point operations of the two matrix products that the result depends on.

        `4 * D * H` for each pair of a query and a key that it may see (2 D for Q K^T, 2 D for P V); softmax and RoPE
        are not counted, as is usual (arXiv 2205.14135).

        Args:
            kept: Pairs of a query and a key, over the whole batch; None takes those the family sees without padding.
        """
        pairs = self.pairs() if kept is None else kept
        return 4 * self.size * self.heads * pairs

    def pairs(self) -> int:
        """Returns how many pairs of a query and a key there are: a causal query i sees the keys up to i + T - S."""
        queries, keys = self.queries, self.key_count
        if self.family != "causal":
            return self.batch * queries * keys
        return self.batch * (queries * (keys - queries) + queries * (queries + 1) // 2)

    def bytes(self, item: int = 4) -> int:
        """Returns the least memory traffic: Q, K and V read once and the output written once.

        Args:
            item: Bytes of one number.
        """
        queries = 2 * self.batch * self.heads * self.queries * self.size
        return item * (queries + 2 * self.batch * self.kv_heads * self.key_count * self.size)


def floor_seconds(flops: float, traffic: float, flops_per_second: float, bytes_per_second: float) -> float:
    """Returns the roofline floor: no machine with these two ceilings computes it in less time."""
    return max(flops / flops_per_second, traffic / bytes_per_second)


PLACES = ((1, 128), (1, 512), (8, 128), (8, 512))
PADDED = tuple(Shape("padded", b, s) for b, s in PLACES)
CAUSAL = tuple(Shape("causal", b, s, kv_heads=4) for b, s in PLACES)
LENGTHS = tuple(Shape("lengths", b, s) for b, s in PLACES)
_CELLS = ((16, 512), (4, 2048), (1, 8192))
GPU = (
    *(
        Shape(family, b, s, heads, heads, size)
        for size, heads in ((64, 16), (128, 32))
        for family in ("full", "causal", "lengths")
        for b, s in _CELLS
    ),
    *(Shape("causal", b, s, 32, 8, 128) for b, s in _CELLS),
    Shape("full", 4, 4096, 16, 16, 64),
    Shape("lengths", 4, 4096, 16, 16, 64, kept=0.25),
    *(Shape("decode", b, 1, 32, 8, 128, t) for b, t in ((1, 2048), (1, 65536), (8, 8192), (32, 32768))),
)
"""Heads 16 of 64 and 32 of 128; grouped 32/8; a diffusion transformer's, with and without three quarters of its keys
padding; decoding. `--only D64` and `--only D128` are the two calls that measure them all."""
SETS = {"cpu": PADDED + CAUSAL, "padded": PADDED, "causal": CAUSAL, "lengths": LENGTHS, "gpu": GPU}
"""Shape sets by the name that `bench` takes; `cpu` is the eight cases."""
