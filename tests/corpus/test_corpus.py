"""A representative part of the corpus: `make corpus` runs all of it."""

from pathlib import Path

import pytest
from corpus_exceptions import EXCUSES, gap
from corpus_judge import judge
from corpus_registry import ENTRIES, ROUTES
from run_corpus import line

NAMED = """
bert distilbert mpnet deberta_v2 modernbert gpt2 gpt_neox gptj bloom llama mistral qwen3 gemma2 phi falcon cohere t5
bart whisper vit swin clip_text clip_vision wav2vec2
"""
"""The architectures that must be there whatever else is."""

SAMPLE = [
    ("vit", "sdpa", "ts17"),
    ("swin", "eager", "d18"),
    ("t5", "eager", "ts17"),
    ("deberta_v2", "eager", "d23"),
    ("gemma2", "eager", "d18"),
    ("mistral", "sdpa", "d24"),
    ("bloom", "eager", "ts17"),
    ("whisper", "sdpa", "d23"),
    ("mpnet", "eager", "ts17"),
    ("modernbert", "sdpa", "ts17"),
    ("bert+weights", "eager", "d18"),
    ("llama+weights", "eager", "ts17"),
    ("t5+weights", "eager", "d23"),
]
"""Diverse in what attention they have, in the implementation and in the exporter; 60 s of process time together."""


def test_the_corpus_has_what_must_be_there() -> None:
    assert set(NAMED.split()) <= set(ENTRIES)
    assert len(ENTRIES) >= 100
    assert {route for _, _, route in SAMPLE} == set(ROUTES)


@pytest.mark.parametrize(("name", "impl", "route"), SAMPLE, ids=["-".join(s) for s in SAMPLE])
def test_every_block_is_one_op_and_right(name: str, impl: str, route: str, tmp_path: Path) -> None:
    (row,) = judge(ENTRIES[name], impl, (route,), tmp_path)
    assert row.verdict == "ok" and not gap(row), line(row)
    assert row.expected and row.peak > 1.3, "attention that is nearly uniform hides what is wrong with it"


def test_excuses_name_entries_and_say_why() -> None:
    for excuse in EXCUSES:
        assert excuse.reason.endswith(".") and excuse.blocks > 0
