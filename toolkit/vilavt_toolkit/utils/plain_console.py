"""A console for text that others wrote: data, file names, a model's words."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from vilavt_toolkit.utils.text import escape_controls


class PlainConsole(Console):
    """A console that prints every text as it is: no markup, no emoji names, control characters as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **settings)

    # rich turns every plain string into a `Text` here, in tables too, so no caller has to think of it.
    def render_str(self, text: str, **settings: Any) -> Text:
        """Convert a string to rich text, its control characters escaped."""
        return super().render_str(escape_controls(text), **settings)
