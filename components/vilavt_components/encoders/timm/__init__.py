"""Plain vision transformers of timm, and a convolutional stem of our own."""

from __future__ import annotations

from vilavt_components.encoders.timm.encoder import TimmEncoder

__all__ = ["TimmEncoder"]
