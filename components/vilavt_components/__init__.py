"""The components that come with the toolkit; importing this package registers every one of them."""

from vilavt_components.dialogues import native
from vilavt_components.encoders import timm
from vilavt_components.inquiry_encoders import language_model
from vilavt_components.language_models import hf_causal
from vilavt_components.modulators import film, none
from vilavt_components.optimizers import adamw
from vilavt_components.projectors import mlp
from vilavt_components.sources import image
from vilavt_components.stopping import max_turns, model_decides
from vilavt_components.tasks import digit_scenes

__all__ = [
    "adamw",
    "digit_scenes",
    "film",
    "hf_causal",
    "image",
    "language_model",
    "max_turns",
    "mlp",
    "model_decides",
    "native",
    "none",
    "timm",
]
