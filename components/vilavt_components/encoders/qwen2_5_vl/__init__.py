"""Encoder `qwen2_5_vl`: the vision tower of Qwen2.5-VL, which ViLaVT modulates. Read `encoder.py` first.

`tower.py` has the modules, `windows.py` the order of patches on the packed axis, `resizing.py` the size of views, and
`vision_weights.py` reads checkpoints.
"""

from __future__ import annotations

from vilavt_components.encoders.qwen2_5_vl.encoder import Qwen25VLEncoder

__all__ = ["Qwen25VLEncoder"]
