"""Rotary position embeddings: every spelling of them read, and written as one RotaryEmbedding each."""
