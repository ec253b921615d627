"""Small models for the contract tests: one for each of timm's block classes and kinds of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 0,
}
_FULL = {"init_values": 0.5}


def small_models() -> Mapping[str, tuple[str, dict[str, Any]]]:
    """Return timm's name of a model and the arguments that make it small, by what the model has inside."""
    # Layer scales of 0.5 instead of 1e-5, so that a modulator's effect shows in the features.
    more: dict[str, tuple[str, dict[str, Any]]] = {
        "post_norm": ("vit_base_patch16_rpn_224", _FULL),
        "parallel": ("vit_pwee_patch16_reg1_gap_256", _FULL),
        "parallel_differential": ("vit_dpwee_patch16_reg1_gap_256", _FULL),
        "differential": ("vit_dwee_patch16_reg1_gap_256", _FULL),
        "side_by_side": ("vit_small_patch16_18x2_224", _FULL),
        "eva": ("eva02_base_patch14_224", {}),
        "eva_post_norm": ("eva02_enormous_patch14_clip_224", {}),
        "rope_mixed": ("vit_small_patch16_rope_mixed_224", _FULL),
        "rope_dinov3": ("vit_small_patch16_dinov3", _FULL),
        "hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 64, "patch_size": 2}),
        "relative_table": ("beit_base_patch16_224", _FULL),
        "relative_network": ("vit_relpos_small_patch16_224", _FULL),
    }
    flexible = {key: value for key, value in _SMALL.items() if key != "img_size"}
    more["naflex"] = ("naflexvit_base_patch16_par_gap", flexible | {"pos_embed_grid_size": (3, 3), "init_values": 0.5})
    return {name: (model, args if name == "naflex" else _SMALL | args) for name, (model, args) in more.items()}
