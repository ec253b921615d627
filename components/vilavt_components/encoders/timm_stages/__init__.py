"""Encoder `timm_stages`: staged backbones of timm (ConvNeXt, Swin, ResNet, and most others). Read `encoder.py` first.

`watching.py` watches timm's own forward pass, `plan.py` finds stem, stages and norms in what was called, and
`models.py` runs them. `feature_maps.py` turns packed tokens into maps and back.
"""

from __future__ import annotations

from vilavt_components.encoders.timm_stages.encoder import TimmStagesEncoder

__all__ = ["TimmStagesEncoder"]
