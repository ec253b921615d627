"""Staged backbones of timm: ConvNeXt, Swin, ResNet."""

from __future__ import annotations

from vilavt_components.encoders.timm_stages.encoder import TimmStagesEncoder

__all__ = ["TimmStagesEncoder"]
