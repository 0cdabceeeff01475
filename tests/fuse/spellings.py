"""Every spelling of attention there is a test for, and what the fuser makes of each today."""

import spellings_of_scores
import spellings_of_weights

ALL = (*spellings_of_scores.ALL, *spellings_of_weights.ALL)

KEPT = {
    "multiplied_and_subtracted": "K107",
    "clamped": "K117",
    "exponentials_by_hand": "nothing",
    "row_maximum_taken_off": "K210",
    "Sink": "K102",
    "query_and_key_in_float32": "K205",
    "einsum_with_an_ellipsis": "K102",
    "queries_in_groups": "K206",
}
"""What is not one op today, and the code it says; "nothing" where there is no Softmax to find."""
