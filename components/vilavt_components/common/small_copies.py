"""Configurations of transformers shrunk to a few narrow layers, to try an architecture in a fraction of a second."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WINDOW = 6
"""Most tokens of an attention window or chunk in a small copy, so that a short text is longer than it."""
_VOCABULARY = 320
_LAYER_COUNT = re.compile(r"num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_blocks")
_HEADS = re.compile(r"num_attention_heads|n_heads?|num_heads|(encoder|decoder)_attention_heads")
_KEY_HEADS = re.compile(r"(swa_)?num_(key_value|kv)_heads|n_head_kv|multi_query_group_num")
_TOKEN = re.compile(r".*_(token_id|token_index|token_ids)")
# The largest value of a setting whose name matches; the first match counts. Other numbers stay, unless they are large.
_LARGEST: tuple[tuple[str, int], ...] = (
    (r"(sliding|local|attention)_window(_size)?|window_size|local_attention|attention_chunk_size", WINDOW),
    (r"vocab_size(_\w+)?", _VOCABULARY),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|seq_length|original_max_position_embeddings", 64),
    (r"((global|swa|attention|qk_nope|qk_rope|v|linear|index)_)*(v_|key_|value_)?head_dim|kv_channels|d_kv|d_head", 16),
    (r"rotary_dim", 8),
    (r"\w*lora_rank", 8),
    (r"\w*(intermediate_size|ffn_dim|ffn_hidden_size|n_inner|d_ff)", 32),
    (
        r"hidden_size|n_embd|d_model|dim|embed_dim|embedding_size|word_embed_proj_dim|\w+_hidden_size|intra_bottleneck_size",
        64,
    ),
    (r"n_groups?|topk_groups?|\w*experts_per_tok(en)?|top_k_experts|moe_(topk|top_k|k)", 2),
    (r"(n|num)_?\w*experts|moe_num_experts", 4),
    (r"hidden_size_per_layer_input", 8),
    # The sum of `qk_nope_head_dim` and `qk_rope_head_dim`.
    (r"qk_head_dim", 32),
)
_LARGE, _ELSEWHERE = 512, 64


def shrink_config(config: Any) -> Any:
    """Return a transformers configuration of the same family and settings, whose model has a few narrow layers.

    Its layers are the first ones of the original, as many as it takes to have each type of them. Raises whatever
    transformers raises for a combination of sizes that the family does not allow.
    """
    settings = _shrink_settings(config.to_dict())
    settings.pop("transformers_version", None)
    return type(config).from_dict(settings)


def _shrink_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    depth = next((value for key, value in settings.items() if _LAYER_COUNT.fullmatch(key) and _is_count(value)), 0)
    heads = next((value for key, value in settings.items() if _HEADS.fullmatch(key) and _is_count(value)), 0)
    kept = min(depth, _count_layers(settings)) if depth else 0
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "num_kv_shared_layers" and value:
            small[key] = kept // 2
        elif key == "per_layer_config" and isinstance(value, dict):
            small[key] = {layer: change for layer, change in value.items() if int(layer) < kept}
        elif isinstance(value, dict):
            small[key] = _shrink_settings(value) if "model_type" in value or key.endswith("_config") else value
        elif isinstance(value, list) and depth and len(value) == depth:
            # Types, ropes and experts are listed layer by layer.
            small[key] = [_shrink_number(key, each, kept) if _is_count(each) else each for each in value[:kept]]
        elif _KEY_HEADS.fullmatch(key) and _is_count(value):
            # Grouped queries stay grouped, and heads with keys of their own keep them.
            small[key] = min(value, 4 if value == heads else 2)
        elif _is_count(value):
            small[key] = _shrink_number(key, value, kept)
        else:
            small[key] = value
    _shorten_rope_factors(settings, small, heads)
    return small


def _count_layers(settings: Mapping[str, Any]) -> int:
    """Return how many of the first layers hold every type of layer; with shared keys, twice as many."""
    types = settings.get("layer_types") or settings.get("layers_block_type") or []
    count = max([2, *(types.index(kind) + 1 for kind in set(types))])
    # The second half reads the keys of the first one.
    return 2 * count if settings.get("num_kv_shared_layers") else count


def _shrink_number(key: str, value: int, layers: int) -> int:
    if _LAYER_COUNT.fullmatch(key):
        return min(value, layers)
    if _HEADS.fullmatch(key):
        return min(value, 4)
    if _TOKEN.fullmatch(key):
        return value % _VOCABULARY
    for pattern, largest in _LARGEST:
        if re.fullmatch(pattern, key):
            return min(value, largest)
    return value if value <= _LARGE else _ELSEWHERE


def _shorten_rope_factors(settings: Mapping[str, Any], small: dict[str, Any], heads: int) -> None:
    """Shorten the lists of rope factors, which have one for each pair of the numbers of a head that are turned."""
    width = settings.get("head_dim") or settings.get("hidden_size", 0) // max(1, heads)
    new = small.get("head_dim") or small.get("hidden_size", 0) // max(1, min(heads, 4))
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := small.get(key), dict) and width:
            factors = {name: rope[name] for name in ("short_factor", "long_factor") if isinstance(rope.get(name), list)}
            cut = {name: values[: max(1, len(values) * new // width)] for name, values in factors.items()}
            small[key] = {**rope, **cut}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
