"""The ViLaVT toolkit: language models that look at images again, under an inquiry.

import vilavt_toolkit as vt
answer = vt.ask("scene.png", "what digit is on the red square?", model=vt.load("runs/quickstart"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vilavt_toolkit.chat.ask import Answer as Answer
    from vilavt_toolkit.chat.ask import ask as ask
    from vilavt_toolkit.chat.chat import Chat as Chat
    from vilavt_toolkit.chat.chat import ask_all as ask_all
    from vilavt_toolkit.chat.decoding import Decoding as Decoding
    from vilavt_toolkit.contracts import Region as Region
    from vilavt_toolkit.exporting import export as export
    from vilavt_toolkit.loading import build as build
    from vilavt_toolkit.loading import load as load
    from vilavt_toolkit.model import VisualChatModel as VisualChatModel
    from vilavt_toolkit.recipe import load_recipe as load_recipe

__version__ = "0.1.0"

# Names that are imported when first used: torch costs seconds, and the command line's help needs none of it.
_PUBLIC = {
    "Answer": "vilavt_toolkit.chat.ask",
    "Chat": "vilavt_toolkit.chat.chat",
    "Decoding": "vilavt_toolkit.chat.decoding",
    "Region": "vilavt_toolkit.contracts",
    "VisualChatModel": "vilavt_toolkit.model",
    "ask": "vilavt_toolkit.chat.ask",
    "ask_all": "vilavt_toolkit.chat.chat",
    "build": "vilavt_toolkit.loading",
    "export": "vilavt_toolkit.exporting",
    "load": "vilavt_toolkit.loading",
    "load_recipe": "vilavt_toolkit.recipe",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
