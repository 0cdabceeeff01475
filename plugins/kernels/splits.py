"""Which calls take the kernel for decoding, and in how many splits their keys are cut: a rule over sizes, as data."""

from dataclasses import dataclass, fields

from plugins.kernels import tuning


@dataclass(frozen=True)
class SplitRule:
    """The rule.

    Attributes:
        most_rows: Most rows (queries times the query heads of a key/value head) up to which the decode kernel is taken:
            above, the tiles of the ordinary kernel are full without packing heads.
        least_keys: Fewest keys from which it is taken: below, what a second launch costs is more than a split gains.
        keys_of_split: Fewest keys of one split.
        most_splits: Most splits of one call.
        programs_per_sm: Programs that each multiprocessor should have.
        device: The GPU that set it; "" for an estimate.
    """

    most_rows: int
    least_keys: int
    keys_of_split: int
    most_splits: int
    programs_per_sm: int
    device: str = ""


def rule(sm: int | None = None) -> SplitRule:
    """Returns the rule for a compute capability, e.g. 90.

    **The estimate, since no GPU run has set it yet:** two programs of a multiprocessor, each with two stages of 64 keys
    of 128 numbers under way, have 64 KiB of loads in flight; 4.8 TB/s at a latency of 1 us over 132 of them is 36 KiB.
    Splits of 256 keys leave 4 rows of float32, written and read: 3% of the bytes of K and V at 4 query heads to a key
    head.
    """
    row = tuning.row("splits", sm)
    return SplitRule(**{f.name: row.get(f.name, "") for f in fields(SplitRule)})


def splits(
    queries: int, share: int, planes: int, keys: int, multiprocessors: int, block_m: int, rule: SplitRule
) -> int:
    """Returns in how many splits the keys of a call are cut; 0 where it takes the ordinary kernel.

    Args:
        queries: S.
        share: H / G, the query heads of one key/value head.
        planes: B * G.
        keys: T, the longest of the batch.
        multiprocessors: Of the GPU.
        block_m: Rows of one tile of the decode kernel.
        rule: The rule.
    """
    rows = queries * share
    if rows > rule.most_rows or keys < rule.least_keys:
        return 0
    programs = planes * -(-rows // block_m)
    wanted = -(-rule.programs_per_sm * multiprocessors // max(programs, 1))
    return max(1, min(wanted, keys // rule.keys_of_split, rule.most_splits))
