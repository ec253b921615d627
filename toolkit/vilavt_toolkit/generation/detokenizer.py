"""Text that comes token by token."""

from __future__ import annotations

from vilavt_toolkit.contracts import Tokenizer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Spelled:
    """What each token adds to a text; tokens may be parts of characters, and look different alone."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._told = self._text = ""

    def add(self, token: int, tokenizer: Tokenizer) -> str:
        """The text that a token completes; empty in the middle of a character."""
        self._ids.append(token)
        self._text = tokenizer.decode(self._ids)
        if self._text.endswith(_UNFINISHED):
            return ""
        new = self.rest()
        # The last token stays, as some are written without their space where nothing stands before them.
        self._ids = self._ids[-1:]
        self._told = self._text = tokenizer.decode(self._ids)
        return new

    def rest(self) -> str:
        """What is left where the text ends in the middle of a character."""
        rest, self._told = self._text[len(self._told) :], self._text
        return rest
