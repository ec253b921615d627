"""Encoder `timm_stages`: staged backbones of timm (ConvNeXt, Swin, ResNet). Read `encoder.py` first.

`models.py` takes timm's models apart into stem, stages and norms; `feature_maps.py` turns packed tokens into maps and
back.
"""

from __future__ import annotations

from vilavt_components.encoders.timm_stages.encoder import TimmStagesEncoder

__all__ = ["TimmStagesEncoder"]
