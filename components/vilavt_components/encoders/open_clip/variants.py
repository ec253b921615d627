"""Small models for the contract tests: one for each block, pooling and kind of features of open_clip's image towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

TINY: Mapping[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0},
}
_POOL = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2}


def small_models() -> Mapping[str, tuple[dict[str, Any], Literal["patches", "projected", "queries"]]]:
    """Return open_clip's configuration and the setting `features`, by what the model has inside."""
    # A layer scale of 0.5 instead of open_clip's usual 1e-5, so that a modulator's effect shows in the features.
    scaled = {"ls_init_value": 0.5, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    custom = dict.fromkeys(("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
    timm = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    return {
        "layer_scale": (_tiny_config_with(scaled, quick_gelu=True), "patches"),
        "custom_block": (_tiny_config_with(custom | {"pos_embed_type": "sin_cos_2d", "pool_type": "none"}), "patches"),
        "attention_pool": (_tiny_config_with(_POOL), "patches"),
        "queries": (_tiny_config_with(_POOL), "queries"),
        "projected": (_tiny_config_with({}), "projected"),
        "timm": ({"embed_dim": 24, "vision_cfg": timm}, "patches"),
    }


def _tiny_config_with(vision: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}, **more}
