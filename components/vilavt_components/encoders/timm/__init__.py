"""Encoder `timm`: plain vision transformers of timm. Read `encoder.py` first.

`blocks.py` has the forward of every block class, `branches.py` the attentions and MLPs inside them, `rope.py` and
`relative_bias.py` positions, `stem.py` a convolutional stem, and `models.py` builds, checks and fills timm's models.
"""

from __future__ import annotations

from vilavt_components.encoders.timm.encoder import TimmEncoder

__all__ = ["TimmEncoder"]
