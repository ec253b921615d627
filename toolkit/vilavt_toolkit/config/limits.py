"""The numbers that a recipe may hold, by the name of their key: one table for sections, components and architectures.

A setting that declares its own range with `setting(minimum=, maximum=)` needs no row. The table bounds all others, and
the numbers in a component's plain data, such as the `config` that goes to timm or transformers. Its bounds are far
outside of what anybody trains, so that a number beyond them is a slip, and nothing is built from it.
"""

from __future__ import annotations

from dataclasses import Field
from typing import Any

MOST_PARTS = 100
"""Components in a recipe."""
MOST_MODULATORS = 2_000
"""Modulators of all blocks of an encoder together."""
MOST_PARAMETERS = 10**12
"""Parameters of a model."""
LARGEST = 10**12
"""The largest integer of a key that is not in the table, and its negative the smallest."""

_LAYERS = (1, 256)
_HEADS = (1, 10_000)
_WIDTH = (1, 1_000_000)
_SIDE = (1, 16_384)
_COUNT = (0, 10**9)
_AT_ONCE = (1, 100_000)
_SHARE = (0, 1)

_BY_KEY: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("depth", "depths", "layers", "num_layers", "num_hidden_layers", "n_layer", "n_layers"), _LAYERS),
    **dict.fromkeys(("num_blocks", "encoder_layers", "decoder_layers", "stages"), _LAYERS),
    **dict.fromkeys(("heads", "num_heads", "num_attention_heads", "num_key_value_heads", "n_head"), _HEADS),
    **dict.fromkeys(("width", "embed_dim", "embed_dims", "hidden_size", "hidden_dim", "intermediate_size"), _WIDTH),
    **dict.fromkeys(("d_model", "mlp_dim", "head_dim", "head_width", "out_hidden_size", "point_width"), _WIDTH),
    **dict.fromkeys(("dims", "in_chans", "in_channels", "features", "rank", "n_embd"), _WIDTH),
    **dict.fromkeys(("img_size", "image_size", "patch_size", "size"), _SIDE),
    **dict.fromkeys(("window_size", "temporal_patch_size", "spatial_merge_size", "merge", "pad_mlp"), (1, 1_024)),
    **dict.fromkeys(
        ("max_position_embeddings", "context_length", "n_positions", "max_tokens", "pack_tokens", "pack_patches"),
        (1, 10**8),
    ),
    **dict.fromkeys(("vocab_size",), (1, 10**7)),
    **dict.fromkeys(("mlp_ratio", "max_scale", "temperature", "lr", "fps", "folder_fps"), (0, 1_000)),
    **dict.fromkeys(("batch_size", "micro_batch", "rollout_batch", "group_size", "prompts_per_step"), _AT_ONCE),
    **dict.fromkeys(("drop_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"), _SHARE),
    **dict.fromkeys(("drop_path_rate", "dropout", "attention_dropout", "hidden_dropout", "classifier_dropout"), _SHARE),
    **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop", "residual_dropout", "activation_dropout"), _SHARE),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "layerdrop"), _SHARE),
    **dict.fromkeys(("workers", "max_regions", "cells", "objects"), (0, 1_000)),
    **dict.fromkeys(("threads", "inner_epochs", "turns", "frames", "patience", "max_resamples"), (0, 10_000)),
    **dict.fromkeys(("max_new_tokens", "max_length", "length", "margin", "box_units"), (0, 10**6)),
    **dict.fromkeys(("steps", "warmup_steps", "checkpoint_every", "log_every", "save_rollouts_every"), _COUNT),
    **dict.fromkeys(("validate_every", "validate_samples", "validate_dialogues", "keep_checkpoints"), _COUNT),
    **dict.fromkeys(("items", "train_items", "val_items", "test_items"), _COUNT),
    **dict.fromkeys(("max_samples", "max_bad_samples", "max_skipped"), _COUNT),
    **dict.fromkeys(("points", "max_points", "overview_points", "zoom_points"), (1, 10**8)),
    **dict.fromkeys(("overview_tokens", "zoom_tokens", "neighbours"), (1, 10**5)),
    **dict.fromkeys(("reward_seconds",), (0, 10**6)),
    **dict.fromkeys(("weight", "scale", "kl", "price", "max_cost"), (-(10**6), 10**6)),
    "seed": (0, 2**63 - 1),
    "flops": (0, 10**30),
}


def is_layer_count(key: str) -> bool:
    """Return True for a key under which a list has the layers of each stage, so that their sum is bounded too."""
    return _BY_KEY.get(key) == _LAYERS


def describe_bad_path(text: str) -> str:
    """Return why no file or folder can have a name, as the end of a sentence; empty where one can."""
    longest = max(len(part.encode("utf-8", "replace")) for part in text.split("/"))
    return "the name is longer than files can have. Write a shorter one." if longest > 255 or len(text) > 4_000 else ""


def describe_out_of_bounds(value: float, key: str, declared: Field[Any] | None = None) -> str:
    """Return how a number lies outside of what may stand under a key, and what to write; empty where it may.

    The range that the setting `declared` has of its own comes before that of the table.
    """
    # A fraction allocates nothing, whatever its size.
    others = (-LARGEST, LARGEST) if isinstance(value, int) else (value, value)
    low, high = _BY_KEY.get(key, others)
    facts = declared.metadata if declared is not None else {}
    low = low if facts.get("minimum") is None else facts["minimum"]
    high = high if facts.get("maximum") is None else facts["maximum"]
    if low <= value <= high:
        return ""
    side, bound, remedy = ("below the least", low, "more") if value < low else ("above the most", high, "less")
    about = f" ({facts['help']})" if facts.get("help") else ""
    return f"{_format_number(value)} is {side}, {bound}{about}. Write {bound} or {remedy}."


def _format_number(value: float) -> str:
    # Python writes no number of over 4,300 digits, and nobody reads one of over 20.
    return str(value) if abs(value) < 10**20 else f"{value:.3g}" if isinstance(value, float) else "a number that large"
