"""Generated scenes whose objects carry handwritten digits; read `task.py` first, then `one_image.py`."""

from __future__ import annotations

from vilavt_components.tasks.digit_scenes.task import DigitScenes

__all__ = ["DigitScenes"]
