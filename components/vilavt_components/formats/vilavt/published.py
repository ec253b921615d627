"""Descriptions of published models, for plans where no hub is in reach: shapes without weights, bytes as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vilavt_toolkit.utils.files import write_json

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
            "<|vision_end|>")  # fmt: skip
_QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
_QWEN_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_QWEN3_EMBEDDING = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151669,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}


def _describe_qwen(text: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a Qwen2.5-VL of these widths. (Qwen2.5-VL technical report, table 1.)"""
    vision = {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    return {
        "model_type": "qwen2_5_vl",
        **text,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": vision,
    }


_VILAVT = {
    **_describe_qwen(_QWEN_7B),
    "model_type": "vilavt",
    "integration_point": "late",
    "text_encoder_config": _QWEN3_EMBEDDING,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-7B-Instruct": _describe_qwen(_QWEN_7B),
    "Qwen/Qwen2.5-VL-3B-Instruct": _describe_qwen(_QWEN_3B),
    "Qwen/Qwen3-Embedding-0.6B": _QWEN3_EMBEDDING,
    "AntResearchNLP/ViLaVT": _VILAVT,
    "AntResearchNLP/ViLaVT-cold-start": _VILAVT,
}
"""The architecture of each published model that the recipes name, under its hub name."""


def write_description(name: str, folder: Path) -> bool:
    """Write config.json, the names of some weights and a tokenizer of bytes; return False for an unknown name."""
    if name not in _CONFIGS:
        return False
    config = _CONFIGS[name]
    write_json(folder / "config.json", config)
    if "integration_point" not in config:
        # The names of the weights tell that no block is query-aware.
        names = dict.fromkeys(("model.embed_tokens.weight", "visual.patch_embed.proj.weight"), "model.safetensors")
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": names})
    _write_tokenizer(folder)
    return True


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that has a token for every byte and Qwen's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 32768}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
