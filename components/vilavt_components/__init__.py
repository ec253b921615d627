"""The components that come with the toolkit; importing this package registers every one of them."""

from vilavt_components.advantages import dr_grpo, grpo, rloo
from vilavt_components.dialogues import native, vilavt
from vilavt_components.encoders import open_clip, point_cloud, qwen2_5_vl, timm, timm_stages
from vilavt_components.formats import vilavt as vilavt_format
from vilavt_components.inquiry_encoders import hf_text, language_model, open_clip_text
from vilavt_components.language_models import hf_causal
from vilavt_components.language_models import qwen2_5_vl as qwen2_5_vl_language_model
from vilavt_components.modulators import cross_attention, film, joint_attention, lora_gated, none
from vilavt_components.optimizers import adamw
from vilavt_components.policy_losses import dapo, ppo_clip
from vilavt_components.projectors import identity, mlp
from vilavt_components.rewards import answer, format, gated, overlong_cost, reencode_cost
from vilavt_components.rewards import vilavt as vilavt_reward
from vilavt_components.sources import image, video
from vilavt_components.sources import point_cloud as point_cloud_source
from vilavt_components.stopping import (
    all_of,
    any_of,
    budget,
    confidence,
    converged,
    learned_halt,
    max_turns,
    model_decides,
)
from vilavt_components.tasks import (
    conversations,
    digit_scenes,
    easy_vqa,
    nlvr,
    shape_clouds,
    vilavt_benchmark,
    vilavt_rl,
)

__all__ = [
    "adamw",
    "all_of",
    "answer",
    "any_of",
    "budget",
    "confidence",
    "converged",
    "conversations",
    "cross_attention",
    "dapo",
    "digit_scenes",
    "dr_grpo",
    "easy_vqa",
    "film",
    "format",
    "gated",
    "grpo",
    "hf_causal",
    "hf_text",
    "identity",
    "image",
    "joint_attention",
    "language_model",
    "learned_halt",
    "lora_gated",
    "max_turns",
    "mlp",
    "model_decides",
    "native",
    "nlvr",
    "none",
    "open_clip",
    "open_clip_text",
    "overlong_cost",
    "point_cloud",
    "point_cloud_source",
    "ppo_clip",
    "qwen2_5_vl",
    "qwen2_5_vl_language_model",
    "reencode_cost",
    "rloo",
    "shape_clouds",
    "timm",
    "timm_stages",
    "video",
    "vilavt",
    "vilavt_benchmark",
    "vilavt_format",
    "vilavt_reward",
    "vilavt_rl",
]
