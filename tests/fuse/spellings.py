"""Every spelling of attention there is a test for, and what the fuser makes of each today."""

import spellings_in_the_wild
import spellings_of_layouts
import spellings_of_scores
import spellings_of_softmax
import spellings_of_weights

ALL = (
    *spellings_of_scores.ALL,
    *spellings_of_softmax.ALL,
    *spellings_of_weights.ALL,
    *spellings_of_layouts.ALL,
    *spellings_in_the_wild.ALL,
)

KEPT = {
    "clamped": "K117",
    "one_more_in_the_sum": "nothing",
    "sum_over_the_queries": "nothing",
    "exponentials_of_two_scores": "nothing",
    "exponential_features": "nothing",
    "maximum_of_each_column_taken_off": "K119",
    "maximum_taken_off_and_capped": "K109",
    "SinkThatTakesAKeyAlong": "K121",
    "multiplied_alone": "K107",
    "multiplied_by_what_may_be_any_number": "K107",
    "talking_heads": "K104",
    "masked_and_multiplied_for_each_head": "K108",
    "cosine_features": "nothing",
    "only_the_largest": "K210",
    "graph_attention": "K102",
    "added_attention": "K102",
    "gaussian_of_the_distance": "K102",
    "sigmoid_attention": "nothing",
}
"""What is not one op today, and the code it says; "nothing" where there is no Softmax to find."""
