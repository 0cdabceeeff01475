"""Encoder-decoders: self-attention with and without a causal mask, and cross-attention with lengths that differ."""

from corpus_entry import PAIRS, SEQ2SEQ, Entry, Input

_T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
_SPEECH = {
    **SEQ2SEQ,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "num_mel_bins": 8,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_PAIRS = {
    "bart": ("BartConfig", "BartModel", SEQ2SEQ),
    "mbart": ("MBartConfig", "MBartModel", SEQ2SEQ),
    "plbart": ("PLBartConfig", "PLBartModel", SEQ2SEQ),
    "mvp": ("MvpConfig", "MvpModel", SEQ2SEQ),
    "pegasus": ("PegasusConfig", "PegasusModel", SEQ2SEQ),
    "marian": ("MarianConfig", "MarianModel", SEQ2SEQ),
    "m2m_100": ("M2M100Config", "M2M100Model", SEQ2SEQ),
    "blenderbot": ("BlenderbotConfig", "BlenderbotModel", SEQ2SEQ),
    "blenderbot-small": ("BlenderbotSmallConfig", "BlenderbotSmallModel", SEQ2SEQ),
    "t5-pair": ("T5Config", "T5Model", _T5),
    "umt5-pair": ("UMT5Config", "UMT5Model", _T5),
    "prophetnet": (
        "ProphetNetConfig",
        "ProphetNetModel",
        {
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "vocab_size": 99,
            "max_position_embeddings": 64,
        },
    ),
}

ENTRIES = (
    *(Entry(name, config, model, settings, PAIRS) for name, (config, model, settings) in _PAIRS.items()),
    Entry(
        "whisper",
        "WhisperConfig",
        "WhisperModel",
        _SPEECH,
        {
            "input_features": Input("speech", ("batch", 8, 40)),
            "decoder_input_ids": Input("decoder ids", ("batch", "decoder")),
        },
    ),
    Entry(
        "speech_to_text",
        "Speech2TextConfig",
        "Speech2TextModel",
        {**_SPEECH, "input_feat_per_channel": 8, "max_source_positions": 64},
        {
            "input_features": Input("speech", ("batch", "length", 8)),
            "decoder_input_ids": Input("decoder ids", ("batch", "decoder")),
        },
        {"length": (40, 24, 48)},
    ),
    Entry(
        "moonshine",
        "MoonshineConfig",
        "MoonshineModel",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "vocab_size": 99,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "pad_token_id": 0,
        },
        {
            "input_values": Input("speech", ("batch", 2000)),
            "decoder_input_ids": Input("decoder ids", ("batch", "decoder")),
        },
    ),
)
