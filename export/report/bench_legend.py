"""What the columns of a bench mean, in the words that stand below its tables."""

LEGEND = """\
p50, p90, p99: percentiles over every call; p99 is - below 100 calls. spread: half the interquartile range of the
  rounds' medians, over their median. CPU ms: all threads of one call added.
speed-up: the baseline's time over this one's, round by round, the median ± half the interquartile range. The baseline
  is the first plain export, whichever export a row was made of; own export: attnproof over the very file it was given.
attnproof is: the row's time over that of attnproof on the same export (the slowest, where the row has none);
  "equal": within twice the ± of 1.
1000/s: thousands a second; tokens include padding, of the attention core alone. FLOPs: pairs of query and key that are
  seen, no others. of floor: roofline floor / p50; 100% is as fast as the ceilings measured here allow.
MiB: rise of resident memory while it is opened and first run; the first of a kind pays for its library.
error/budget: the largest quotient of any element's error against float64 and its budget; above 1.00 is WRONG.
by hand: the best graph of standard operators that is right for every mask; one that needs the padding at the end is
  listed apart. arrived: attnproof is at least 0.97 times as fast ("yes"), or no slower beyond the noise ("equal").
best tool: the one that attnproof on the same export is least ahead of. ahead: whether it is, beyond the noise.
"""
