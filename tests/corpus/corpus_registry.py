"""Every entry of the corpus, by name."""

import corpus_audio
import corpus_decoders
import corpus_encoders
import corpus_pairs
import corpus_vision
import corpus_weights
from corpus_entry import Entry
from corpus_export import ROUTES as ROUTES

_FAMILIES = (corpus_encoders, corpus_decoders, corpus_pairs, corpus_vision, corpus_audio, corpus_weights)
ENTRIES: dict[str, Entry] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}
