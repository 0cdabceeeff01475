"""Audio encoders and time series."""

from corpus_entry import HIDDEN, TEXT, Entry, Input

_WAVES = {"input_values": Input("speech", ("batch", 64))}
_CONV = {
    **TEXT,
    "conv_dim": [16, 16],
    "conv_kernel": [4, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_FRAMES = {"input_features": Input("speech", ("batch", "length", 16))}

ENTRIES = (
    *(
        Entry(name, config, model, settings, _WAVES)
        for name, config, model, settings in (
            ("wav2vec2", "Wav2Vec2Config", "Wav2Vec2Model", _CONV),
            (
                "wav2vec2-conformer",
                "Wav2Vec2ConformerConfig",
                "Wav2Vec2ConformerModel",
                {**_CONV, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 3},
            ),
            (
                "wav2vec2-conformer-rotary",
                "Wav2Vec2ConformerConfig",
                "Wav2Vec2ConformerModel",
                {**_CONV, "position_embeddings_type": "rotary", "conv_depthwise_kernel_size": 3},
            ),
            ("hubert", "HubertConfig", "HubertModel", _CONV),
            ("wavlm", "WavLMConfig", "WavLMModel", {**_CONV, "num_buckets": 8, "max_bucket_distance": 16}),
            ("data2vec-audio", "Data2VecAudioConfig", "Data2VecAudioModel", _CONV),
            ("unispeech", "UniSpeechConfig", "UniSpeechModel", _CONV),
            ("unispeech-sat", "UniSpeechSatConfig", "UniSpeechSatModel", _CONV),
            ("sew", "SEWConfig", "SEWModel", {**_CONV, "squeeze_factor": 2}),
            (
                "sew-d",
                "SEWDConfig",
                "SEWDModel",
                {**_CONV, "squeeze_factor": 2, "position_buckets": 8, "max_position_embeddings": 64},
            ),
        )
    ),
    Entry(
        "wav2vec2-bert",
        "Wav2Vec2BertConfig",
        "Wav2Vec2BertModel",
        {
            **TEXT,
            "feature_projection_input_dim": 16,
            "conv_depthwise_kernel_size": 3,
            "left_max_position_embeddings": 4,
            "right_max_position_embeddings": 2,
        },
        _FRAMES,
    ),
    Entry(
        "audio-spectrogram-transformer",
        "ASTConfig",
        "ASTModel",
        {**HIDDEN, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8},
        {"input_values": Input("speech", ("batch", 16, 8))},
    ),
    Entry(
        "parakeet_encoder",
        "ParakeetEncoderConfig",
        "ParakeetEncoder",
        {**HIDDEN, "conv_kernel_size": 3, "subsampling_factor": 2, "subsampling_conv_channels": 8, "num_mel_bins": 16},
        {"input_features": Input("speech", ("batch", 32, 16))},
    ),
    Entry(
        "patchtst",
        "PatchTSTConfig",
        "PatchTSTModel",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "num_hidden_layers": 2,
            "d_model": 64,
            "num_attention_heads": 4,
            "ffn_dim": 96,
        },
        {"past_values": Input("floats", ("batch", 16, 2))},
    ),
)
