"""Models asked for their attention weights too (`output_attentions=True`): they are outputs beside the first."""

from dataclasses import replace

import corpus_audio
import corpus_decoders
import corpus_encoders
import corpus_pairs
import corpus_vision

_ASKED = (
    "bert", "distilbert", "mpnet", "deberta_v2", "gpt2", "bloom", "llama", "gemma2", "qwen3", "falcon", "t5", "bart",
    "whisper", "vit", "swin", "clip_text", "wav2vec2",
)  # fmt: skip
_FAMILIES = (corpus_encoders, corpus_decoders, corpus_pairs, corpus_vision, corpus_audio)

ENTRIES = tuple(
    replace(entry, name=f"{entry.name}+weights", call="with attentions", impls=("eager",))
    for family in _FAMILIES
    for entry in family.ENTRIES
    if entry.name in _ASKED and entry.call == "first output"
)
