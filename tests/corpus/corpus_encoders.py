"""Text encoders."""

from corpus_entry import HIDDEN, IDS, PADDING, TEXT, TOKENS, Entry, Input, texts

_SMALL = {**TEXT, "max_position_embeddings": 64, "pad_token_id": 0}

ENTRIES = (
    *texts(
        {
            "bert": ("BertConfig", "BertModel", TEXT),
            "bert-generation": ("BertGenerationConfig", "BertGenerationEncoder", TEXT),
            "roberta": ("RobertaConfig", "RobertaModel", TEXT),
            "roberta-prelayernorm": ("RobertaPreLayerNormConfig", "RobertaPreLayerNormModel", TEXT),
            "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", TEXT),
            "xlm-roberta-xl": ("XLMRobertaXLConfig", "XLMRobertaXLModel", TEXT),
            "camembert": ("CamembertConfig", "CamembertModel", TEXT),
            "data2vec-text": ("Data2VecTextConfig", "Data2VecTextModel", TEXT),
            "electra": ("ElectraConfig", "ElectraModel", {**TEXT, "embedding_size": 32}),
            "ernie": ("ErnieConfig", "ErnieModel", TEXT),
            "albert": ("AlbertConfig", "AlbertModel", {**TEXT, "embedding_size": 32}),
            "distilbert": (
                "DistilBertConfig",
                "DistilBertModel",
                {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 99},
            ),
            "mpnet": ("MPNetConfig", "MPNetModel", TEXT),
            "deberta": (
                "DebertaConfig",
                "DebertaModel",
                {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8},
            ),
            "deberta_v2": (
                "DebertaV2Config",
                "DebertaV2Model",
                {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
            ),
            "modernbert": ("ModernBertConfig", "ModernBertModel", {**TEXT, "pad_token_id": 0, "local_attention": 8}),
            "eurobert": (
                "EuroBertConfig",
                "EuroBertModel",
                {**TEXT, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            ),
            "nomic_bert": ("NomicBertConfig", "NomicBertModel", _SMALL),
            "jina_embeddings_v3": ("JinaEmbeddingsV3Config", "JinaEmbeddingsV3Model", _SMALL),
            "megatron-bert": ("MegatronBertConfig", "MegatronBertModel", TEXT),
            "rembert": (
                "RemBertConfig",
                "RemBertModel",
                {**TEXT, "input_embedding_size": 32, "output_embedding_size": 32},
            ),
            "roformer": ("RoFormerConfig", "RoFormerModel", {**TEXT, "embedding_size": 64}),
            "roc_bert": (
                "RoCBertConfig",
                "RoCBertModel",
                {**TEXT, "enable_pronunciation": False, "enable_shape": False},
            ),
            "esm": ("EsmConfig", "EsmModel", {**_SMALL, "position_embedding_type": "rotary", "mask_token_id": 98}),
            "squeezebert": ("SqueezeBertConfig", "SqueezeBertModel", {**TEXT, "embedding_size": 64}),
            "convbert": ("ConvBertConfig", "ConvBertModel", {**TEXT, "embedding_size": 32}),
            "funnel": (
                "FunnelConfig",
                "FunnelModel",
                {
                    "vocab_size": 99,
                    "block_sizes": [1, 1],
                    "num_decoder_layers": 1,
                    "d_model": 64,
                    "n_head": 4,
                    "d_head": 16,
                    "d_inner": 96,
                },
            ),
            "mobilebert": (
                "MobileBertConfig",
                "MobileBertModel",
                {**TEXT, "embedding_size": 32, "intra_bottleneck_size": 64, "true_hidden_size": 64},
            ),
            "ibert": ("IBertConfig", "IBertModel", TEXT),
            "splinter": ("SplinterConfig", "SplinterModel", TEXT),
            "xmod": ("XmodConfig", "XmodModel", {**TEXT, "languages": ["en_XX"], "default_language": "en_XX"}),
            "flaubert": (
                "FlaubertConfig",
                "FlaubertModel",
                {"vocab_size": 99, "emb_dim": 64, "n_layers": 2, "n_heads": 4},
            ),
            "xlm": ("XLMConfig", "XLMModel", {"vocab_size": 99, "emb_dim": 64, "n_layers": 2, "n_heads": 4}),
            "nystromformer": (
                "NystromformerConfig",
                "NystromformerModel",
                {**TEXT, "num_landmarks": 64, "segment_means_seq_len": 64},
            ),
            "xlnet": (
                "XLNetConfig",
                "XLNetModel",
                {"vocab_size": 99, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
            ),
            "clip_text": ("CLIPTextConfig", "CLIPTextModel", {**TEXT, "max_position_embeddings": 32}),
            "siglip_text": ("SiglipTextConfig", "SiglipTextModel", {**TEXT, "max_position_embeddings": 32}),
            "t5": (
                "T5Config",
                "T5EncoderModel",
                {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
            ),
            "mt5": (
                "MT5Config",
                "MT5EncoderModel",
                {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
            ),
            "umt5": (
                "UMT5Config",
                "UMT5EncoderModel",
                {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
            ),
        }
    ),
    Entry(
        "layoutlm",
        "LayoutLMConfig",
        "LayoutLMModel",
        TEXT,
        {"input_ids": IDS, "bbox": Input("boxes", ("batch", "length", 4)), "attention_mask": PADDING},
    ),
    Entry(
        "bros",
        "BrosConfig",
        "BrosModel",
        TEXT,
        {"input_ids": IDS, "bbox": Input("floats", ("batch", "length", 8)), "attention_mask": PADDING},
    ),
    Entry(
        "tapas",
        "TapasConfig",
        "TapasModel",
        TEXT,
        {**TOKENS, "token_type_ids": Input("zeros", ("batch", "length", 7))},
    ),
    Entry(
        "lilt",
        "LiltConfig",
        "LiltModel",
        {**TEXT, "hidden_size": 96, "channel_shrink_ratio": 2},
        {"input_ids": IDS, "bbox": Input("boxes", ("batch", "length", 4)), "attention_mask": PADDING},
    ),
    Entry(
        "canine",
        "CanineConfig",
        "CanineModel",
        {**HIDDEN, "num_hash_buckets": 64, "local_transformer_stride": 4, "upsampling_kernel_size": 4},
        {"input_ids": Input("ids", ("batch", 16)), "attention_mask": Input("padding", ("batch", 16))},
    ),
)
