"""The ViLaVT toolkit: language models that look at images again, under an inquiry.

import vilavt_toolkit as vt
answer = vt.ask("scene.png", "what digit is on the red square?", model=vt.load("runs/quickstart"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vilavt_toolkit.chat.answer import Answer as Answer
    from vilavt_toolkit.chat.ask import ask as ask
    from vilavt_toolkit.chat.ask import ask_all as ask_all
    from vilavt_toolkit.chat.chat import Chat as Chat
    from vilavt_toolkit.checkpoints.exporting import export as export
    from vilavt_toolkit.checkpoints.loading import build as build
    from vilavt_toolkit.checkpoints.loading import load as load
    from vilavt_toolkit.config.recipe import load_recipe as load_recipe
    from vilavt_toolkit.contracts import Region as Region
    from vilavt_toolkit.evaluation.start import evaluate as evaluate
    from vilavt_toolkit.generation.sampling import Decoding as Decoding
    from vilavt_toolkit.models.model import VisualChatModel as VisualChatModel
    from vilavt_toolkit.training.start import reinforce as reinforce
    from vilavt_toolkit.training.start import train as train

__version__ = "0.1.0"

# Names that are imported when first used: torch costs seconds, and the command line's help needs none of it.
_PUBLIC = {
    "Answer": "vilavt_toolkit.chat.answer",
    "Chat": "vilavt_toolkit.chat.chat",
    "Decoding": "vilavt_toolkit.generation.sampling",
    "Region": "vilavt_toolkit.contracts",
    "VisualChatModel": "vilavt_toolkit.models.model",
    "ask": "vilavt_toolkit.chat.ask",
    "ask_all": "vilavt_toolkit.chat.ask",
    "build": "vilavt_toolkit.checkpoints.loading",
    "evaluate": "vilavt_toolkit.evaluation.start",
    "export": "vilavt_toolkit.checkpoints.exporting",
    "load": "vilavt_toolkit.checkpoints.loading",
    "load_recipe": "vilavt_toolkit.config.recipe",
    "reinforce": "vilavt_toolkit.training.start",
    "train": "vilavt_toolkit.training.start",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
