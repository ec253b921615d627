"""A small model of the paper's parts, for the contract tests."""

from __future__ import annotations

from typing import Any

from vilavt_toolkit.config.parsing import parse_config
from vilavt_toolkit.config.schema import ModelSection
from vilavt_toolkit.models.assemble import assemble_model
from vilavt_toolkit.models.model import VisualChatModel

_LAYER = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
_SECTION: dict[str, Any] = {
    "source": {"name": "image", "rounding": "truncate"},
    "encoder": {
        "name": "qwen2_5_vl",
        "config": {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1, 3],
        },
        "resize": "paper",
    },
    "modulator": {"name": "joint_attention"},
    "integration": "late",
    "inquiry_encoder": {
        "name": "hf_text",
        "config": {
            "model_type": "qwen3",
            "vocab_size": 320,
            "hidden_size": 24,
            "intermediate_size": 32,
            "head_dim": 12,
            "max_position_embeddings": 64,
            **_LAYER,
        },
        "width": 32,
    },
    "projector": {"name": "identity"},
    "language_model": {
        "name": "qwen2_5_vl",
        "config": {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512, **_LAYER},
        "vocab_size": 320,
    },
    "dialogue": {"name": "vilavt"},
}


def build_example() -> VisualChatModel:
    """Build a query-aware tower of four blocks, two of them modulated, with language models of one layer."""
    model = assemble_model(parse_config(ModelSection, _SECTION, "example"))
    model.language_model.fit_tokenizer(["what is it? a red square"], [])
    return model
