"""Encoder `open_clip`: the image towers of open_clip's models. Read `encoder.py` first.

`tower.py` runs open_clip's own vision transformer, with the blocks of `blocks.py`. A tower that is timm's is run by
encoder `timm`.
"""

from __future__ import annotations

from vilavt_components.encoders.open_clip.encoder import OpenClipEncoder

__all__ = ["OpenClipEncoder"]
